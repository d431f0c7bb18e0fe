"""Each volume becomes float32 by the statistics of its own kind, whatever it is packed with."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from neuro.errors import InputError
from neuro.models.normalize import STATISTICS, check_statistics, normalize

KINDS = ["mri", "bone", "brain", "mri", "blood"]
BOUNDS = torch.tensor([0, 3, 4, 4, 11, 16], dtype=torch.int32)  # the third has no tokens left
INTENSITY = torch.tensor(
    [
        [1.0, 1.0, 0.0, 0.0],
        [1.4, 0.9, 0.05, 0.2],
        [0.7, 1.1, -0.1, 0.1],
        [0.6, 1.2, 0.3, 0.0],
        [1.0, 1.0, 0.0, 0.7],
    ]
)
SEEDS = torch.tensor([0, 11, 12, 13, 1 << 61])


@pytest.fixture
def tokens():
    return torch.randint(256, (16, 37), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def whole(tokens):
    return torch.tensor([0, len(tokens)])


def one_by_one(tokens, **more):
    """Normalize each volume on its own and lay the results end to end."""
    parts = []
    for index, kind in enumerate(KINDS):
        own = tokens[BOUNDS[index] : BOUNDS[index + 1]]
        of_one: dict[str, Any] = {name: values[index : index + 1] for name, values in more.items()}
        parts.append(normalize(own, whole(own), [kind], **of_one))
    return torch.cat(parts)


def by_hand(tokens, kind):
    mean, std = STATISTICS[kind]
    return (tokens.double() / 255 - mean) / std


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("kind", STATISTICS)
def test_intensities_are_scaled_and_standardized_in_float32(kind):
    tokens = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    out = normalize(tokens, whole(tokens), [kind])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), by_hand(tokens, kind), atol=1e-6, rtol=1e-6)


def test_the_brightest_voxel_does_not_wrap_around():  # D35
    tokens = torch.tensor([[0, 255]], dtype=torch.uint8)
    first, last = normalize(tokens, whole(tokens), ["mri"])[0]
    assert first < 0 < last


def test_each_volume_has_the_statistics_of_its_own_kind(tokens):  # S2
    out = normalize(tokens, BOUNDS, KINDS).double()
    for index, kind in enumerate(KINDS):
        own = slice(int(BOUNDS[index]), int(BOUNDS[index + 1]))
        torch.testing.assert_close(out[own], by_hand(tokens[own], kind), atol=1e-6, rtol=1e-6)
        for other in {*STATISTICS} - {kind}:
            if own.start < own.stop:
                assert not torch.allclose(out[own], by_hand(tokens[own], other), atol=1e-2)


def test_the_same_voxels_in_three_windows_differ():  # S2
    tokens = torch.full((3, 5), 100, dtype=torch.uint8)
    out = normalize(tokens, torch.arange(4), ["brain", "blood", "bone"])
    assert len(out[:, 0].unique()) == 3


@pytest.mark.parametrize("kind", ["BrainWindow", "ct", "Brain", ""])
def test_an_unknown_kind_is_named_with_the_known_ones(tokens, kind):  # S2
    with pytest.raises(InputError, match=f"kind '{kind}'; known are mri, brain, .*, run"):
        normalize(tokens, torch.tensor([0, 4, 16]), ["mri", kind])


def test_a_run_is_left_as_its_recipe_made_it():
    tokens = torch.randn(3, 8).half()
    for values in (tokens, tokens.float()):
        out = normalize(values, whole(tokens), ["run"], intensity=torch.tensor([[2.0, 2, 1, 0]]))
        assert out.dtype == torch.float32
        assert torch.equal(out, tokens.float())


def test_a_kind_that_does_not_fit_the_tokens_is_an_error(tokens):  # S38
    with pytest.raises(InputError, match="'run' are floating point"):
        normalize(tokens, whole(tokens), ["run"])
    with pytest.raises(InputError, match="for kind 'brain'"):
        normalize(tokens / 255, whole(tokens), ["brain"])


def test_other_statistics_can_be_given(tokens):
    out = normalize(tokens, whole(tokens), ["eeg"], statistics={"eeg": [0.5, 2.0]})
    torch.testing.assert_close(out, (tokens.float() / 255 - 0.5) / 2)
    with pytest.raises(InputError, match="known are eeg, run"):
        normalize(tokens, whole(tokens), ["mri"], statistics={"eeg": [0.5, 2.0]})


@pytest.mark.parametrize(
    "wrong",
    [(0.5, 0.0), (0.5, -1.0), (math.nan, 1.0), (0.5, math.inf), (0.5, math.nan), (0.5,)],
)
def test_statistics_that_divide_by_nothing_are_errors(tokens, wrong):
    statistics = {**STATISTICS, "mri": wrong}
    with pytest.raises(InputError, match=r"statistics\.mri takes"):
        check_statistics(statistics)
    with pytest.raises(InputError, match=r"statistics\.mri takes"):
        normalize(tokens, whole(tokens), ["bone"], statistics=statistics)
    check_statistics(STATISTICS)


# ---------------------------------------------------------------- a pure function


@pytest.mark.parametrize("more", [{}, {"intensity": INTENSITY, "seeds": SEEDS}])
def test_two_calls_agree_and_change_nothing(tokens, more):  # S69
    before = tokens.clone(), *(values.clone() for values in more.values())
    one, two = (normalize(tokens, BOUNDS, KINDS, **more) for _ in range(2))
    assert torch.equal(one, two)
    for now, then in zip((tokens, *more.values()), before, strict=True):
        assert torch.equal(now, then)


def test_noise_does_not_change_the_callers_run():  # S69
    tokens = torch.randn(4, 6)
    before = tokens.clone()
    noisy: dict[str, Any] = {
        "intensity": torch.tensor([[1.0, 1, 0, 0.5]]),
        "seeds": torch.tensor([3]),
    }
    assert not torch.equal(normalize(tokens, whole(tokens), ["run"], **noisy), before)
    assert torch.equal(tokens, before)


def test_masked_subsets_are_normalized_to_their_end(tokens):  # S70
    everything = normalize(tokens, BOUNDS, KINDS)
    kept = torch.rand(16, generator=torch.Generator().manual_seed(1)) < 0.4
    counts = [int(kept[start:stop].sum()) for start, stop in pairwise(BOUNDS.tolist())]
    bounds = torch.tensor([0, *counts]).cumsum(0)
    assert 0 < len(tokens[kept]) < 16
    assert torch.equal(normalize(tokens[kept], bounds, KINDS), everything[kept])


def test_bounds_of_other_tokens_are_not_taken(tokens):  # S70
    with pytest.raises(RuntimeError):
        normalize(tokens, BOUNDS - BOUNDS // 2, KINDS)


@pytest.mark.parametrize(
    "more", [{}, {"intensity": INTENSITY}, {"intensity": INTENSITY, "seeds": SEEDS}]
)
def test_packed_equals_one_by_one(tokens, more):
    assert torch.equal(normalize(tokens, BOUNDS, KINDS, **more), one_by_one(tokens, **more))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_packed_equals_one_by_one_for_many_volumes(three_threads):
    """The last bit of a float32 power depends on its place in what a thread works on."""
    num = 1000  # enough to be shared between the threads, and not evenly
    tokens = torch.arange(256, dtype=torch.uint8).repeat(num, 1)
    intensity = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).repeat(num, 1)
    intensity[:, 0] = torch.rand(num, generator=torch.Generator().manual_seed(0)) + 0.3
    packed = normalize(tokens, torch.arange(num + 1), ["brain"] * num, intensity=intensity)
    for index in range(num):
        own = slice(index, index + 1)
        one = normalize(tokens[own], torch.tensor([0, 1]), ["brain"], intensity=intensity[own])
        assert torch.equal(packed[own], one)


def test_the_order_of_volumes_does_not_matter(tokens):
    order = [3, 0, 4, 2, 1]
    pieces = [torch.arange(int(BOUNDS[i]), int(BOUNDS[i + 1])) for i in order]
    moved = torch.cat(pieces)
    bounds = torch.tensor([0, *map(len, pieces)]).cumsum(0)
    plain = normalize(tokens, BOUNDS, KINDS, intensity=INTENSITY, seeds=SEEDS)
    kinds = [KINDS[i] for i in order]
    out = normalize(tokens[moved], bounds, kinds, intensity=INTENSITY[order], seeds=SEEDS[order])
    assert torch.equal(out, plain[moved])


# ---------------------------------------------------------------- intensities and noise


def test_intensities_that_were_not_changed_are_the_same_to_the_bit(tokens):
    off = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(5, 4)
    plain = normalize(tokens, BOUNDS, KINDS)
    assert torch.equal(normalize(tokens, BOUNDS, KINDS, intensity=off), plain)
    assert torch.equal(normalize(tokens, BOUNDS, KINDS, intensity=off, seeds=SEEDS), plain)


def test_gamma_gain_and_offset_come_before_standardizing(tokens):
    out = normalize(tokens, BOUNDS, KINDS, intensity=INTENSITY).double()
    for index, kind in enumerate(KINDS):
        own = slice(int(BOUNDS[index]), int(BOUNDS[index + 1]))
        gamma, gain, offset, _ = INTENSITY[index].double()
        mean, std = STATISTICS[kind]
        changed = ((tokens[own].double() / 255) ** gamma * gain + offset).clamp(0, 1)
        torch.testing.assert_close(out[own], (changed - mean) / std, atol=2e-6, rtol=1e-5)


def test_bright_voxels_stay_within_range():  # D35
    tokens = torch.arange(256, dtype=torch.uint8).unsqueeze(0)
    for gain, offset in ((2.0, 0.0), (1.0, 0.9), (1.0, -0.9)):
        out = normalize(
            tokens, whole(tokens), ["mri"], intensity=torch.tensor([[1.0, gain, offset, 0.0]])
        )
        low, high = normalize(torch.tensor([[0, 255]], dtype=torch.uint8), whole(tokens), ["mri"])[
            0
        ]
        assert low <= out.min() <= out.max() <= high
        assert (out.diff() >= 0).all()


def test_noise_has_the_standard_deviation_that_was_drawn():
    tokens = torch.full((60, 500), 90, dtype=torch.uint8)
    intensity = torch.tensor([[1.0, 1, 0, 0.5], [1.0, 1, 0, 0.1], [1.0, 1, 0, 0.0]])
    bounds, kinds = torch.tensor([0, 20, 40, 60]), ["mri", "bone", "mri"]
    plain = normalize(tokens, bounds, kinds, intensity=intensity)
    noisy = normalize(tokens, bounds, kinds, intensity=intensity, seeds=torch.tensor([1, 2, 3]))
    noise = noisy - plain
    for part, std in zip(noise.split(20), (0.5, 0.1, 0.0), strict=True):
        assert float(part.std()) == pytest.approx(std, rel=0.03)
        assert float(part.mean()) == pytest.approx(0, abs=0.03 * std)


def test_noise_is_its_seeds_and_nobody_elses(tokens):
    def noisy(*seeds):
        return normalize(
            tokens[:8],
            torch.tensor([0, 4, 8]),
            ["mri", "mri"],
            intensity=torch.tensor([[1.0, 1, 0, 0.5]]).expand(2, 4),
            seeds=torch.tensor(seeds),
        )

    torch.manual_seed(0)
    one = noisy(5, 6)
    torch.manual_seed(1)
    assert torch.equal(noisy(5, 6), one)
    assert torch.equal(noisy(5, 7)[:4], one[:4])
    assert not torch.equal(noisy(5, 7)[4:], one[4:])


def test_noise_leaves_the_state_of_the_process():
    tokens = torch.zeros(2, 4).half()
    before = torch.get_rng_state()
    out = normalize(
        tokens,
        whole(tokens),
        ["run"],
        intensity=torch.tensor([[1.0, 1, 0, 1]]),
        seeds=torch.tensor([4]),
    )
    assert out.abs().min() > 0
    assert torch.equal(torch.get_rng_state(), before)
