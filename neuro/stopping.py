"""Being stopped from outside: which signals ask for it, and when they are answered."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

# Ctrl-C; a scheduler that takes the machine back; SLURM's --signal=USR1; submitit's own; a terminal
# that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
STATUS = 1  # of a command that was stopped
TOLD = "stopped by"  # how its last line begins, by which a sweep knows it
SECONDS_TO_REQUEUE = 30.0  # of a busy cluster


class Stopped(SystemExit):
    """The command was asked to stop, and everything that is to be kept is kept.

    Attributes:
        signum: The signal that asked.
    """

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(STATUS)
        self.signum = signum


class StopSignals:
    """Answers the signals that ask a process to stop.

    They stop it where it is, as Ctrl-C does. Only within ``deferred`` they are noted, for one who
    looks at ``asked`` between two steps and then calls ``stop``; a Ctrl-C after that stops at once.

    Attributes:
        asked: The signal that asked; None if none did.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._is_deferred = False
        self._owner = 0
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer them in this block; afterwards those who did before do so again."""
        if self._before or threading.current_thread() is not threading.main_thread():
            yield  # Python allows handlers in the main thread only
            return
        before = {one: signal.getsignal(one) for one in SIGNALS}
        # What is ignored stays so: nohup does that.
        self._before = {one: how for one, how in before.items() if how != signal.SIG_IGN}
        self.asked, self._owner = None, os.getpid()
        self.take()
        try:
            yield
        finally:
            for signum, handler in self._before.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
            self._before = {}

    def take(self) -> None:
        """Answer them again: Lightning puts its own answer to SIGTERM in front of ours."""
        for signum in self._before:
            signal.signal(signum, self._answer)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals in this block; its caller asks for ``asked`` and calls ``stop``."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def stop(self, signum: signal.Signals) -> None:
        """Leave: first to the job queue, if that is what the signal means.

        Raises:
            Stopped: Always, unless a scheduler's own answer leaves otherwise.
        """
        before = self._before.get(signum)
        if callable(before) and before is not signal.default_int_handler:
            before(signum, None)  # submitit's: it puts the job back into the queue, and leaves
        elif signum == signal.SIGUSR1:
            self._is_deferred = False  # SLURM's SIGTERM, which follows, is answered at once
            requeue()
        raise Stopped(signum)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        signum = signal.Signals(number)
        if os.getpid() != self._owner:  # a process that reads for the one that was meant
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif self._is_deferred and not (signum == signal.SIGINT and self.asked is not None):
            if self.asked is None:
                self.asked = signum
                log.warning("%s: stopping after this step", signum.name)
        elif signum == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            self.stop(signum)


def requeue() -> None:
    """Put this job back into SLURM's queue, where there is one; only its first process does.

    The job keeps its number, and so its run folder. The others wait: SLURM ends them, and where a
    task that fails takes the others with it, one that left sooner would end the first.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if os.environ.get("SLURM_PROCID", "0") != "0":
        time.sleep(SECONDS_TO_REQUEUE)
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not re.fullmatch(r"[0-9_]+", job):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        log.error("scontrol requeue %s: %s. Submit the job again; it goes on.", job, error)
        return
    if done.returncode:
        why = " ".join(done.stderr.split())
        log.error("scontrol requeue %s: %s. Submit the job again; it goes on.", job, why)
    else:
        log.warning("job %s is in the queue again", job)


# Signals are the process's, so there is one who answers them.
STOP_SIGNALS = StopSignals()
