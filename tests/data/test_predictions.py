"""A table of predictions says what was said of whom, and comes back as it was."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

from neuro.data.predictions import Predictions
from neuro.errors import InputError

NAN = torch.nan
ODD = ('bleed, "old"', "läsion/links", "出血", " a\nb ")
SAID = {
    "binary": Predictions(
        studies=("001", "1", "s,3"),
        subjects=("p01", "p1", "p,3"),
        outputs=torch.tensor([[0.1], [0.9], [1 - 2**-23]]),
        truth=torch.tensor([[0.0], [1.0], [NAN]]),
        names=("has lesion",),
        task="binary",
        classes=("no", "yes, sure"),
    ),
    "multilabel": Predictions(
        studies=("001", "002"),
        subjects=("001", "001"),
        outputs=torch.rand(2, 4, generator=torch.Generator().manual_seed(0)),
        truth=torch.tensor([[0.0, 1.0, NAN, 1.0], [NAN, NAN, 0.0, 0.0]]),
        names=ODD,
        task="multilabel",
        classes=(),
    ),
    "multiclass": Predictions(
        studies=("a", "b", "c"),
        subjects=("a", "b", "c"),
        outputs=torch.eye(4)[:3] * 0.7 + 0.075,
        truth=torch.tensor([[0.0], [3.0], [NAN]]),
        names=("grade, WHO",),
        task="multiclass",
        classes=ODD,
    ),
    "regression": Predictions(
        studies=("a", "b"),
        subjects=("a", "b"),
        outputs=torch.tensor([[61.25, -3e-7], [16_777_215.0, 3.0]]),
        truth=torch.tensor([[1_234_567.0, NAN], [0.1, -2.5]]),
        names=("volume, mm³", "thickness"),
        task="regression",
        classes=(),
    ),
}


@pytest.mark.parametrize("task", SAID)
def test_a_table_comes_back_as_it_was(task, tmp_path):  # S90
    said, path = SAID[task], tmp_path / "deep" / "test.csv"
    said.write(path)
    again = Predictions.read(path)
    for name in ("studies", "subjects", "names", "task", "classes"):
        assert getattr(again, name) == getattr(said, name)
    assert torch.equal(again.outputs, said.outputs)  # a digit less, and studies would tie
    assert torch.equal(again.truth.nan_to_num(nan=-1), said.truth.nan_to_num(nan=-1))


@pytest.mark.parametrize("task", SAID)
def test_there_is_a_row_for_each_study_and_truth_is_spelled(task, tmp_path):  # S90
    said = SAID[task]
    said.write(tmp_path / "test.csv")
    with (tmp_path / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["study"] for row in rows] == [*said.studies]  # "001" is not 1
    words = {
        "binary": ["no", "yes, sure", ""],
        "multiclass": [ODD[0], ODD[3], ""],
        "regression": ["1.234567e+06", "0.1"],
        "multilabel": ["absent", ""],
    }
    assert [row[f"{said.names[0]}_truth"] for row in rows] == words[task]
    ending = "predicted" if task == "regression" else "probability"
    assert len(rows[0]) == 2 + len(said.names) + len(said.columns)
    for place, column in enumerate(said.columns):
        for row, value in zip(rows, said.outputs[:, place].tolist(), strict=True):
            assert float(row[f"{column}_{ending}"]) == pytest.approx(value, rel=1e-6)


def test_a_study_that_two_ranks_show_is_there_once():
    said = SAID["binary"]
    order = torch.tensor([2, 0, 1, 0])
    shuffled = replace(
        said,
        studies=tuple(said.studies[place] for place in order),
        subjects=tuple(said.subjects[place] for place in order),
        outputs=said.outputs[order],
        truth=said.truth[order],
    )
    once = shuffled.sorted_once()
    assert once.studies == ("001", "1", "s,3")
    assert once.subjects == ("p01", "p1", "p,3")
    assert torch.equal(once.outputs, said.outputs)


def test_what_is_no_such_table_is_told(tmp_path):
    path = tmp_path / "test.csv"
    with pytest.raises(InputError, match=r"test\.csv is no table of predictions"):
        Predictions.read(path)
    SAID["binary"].write(path)
    path.write_text(path.read_text().replace("yes, sure", "perhaps"))
    with pytest.raises(InputError, match="is no table of predictions"):
        Predictions.read(path)
    SAID["binary"].write(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="JSON beside it"):
        Predictions.read(path)
