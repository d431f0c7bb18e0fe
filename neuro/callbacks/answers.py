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

from neuro.data.answers import Answer


@runtime_checkable
class Answering(Protocol):
    """A system that answers questions."""

    answers: Mapping[str, Sequence[Answer]]


class AnswerFiles(Callback):
    """Writes ``samples/test*.jsonl`` and ``predictions/test.csv``.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        answers = cast("Answering", pl_module).answers
        for control, own in answers.items():
            if own:
                write_jsonl(self.run_dir / "samples" / f"test{control}.jsonl", own)
        write_csv(self.run_dir / "predictions" / "test.csv", answers[""])


def write_jsonl(path: Path, answers: Sequence[Answer]) -> None:
    """Write one answer a line, with whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**asdict(answer), "is_exact": answer.is_exact}) for answer in answers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(path: Path, answers: Sequence[Answer]) -> None:
    """Write one study a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["study_id", "task", "modalities", "target", "said", "is_exact"])
        for one in answers:
            row = [
                one.study_id,
                one.task,
                "+".join(one.modalities),
                one.target,
                one.said,
                int(one.is_exact),
            ]
            writer.writerow(row)
