"""Writes ``report.html`` after the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from neuro.data.answers import Answer, AnswerBook
from neuro.data.cache import Cache
from neuro.data.datamodule import StudyDataModule
from neuro.data.manifest import Series, Study
from neuro.report.mosaic import data_uri, mosaic
from neuro.report.page import Card, write_page


@runtime_checkable
class Answering(Protocol):
    """A system that answers questions."""

    answers: Mapping[str, Sequence[Answer]]
    book: AnswerBook
    figures: Sequence[tuple[str, str, float, float, float]]

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (part, parameters, trainable parameters)."""
        ...


class Report(Callback):
    """One page for a person, self-contained.

    Args:
        run_dir: The run folder.
        num_cards: Answers to show; the wrong ones come first.
    """

    def __init__(self, run_dir: Path | str, num_cards: int) -> None:
        self.run_dir = Path(run_dir)
        self.num_cards = num_cards

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        system = cast("Answering", pl_module)
        datamodule = cast("StudyDataModule", trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
        studies = {study.id: study for study in datamodule.studies["test"]}
        own = system.answers[""]
        graded = [
            (one, grade.is_right) for one, grade in zip(own, system.book.grade(own), strict=True)
        ]
        shown = sorted(graded, key=lambda pair: pair[1])[: self.num_cards]
        write_page(
            self.run_dir / "report.html",
            title=f"{type(pl_module).__name__} · {self.run_dir.name}",
            subtitle=f"{trainer.global_step:,} steps · {len(own):,} test studies",
            answers=own,
            figures=system.figures,
            cards=[
                _card(answer, is_right, studies[answer.study_id], datamodule.cache)
                for answer, is_right in shown
            ],
            parameters=system.parameter_table(),
            metrics_csv=self.run_dir / "metrics.csv",
        )


def _card(answer: Answer, is_right: bool, study: Study, cache: Cache) -> Card:
    assert study.conversation is not None, "an answer belongs to a conversation"
    question = study.conversation.turns[-2].text.strip()
    pictures = [
        data_uri(mosaic(_voxels(series, cache), affine=cache.affine(series)))
        for series in study.series
    ]
    return Card(answer=answer, is_right=is_right, question=question, pictures=pictures)


def _voxels(series: Series, cache: Cache) -> Tensor:
    """Return a volume as the model sees it; of a run, the mean over time."""
    voxels, _ = cache.read(series)
    return voxels.float().mean(dim=0) if voxels.ndim == 4 else voxels
