"""What the values of a label column stand for: which task they speak for, and their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Float, Int

from neuro.data.table import is_unknown, some_of
from neuro.errors import InputError

pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
UNCERTAIN = "-1"  # CheXpert's mark for "the report does not decide"; it is unknown, not a class
MAX_NUMERIC_CLASSES = 10  # more different numbers than this are taken for a quantity

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LabelColumn:
    """A label column.

    Attributes:
        name: What it is called.
        code: Each row as an index into ``spellings``; -1 is an empty cell.
        spellings: The different values, as written.
    """

    name: str
    code: Int[np.ndarray, " rows"]
    spellings: tuple[str, ...]

    @staticmethod
    def of(name: str, column: pa.ChunkedArray) -> LabelColumn:
        """Return a column of a table."""
        text = pc.utf8_trim_whitespace(column).combine_chunks().cast(pa.string())
        encoded = text.dictionary_encode()
        code = encoded.indices.fill_null(-1).to_numpy()
        return LabelColumn(name, code, tuple(encoded.dictionary.to_pylist()))

    def spelling(self, row: int | np.integer) -> str:
        """Return what a row says, as written."""
        return self.spellings[self.code[row]] if self.code[row] >= 0 else ""

    def known(self) -> set[str]:
        """Return the different values that are not unknown, in their common spelling."""
        return {common_spelling(text) for text in self.spellings if not is_unknown(text)}


@dataclass(frozen=True)
class Codebook:
    """What values stand for.

    Attributes:
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``.
        classes: What class 0, 1, ... stand for; empty for multilabel and regression.
        meaning: The number of each value, in its common spelling; empty for regression, where a
            value stands for itself.
    """

    task: str
    classes: tuple[str, ...] = ()
    meaning: Mapping[str, float] | None = None

    @staticmethod
    def of(
        columns: Sequence[LabelColumn], task: str | None, classes: Sequence[str] | None, where: str
    ) -> Codebook:
        """Return the codebook of a whole table.

        Args:
            columns: The label columns, more than one only in multilabel and regression.
            task: What they are; None decides from the values.
            classes: The values in order; None sorts those found.
            where: What messages call the table.

        Raises:
            InputError: The values do not fit the task, or speak for none.
        """
        task = task or _decide(columns, classes, where)
        if task == "regression":
            return Codebook(task)
        if task == "multilabel":
            return Codebook(task, (), {**FLAGS, UNCERTAIN: math.nan})
        return _of_classes(columns[0], task, classes, where)

    @property
    def forgives_uncertain(self) -> bool:
        """Whether -1 counts as unknown."""
        return math.isnan((self.meaning or {}).get(UNCERTAIN, 0))

    def numbers(
        self,
        column: LabelColumn,
        used: Bool[np.ndarray, " rows"],
        ids: pa.Array,
        where: str,
    ) -> Float[np.ndarray, " rows"]:
        """Return each row as a number; NaN where it is unknown, and where no study needs to know.

        Args:
            column: The column.
            used: Which rows belong to a study.
            ids: The id of each row, for the message.
            where: What messages call the table.

        Raises:
            InputError: A row that is used has a value that may not stand here.
        """
        numbers = [self._number(text) for text in column.spellings]
        wrong = np.array([number is None for number in numbers] + [False])
        if (bad := wrong[column.code] & used).any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{where}: row {ids[row].as_py()!r} has {column.spelling(row)!r} in column "
                f"{column.name!r}; {self._rule()}. {bad.sum()} of {used.sum()} rows break "
                f"this. Correct the value, write n/a where it is unknown, or set data.labels.task"
                f"{'' if self.task == 'regression' else ' and data.labels.classes'}."
            )
        lookup = [math.nan if number is None else number for number in numbers] + [math.nan]
        return np.array(lookup, np.float32)[column.code]

    def _number(self, text: str) -> float | None:
        """Return what a spelling stands for: NaN if unknown, None if it may not stand here."""
        meaning = self.meaning
        number = _parsed(text) if meaning is None else meaning.get(common_spelling(text))
        return math.nan if number is None and is_unknown(text) else number

    def _rule(self) -> str:
        if self.meaning is None:
            return "a regression label is a finite number, with a point: 12.5"
        known = [one for one, number in self.meaning.items() if not math.isnan(number)]
        return f"a {self.task} label is one of {some_of(known, 20)}, or unknown"


def common_spelling(text: str) -> str:
    """Return the common spelling of a value: "1.0" and "01" are "1", "F" is "f"."""
    number = _parsed(text)
    if number is None or abs(number) >= 2**53:
        return text.casefold()  # longer codes, such as SNOMED's, must not be rounded together
    return str(int(number)) if number.is_integer() else repr(number)


def _decide(columns: Sequence[LabelColumn], classes: Sequence[str] | None, where: str) -> str:
    """Return the task that the values of the whole table speak for."""
    if len(columns) > 1:
        return "multilabel"
    if classes is not None:
        return "binary" if len(classes) == 2 else "multiclass"
    (column,) = columns
    known = column.known()
    if len(known) == 2 or known <= {*FLAGS, UNCERTAIN}:
        return "binary"
    words = sorted(one for one in known if _parsed(one) is None)
    if len(known) - len(words) <= MAX_NUMERIC_CLASSES:
        return "multiclass"
    if words:
        raise InputError(
            f"{where}: column {column.name!r} has {len(known) - len(words)} different numbers, but "
            f"also {', '.join(map(repr, words[:5]))}. Correct these, write n/a where a number is "
            f"unknown, or set data.labels.task=multiclass."
        )
    return "regression"


def _of_classes(
    column: LabelColumn, task: str, classes: Sequence[str] | None, where: str
) -> Codebook:
    """Return the codebook of a binary or multiclass column."""
    known = column.known()
    flags = task == "binary" and known <= {*FLAGS, UNCERTAIN}
    unknown = {UNCERTAIN: math.nan} if flags else {}
    if classes is not None:
        numbers = {common_spelling(one): float(index) for index, one in enumerate(classes)}
        return Codebook(task, tuple(classes), {**unknown, **numbers})
    if flags:
        spelled = known - {UNCERTAIN}
        different = len(spelled) == 2 and len({FLAGS[one] for one in spelled}) == 2
        names = tuple(sorted(spelled, key=FLAGS.__getitem__)) if different else ("0", "1")
        return Codebook(task, names, {**FLAGS, **unknown})
    found = sorted(known, key=_natural)
    if task == "binary" and len(found) != 2:
        raise InputError(
            f"{where}: column {column.name!r} has {len(found)} values, {some_of(found)}; a binary "
            f"label has two. Set data.labels.classes to the two, or data.labels.task=multiclass."
        )
    written = {common_spelling(text): text for text in sorted(column.spellings, reverse=True)}
    names = tuple(one if _parsed(one) is not None else written[one] for one in found)
    return Codebook(task, names, {one: float(index) for index, one in enumerate(found)})


def _parsed(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):  # float() would also take "1_000", "infinity" and "nan"
        return None
    number = float(text)
    return number if abs(number) <= _FLOAT32_MAX else None


def _natural(text: str) -> tuple[int, float, list[tuple[int, str]], str]:
    """Sort numbers by value and before words; digits within words count as numbers."""
    number = _parsed(text)
    if number is not None:
        return 0, number, [], text
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return 1, 0.0, [_in_order(part) for part in parts], text


def _in_order(part: str) -> tuple[int, str]:
    """Sort digits by their number, however long, and after words."""
    digits = part.lstrip("0")
    return (len(digits), digits) if part.isdecimal() else (-1, part)
