"""Locks between processes, which die with the process that holds them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuro.data.whole_file import HELD, NotWritable

try:
    import fcntl
except ImportError:  # Windows: builders there do not share a cache
    fcntl = None

log = logging.getLogger(__name__)

NUM_FILES = 256  # locks share so many files; two names on one file wait for each other


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock on a name in a folder; wait for whoever has it.

    A killed process leaves nothing behind that has to be cleaned up. On a file system without
    locks, two jobs may do the same work; what they write is whole all the same.

    Raises:
        NotWritable: The folder of the locks cannot be made or written to.
    """
    if fcntl is None:
        yield
        return
    number = zlib.crc32(name.encode()) % NUM_FILES
    path = folder / ".locks" / f"{number:03d}"
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise NotWritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: no locks on this file system (%s)", folder, error.strerror)
            yield
            return
        HELD.add(folder / name)
        try:
            yield
        finally:
            HELD.discard(folder / name)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a child has it too
