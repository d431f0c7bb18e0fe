"""What is answered to a few fixed questions, while the model learns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from neuro.data.answers import Answer
from neuro.data.conversation_batch import ConversationBatch
from neuro.data.datamodule import StudyDataModule
from neuro.data.manifest import Manifest
from neuro.data.spread import spread
from neuro.errors import InputError

COLUMNS = ("step", "study_id", "task", "prompt", "target", "said", "is_exact")


@runtime_checkable
class Answering(Protocol):
    """A system that answers questions."""

    def answer(self, batch: ConversationBatch) -> list[Answer]:
        """Return the last answer of each study."""
        ...


@runtime_checkable
class Tabular(Protocol):
    """A logger that takes tables, like that of Weights & Biases."""

    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table."""
        ...


@runtime_checkable
class Board(Protocol):
    """What a TensorBoard logger writes with."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Write a text, as Markdown."""
        ...


class AnswerSamples(Callback):
    """Asks the model the same few validation questions every so many optimizer steps.

    Each answer is a line of ``samples/train.jsonl`` in the run folder, with its step; TensorBoard
    gets them as text and Weights & Biases as a table, where these are loggers. Training goes on
    as if nothing had been asked. A system that answers nothing is left alone.

    Args:
        run_dir: The run folder.
        every_n_steps: Optimizer steps from one asking to the next.
        num_studies: Validation studies that are asked about, spread over tasks and modalities;
            which, a hash of their ids decides.

    Raises:
        InputError: A number is below 1.
    """

    def __init__(self, run_dir: Path | str, every_n_steps: int = 50, num_studies: int = 4) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_studies", num_studies)):
            if value < 1:
                raise InputError(f"callbacks.samples.{name} must be at least 1; got {value}.")
        self.path = Path(run_dir) / "samples" / "train.jsonl"
        self.every_n_steps = every_n_steps
        self.num_studies = num_studies
        self._studies: Manifest | None = None
        self._last_step = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        self._studies, self._last_step = None, trainer.global_step
        if not trainer.is_global_zero or not isinstance(pl_module, Answering):
            return
        if isinstance(datamodule, StudyDataModule):
            studies = datamodule.studies["val"]
            self._studies = studies.take(spread(studies, self.num_studies))
            _forget_after(self.path, trainer.global_step)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        # A step may take several batches, and does not change in between.
        if self._studies is None or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        rows = [
            {"step": step, **asdict(one), "is_exact": one.is_exact}
            for one in self._answers(trainer, pl_module, self._studies)
        ]
        _append(self.path, rows)
        _send(trainer, step, [[row[name] for name in COLUMNS] for row in rows])

    @torch.no_grad()
    def _answers(
        self, trainer: L.Trainer, module: L.LightningModule, studies: Manifest
    ) -> list[Answer]:
        """Ask, and leave modes and random numbers as they were."""
        assert isinstance(module, Answering)
        modes = [(one, one.training) for one in module.modules()]
        module.eval()
        with isolate_rng(), trainer.precision_plugin.forward_context():
            batch = trainer.datamodule.batch_of(studies)  # pyright: ignore[reportAttributeAccessIssue]
            answers = module.answer(batch.to(module.device))
        # One by one: frozen parts are in evaluation mode while others are trained.
        for one, was_training in modes:
            one.training = was_training
        return answers


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of later steps: a run that was taken back has not been there."""
    if not path.is_file():
        return
    # An interrupted line has no end.
    lines = [line for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _send(trainer: L.Trainer, step: int, rows: list[list[Any]]) -> None:
    """Send a table to each logger that takes one, or text."""
    for logger in trainer.loggers:
        if isinstance(logger, Tabular):
            logger.log_text("samples", columns=list(COLUMNS), data=rows, step=step)
        elif isinstance(board := getattr(logger, "experiment", None), Board):
            board.add_text("samples", _markdown(rows), step)


def _markdown(rows: list[list[Any]]) -> str:
    cells = [list(COLUMNS[1:]), ["---"] * len(COLUMNS[1:])]
    cells += [[_cell(value) for value in row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: object) -> str:
    """Return a value that does not break a table of Markdown."""
    return " ".join(str(value).replace("|", "\\|").split())
