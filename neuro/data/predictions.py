"""What was said of each study, beside what is true: a table with a row per study."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuro.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Outputs and truth of some studies.

    Attributes:
        studies: Their ids.
        subjects: The subject of each.
        outputs: The probability of each finding or class; for a regression the number itself.
        truth: 0 or 1, a class index, or a number; NaN where it is not known.
        names: The names of the findings.
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``.
        classes: The values of a label, in order; none where it is a number.
    """

    studies: tuple[str, ...]
    subjects: tuple[str, ...]
    outputs: Float[Tensor, "studies outputs"]
    truth: Float[Tensor, "studies findings"]
    names: tuple[str, ...]
    task: str
    classes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """What each output is of: a finding, or a class of a multiclass label."""
        return self.classes if self.task == "multiclass" else self.names

    def sorted_once(self) -> Predictions:
        """Return each study once, in order of the ids: ranks may share one to be equally long."""
        places = {name: place for place, name in enumerate(self.studies)}
        order = [places[name] for name in sorted(places)]
        return replace(
            self,
            studies=tuple(self.studies[place] for place in order),
            subjects=tuple(self.subjects[place] for place in order),
            outputs=self.outputs[order],
            truth=self.truth[order],
        )

    def write(self, path: Path) -> None:
        """Write a CSV, and beside it a JSON that says what its columns are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"names": self.names, "task": self.task, "classes": self.classes}
        path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
        truths = [f"{name}_truth" for name in self.names]
        said = [f"{name}_{self._said}" for name in self.columns]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["study", "subject", *truths, *said])
            for row, (study, subject) in enumerate(zip(self.studies, self.subjects, strict=True)):
                known = [self._spelled(value) for value in self.truth[row].tolist()]
                told = [_written(value) for value in self.outputs[row].tolist()]
                writer.writerow([study, subject, *known, *told])

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Return what ``write`` wrote.

        Raises:
            InputError: The files are absent, or something else.
        """
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            names, classes = tuple(about["names"]), tuple(about["classes"])
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            empty = cls(
                studies=tuple(row["study"] for row in rows),
                subjects=tuple(row["subject"] for row in rows),
                outputs=torch.zeros(len(rows), 0),
                truth=torch.zeros(len(rows), 0),
                names=names,
                task=about["task"],
                classes=classes,
            )
            truth = [[empty._number(row[f"{name}_truth"]) for name in names] for row in rows]
            said = [[float(row[f"{name}_{empty._said}"]) for name in empty.columns] for row in rows]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{path} is no table of predictions with its JSON beside it ({error}). Give a run "
                f"that was tested."
            ) from error
        return replace(empty, outputs=torch.tensor(said), truth=torch.tensor(truth))

    @property
    def _said(self) -> str:
        return "predicted" if self.task == "regression" else "probability"

    @property
    def _values(self) -> Sequence[str]:
        """The words for 0, 1, ...; none for numbers."""
        if self.task == "regression":
            return ()
        return self.classes or ("absent", "present")

    def _number(self, text: str) -> float:
        if not text:
            return float("nan")
        return float(self._values.index(text)) if self._values else float(text)

    def _spelled(self, value: float) -> str:
        if value != value:
            return ""
        return self._values[int(value)] if self._values else _written(value)


def _written(value: float) -> str:
    """Return as few digits as give the same float32: rounded, two studies would tie."""
    return str(np.float32(value))
