"""The fourth command: the folds of a cross-validation as one table."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError

if TYPE_CHECKING:
    from neuro.data.predictions import Predictions

log = logging.getLogger("neuro.folds")  # not __name__, which is __main__ under -m

COLUMNS = ("finding", "figure", "pooled", "low", "high", "mean", "std")


def merge(runs: Path, *, specificity: float, num_resamples: int) -> list[list[str]]:
    """Return a row for each finding and figure, and write them to ``folds.csv``.

    ``pooled`` is of all studies at once, with the 95 % interval of a bootstrap over subjects;
    ``mean`` and ``std`` are over folds, whose own values follow.

    Raises:
        InputError: There are no runs, they tell different things, or a study is in two of them.
    """
    folds = {path.parent.parent.name: path for path in sorted(runs.glob("*/predictions/test.csv"))}
    if not folds:
        raise InputError(
            f"runs={runs} holds no run that was tested (RUN/predictions/test.csv). Give the folder "
            f"of a sweep over data.fold."
        )
    missing = [
        path.parent.name
        for path in sorted(runs.glob("*/config.yaml"))
        if path.parent.name not in folds
    ]
    if missing:
        raise InputError(
            f"runs {', '.join(missing)} of {runs} were not tested: a cross-validation without them "
            f"says nothing about their studies. Run them again, or take their folders away."
        )
    rows = _table({name: _read(path) for name, path in folds.items()}, specificity, num_resamples)
    with (runs / "folds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(f"fold {name}" for name in folds)])
        writer.writerows(rows)
    return rows


def _read(path: Path) -> Predictions:
    from neuro.data.predictions import Predictions

    return Predictions.read(path)


def _table(
    folds: dict[str, Predictions], specificity: float, num_resamples: int
) -> list[list[str]]:
    import torch

    from neuro.metrics.evaluate import evaluate
    from neuro.metrics.resamples import draw_counts, interval, macro

    whole = _joined(folds)
    counts = draw_counts(whole.subjects, num_resamples)
    pooled = evaluate(whole.task, whole.outputs, whole.truth, None, specificity)
    drawn = evaluate(whole.task, whole.outputs, whole.truth, counts, specificity)
    own = [
        evaluate(fold.task, fold.outputs, fold.truth, None, specificity) for fold in folds.values()
    ]
    rows = []
    for name, values in pooled.items():
        of_folds = torch.stack([fold[name] for fold in own])  # (folds, columns)
        parts = [("macro", macro(values), macro(drawn[name]), macro(of_folds))]
        if len(values) > 1:
            parts += [
                (finding, values[place], drawn[name][:, place], of_folds[:, place])
                for place, finding in enumerate(whole.columns)
            ]
        for finding, value, resampled, each in parts:
            low, high = interval(resampled.unsqueeze(1))
            known = each[torch.isfinite(each)]
            std = known.std() if len(known) > 1 else torch.tensor(torch.nan)
            mean = known.mean() if len(known) else torch.tensor(torch.nan)
            numbers = [value, low[0], high[0], mean, std, *each]
            rows.append([finding, name, *(_spelled(float(one)) for one in numbers)])
    return rows


def _joined(folds: dict[str, Predictions]) -> Predictions:
    """Return the studies of all folds.

    Raises:
        InputError: The folds tell different things, or a study was tested twice.
    """
    from dataclasses import replace

    import torch

    first, *others = folds.values()
    for name, fold in folds.items():
        if (fold.names, fold.task, fold.classes) != (first.names, first.task, first.classes):
            raise InputError(
                f"fold {name} tells {', '.join(fold.names)} ({fold.task}), another one "
                f"{', '.join(first.names)} ({first.task}). Merge runs with the same labels."
            )
    studies = tuple(study for fold in folds.values() for study in fold.studies)
    if len(set(studies)) < len(studies):
        twice = next(study for study in studies if studies.count(study) > 1)
        raise InputError(
            f"study {twice!r} was tested in two runs; in a cross-validation it is in one. Sweep "
            f"over data.fold and over nothing else."
        )
    return replace(
        first,
        studies=studies,
        subjects=tuple(subject for fold in folds.values() for subject in fold.subjects),
        outputs=torch.cat([fold.outputs for fold in (first, *others)]),
        truth=torch.cat([fold.truth for fold in (first, *others)]),
    )


def _spelled(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _num_folds(runs: Path) -> int | None:
    """Return how many folds the runs were dealt into, as the first of them says."""
    from omegaconf import OmegaConf

    first = next(iter(sorted(runs.glob("*/config.yaml"))), None)
    known = OmegaConf.select(OmegaConf.load(first), "data.splits.folds") if first else None
    return known if isinstance(known, int) else None


def _text(rows: Sequence[Sequence[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    lines = [
        f"{'finding':{width}}  {'figure':20} {'pooled':>7}  {'95 %':>15}  {'mean':>7} {'std':>7}"
    ]
    for finding, name, pooled, low, high, mean, std, *_ in rows:
        span = f"{low}-{high}" if low else ""
        lines.append(
            f"{finding:{width}}  {name:20} {pooled:>7}  {span:>15}  {mean:>7} {std:>7}".rstrip()
        )
    return "\n".join(lines)


def _run(cfg: DictConfig) -> None:
    from neuro.console import set_up_logging

    command.resolve(cfg)
    runs = Path(cfg.runs)
    if not runs.is_dir():
        raise InputError(f"runs={runs} is not a folder. Give the folder of a sweep.")
    set_up_logging(runs / "folds.log")
    rows = merge(runs, specificity=cfg.specificity, num_resamples=cfg.num_resamples)
    log.info("%s", _text(rows))
    num_folds = _num_folds(runs)
    if num_folds is not None and num_folds != len(list(runs.glob("*/predictions/test.csv"))):
        log.warning("data.splits.folds was %d; not every fold is here", num_folds)
    log.info("the table is in %s", runs / "folds.csv")


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 2 when the input is wrong.
    """
    sys.exit(command.run("folds", _run))


if __name__ == "__main__":
    main()
