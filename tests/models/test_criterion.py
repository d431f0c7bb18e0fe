"""Losses are those of torch over the labels that are known, on one rank as on several."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from neuro.errors import InputError
from neuro.models.criterion import Criterion

NAN = torch.nan
TASKS = {"bce": "multilabel", "ce": "multiclass", "mse": "regression", "mae": "regression"}
TASKS["rmse"] = "regression"


def alone(value):
    """What one rank's mean over ranks is."""
    return value


def step(criterion, outputs, labels):
    return criterion.mean(*criterion(outputs, labels), alone)


def drawn(loss, *, unknown=True, num=12, seed=0):
    """Return outputs with a gradient, and labels, a third of which is unknown."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(num, 3, generator=generator)
    if loss == "ce":
        labels = torch.randint(3, (num, 1), generator=generator).float()
    elif loss == "bce":
        labels = torch.randint(2, (num, 3), generator=generator).float()
    else:
        labels = torch.randn(num, 3, generator=generator)
    if unknown:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = NAN
    return outputs.requires_grad_(), labels


WEIGHTS = torch.tensor([0.5, 3.0, 1.5])
REFERENCES = {
    ("bce", None): lambda out, y: F.binary_cross_entropy_with_logits(out, y),
    ("bce", "weighted"): lambda out, y: F.binary_cross_entropy_with_logits(
        out, y, pos_weight=WEIGHTS
    ),
    ("ce", None): lambda out, y: F.cross_entropy(out, y[:, 0].long()),
    ("ce", "weighted"): lambda out, y: F.cross_entropy(out, y[:, 0].long(), weight=WEIGHTS),
    ("mse", None): F.mse_loss,
    ("mae", None): F.l1_loss,
    ("rmse", None): lambda out, y: F.mse_loss(out, y).sqrt(),
}


@pytest.mark.parametrize(("loss", "weighted"), REFERENCES)
def test_a_loss_is_that_of_torch_where_everything_is_known(loss, weighted):  # S84, S87
    outputs, labels = drawn(loss, unknown=False)
    criterion = Criterion(TASKS[loss], loss, WEIGHTS if weighted else None)
    own = step(criterion, outputs, labels)
    reference = REFERENCES[loss, weighted](outputs, labels)
    torch.testing.assert_close(own, reference)
    (gradient,) = torch.autograd.grad(own, outputs, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(reference, outputs)[0])


@pytest.mark.parametrize("loss", ["bce", "mse", "mae", "rmse"])
def test_what_is_not_known_is_as_if_it_were_not_there(loss):
    outputs, labels = drawn(loss)
    known = labels.isfinite()
    own = step(Criterion(TASKS[loss], loss), outputs, labels)
    torch.testing.assert_close(own, REFERENCES[loss, None](outputs[known], labels[known]))


def test_a_study_of_unknown_class_is_as_if_it_were_not_there():
    outputs, labels = drawn("ce")
    rows = labels[:, 0].isfinite()
    own = step(Criterion("multiclass", "ce", WEIGHTS), outputs, labels)
    torch.testing.assert_close(own, REFERENCES["ce", "weighted"](outputs[rows], labels[rows]))


@pytest.mark.parametrize("loss", TASKS)
def test_what_is_said_of_an_unknown_label_changes_neither_loss_nor_gradient(loss):
    outputs, labels = drawn(loss)
    criterion = Criterion(TASKS[loss], loss)
    unknown = labels.isnan().expand_as(outputs)
    said = outputs.detach().masked_fill(unknown, 1e4).requires_grad_()
    losses = [step(criterion, one, labels) for one in (outputs, said)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(loss_of, one)[0]
        for loss_of, one in zip(losses, (outputs, said), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert (gradients[0][unknown] == 0).all()


@pytest.mark.parametrize("loss", TASKS)
def test_a_batch_without_any_label_costs_nothing(loss):
    outputs, labels = drawn(loss)
    own = step(Criterion(TASKS[loss], loss), outputs, torch.full_like(labels, NAN))
    assert float(own.detach()) == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(own, outputs)
    assert (gradient == 0).all()  # not NaN


@pytest.mark.parametrize("loss", TASKS)
def test_two_ranks_are_one(loss):
    """The mean over ranks of losses and gradients is that over the labels of both."""
    outputs, labels = drawn(loss)
    criterion = Criterion(TASKS[loss], loss, WEIGHTS if loss in ("bce", "ce") else None)
    whole = step(criterion, outputs, labels)
    (expected,) = torch.autograd.grad(whole, outputs)
    halves = (slice(0, 3), slice(3, None))  # with unlike numbers of known labels
    said = [outputs.detach()[half].requires_grad_() for half in halves]
    totals = [criterion(one, labels[half]) for one, half in zip(said, halves, strict=True)]
    assert totals[0][1] != totals[1][1]
    count = (totals[0][1] + totals[1][1]) / 2
    mean = sum(total.detach() / count for total, _ in totals) / 2
    losses = [criterion.mean(total, count, lambda _: mean) for total, _ in totals]
    torch.testing.assert_close(sum(losses) / 2, whole)
    gradients = [
        torch.autograd.grad(own, one)[0] / 2 for own, one in zip(losses, said, strict=True)
    ]
    torch.testing.assert_close(torch.cat(gradients), expected)


def test_an_error_of_two_is_a_loss_of_two():  # S87
    outputs, labels = torch.tensor([[3.0], [-2.0]]), torch.tensor([[1.0], [0.0]])
    assert float(step(Criterion("regression", "rmse"), outputs, labels)) == pytest.approx(2)
    assert float(step(Criterion("regression", "mae"), outputs, labels)) == pytest.approx(2)
    assert float(step(Criterion("regression", "mse"), outputs, labels)) == pytest.approx(4)


@pytest.mark.parametrize("loss", ["mse", "mae", "rmse"])
def test_findings_in_different_units_count_alike(loss):
    outputs, labels = drawn(loss)
    units = torch.tensor([1.0, 100.0, 1e-3])
    scaled = step(Criterion("regression", loss, spread=units), outputs * units, labels * units)
    torch.testing.assert_close(scaled, step(Criterion("regression", loss), outputs, labels))


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_a_weight_of_two_is_a_study_shown_twice(loss):  # S84
    outputs, labels = drawn(loss, unknown=False)
    weights = torch.tensor([1.0, 2.0, 1.0])
    column = labels[:, 0] if loss == "ce" else labels[:, 1]
    rows = torch.cat([torch.arange(12), torch.nonzero(column == 1).flatten()])
    if loss == "bce":  # the finding alone, since a study is not shown for one finding
        outputs, labels, weights = outputs[:, 1:2], labels[:, 1:2], weights[1:2]
    total, _ = Criterion(TASKS[loss], loss, weights)(outputs, labels)
    twice, _ = Criterion(TASKS[loss], loss)(outputs[rows], labels[rows])
    torch.testing.assert_close(total, twice)


@pytest.mark.parametrize(
    ("task", "fitting"),
    [
        ("binary", "bce"),
        ("multilabel", "bce"),
        ("multiclass", "ce"),
        ("regression", "mse"),
    ],
)
def test_a_loss_fits_its_task(task, fitting):
    assert Criterion(task).loss == fitting
    wrong = "ce" if fitting != "ce" else "bce"
    with pytest.raises(InputError, match=rf"system\.loss={wrong} does not fit.*{fitting}"):
        Criterion(task, wrong)


def test_weights_move_with_the_model_and_stay_out_of_checkpoints():
    criterion = Criterion("multilabel", weights=WEIGHTS)
    assert criterion.state_dict() == {}
    assert criterion.to("meta").weights.device.type == "meta"
