"""What is known about a study, as numbers: read from a table and joined by id.

A label that nobody knows is NaN, never 0: the study is left out or its label is masked.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Float, Int

from neuro.data.table import is_unknown
from neuro.errors import InputError

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

TASKS = ("binary", "multilabel", "multiclass", "regression")
KEYS = ("study", "study_id", "participant_id", "subject", "subject_id", "id")
SUBJECT_KEYS = ("participant_id", "subject", "subject_id")
FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
UNCERTAIN = "-1"  # CheXpert's mark for "the report does not decide"; it is unknown, not a class
MAX_NUMERIC_CLASSES = 10  # more different numbers than this are taken for a quantity

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_Ids = Sequence[str] | pa.Array | pa.ChunkedArray


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """How the labels of a cohort are read.

    Args:
        file: The table; None where the source of the studies brings the columns itself.
        names: The columns; a lone name is one finding, and none means no labels.
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``. None decides from the
            values of the whole table: several columns are multilabel, two values binary, more than
            ten different numbers regression, anything else multiclass.
        classes: The values of a binary or multiclass label in order: the first is class 0. None
            sorts the values found: "0" < "1", "no" < "yes", "grade 2" < "grade 10". Case does not
            count, and "1.0" is "1".
        key: The column of ids; None takes the first of ``KEYS`` that exists, else the first column.
        unlabelled: What becomes of a study without any label: ``exclude`` leaves it out, ``mask``
            keeps it with NaN.

    Raises:
        InputError: A value is none of these, or two do not fit together.
    """

    file: Path | str | None
    names: Sequence[str]
    task: str | None = None
    classes: Sequence[str | int | float] | None = None
    key: str | None = None
    unlabelled: str = "exclude"

    def __post_init__(self) -> None:
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        object.__setattr__(self, "names", names)
        if len(set(names)) < len(names):
            raise InputError(f"data.label names each column once; got {list(names)}. Correct it.")
        if self.task not in (None, *TASKS):
            raise InputError(
                f"data.labels.task={self.task} must be one of {', '.join(TASKS)}, or null to "
                f"decide from the values. Correct it."
            )
        if self.task in ("binary", "multiclass") and len(names) > 1:
            raise InputError(
                f"data.labels.task={self.task} takes one column; data.label names {len(names)}. "
                f"Name one, or set data.labels.task=multilabel."
            )
        if self.unlabelled not in ("exclude", "mask"):
            raise InputError(
                f"data.labels.unlabelled={self.unlabelled} must be exclude or mask. Correct it."
            )
        if self.classes is not None:
            self._check_classes(tuple(self.classes))

    def _check_classes(self, classes: tuple[str | int | float, ...]) -> None:
        if len(self.names) > 1 or self.task in ("multilabel", "regression"):
            raise InputError(
                "data.labels.classes belongs to one binary or multiclass column; got "
                f"{', '.join(self.names)} as {self.task or 'multilabel'}. Leave it out."
            )
        if any(isinstance(value, bool) for value in classes):
            raise InputError(
                f"data.labels.classes={list(classes)}: YAML reads a bare yes, no, true or false as "
                f'a truth value. Write them in quotes: ["no", "yes"].'
            )
        texts = tuple(str(value).strip() for value in classes)
        object.__setattr__(self, "classes", texts)
        wrong_count = len(texts) < 2 or (self.task == "binary" and len(texts) > 2)
        if wrong_count or len({_same(text) for text in texts}) < len(texts):
            rule = "two" if self.task == "binary" else "two or more"
            raise InputError(
                f"data.labels.classes must be {rule} different values (case does not count); got "
                f"{', '.join(texts) or 'none'}. Correct it."
            )


@dataclass(frozen=True)
class Labels:
    """The labels of some studies, in their order.

    Attributes:
        names: The findings, one per column of ``values``.
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``.
        classes: What class 0, 1, ... stand for; empty for multilabel and regression.
        values: float32; 0 or 1, a class index, or a number; NaN where it is unknown.
    """

    names: tuple[str, ...]
    task: str
    classes: tuple[str, ...]
    values: Float[np.ndarray, "studies findings"]

    def take(self, rows: Int[np.ndarray, " rows"] | Bool[np.ndarray, " rows"]) -> Labels:
        """Return the labels of some studies, by index or by a mask."""
        return replace(self, values=self.values[rows])


def join_labels(
    table: pa.Table, rules: LabelRules, *, studies: _Ids, subjects: _Ids, where: str
) -> tuple[Labels, Bool[np.ndarray, " studies"]]:
    """Return the labels of the studies, and which of the studies have at least one.

    Ids are text: "001" is not "1". Rows are matched by study id if any id of the key column is one,
    else by subject id, with or without ``sub-``; a key column that is named after subjects is
    tried as such first. Rows that name no study are not judged, but the task and the classes
    follow from the whole table, so that they do not depend on which scans are at hand.

    Args:
        table: As ``read_table`` returns it: every column text.
        rules: Which columns, and how to read them.
        studies: The ids, each once.
        subjects: The subject of each study.
        where: What messages call the table.

    Raises:
        InputError: A column is absent, no id matches, an id has two different values, a value is
            not allowed, no label is known, or all are the same class.
    """
    key, ids = _ids_of(table, rules, where)
    for name in rules.names:
        _check_column(table, name, "data.label", where)
    match = _Match.of(ids, _array(studies), _array(subjects), key in SUBJECT_KEYS)
    if match is None:
        raise _no_match(table, rules, key, _array(studies), _array(subjects), where)
    match.report(key, ids, _array(studies), where)

    columns = [_Column.of(name, table[name]) for name in rules.names]
    task = rules.task or _decide(columns, rules, where)
    classes, meaning = _code(columns[0], task, rules, where)
    if math.isnan(meaning.get(UNCERTAIN, 0)) and any(UNCERTAIN in one.known() for one in columns):
        log.info("%s: -1 counts as unknown; a lone column may list it as a class", where)
    values = np.stack(
        [column.values(task, meaning, match.used, ids, where) for column in columns], axis=1
    )  # (rows, findings)
    match.check_repeated(columns, values, ids, where)
    found = np.where(match.row[:, None] >= 0, values[match.row], np.float32(np.nan))
    labels = Labels(tuple(rules.names), task, classes, found)
    known = np.any(~np.isnan(found), axis=1)
    _report(labels, rules, where)
    return labels, known


@dataclass(frozen=True)
class _Match:
    """Which row belongs to which study.

    Attributes:
        what: What the ids name: ``study`` or ``subject``.
        row: The first row of each study; -1 where there is none.
        first: The first row with the same id, for each row.
        used: Whether a row belongs to any study.
    """

    what: str
    row: Int[np.ndarray, " studies"]
    first: Int[np.ndarray, " rows"]
    used: Bool[np.ndarray, " rows"]

    @staticmethod
    def of(
        ids: pa.Array, studies: pa.Array, subjects: pa.Array, subject_first: bool
    ) -> _Match | None:
        ways = [("study", ids, studies), ("subject", _bare(ids), _bare(subjects))]
        for what, ours, theirs in reversed(ways) if subject_first else ways:
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
            return _Match(what, row, first_of_code[code], used_code[code])
        return None

    def report(self, key: str, ids: pa.Array, studies: pa.Array, where: str) -> None:
        log.info(
            "%s: %d of %d studies have a row, by %s id in column %r",
            where,
            (self.row >= 0).sum(),
            len(studies),
            self.what,
            key,
        )
        for sentence, mask, names in (
            ("%s: %d studies have no row: %s", self.row < 0, studies),
            ("%s: %d rows name no study: %s", ~self.used, ids),
        ):
            if mask.any():
                log.info(sentence, where, mask.sum(), _some(names.filter(pa.array(mask))))

    def check_repeated(
        self,
        columns: Sequence[_Column],
        values: Float[np.ndarray, "rows findings"],
        ids: pa.Array,
        where: str,
    ) -> None:
        """Refuse an id whose rows differ; rows that agree count once."""
        again = np.flatnonzero(self.used & (self.first != np.arange(len(self.first))))
        one, other = values[again], values[self.first[again]]
        differ = (one != other) & ~(np.isnan(one) & np.isnan(other))
        if differ.any():
            position, finding = np.argwhere(differ)[0]
            row, column = again[position], columns[finding]
            raise InputError(
                f"{where}: id {ids[row].as_py()!r} has two rows that differ in column "
                f"{column.name!r}: {column.spelling(self.first[row])!r} and "
                f"{column.spelling(row)!r}. Keep one row per id."
            )


@dataclass(frozen=True)
class _Column:
    """A label column: each row as an index into its different spellings; -1 is an empty cell."""

    name: str
    code: Int[np.ndarray, " rows"]
    spellings: tuple[str, ...]

    @staticmethod
    def of(name: str, column: pa.ChunkedArray) -> _Column:
        encoded = _array(pc.utf8_trim_whitespace(column)).dictionary_encode()
        code = encoded.indices.fill_null(-1).to_numpy()
        return _Column(name, code, tuple(encoded.dictionary.to_pylist()))

    def spelling(self, row: int | np.integer) -> str:
        return self.spellings[self.code[row]] if self.code[row] >= 0 else ""

    def known(self) -> set[str]:
        """The different values that are not unknown, in their common spelling."""
        return {_same(text) for text in self.spellings if not is_unknown(text)}

    def values(
        self,
        task: str,
        meaning: dict[str, float],
        used: Bool[np.ndarray, " rows"],
        ids: pa.Array,
        where: str,
    ) -> Float[np.ndarray, " rows"]:
        """Each row as a number; NaN where it is unknown, and where no study needs to know."""
        numbers = [_value(text, task, meaning) for text in self.spellings]
        wrong = np.array([number is None for number in numbers] + [False])
        if (bad := wrong[self.code] & used).any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{where}: row {ids[row].as_py()!r} has {self.spelling(row)!r} in column "
                f"{self.name!r}; {_rule(task, meaning)}. {bad.sum()} of {used.sum()} rows break "
                f"this. Correct the value, write n/a where it is unknown, or set data.labels.task"
                f"{'' if task == 'regression' else ' and data.labels.classes'}."
            )
        lookup = [math.nan if number is None else number for number in numbers] + [math.nan]
        return np.array(lookup, np.float32)[self.code]


def _decide(columns: Sequence[_Column], rules: LabelRules, where: str) -> str:
    """Return the task that the values of the whole table speak for."""
    if len(columns) > 1:
        return "multilabel"
    if rules.classes is not None:
        return "binary" if len(rules.classes) == 2 else "multiclass"
    (column,) = columns
    known = column.known()
    if len(known) == 2 or known <= {*FLAGS, UNCERTAIN}:
        return "binary"
    words = sorted(one for one in known if _number(one) is None)
    if len(known) - len(words) <= MAX_NUMERIC_CLASSES:
        return "multiclass"
    if words:
        raise InputError(
            f"{where}: column {column.name!r} has {len(known) - len(words)} different numbers, but "
            f"also {', '.join(map(repr, words[:5]))}. Correct these, write n/a where a number is "
            f"unknown, or set data.labels.task=multiclass."
        )
    return "regression"


def _code(
    column: _Column, task: str, rules: LabelRules, where: str
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the classes, and the number that each value stands for."""
    if task == "regression":
        return (), {}
    if task == "multilabel":
        return (), {**FLAGS, UNCERTAIN: math.nan}
    known = column.known()
    flags = task == "binary" and known <= {*FLAGS, UNCERTAIN}
    unknown = {UNCERTAIN: math.nan} if flags else {}
    if rules.classes is not None:
        classes = tuple(map(str, rules.classes))
        return classes, {**unknown, **{_same(one): float(i) for i, one in enumerate(classes)}}
    if flags:
        spelled = known - {UNCERTAIN}
        different = len(spelled) == 2 and len({FLAGS[one] for one in spelled}) == 2
        classes = tuple(sorted(spelled, key=FLAGS.__getitem__)) if different else ("0", "1")
        return classes, {**FLAGS, **unknown}
    found = sorted(known, key=_natural)
    if task == "binary" and len(found) != 2:
        raise InputError(
            f"{where}: column {column.name!r} has {len(found)} values, {_listed(found)}; a binary "
            f"label has two. Set data.labels.classes to the two, or data.labels.task=multiclass."
        )
    written = {_same(text): text for text in sorted(column.spellings, reverse=True)}
    classes = tuple(one if _number(one) is not None else written[one] for one in found)
    return classes, {one: float(index) for index, one in enumerate(found)}


def _report(labels: Labels, rules: LabelRules, where: str) -> None:
    """Say how the labels are coded; refuse labels that nothing can be learned from."""
    if np.isnan(labels.values).all():
        raise InputError(
            f"{where}: every label is unknown: of {len(labels.values)} studies none has a value in "
            f"{', '.join(labels.names)}. Name another column in data.label."
        )
    decided = "" if rules.task else " (decided from the values; data.labels.task overrules)"
    for name, column in zip(labels.names, labels.values.T, strict=True):
        values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
        if labels.classes and len(values) == 1:
            raise InputError(
                f"{where}: column {name!r} is {labels.classes[int(values[0])]!r} in each of the "
                f"{counts[0]} studies that have a label; there is nothing to tell apart. "
                f"Add studies of another class, or name another column in data.label."
            )
        if labels.task == "regression":
            coding = f"{values[0]:g} to {values[-1]:g}" if len(values) else "nothing known"
        else:
            count = dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))
            coding = ", ".join(
                f"{one} = {index} in {count.get(index, 0)}"
                for index, one in enumerate(labels.classes or ("absent", "present"))
            )
        num_unknown = int(np.isnan(column).sum())
        log.info(
            "label %r: %s%s: %s, unknown in %d studies",
            name,
            labels.task,
            decided,
            coding,
            num_unknown,
        )


def _ids_of(table: pa.Table, rules: LabelRules, where: str) -> tuple[str, pa.Array]:
    if rules.key is not None:
        _check_column(table, rules.key, "data.labels.key", where)
    names = table.column_names
    key = rules.key or next((name for name in KEYS if name in names), names[0])
    return key, _array(pc.utf8_trim_whitespace(table[key]))


def _check_column(table: pa.Table, name: str, setting: str, where: str) -> None:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        cure = f"Did you mean {near[0]!r}?" if near else "Take one of these."
        raise InputError(
            f"{setting} names {name!r}, which is no column of {where}; it has "
            f"{_listed(table.column_names, 30)}. {cure}"
        )


def _no_match(
    table: pa.Table, rules: LabelRules, key: str, studies: pa.Array, subjects: pa.Array, where: str
) -> InputError:
    """Show both sides of a join that joins nothing, and what would mend it."""
    ids = _array(pc.utf8_trim_whitespace(table[key]))
    cure = "Write the same ids on both sides, or name the column of ids in data.labels.key."
    for name in table.column_names:
        if name != key and name not in rules.names:
            other = _array(pc.utf8_trim_whitespace(table[name]))
            if match := _Match.of(other, studies, subjects, name in SUBJECT_KEYS):
                num_matched = (match.row >= 0).sum()
                cure = f"Column {name!r} names {num_matched} of them: set data.labels.key={name}."
    bare = [pc.utf8_ltrim(_bare(one), characters="0") for one in (ids, studies, subjects)]
    if _Match.of(*bare, subject_first=False):
        cure = "They agree but for leading zeros, which a spreadsheet drops: restore them as text."
    return InputError(
        f"{where}: no id of column {key!r} is a study or a subject. The table has {_some(ids)}; "
        f"the studies are {_some(studies)} of the subjects {_some(subjects)}. {cure}"
    )


def _value(text: str, task: str, meaning: dict[str, float]) -> float | None:
    """Return what a spelling stands for: NaN if unknown, None if it may not stand here."""
    number = _number(text) if task == "regression" else meaning.get(_same(text))
    return math.nan if number is None and is_unknown(text) else number


def _rule(task: str, meaning: dict[str, float]) -> str:
    if task == "regression":
        return "a regression label is a finite number, with a point: 12.5"
    known = [one for one, number in meaning.items() if not math.isnan(number)]
    return f"a {task} label is one of {_listed(known, 20)}, or unknown"


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):  # float() would also take "1_000", "infinity" and "nan"
        return None
    number = float(text)
    return number if abs(number) <= _FLOAT32_MAX else None


def _same(text: str) -> str:
    """Return the common spelling of a value: "1.0" and "01" are "1", "F" is "f"."""
    number = _number(text)
    if number is None or abs(number) >= 2**53:
        return text.casefold()  # longer codes, such as SNOMED's, must not be rounded together
    return str(int(number)) if number.is_integer() else repr(number)


def _natural(text: str) -> tuple[int, float, list[tuple[int, str]], str]:
    """Sort numbers by value and before words; digits within words count as numbers."""
    number = _number(text)
    if number is not None:
        return 0, number, [], text
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return 1, 0.0, [(int(part) if part.isdecimal() else -1, part) for part in parts], text


def _bare(ids: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(ids, pattern="^sub-", replacement="")


def _array(ids: _Ids) -> pa.Array:
    if isinstance(ids, Sequence):
        return pa.array(ids, pa.string())
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return whole.cast(pa.string())


def _some(ids: pa.Array) -> str:
    return _listed([repr(one) for one in ids.slice(0, 5).to_pylist()], 5, total=len(ids))


def _listed(names: Sequence[str], most: int = 10, total: int | None = None) -> str:
    left_out = (len(names) if total is None else total) - most
    return ", ".join(names[:most]) + (f" and {left_out} more" if left_out > 0 else "")
