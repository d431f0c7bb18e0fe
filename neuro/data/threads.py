"""Threads that end soon and quietly when the one who waits for them is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from typing_extensions import override


class Threads(ThreadPoolExecutor):
    """A pool of threads, as a context manager.

    When the block ends by an exception (a full disk, Ctrl-C), jobs that have not begun never
    begin, and ``stopping`` is set for those that have, which are waited for: a thread that is torn
    away from its work takes the interpreter down with it.

    Args:
        count: How many; None takes as many as fit the machine.

    Attributes:
        stopping: Jobs that take long ask it between two steps.
    """

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count)
        self.stopping = threading.Event()

    @override
    def __exit__(self, kind: type[BaseException] | None, *more: Any) -> None:
        if kind is None:
            self.shutdown()
            return
        self.stopping.set()
        with _ctrl_c_ends_the_process():
            self.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_ends_the_process() -> Iterator[None]:
    """Let the system, not Python, answer a second Ctrl-C: at once, and without a word.

    What is being written then is left as by ``kill -9``, which every file here survives.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
