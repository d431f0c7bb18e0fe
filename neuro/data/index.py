"""``index.jsonl``: what is in each entry of a cache, so that none has to be opened for a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from isal import isal_zlib

from neuro.data.entry import Entry, Facts, write_whole
from neuro.data.lock import locked
from neuro.errors import ScanError

Row = dict[str, Any]
Stamp = tuple[int, int] | None  # size and time of change; None where there is no file
LAYOUT = isal_zlib.crc32("|".join(field.name for field in fields(Facts)).encode())


class Index:
    """Facts by entry, as read from the entries themselves.

    A row counts as long as its entry has the same size and time of change, so the file may be
    deleted, and several jobs may write it.

    Args:
        root: The cache.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "index.jsonl"
        self._rows: dict[str, Row] | None = None
        self._changed: set[str] = set()  # rows that the file does not have yet
        self._known: Stamp = None  # the file that was read or written last

    def facts(self, entries: Mapping[Path, Path]) -> dict[Path, Facts]:
        """Return the facts of the entries that exist and are whole.

        Args:
            entries: Entry to scan.
        """
        rows = self._fresh(entries)
        return {path: Facts.of(row["facts"]) for path, row in rows.items()}

    def num_kept(self, entries: Mapping[Path, Path], min_foreground: float) -> dict[Path, int]:
        """Return how many tokens of one frame have this share of head, for each entry.

        Raises:
            ScanError: An entry is absent or damaged.
        """
        rows = self._fresh(entries)
        for path in entries.keys() - rows.keys():
            with Entry(path, entries[path]) as entry:
                entry.facts()  # says why there is no row
            rows |= self._fresh({path: entries[path]})  # it was written this very moment
        key = repr(min_foreground)
        missing = {
            path: source for path, source in entries.items() if key not in rows[path]["kept"]
        }
        if missing:

            def count(path: Path) -> int:
                with Entry(path, missing[path]) as entry:
                    return int((entry.read("foreground") >= min_foreground * 255).sum())

            with ThreadPoolExecutor() as pool:
                counts = dict(zip(missing, pool.map(count, missing), strict=True))
            for path, kept in counts.items():
                rows[path]["kept"][key] = kept
                self._changed.add(self._name(path))
            self._write()
        return {path: rows[path]["kept"][key] for path in entries}

    def refresh(self, entries: Mapping[Path, Path]) -> None:
        """Bring the file up to date for these entries.

        Raises:
            InputError: The disk is full or not writable.
        """
        if self._fresh(entries) and (self._changed or self._stamp() != self._known):
            self._write()

    def _fresh(self, entries: Mapping[Path, Path]) -> dict[Path, Row]:
        """Return the rows of the entries that exist, opening those that are new or changed."""
        if self._rows is None:
            self._rows = self._load()
        rows = {}
        for path, source in entries.items():
            try:
                stat = path.stat()
            except OSError:
                continue
            stamp = f"{stat.st_size}|{stat.st_mtime_ns}"
            name = self._name(path)
            row = self._rows.get(name)
            if row is None or row["stamp"] != stamp:
                try:
                    with Entry(path, source) as entry:
                        facts = asdict(entry.facts())
                except ScanError:
                    continue  # to be made again
                about = {"entry": name, "file": str(source), "stamp": stamp}
                row = {**about, "facts": facts, "kept": {}}
                self._rows[name] = row
                self._changed.add(name)
            rows[path] = row
        return rows

    def _name(self, path: Path) -> str:
        return f"{path.parent.name}/{path.name}"

    def _load(self) -> dict[str, Row]:
        """Return the rows that can be read; the rest is read from its entries again."""
        self._known = self._stamp()
        if self._known is None:
            return {}
        rows = [_row(line) for line in self.path.read_bytes().splitlines()]
        if None in rows:
            self._known = None  # to be written again
        return {row["entry"]: row for row in rows if row is not None}

    def _write(self) -> None:
        """Write all rows, those of other jobs too."""
        assert self._rows is not None, "rows are read before they are written"
        with locked(self.path.parent, self.path.name):
            if self._stamp() != self._known:  # another job may know better
                own = {name: self._rows[name] for name in self._changed}
                self._rows = {**self._rows, **self._load(), **own}
            names = sorted(name for name in self._rows if (self.path.parent / name).exists())
            write_whole(self.path, "".join(_line(self._rows[name]) for name in names))
            self._known = self._stamp()
        self._changed.clear()

    def _stamp(self) -> Stamp:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns


def _line(row: Row) -> str:
    """Return a row as JSON, its checksum first."""
    body = json.dumps(row)
    return f'{{"crc": "{_crc(body.encode())}", {body[1:]}\n'


def _row(line: bytes) -> Row | None:
    """Return what a line says; None where it is not what was written, or of another version."""
    body = b"{" + line[20:]
    if line[:20] != f'{{"crc": "{_crc(body)}", '.encode():
        return None
    return json.loads(body)


def _crc(body: bytes) -> str:
    return f"{isal_zlib.crc32(body, LAYOUT):08x}"
