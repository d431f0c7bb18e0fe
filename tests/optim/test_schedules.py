"""The learning rate rises, falls, ends where it should, and stays there."""

from __future__ import annotations

import itertools

import pytest
import torch

from neuro.errors import InputError
from neuro.optim.schedules import (
    cosine_ramp,
    linear_ramp,
    warmup_cosine,
    warmup_cosine_factor,
)


def factors(num_steps, warmup_fraction=0.1, final_fraction=0.1, extra=0):
    return [
        warmup_cosine_factor(
            step,
            num_steps=num_steps,
            warmup_fraction=warmup_fraction,
            final_fraction=final_fraction,
        )
        for step in range(num_steps + extra)
    ]


@pytest.mark.parametrize("num_steps", [10, 37, 300])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5])
def test_it_rises_to_the_peak_and_then_only_falls(num_steps, warmup_fraction):
    found = factors(num_steps, warmup_fraction)
    peak = found.index(max(found))
    assert max(found) == 1.0
    assert peak + 1 == max(1, round(num_steps * warmup_fraction))
    rise, fall = found[: peak + 1], found[peak + 1 :]
    assert all(one < other for one, other in itertools.pairwise(rise))
    assert all(one >= other for one, other in itertools.pairwise(fall))
    assert min(found) > 0  # no step is wasted


@pytest.mark.parametrize("final", [0.0, 0.05, 1.0])
def test_it_ends_at_the_final_value_and_stays_there(final):
    assert factors(50, final_fraction=final, extra=30)[50:] == pytest.approx([final] * 30)
    last = factors(50, final_fraction=final)[-1]
    assert final <= last < final + 0.01


def test_half_way_down_it_is_half_way():
    (*_, middle) = factors(61, warmup_fraction=0.0, final_fraction=0.2, extra=0)[:32]
    assert middle == pytest.approx(0.2 + 0.8 / 2)  # steps 1 to 61: 31 is in the middle


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_run_of_a_step_or_two_trains(num_steps):
    assert all(0 < one <= 1 for one in factors(num_steps, final_fraction=0.0))


def test_the_optimizer_gets_the_peak_rate_times_the_factor():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    schedule = warmup_cosine(optimizer, num_steps=20, warmup_fraction=0.2, final_fraction=0.1)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([3e-3 * one for one in factors(20, 0.2, 0.1)])


@pytest.mark.parametrize(("warmup", "final"), [(-0.1, 0.0), (1.0, 0.0), (0.1, -0.1), (0.1, 1.1)])
def test_a_share_out_of_range_is_an_error(warmup, final):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match=r"warmup_fraction in \[0, 1\)"):
        warmup_cosine(optimizer, 10, warmup, final)


def rates(num_steps, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, num_steps, **settings)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rise_begins_where_it_is_told():
    found = rates(1000, warmup_fraction=0.1, final_fraction=0.0, start_fraction=0.25)
    assert found[0] == pytest.approx(0.25, abs=0.01)
    assert found[50] == pytest.approx(0.625, abs=0.01)
    assert max(found) == found[99] == 1.0


def test_a_stretched_curve_is_not_seen_to_its_end():
    """The published recipe: peak 3.75e-4, final 1e-6, a tenth of warm-up, stretched by 1.25."""
    found = rates(10000, warmup_fraction=0.1, final_fraction=1e-6 / 3.75e-4, stretch=1.25)
    assert found.index(max(found)) + 1 == 1250  # an eighth of the run
    assert found[-1] == pytest.approx(0.119, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"start_fraction": -0.1}, {"stretch": 0.5}])
def test_a_start_or_a_stretch_out_of_range_is_an_error(wrong):
    with pytest.raises(InputError, match="stretch of at least 1"):
        rates(10, warmup_fraction=0.1, final_fraction=0.0, **wrong)


@pytest.mark.parametrize("ramp", [linear_ramp, cosine_ramp])
@pytest.mark.parametrize(("start", "end"), [(0.994, 1.0), (0.04, 0.4), (1.0, 0.0)])
def test_a_ramp_goes_one_way_from_start_to_end_and_stays(ramp, start, end):  # S25
    found = [ramp(step, num_steps=20, start=start, end=end) for step in range(50)]
    assert found[0] == pytest.approx(start)
    assert found[10] == pytest.approx((start + end) / 2)
    assert found[20:] == [found[20]] * 30 == pytest.approx([end] * 30)
    steps = [later - earlier for earlier, later in itertools.pairwise(found[:21])]
    assert all(one * (end - start) > 0 for one in steps)


def test_a_linear_ramp_is_even_and_a_cosine_is_flat_at_both_ends():
    line = [linear_ramp(step, num_steps=10, start=0.0, end=1.0) for step in range(11)]
    assert line == pytest.approx([step / 10 for step in range(11)])
    curve = [cosine_ramp(step, num_steps=10, start=0.0, end=1.0) for step in range(11)]
    assert curve[1] < 0.03
    assert curve[9] > 0.97


def test_a_ramp_is_a_function_of_the_step_alone():  # S25
    once = [linear_ramp(step, num_steps=7, start=0.9, end=1.0) for step in range(7)]
    again = [linear_ramp(step, num_steps=7, start=0.9, end=1.0) for step in reversed(range(7))]
    assert once == again[::-1]


def test_a_stretched_ramp_stops_before_its_end():
    assert linear_ramp(100, num_steps=100, start=0.0, end=1.0, stretch=1.25) == 0.8
