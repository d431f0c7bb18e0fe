"""Each target is guessed from its place and its own volume's context."""

from __future__ import annotations

import pytest
import torch

from neuro.models.predictor import Predictor, interleaved_rows

CONTEXT, TARGETS = (4, 1, 7), (3, 6, 2)
NEAR = {"atol": 1e-5, "rtol": 0}


def small(**changes):
    torch.manual_seed(0)
    settings = {"encoder_dim": 20, "dim": 24, "num_layers": 2, "num_heads": 2, "position_dim": 12}
    predictor = Predictor(**{**settings, **changes})
    with torch.no_grad():
        for one in predictor.parameters():  # the mask token is zero, which would be no test
            one.add_(0.2 * torch.randn_like(one))
    return predictor


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def pack(context=CONTEXT, targets=TARGETS):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(sum(context), 20, generator=generator),
        torch.randint(0, 14, (sum(context), 3), generator=generator),
        bounds_of(context),
        torch.randint(0, 14, (sum(targets), 3), generator=generator),
        bounds_of(targets),
    )


def test_packed_equals_one_by_one():
    predictor, (context, places, bounds, hidden, hidden_bounds) = small(), pack()
    alone = [
        predictor(one, at, torch.tensor([0, len(one)]), target, torch.tensor([0, len(target)]))
        for one, at, target in zip(
            context.split(CONTEXT), places.split(CONTEXT), hidden.split(TARGETS), strict=True
        )
    ]
    packed = predictor(context, places, bounds, hidden, hidden_bounds)
    torch.testing.assert_close(packed, torch.cat(alone), **NEAR)


def test_guesses_come_in_the_order_of_targets_and_follow_their_places():
    predictor, (context, places, bounds, hidden, hidden_bounds) = small(), pack((9,), (6,))
    hidden = torch.arange(18).view(6, 3)
    guess = predictor(context, places, bounds, hidden, hidden_bounds)
    order, other = torch.randperm(6), torch.randperm(9)
    shuffled = predictor(context[other], places[other], bounds, hidden[order], hidden_bounds)
    torch.testing.assert_close(shuffled, guess[order], **NEAR)
    assert (torch.cdist(guess, guess) + torch.eye(6) > 1e-3).all()


def test_a_guess_depends_on_its_own_volume_only():
    predictor, (context, *rest) = small(), pack()
    context.requires_grad_()
    predictor(context, *rest)[3:9].square().sum().backward()
    touched = context.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [row == 4 for row in range(12)]


def test_places_of_the_context_matter():
    predictor, (context, places, *rest) = small(), pack()
    guess = predictor(context, places, *rest)
    assert (predictor(context, places.flip(1), *rest) - guess).abs().max() > 1e-3


def test_every_parameter_learns():
    predictor = small()
    predictor(*pack()).square().sum().backward()
    assert all(one.grad.abs().sum() > 0 for one in predictor.parameters())
    assert predictor.mask_token.grad.abs().sum() > 0


def test_the_mask_token_begins_at_zero():
    assert not Predictor(20, 24, 1, 2).mask_token.any()


def test_a_volume_without_targets_or_context_changes_nothing():
    predictor = small()
    context, places, _, hidden, _ = pack((5,), (4,))
    alone = predictor(context, places, bounds_of((5,)), hidden, bounds_of((4,)))
    beside = predictor(
        torch.cat((context, context[:2])),
        torch.cat((places, places[:2])),
        bounds_of((5, 2, 0)),
        hidden,
        bounds_of((4, 0, 0)),
    )
    torch.testing.assert_close(beside, alone, **NEAR)


@pytest.mark.parametrize(
    ("first", "second"),
    [(CONTEXT, TARGETS), ((0, 3), (2, 0)), ((1,), (1,)), ((0, 0, 2), (4, 0, 0))],
)
def test_tokens_lie_volume_by_volume_the_context_before_the_targets(first, second):
    one, other = interleaved_rows(bounds_of(first), bounds_of(second), sum(first), sum(second))
    want_one, want_other, row = [], [], 0
    for num_first, num_second in zip(first, second, strict=True):
        want_one += range(row, row + num_first)
        want_other += range(row + num_first, row + num_first + num_second)
        row += num_first + num_second
    assert (one.tolist(), other.tolist()) == (want_one, want_other)


def test_nothing_waits_for_the_device():  # S80
    """On meta tensors there are no numbers to wait for."""
    predictor, lengths = small().to("meta"), [7, 7, 9]
    assert predictor(*(one.to("meta") for one in pack()), lengths).shape == (11, 20)


def test_under_autocast_what_the_blocks_add_to_is_float32():  # S23
    predictor, kinds = small(), []
    for block in predictor.blocks:
        block.register_forward_pre_hook(lambda _, given: kinds.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        predictor(*pack()).float().sum().backward()
    assert kinds == [torch.float32] * 2
    assert {one.grad.dtype for one in predictor.parameters()} == {torch.float32}


def test_checkpointing_gives_the_same():  # S81
    plain, saving = small(), small(checkpoint_activations=True)
    for predictor in (plain, saving):
        predictor(*pack()).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_that_of_the_published_recipe_is_as_large_as_it_should_be():
    with torch.device("meta"):
        predictor = Predictor(768, 768, 12, 12)
    assert sum(one.numel() for one in predictor.parameters()) / 1e6 == pytest.approx(86.3, abs=0.06)
