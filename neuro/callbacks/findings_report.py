"""Writes ``report.html`` of findings after the test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from neuro.data.batch import StudyBatch
from neuro.data.cache import Cache
from neuro.data.datamodule import StudyDataModule
from neuro.data.manifest import SPLITS, Study
from neuro.data.predictions import Predictions
from neuro.errors import InputError
from neuro.models.criterion import Criterion
from neuro.models.pooling import Explanation, Pool
from neuro.models.tuning import Tuning
from neuro.models.vit import VisionTransformer
from neuro.report.attention import seen_scans
from neuro.report.attention_picture import attention_picture
from neuro.report.cases import Case, telling_cases
from neuro.report.findings import CaseCard, Split, write_findings
from neuro.report.mosaic import data_uri

WEBP_QUALITY = 80
MAX_CASES = 50
MAX_NAMES = 12  # of labels or classes that are named; the table has all of them


@runtime_checkable
class Finding(Protocol):
    """A system that finds something in studies, and says where."""

    predictions: Predictions | None
    figures: Sequence[tuple[str, str, float, float, float]]
    encoder: VisionTransformer
    encoder_from: Path | None
    tuning: Tuning
    pool: Pool
    criterion: Criterion
    balance: float
    specificity: float
    num_resamples: int

    def explain(self, batch: StudyBatch) -> Explanation:
        """Return the logits of each study and the part of each of its tokens in them."""
        ...

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (part, parameters, trainable parameters)."""
        ...


class FindingsReport(Callback):
    """One page for a person, self-contained.

    Args:
        run_dir: The run folder.
        num_cases: How many studies are shown where the model was wrong, and where it was right.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(self, run_dir: Path | str, num_cases: int) -> None:
        if not 0 <= num_cases <= MAX_CASES:
            raise InputError(
                f"callbacks.report.num_cases must be in [0, {MAX_CASES}]; got {num_cases}."
            )
        self.run_dir = Path(run_dir)
        self.num_cases = num_cases

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # One rank alone from here on: nothing below may wait for another.
        if not trainer.is_global_zero or not isinstance(pl_module, Finding):
            return
        said = pl_module.predictions
        datamodule = cast("StudyDataModule", trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
        if said is None:
            return
        wrong, right = telling_cases(said, self.num_cases)
        shown = {said.studies[case.row] for case in (*wrong, *right)}
        cards = _cards(trainer, pl_module, datamodule, said, [*wrong, *right]) if shown else {}
        write_findings(
            self.run_dir / "report.html",
            run=self.run_dir.name,
            facts=_facts(trainer, pl_module, datamodule, self.run_dir),
            command=_command(self.run_dir),
            splits=[_split(name, datamodule) for name in SPLITS],
            said=said,
            figures=pl_module.figures,
            specificity=pl_module.specificity,
            num_resamples=pl_module.num_resamples,
            wrong=[cards[case] for case in wrong],
            right=[cards[case] for case in right],
            metrics_csv=self.run_dir / "metrics.csv",
        )


def _cards(
    trainer: L.Trainer,
    system: L.LightningModule,
    datamodule: StudyDataModule,
    said: Predictions,
    cases: Sequence[Case],
) -> dict[Case, CaseCard]:
    """Ask the model once more about the studies of some cases, and draw where it looked."""
    assert isinstance(system, Finding)
    test = datamodule.studies["test"]
    places = {name: place for place, name in enumerate(test.ids)}
    wanted: dict[str, list[Case]] = {}
    for case in cases:
        wanted.setdefault(said.studies[case.row], []).append(case)
    studies = {name: test[places[name]] for name in wanted}
    cards = {}
    for batch in datamodule.plain_loader(test.take([places[name] for name in wanted])):
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            told = system.explain(batch.to(system.device))
        for place, name in enumerate(batch.study_ids):
            for case in wanted[name]:
                cards[case] = _card(
                    studies[name], datamodule.cache, batch, told.weights, place, said, case
                )
    return cards


def _card(
    study: Study,
    cache: Cache,
    batch: StudyBatch,
    weights: Tensor,
    place: int,
    said: Predictions,
    case: Case,
) -> CaseCard:
    """Draw the scan of a study that weighs most in what was said of it."""
    scans = seen_scans(study, cache, batch, weights, place)
    scan = max(scans, key=lambda one: one.share(case.output))
    view = scan.main_view(case.output)
    voxels, _ = cache.read(scan.series, view)
    truth, told = in_words(said, case)
    picture = attention_picture(
        voxels, scan.attention(case.output), caption=f"{study.id}: {said.columns[case.output]}"
    )
    return CaseCard(
        study=study.id,
        series=scan.series.name if len(scan.views) == 1 else f"{scan.series.name}, {view} window",
        share=scan.share(case.output),
        num_series=len(scans),
        truth=truth,
        said=told,
        picture=data_uri(picture, webp_quality=WEBP_QUALITY),
    )


def in_words(said: Predictions, case: Case) -> tuple[str, str]:
    """Return what is true of a case, and what was said."""
    value = float(said.outputs[case.row, case.output])
    if said.task == "multiclass":
        truth = said.classes[int(said.truth[case.row, 0])]
        return truth, f"{said.classes[case.output]}, probability {value:.3f}"
    truth, name = float(said.truth[case.row, case.output]), said.names[case.output]
    if said.task == "regression":
        return f"{name} {truth:.4g}", f"{value:.4g} ({value - truth:+.3g})"
    words = said.classes or ("absent", "present")
    of = f" of {words[1]}" if said.classes else ""
    return f"{name} {words[int(truth)]}", f"probability{of} {value:.3f}"


def _split(name: str, datamodule: StudyDataModule) -> Split:
    studies = datamodule.studies[name]
    assert studies.labels is not None, "a system of findings has labels"
    return Split(
        name=name,
        num_studies=len(studies),
        num_subjects=len(studies.series["subject"].unique()),
        num_series=len(studies.series),
        truth=np.asarray(studies.labels.values),
    )


def _facts(
    trainer: L.Trainer, system: Finding, datamodule: StudyDataModule, run_dir: Path
) -> list[tuple[str, str]]:
    """Return what was trained, on what and how, in words."""
    said = system.predictions
    assert said is not None
    classes = f": {_listed(said.classes)}" if said.classes else ""
    shown = sorted(
        {
            name
            for studies in datamodule.studies.values()
            for name in studies.series["modality"].unique().to_pylist()
        }
    )
    recipes = datamodule.cache.recipes
    encoder = system.encoder
    begins = f"from {system.encoder_from}" if system.encoder_from else "from random weights"
    parameters = system.parameter_table()
    facts = [
        (
            "label" if len(said.names) == 1 else "labels",
            f"{_listed(said.names)} ({said.task}{classes})",
        ),
        ("images", "; ".join(f"{one} ({_recipe(recipes[one])})" for one in shown)),
        (
            "encoder",
            f"vision transformer, {len(encoder.blocks)} layers of {encoder.dim}; "
            f"begins {begins}; {_tuning(system.tuning)}",
        ),
        ("pooling", _spaced(type(system.pool).__name__)),
        ("parameters", ", ".join(f"{part} {n:,} ({t:,} trained)" for part, n, t in parameters)),
        (
            "training",
            f"{trainer.global_step:,} steps, loss {system.criterion.loss}, "
            f"balance {system.balance:g}; {_tested(trainer)}",
        ),
    ]
    revision = _revision(run_dir)
    return [*facts, ("code", f"revision {revision}")] if revision else facts


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _recipe(recipe: object) -> str:
    patch = " x ".join(map(str, getattr(recipe, "patch", ())))
    return f"{type(recipe).__name__}, patches of {patch} voxels"


def _tuning(tuning: Tuning) -> str:
    if tuning.is_frozen:
        return "frozen"
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in sorted(vars(tuning).items())
    )
    name = _spaced(type(tuning).__name__)
    return f"{name} ({settings})" if settings else name


def _spaced(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _tested(trainer: L.Trainer) -> str:
    saver = trainer.checkpoint_callback
    best = getattr(saver, "best_model_score", None)
    if not trainer.ckpt_path or best is None:
        return "tested with the last weights"
    monitor = getattr(saver, "monitor", "")
    return f"tested with {Path(str(trainer.ckpt_path)).name} ({monitor} {float(best):.4g})"


def _command(run_dir: Path) -> str:
    return "\n".join(_lines(run_dir / "command.sh")[1:])  # without the interpreter


def _revision(run_dir: Path) -> str:
    lines: Iterable[str] = _lines(run_dir / "environment.json")
    revision = json.loads("\n".join(lines) or "{}").get("revision") or ""
    return f"{revision[:10]}, with changes" if revision.endswith("+") else revision[:10]


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that only a run of the command has."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
