"""Files of the cache that are whole or as they were, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neuro.errors import InputError

UMASK = os.umask(0)  # can only be read by setting it; here, while there is one thread
os.umask(UMASK)
# Files that this process has a lock on: nobody else writes them, nor is what lies beside them used.
HELD: set[Path] = set()
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class NotWritable(InputError):
    """The cache cannot be written to: the disk is full, or this user may not.

    Attributes:
        is_forbidden: Whether the user may not write there; others may have filled this cache.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        self.path = path
        self.error = error
        self.is_forbidden = error.errno in FORBIDDEN
        what = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
        cure = "Give yourself write access" if self.is_forbidden else "Free space"
        super().__init__(
            f"cannot write to the cache at {path}: {what}. "
            f"{cure}, or set paths.cache_dir to another folder."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.error)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a place to write to, beside ``path``; what is there at the end becomes ``path``.

    The place is in a folder of its own, since a library may write to a file beside it first, under
    a name that nobody knows (safetensors does). Where the lock on ``path`` is held, what a killed
    process left is removed here; and since the folder is gone before ``path`` appears, none leaves
    anything beside a new file that is there, which nobody would write again. Where file systems
    have no locks, each process has a folder of its own name.

    Raises:
        NotWritable: The disk is full or not writable; ``path`` is as it was.
    """
    folder, done = _free(path)
    try:
        folder.mkdir()
        yield folder / path.name
        os.chmod(folder / path.name, 0o666 & ~UMASK)  # safetensors writes for its user alone
        os.replace(folder / path.name, done)
        _clear(folder)
        os.replace(done, path)
    except OSError as error:
        raise NotWritable(path, error) from error
    finally:  # after Ctrl-C too
        _clear(folder)
        _clear(done)


def _free(path: Path) -> tuple[Path, Path]:
    """Return names beside a file that nothing has, for a folder and for what comes out of it."""
    own = f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    names = path, path
    for middle in ("", own) if path in HELD else (own,):
        names = tuple(path.with_name(f".{path.name}{middle}.{end}") for end in ("part", "done"))
        for name in names:
            _clear(name)
        if not any(map(os.path.lexists, names)):  # one may be a colleague's, and stay
            break
    folder, done = names
    return folder, done


def _clear(path: Path) -> None:
    """Remove a file or folder, if it is there and may be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # also where it is a folder still
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is whole or as it was; the caller holds the lock on it.

    Raises:
        NotWritable: The disk is full or not writable; nothing half-written is left.
    """
    with whole(path) as temporary:
        # a path may hold bytes that are no text
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove(path: Path) -> None:
    """Remove a file of the cache, if it is there.

    Raises:
        NotWritable: The user may not.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritable(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder of the cache, if it is not there.

    Raises:
        NotWritable: The disk is full or not writable, or a file has this name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(path, error) from error
