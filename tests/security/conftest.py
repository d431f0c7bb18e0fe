"""What the tests of security share: commands in a process of their own, and a search."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS)]


@pytest.fixture(scope="session")
def run_commands():
    """Return what runs commands in one process: their statuses, and all that they printed."""

    def run(folder: Path, commands: list[list[str]], **environment: str) -> tuple[list[int], str]:
        done = subprocess.run(
            [sys.executable, str(TESTS / "security" / "run_commands.py"), json.dumps(commands)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("status ")]
        return [int(line.split()[1]) for line in lines], said

    return run


@pytest.fixture(scope="session")
def places_of():
    """Return what finds texts in and around files: where each is, unpacked as far as can be."""

    def find(texts: list[str], roots: list[Path]) -> list[str]:
        wanted = [text.lower().encode() for text in texts]
        found = []
        for root in roots:
            for path in sorted([root, *root.rglob("*")]):
                held = [path.name.encode()]
                if path.is_file() and not path.is_symlink():
                    held += _unpacked(path.read_bytes())
                for text in wanted:
                    if any(text in content.lower() for content in held):
                        found.append(f"{text.decode()} in {path}")
        return found

    return find


def _unpacked(data: bytes) -> Iterator[bytes]:
    yield data
    if data[:3] == b"\x1f\x8b\x08":
        with suppress(OSError, EOFError, zlib.error):  # numbers may begin so too
            yield from _unpacked(gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from _unpacked(archive.read(name))
