"""Which studies of a test are worth a look: the model was surest there, and wrong or right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neuro.data.predictions import Predictions

NEVER = -torch.inf
Scores = Float64[Tensor, "studies outputs"]


class Case(NamedTuple):
    """A study, and what was said of it.

    Attributes:
        row: Of the predictions.
        output: The finding, or the class that was said.
    """

    row: int
    output: int


def telling_cases(said: Predictions, num_cases: int) -> tuple[list[Case], list[Case]]:
    """Return so many cases that are wrong and so many that are right, the clearest first.

    Findings and classes take turns, and a study is there once among the wrong and once among the
    right ones. Among the right ones, findings that are present come first: there is something to
    see. Of numbers, the farther half counts as wrong, in standard deviations of each label.

    Args:
        said: What was said of the test studies.
        num_cases: How many of either at most.
    """
    scores = {"regression": _of_numbers, "multiclass": _of_classes}.get(said.task, _of_findings)
    wrong, right = scores(said.outputs.double(), said.truth.double())
    return _best(wrong, num_cases), _best(right, num_cases)


def _of_findings(
    outputs: Float64[Tensor, "studies findings"], truth: Float64[Tensor, "studies findings"]
) -> tuple[Scores, Scores]:
    off = (outputs - truth).abs()  # NaN where it is not known
    is_wrong = (outputs > 0.5) != (truth > 0.5)  # as in balanced accuracy
    wrong = off.where(is_wrong & off.isfinite(), NEVER)
    return wrong, (truth + 1 - off).where(~is_wrong & off.isfinite(), NEVER)


def _of_classes(
    outputs: Float64[Tensor, "studies classes"], truth: Float64[Tensor, "studies 1"]
) -> tuple[Scores, Scores]:
    most, chosen = outputs.max(dim=1, keepdim=True)
    is_wrong = chosen != truth
    none = torch.full_like(outputs, NEVER)
    known = truth.isfinite() & most.isfinite()
    wrong, right = (
        none.scatter(1, chosen, most.where(those & known, NEVER)) for those in (is_wrong, ~is_wrong)
    )
    return wrong, right


def _of_numbers(
    outputs: Float64[Tensor, "studies labels"], truth: Float64[Tensor, "studies labels"]
) -> tuple[Scores, Scores]:
    known = (outputs - truth).isfinite()
    middle = truth.nanmean(dim=0)
    spread = (truth - middle).square().nanmean(dim=0).sqrt()
    off = (outputs - truth).abs() / spread.where(spread > 0, 1.0)
    is_far = off > off.nanmedian()
    return off.where(is_far & known, NEVER), (-off).where(~is_far & known, NEVER)


def _best(scores: Float[Tensor, "studies outputs"], num_cases: int) -> list[Case]:
    """Return the highest scores, of each output one after the other, and of each study one."""
    # So many of each are enough: no more than that are taken by others.
    top, rows = scores.topk(min(num_cases, len(scores)), dim=0)
    queues = [
        [
            (score, Case(row, output))
            for score, row in zip(top[:, output].tolist(), rows[:, output].tolist(), strict=True)
            if score > NEVER
        ]
        for output in range(scores.shape[1])
    ]
    cases: dict[int, Case] = {}
    while len(cases) < num_cases and any(queues):
        for queue in sorted(filter(None, queues), reverse=True):
            while queue and queue[0][1].row in cases:
                queue.pop(0)
            if queue:
                case = queue.pop(0)[1]
                cases[case.row] = case
    return list(cases.values())[:num_cases]
