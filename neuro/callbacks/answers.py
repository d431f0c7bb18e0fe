"""Every answer of the test, as files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from neuro.callbacks.predictions import write_figures
from neuro.data.answers import Answer, AnswerBook


@runtime_checkable
class Answering(Protocol):
    """A system that answers questions."""

    answers: Mapping[str, Sequence[Answer]]
    book: AnswerBook
    figures: Sequence[tuple[str, str, float, float, float]]


class AnswerFiles(Callback):
    """Writes ``samples/test*.jsonl``, ``predictions/test.csv`` and ``predictions/figures.csv``.

    The first are every answer, with the images of each control too, the second one row per study,
    the last one row per figure with its 95 % interval.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        system = cast("Answering", pl_module)
        for control, own in system.answers.items():
            if own:
                write_jsonl(self.run_dir / "samples" / f"test{control}.jsonl", own, system.book)
        write_csv(self.run_dir / "predictions" / "test.csv", system.answers[""], system.book)
        write_figures(self.run_dir / "predictions" / "figures.csv", system.figures)


def write_jsonl(path: Path, answers: Sequence[Answer], book: AnswerBook) -> None:
    """Write one answer a line, with whether it is right as it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({**asdict(answer), "is_right": grade.is_right})
        for answer, grade in zip(answers, book.grade(answers), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(path: Path, answers: Sequence[Answer], book: AnswerBook) -> None:
    """Write one study a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ("study_id", "subject", "task", "task_type", "modalities", "target", "said")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "likeliest", "is_right"])
        for one, grade in zip(answers, book.grade(answers), strict=True):
            row = asdict(one) | {"modalities": "+".join(one.modalities)}
            writer.writerow([*(row[name] for name in columns), one.likeliest, int(grade.is_right)])
