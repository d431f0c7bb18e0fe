"""Gradient norms are those of the whole step, of each part, before anything is clipped."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

from neuro.callbacks.gradient_norms import GradientNorms, norms
from neuro.errors import InputError
from neuro.optim.schedules import warmup_cosine
from neuro.systems.base import System


class Told(Logger):
    """Keeps what it is told of gradients."""

    name, version = "told", 0

    def __init__(self):
        super().__init__()
        self.figures = {}

    def log_metrics(self, metrics, step=None):
        own = {name: one for name, one in metrics.items() if name.startswith("grad_norm/")}
        if own:
            assert step not in self.figures
            self.figures[step] = own

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class Numbers(torch.Tensor):
    """Numbers that are one study each."""

    num_studies = 1


class Two(System):
    """Two parts, of which a negative number leaves the second alone."""

    def __init__(self):
        super().__init__(
            partial(torch.optim.SGD, lr=0.0),
            partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
            weight_decay=0.0,
        )
        self.first, self.second = nn.Linear(1, 2, bias=False), nn.Linear(1, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def losses(self, batch):
        loss = self.first(batch).sum()
        if float(batch) > 0:
            loss = loss + self.second(self.frozen(batch)).sum() * 0 + self.second(batch).sum()
        return {"loss": loss}


@pytest.fixture
def fit(make_trainer):
    """Return a function that trains on some numbers and gives back what is logged, by step."""

    def fit(numbers, every, **settings):
        told = Told()
        data = DataLoader([torch.tensor([float(one)]).as_subclass(Numbers) for one in numbers])
        data.collate_fn = lambda items: items[0]
        make_trainer(
            callbacks=[GradientNorms(every)],
            logger=told,
            max_steps=settings.pop("max_steps", len(numbers)),
            val_check_interval=None,
            **settings,
        ).fit(Two(), data)
        return told.figures

    return fit


def test_a_norm_is_that_of_the_gradients_of_a_part_before_they_are_clipped(fit):
    figures = fit([3.0], 1, gradient_clip_val=0.01)
    assert figures[0]["grad_norm/first"] == pytest.approx((2 * 3.0**2) ** 0.5)
    assert figures[0]["grad_norm/second"] == pytest.approx((3.0**2 + 1) ** 0.5)


def test_a_part_without_gradients_logs_nothing(fit):  # D62
    figures = fit([1.0, -2.0, 1.0], 1)
    assert [sorted(one) for one in figures.values()] == [
        ["grad_norm/first", "grad_norm/second"],
        ["grad_norm/first"],
        ["grad_norm/first", "grad_norm/second"],
    ]


def test_the_norm_is_that_of_all_batches_of_a_step(fit):
    figures = fit([1.0, 4.0, 2.0, -2.0], 1, accumulate_grad_batches=2, max_steps=2)
    assert [one["grad_norm/first"] for one in figures.values()] == pytest.approx(
        [2**0.5 * 2.5, 0.0]
    )


def test_it_looks_every_so_many_steps_whatever_the_trainer_logs(fit):
    figures = fit([1.0] * 7, 3, log_every_n_steps=5)
    assert list(figures) == [2, 5]


def test_what_is_asked_of_is_what_is_trained():
    assert set(Two().gradient_parts()) == {"first", "second"}


def test_gradients_of_half_precision_have_norms_too():
    part = nn.Linear(8, 8).bfloat16()
    part(torch.ones(1, 8).bfloat16()).sum().backward()
    found = norms({"part": list(part.parameters()), "none": [nn.Parameter(torch.ones(1))]})
    assert found == {"grad_norm/part": pytest.approx(72**0.5, rel=1e-2)}


def test_nothing_is_logged_of_nothing():
    assert norms({"part": []}) == {}


def test_a_number_below_one_is_an_error():
    with pytest.raises(InputError, match=r"callbacks\.gradients\.every_n_steps must be at least 1"):
        GradientNorms(0)
