"""What a person sees: a bar on a terminal, plain lines elsewhere, and the lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neuro.redaction import RedactedFormatter

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


def on_terminal() -> bool:
    """Return whether somebody is looking."""
    return sys.stdout.isatty()


def set_up_logging(log_file: Path | None, rank: int = 0) -> None:
    """Send the project's messages to the screen and to a file, and quieten what others chat.

    Args:
        log_file: The file; None is the screen alone.
        rank: Of this process in its run; all but the first say no more than warnings.
    """
    root = logging.getLogger("neuro")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root.propagate = False
    logging.raiseExceptions = False  # a full disk is told once, not for every line
    screen = _Screen()
    screen.setFormatter(RedactedFormatter("%(message)s"))
    root.addHandler(screen)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(
            RedactedFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        )
        root.addHandler(file)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(False)
    warnings.filterwarnings(
        "ignore", module=r"(lightning|torch|transformers|monai|tensorboard)\b.*"
    )


class _Screen(logging.StreamHandler):
    """Writes to whatever is the standard output at the time."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


@contextmanager
def meter(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how far something is; call what it yields once for each thing that is done."""
    if on_terminal():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _lines(label, total)
    log.info("%s: %d done", label, total)


def _lines(label: str, total: int) -> Callable[[], None]:
    """Return a counter that writes a line now and then."""
    done, last = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%s: %d of %d", label, done, total)

    return advance
