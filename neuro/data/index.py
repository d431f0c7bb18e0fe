"""``index.jsonl``: what is in each entry of a cache, so that none has to be opened for a plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from isal import isal_zlib

from neuro.data.entry import Entry, EntryForbidden, Facts
from neuro.data.lock import locked
from neuro.data.threads import Threads
from neuro.data.whole_file import NotWritable, write_whole
from neuro.errors import ScanError

log = logging.getLogger(__name__)

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

        Raises:
            EntryForbidden: The user may not read one.
        """
        rows = self._fresh(entries)
        return {path: Facts.of(row["facts"]) for path, row in rows.items()}

    def num_kept(
        self,
        entries: Mapping[Path, Path],
        min_foreground: float,
        damaged: dict[Path, ScanError] | None = None,
    ) -> dict[Path, int]:
        """Return how many tokens of one frame have this share of head, for each entry.

        Args:
            entries: Entry to scan.
            min_foreground: The share, in [0, 1].
            damaged: Gets an error for each entry that cannot be read, which then has no count;
                None raises the first.

        Raises:
            ScanError: An entry is absent or damaged.
        """
        rows = self._fresh(entries)
        errors: dict[Path, ScanError] = {}
        key = repr(min_foreground)

        def count(path: Path) -> int | None:
            try:
                with Entry(path, entries[path]) as entry:
                    entry.facts()  # says why there is no row, where there is none
                    return int((entry.read("foreground") >= min_foreground * 255).sum())
            except EntryForbidden:
                raise
            except ScanError as error:
                errors[path] = error
                return None

        missing = [path for path in entries if path not in rows or key not in rows[path]["kept"]]
        if missing:
            with Threads() as pool:
                counts = dict(zip(missing, pool.map(count, missing), strict=True))
            sound = {path: entries[path] for path in missing if path not in errors}
            rows |= self._fresh(sound)  # one may have been written this very moment
            for path in sound:
                rows[path]["kept"][key] = counts[path]
                self._changed.add(self._name(path))
            if sound:
                self._write()
        errors = {path: errors[path] for path in missing if path in errors}  # whoever was first
        if damaged is None and errors:
            raise next(iter(errors.values()))
        if damaged is not None:
            damaged.update(errors)
        return {path: rows[path]["kept"][key] for path in entries if path not in errors}

    def refresh(self, entries: Mapping[Path, Path]) -> None:
        """Bring the file up to date for these entries.

        Raises:
            NotWritable: The disk is full.
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
                except EntryForbidden:  # made again, it would take somebody's place
                    raise
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

    def _load(self, *, is_told: bool = False) -> dict[str, Row]:
        """Return the rows that can be read; the rest is read from its entries again.

        Args:
            is_told: Whether damage was told before.
        """
        self._known = self._stamp()
        if self._known is None:
            return {}
        rows = [_row(line) for line in self.path.read_bytes().splitlines()]
        if None in rows:
            self._known = None  # to be written again
            log.log(
                logging.DEBUG if is_told else logging.WARNING,
                "%s: %d of its %d lines are damaged or of another version; what they said is read "
                "from the entries again",
                self.path,
                rows.count(None),
                len(rows),
            )
        return {row["entry"]: row for row in rows if row is not None}

    def _write(self) -> None:
        """Write all rows, those of other jobs too."""
        try:
            self._write_rows()
        except NotWritable as error:
            if not error.is_forbidden:
                raise
            log.warning("%s What it lacks is read from the entries each time.", error)
        self._changed.clear()

    def _write_rows(self) -> None:
        assert self._rows is not None, "rows are read before they are written"
        with locked(self.path.parent, self.path.name):
            if self._stamp() != self._known:  # another job may know better
                own = {name: self._rows[name] for name in self._changed}
                self._rows = {**self._rows, **self._load(is_told=self._known is None), **own}
            names = sorted(name for name in self._rows if (self.path.parent / name).exists())
            write_whole(self.path, "".join(_line(self._rows[name]) for name in names))
            self._known = self._stamp()

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
    try:
        row = json.loads(body)
        Facts.of(row["facts"])
        texts, counts = (row["entry"], row["file"], row["stamp"]), row["kept"].values()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    is_sound = all(type(one) is str for one in texts) and all(type(one) is int for one in counts)
    return row if is_sound else None


def _crc(body: bytes) -> str:
    return f"{isal_zlib.crc32(body, LAYOUT):08x}"
