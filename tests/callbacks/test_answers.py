"""Answers as files: each once, readable by others, and with whether it is right."""

from __future__ import annotations

import csv
import json

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from neuro.callbacks.answers import AnswerFiles, write_csv, write_jsonl
from neuro.data.answers import Answer, AnswerBook
from neuro.data.conversation import Conversation, Turn


def answer(study_id, target, said, **more):
    fields = {"task": "sex", "modalities": ("T1",), "prompt": "Male or female?"}
    fields |= {"subject": f"of {study_id}", "task_type": "single"}
    return Answer(study_id=study_id, target=target, said=said, **{**fields, **more})


BOOK = AnswerBook.of(
    Conversation(
        id=str(place),
        task="sex",
        turns=(Turn("user", ("?",)), Turn("assistant", (gold,))),
        images=(),
    )
    for place, gold in enumerate(["male", "female"] * 2)
)

ANSWERS = [
    answer("a", "male", "It is male.", likeliest="female"),
    answer("b", "female", 'a "tab\t", a comma,\nand a line', modalities=("T1", "rsfMRI")),
    answer("ü", "male", "женщина"),
]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_line_is_an_answer_and_whether_it_is_right(tmp_path):
    write_jsonl(tmp_path / "new/folder/test.jsonl", ANSWERS, BOOK)
    lines = (tmp_path / "new/folder/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["is_right"] for row in rows] == [True, False, False]
    for row, one in zip(rows, ANSWERS, strict=True):
        del row["is_right"]
        assert Answer(**{**row, "modalities": tuple(row["modalities"])}) == one


def test_each_study_is_one_row_whatever_was_said(tmp_path):
    write_csv(tmp_path / "predictions/test.csv", ANSWERS, BOOK)
    rows = read_csv(tmp_path / "predictions/test.csv")
    assert [row["study_id"] for row in rows] == ["a", "b", "ü"]
    assert [row["said"] for row in rows] == [one.said for one in ANSWERS]
    assert [row["likeliest"] for row in rows] == ["female", "", ""]
    assert [row["subject"] for row in rows] == ["of a", "of b", "of ü"]
    assert [row["modalities"] for row in rows] == ["T1", "T1+rsfMRI", "T1"]
    assert [row["is_right"] for row in rows] == ["1", "0", "0"]


class Answering(BoringModel):
    """A system whose answers are known."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers
        self.book = BOOK
        self.figures = [
            ("all", "exact_match", 1 / 3, 0.0, 1.0),
            ("sex", "mae", float("nan"), 0.0, 1.0),
        ]


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a test and gives back the run folder."""

    def run(answers):
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_test_batches=1,
            callbacks=[AnswerFiles(str(tmp_path / "run"))],
        )
        trainer.test(Answering(answers), verbose=False)
        return tmp_path / "run"

    return run


def test_a_test_leaves_its_answers_and_those_of_the_control(run):
    folder = run({"": ANSWERS, "_shuffled": ANSWERS[:1]})
    samples = {path.name: len(path.read_text().splitlines()) for path in folder.glob("samples/*")}
    assert samples == {"test.jsonl": 3, "test_shuffled.jsonl": 1}
    assert len(read_csv(folder / "predictions/test.csv")) == 3  # the control predicts nothing
    first, second = read_csv(folder / "predictions/figures.csv")
    assert first == {
        "finding": "all",
        "figure": "exact_match",
        "value": "0.333333",
        "low": "0",
        "high": "1",
    }
    assert second["value"] == ""


def test_a_control_that_was_not_run_leaves_no_file(run):
    folder = run({"": ANSWERS, "_shuffled": []})
    assert [path.name for path in folder.glob("samples/*")] == ["test.jsonl"]


def test_a_second_test_replaces_the_files_of_the_first(run):
    run({"": ANSWERS, "_shuffled": []})
    folder = run({"": ANSWERS[:1], "_shuffled": []})
    assert len(read_csv(folder / "predictions/test.csv")) == 1


def test_only_the_first_rank_writes(tmp_path):
    class SecondRank(L.Trainer):
        is_global_zero = False

    trainer = SecondRank(accelerator="cpu", logger=False, enable_checkpointing=False)
    AnswerFiles(tmp_path / "run").on_test_end(trainer, Answering({"": ANSWERS}))
    assert not (tmp_path / "run").exists()
