"""``failures.tsv``: what could not be used, why, and what can be done; and how much of it is borne.

A scan is what was meant to be one. What never was, a screen save or a lone slice of a localizer, is
listed too, and counts nowhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from neuro.data.lock import locked
from neuro.data.whole_file import NotWritable, make_folder, remove, write_whole
from neuro.errors import InputError, NotAScan, ScanError, legible

log = logging.getLogger(__name__)

HEADER = "file\tstep\treason\tcure"


class Ledger:
    """The failures of the cohort that was last prepared in a cache.

    Args:
        root: The cache.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "failures.tsv"

    def update(self, failures: Sequence[ScanError], checked: Iterable[Path] | None) -> None:
        """Bring the file up to date; without a failure there is none.

        Where the user may not write and it would have to change, it stays as it is, with a warning.

        Args:
            failures: All there are.
            checked: The files that were looked at, of which earlier rows are forgotten; None
                forgets all earlier rows, because the whole cohort was looked at.

        Raises:
            NotWritable: The disk is full.
        """
        rows = [_row(failure) for failure in failures]
        files = None if checked is None else {_field(path) for path in checked}
        if self._content(rows, files) == self._stored():  # may be shared, and not writable
            return
        try:
            make_folder(self.path.parent)
            with locked(self.path.parent, self.path.name):
                self._warn_of_damage()
                content = self._content(rows, files)
                if content:
                    write_whole(self.path, content)
                else:
                    remove(self.path)
        except NotWritable as error:
            if not error.is_forbidden:
                raise
            log.warning("%s Its rows stay as they were.", error)

    def _content(self, rows: list[str], checked: set[str] | None) -> str:
        """Return what the file should hold."""
        kept = []
        if checked is not None:
            files = checked | {row.split("\t")[0] for row in rows}
            kept = [row for row in self._lines() if _is_sound(row) and row != HEADER]
            kept = [row for row in kept if row.split("\t")[0] not in files]
        every = sorted({*kept, *rows})
        return "\n".join([HEADER, *every, ""]) if every else ""

    def _warn_of_damage(self) -> None:
        num_damaged = sum(not _is_sound(line) for line in self._lines())
        if num_damaged:
            log.warning(
                "%s is damaged: %d of its lines cannot be read. They are dropped; a run without "
                "shard writes all of them anew.",
                self.path,
                num_damaged,
            )

    def _lines(self) -> list[str]:
        stored = self._stored()
        return stored.removesuffix("\n").split("\n") if stored else []

    def _stored(self) -> str:
        try:
            return self.path.read_bytes().decode(errors="replace")
        except OSError:  # absent, or to be replaced
            return ""


class TooManyFailedScans(InputError):
    """More scans failed than ``data.max_failed`` allows; the message names each of them.

    Attributes:
        failures: These, and what never was a scan.
    """

    def __init__(self, failures: list[ScanError], *, num_scans: int, max_failed: float) -> None:
        self.failures = failures
        self.max_failed = max_failed
        bad = failed(failures)
        lines = "\n".join(str(failure) for failure in bad)
        super().__init__(
            f"{lines}\n{len(bad)} of {num_scans} scans cannot be used; "
            f"data.max_failed={max_failed} allows {_num_allowed(num_scans, max_failed)}. "
            f"Mend or remove them, or raise data.max_failed."
        )

    def __reduce__(self) -> tuple:
        return InputError, (str(self),)


class NoUsableScan(InputError):
    """A source found failures and nothing else.

    Attributes:
        failures: These; the message names each.
        max_failed: No tolerance allows as much, so the command leaves as where one is exceeded.
    """

    max_failed = 1.0

    def __init__(self, failures: Sequence[ScanError]) -> None:
        self.failures = list(failures)
        lines = "\n".join(str(failure) for failure in self.failures)
        super().__init__(f"{lines}\nno scan can be used. Mend or replace the files above.")

    def __reduce__(self) -> tuple:
        return type(self), (self.failures,)


def check_tolerance(failures: list[ScanError], *, num_scans: int, max_failed: float) -> None:
    """Check how many scans failed.

    Args:
        failures: The failures, and what never was a scan.
        num_scans: Scans in all, those that failed among them.
        max_failed: The share of scans, in [0, 1], that may fail.

    Raises:
        TooManyFailedScans: More did.
    """
    if len(failed(failures)) > _num_allowed(num_scans, max_failed):
        raise TooManyFailedScans(failures, num_scans=num_scans, max_failed=max_failed)


def failed(failures: Sequence[ScanError]) -> list[ScanError]:
    """Return the failures that are scans; every export has something that is none."""
    return [failure for failure in failures if not isinstance(failure, NotAScan)]


def _num_allowed(num_scans: int, max_failed: float) -> int:
    """Return how many scans may fail; 29 of 100 are 0.29, whatever binary fractions say."""
    return math.floor(max_failed * num_scans + 1e-9)


def _is_sound(row: str) -> bool:
    return row.count("\t") == HEADER.count("\t") and "\ufffd" not in row


def _row(failure: ScanError) -> str:
    return "\t".join(map(_field, (failure.path, failure.step, failure.reason, failure.cure)))


def _field(value: object) -> str:
    """Return text that is one field of one row, as it can be written."""
    return legible(" ".join(str(value).split()))
