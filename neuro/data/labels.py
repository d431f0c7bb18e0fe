"""What is known about a study, as numbers: read from a table and joined by id.

A label that nobody knows is NaN, never 0: the study is left out or its label is masked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from neuro.data.codebook import UNCERTAIN, Codebook, LabelColumn, common_spelling
from neuro.data.ids import Given, texts
from neuro.data.label_rows import Ids, LabelRows, check_column
from neuro.errors import InputError

log = logging.getLogger(__name__)

TASKS = ("binary", "multilabel", "multiclass", "regression")


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
        key: The column of ids; None takes the first of ``label_rows.KEYS`` that exists, else the
            first column.
        unlabelled: What becomes of a study without any label: ``exclude`` leaves it out, ``mask``
            keeps it with NaN.

    Raises:
        InputError: A value is none of these, or two do not fit together.
    """

    file: Path | str | None
    names: Sequence[Given] | Given | None
    task: str | None = None
    classes: Sequence[Given] | str | None = None
    key: str | None = None
    unlabelled: str = "exclude"

    @property
    def columns(self) -> list[str]:
        """The columns as text."""
        return texts(self.names, "data.label")

    def __post_init__(self) -> None:
        names = tuple(texts(self.names, "data.label"))
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
        self._check_names()
        if self.classes is not None:
            self._check_classes(self.classes)

    def _check_names(self) -> None:
        """What says how a label is read would be ignored where there is none."""
        rules = ("file", "task", "classes", "key")
        given = [name for name in rules if getattr(self, name) is not None]
        if given and not self.names:
            keys = ", ".join(f"data.labels.{name}" for name in given)
            raise InputError(
                f"{keys} says how a label is read, and data.label names none. Name the column, "
                f"data.label=NAME, or leave data.labels out."
            )

    def _check_classes(self, classes: Sequence[Given] | str) -> None:
        if isinstance(classes, str):
            raise InputError(
                f"data.labels.classes must be a list; got {classes!r}. "
                f"Write 'data.labels.classes=[no, yes]'."
            )
        if len(self.columns) > 1 or self.task in ("multilabel", "regression"):
            raise InputError(
                "data.labels.classes belongs to one binary or multiclass column; got "
                f"{', '.join(self.columns)} as {self.task or 'multilabel'}. Leave it out."
            )
        if any(isinstance(value, bool) for value in classes):
            raise InputError(
                f"data.labels.classes={list(classes)}: YAML reads a bare yes, no, true or false as "
                f'a truth value. Write them in quotes: \'data.labels.classes=["no", "yes"]\'.'
            )
        spelled = tuple(str(value).strip() for value in classes)
        object.__setattr__(self, "classes", spelled)
        wrong_count = len(spelled) < 2 or (self.task == "binary" and len(spelled) > 2)
        if wrong_count or len({common_spelling(text) for text in spelled}) < len(spelled):
            rule = "two" if self.task == "binary" else "two or more"
            raise InputError(
                f"data.labels.classes must be {rule} different values (case does not count); got "
                f"{', '.join(spelled) or 'none'}. Correct it."
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
    table: pa.Table, rules: LabelRules, *, studies: Ids, subjects: Ids, where: str
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
    names = rules.columns
    for name in names:
        check_column(table, name, "data.label", where)
    rows = LabelRows.of(
        table, rules.key, studies=studies, subjects=subjects, labels=names, where=where
    )
    rows.report(studies, where)
    columns = [LabelColumn.of(name, table[name]) for name in names]
    classes = [str(one) for one in rules.classes] if rules.classes is not None else None
    codebook = Codebook.of(columns, rules.task, classes, where)
    if codebook.forgives_uncertain and any(UNCERTAIN in one.known() for one in columns):
        log.info("%s: -1 counts as unknown; a lone column may list it as a class", where)
    values = np.stack(
        [codebook.numbers(column, rows.used, rows.ids, where) for column in columns], axis=1
    )  # (rows, findings)
    rows.check_repeated(columns, values, where)
    labels = Labels(tuple(names), codebook.task, codebook.classes, rows.of_studies(values))
    _report(labels, rules, where)
    return labels, np.any(~np.isnan(labels.values), axis=1)


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
