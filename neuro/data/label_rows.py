"""Which row of a table of labels belongs to which study: joined by id, and never by guessing."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Float, Int

from neuro.data.codebook import LabelColumn
from neuro.data.table import some_of
from neuro.errors import InputError

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

KEYS = ("study", "study_id", "participant_id", "subject", "subject_id", "id")
SUBJECT_KEYS = ("participant_id", "subject", "subject_id")

Ids = Sequence[str] | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class LabelRows:
    """Which row belongs to which study.

    Attributes:
        key: The column of ids.
        ids: The id of each row.
        what: What the ids name: ``study`` or ``subject``.
        row: The first row of each study; -1 where there is none.
        first: The first row with the same id, for each row.
        used: Whether a row belongs to any study.
    """

    key: str
    ids: pa.Array
    what: str
    row: Int[np.ndarray, " studies"]
    first: Int[np.ndarray, " rows"]
    used: Bool[np.ndarray, " rows"]

    @staticmethod
    def of(
        table: pa.Table,
        key: str | None,
        *,
        studies: Ids,
        subjects: Ids,
        labels: Sequence[str],
        where: str,
    ) -> LabelRows:
        """Join a table to studies.

        Args:
            table: As ``read_table`` returns it: every column text.
            key: The column of ids; None takes the first of ``KEYS`` that exists, else the first
                column.
            studies: The ids, each once.
            subjects: The subject of each study.
            labels: The columns that are labels, and never ids.
            where: What messages call the table.

        Raises:
            InputError: The column is absent, or no id matches.
        """
        if key is not None:
            check_column(table, key, "data.labels.key", where)
        names = table.column_names
        key = key or next((name for name in KEYS if name in names), names[0])
        study_ids, subject_ids = _array(studies), _array(subjects)
        found = _joined(table, key, study_ids, subject_ids)
        if found is None:
            raise _no_match(table, key, study_ids, subject_ids, labels, where)
        return found

    def report(self, studies: Ids, where: str) -> None:
        """Log how many studies and rows found each other, with examples of those that did not."""
        names = _array(studies)
        log.info(
            "%s: %d of %d studies have a row, by %s id in column %r",
            where,
            (self.row >= 0).sum(),
            len(names),
            self.what,
            self.key,
        )
        for sentence, mask, ids in (
            ("%s: %d studies have no row: %s", self.row < 0, names),
            ("%s: %d rows name no study: %s", ~self.used, self.ids),
        ):
            if mask.any():
                log.info(sentence, where, mask.sum(), _some(ids.filter(pa.array(mask))))

    def check_repeated(
        self,
        columns: Sequence[LabelColumn],
        values: Float[np.ndarray, "rows findings"],
        where: str,
    ) -> None:
        """Refuse an id whose rows differ; rows that agree count once.

        Raises:
            InputError: Two rows of a study differ in a label.
        """
        again = np.flatnonzero(self.used & (self.first != np.arange(len(self.first))))
        one, other = values[again], values[self.first[again]]
        differ = (one != other) & ~(np.isnan(one) & np.isnan(other))
        if differ.any():
            position, finding = np.argwhere(differ)[0]
            row, column = again[position], columns[finding]
            raise InputError(
                f"{where}: id {self.ids[row].as_py()!r} has two rows that differ in column "
                f"{column.name!r}: {column.spelling(self.first[row])!r} and "
                f"{column.spelling(row)!r}. Keep one row per id."
            )

    def of_studies(
        self, values: Float[np.ndarray, "rows findings"]
    ) -> Float[np.ndarray, "studies findings"]:
        """Return the values of each study; NaN where it has no row."""
        return np.where(self.row[:, None] >= 0, values[self.row], np.float32(np.nan))


def check_column(table: pa.Table, name: str, setting: str, where: str) -> None:
    """Check that a table has a column.

    Args:
        table: The table.
        name: The column.
        setting: The config key that names it.
        where: What messages call the table.

    Raises:
        InputError: It has none.
    """
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        cure = f"Did you mean {near[0]!r}?" if near else "Take one of these."
        raise InputError(
            f"{setting} names {name!r}, which is no column of {where}; it has "
            f"{some_of(table.column_names, 30)}. {cure}"
        )


def _joined(table: pa.Table, key: str, studies: pa.Array, subjects: pa.Array) -> LabelRows | None:
    """Match by study id, else by subject id; a key that is named after subjects the other way."""
    ids = _array(pc.utf8_trim_whitespace(table[key]))
    ways = [("study", ids, studies), ("subject", _bare(ids), _bare(subjects))]
    for what, ours, theirs in reversed(ways) if key in SUBJECT_KEYS else ways:
        encoded = ours.dictionary_encode()
        wanted = pc.index_in(theirs, value_set=encoded.dictionary).fill_null(-1).to_numpy()
        if (wanted < 0).all():
            continue
        code = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()
        first_of_code = np.zeros(len(encoded.dictionary) + 1, np.int64)
        first_of_code[code[::-1]] = np.arange(len(code))[::-1]  # the last assignment stays
        used_code = np.zeros(len(first_of_code), bool)
        used_code[wanted[wanted >= 0]] = True
        row = np.where(wanted >= 0, first_of_code[wanted], -1)
        return LabelRows(key, ids, what, row, first_of_code[code], used_code[code])
    return None


def _no_match(
    table: pa.Table,
    key: str,
    studies: pa.Array,
    subjects: pa.Array,
    labels: Sequence[str],
    where: str,
) -> InputError:
    """Show both sides of a join that joins nothing, and what would mend it."""
    ids = _array(pc.utf8_trim_whitespace(table[key]))
    cure = "Write the same ids on both sides, or name the column of ids in data.labels.key."
    for name in table.column_names:
        if name != key and name not in labels:
            match = _joined(table, name, studies, subjects)
            if match is not None:
                num_matched = (match.row >= 0).sum()
                cure = f"Column {name!r} names {num_matched} of them: set data.labels.key={name}."
    if _agree_without_zeros(ids, studies, subjects):
        cure = "They agree but for leading zeros, which a spreadsheet drops: restore them as text."
    return InputError(
        f"{where}: no id of column {key!r} is a study or a subject. The table has {_some(ids)}; "
        f"the studies are {_some(studies)} of the subjects {_some(subjects)}. {cure}"
    )


def _agree_without_zeros(ids: pa.Array, studies: pa.Array, subjects: pa.Array) -> bool:
    ours, *theirs = (pc.utf8_ltrim(_bare(one), characters="0") for one in (ids, studies, subjects))
    return any(pc.any(pc.is_in(one, value_set=ours)).as_py() for one in theirs)


def _bare(ids: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(ids, pattern="^sub-", replacement="")


def _array(ids: Ids) -> pa.Array:
    if isinstance(ids, Sequence):
        return pa.array(ids, pa.string())
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return whole.cast(pa.string())


def _some(ids: pa.Array) -> str:
    return some_of([repr(one) for one in ids.slice(0, 5).to_pylist()], 5, total=len(ids))
