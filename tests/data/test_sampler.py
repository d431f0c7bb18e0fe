"""A plan shows every study as often as it should, under its budget, in equal steps on all ranks."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from neuro.data.sampler import BatchBudget, draw_counts, plan_epoch, plan_text
from neuro.errors import InputError

CHANCE = np.random.default_rng(0)
SIZES = CHANCE.integers(1, 9, 400)
KINDS = CHANCE.choice([-7, 3, 2**62], 400, p=[0.6, 0.3, 0.1])
WEIGHTS = CHANCE.choice([0.0, 0.3, 0.5, 1.0, 2.5], 400)

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 8])
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2**40])


def plan_of(
    sizes, max_studies=4, max_tokens=16, *, epoch=0, world_size=1, shuffle=True, seed=1, **more
):
    same_modalities = more.pop("same_modalities", False)
    return plan_epoch(
        np.asarray(sizes),
        BatchBudget(
            max_studies=max_studies, max_tokens=max_tokens, same_modalities=same_modalities
        ),
        seed=seed,
        epoch=epoch,
        world_size=world_size,
        shuffle=shuffle,
        **more,
    )


def batches_of(plan):
    """All batches, in the order in which they are trained on, as the ranks are given them."""
    ranks = [list(plan.rank(rank)) for rank in range(plan.world_size)]
    assert {len(rank) for rank in ranks} == {len(plan)}  # equal steps, exact length
    return [rank[step].tolist() for step in range(len(plan)) for rank in ranks]


def shown_by(plan):
    return [study for batch in batches_of(plan) for study in batch]


def check_budget(plan, sizes, max_studies=4, max_tokens=16):
    for batch in batches_of(plan):
        assert 1 <= len(batch) <= max_studies
        assert len(set(batch)) == len(batch)
        assert sum(int(sizes[study]) for study in batch) <= max_tokens


# ---------------------------------------------------------------- every study once


@WORLDS
@SEEDS
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_studies", [16, 17, 53, 400])
def test_a_plan_keeps_all_its_promises(num_studies, seed, world_size, shuffle):
    """Complete, disjoint, within budget, equal steps, exact length."""  # S5 S6 S49 S51 D53
    sizes = SIZES[:num_studies]
    for epoch in range(3):
        plan = plan_of(sizes, epoch=epoch, seed=seed, world_size=world_size, shuffle=shuffle)
        assert sorted(shown_by(plan)) == list(range(num_studies))
        check_budget(plan, sizes)


@WORLDS
@pytest.mark.parametrize("num_series", [1, 5, 9])
def test_the_length_is_exact_where_studies_do_not_tile_a_batch(num_series, world_size):  # S6 S51
    """Nine series a study and a budget of sixteen: an estimate loses a quarter of the batches."""
    plan = plan_of([num_series] * 48, 48, 16, world_size=world_size)
    assert len(plan) == plan.num_steps
    assert len(batches_of(plan)) == len(plan) * world_size
    assert sorted(shown_by(plan)) == list(range(48))


def test_batches_are_as_full_as_their_budget():  # D71
    assert [len(batch) for batch in batches_of(plan_of([1] * 10, 4))] == [4, 4, 2]
    assert [len(batch) for batch in batches_of(plan_of([8] * 10, 4))] == [2] * 5
    sizes = SIZES[:100]
    batches = batches_of(plan_of(sizes))
    for batch, following in pairwise(batches):
        tokens = sizes[batch].sum()
        assert len(batch) == 4 or tokens + sizes[following[0]] > 16


def test_the_steps_of_a_rank_can_be_sliced():
    plan = plan_of(SIZES, world_size=2)
    all_steps = [batch.tolist() for batch in plan.rank(1)]
    assert [batch.tolist() for batch in plan.rank(1)[3:]] == all_steps[3:]
    assert plan.rank(1)[-1].tolist() == all_steps[-1]
    assert plan.batch(1, 2).tolist() == all_steps[2]
    with pytest.raises(IndexError):
        plan.rank(1)[len(plan)]


# ---------------------------------------------------------------- equal steps


@WORLDS
@pytest.mark.parametrize("max_studies", [1, 2, 4, 6])
@pytest.mark.parametrize("num_studies", [8, 9, 13])
def test_training_repeats_the_fewest_possible_studies(num_studies, max_studies, world_size):  # S49
    plan = plan_of([1] * num_studies, max_studies, world_size=world_size)
    fewest = -(-num_studies // max_studies)
    possible = any(count % world_size == 0 for count in range(fewest, num_studies + 1))
    shown = shown_by(plan)
    assert set(shown) == set(range(num_studies))
    assert len(shown) - num_studies == (0 if possible else -num_studies % world_size)
    assert max(shown.count(study) for study in shown) <= 2
    check_budget(plan, np.ones(num_studies), max_studies)


@WORLDS
@pytest.mark.parametrize("max_studies", [1, 2, 4, 6])
@pytest.mark.parametrize("num_studies", [8, 9, 13])
def test_evaluation_repeats_none_or_says_what_would_fit(num_studies, max_studies, world_size):
    """Padding biases the metrics."""  # S50
    fewest = -(-num_studies // max_studies)

    def fits(ranks):
        return any(count % ranks == 0 for count in range(fewest, num_studies + 1))

    def plan(ranks):
        return plan_of([1] * num_studies, max_studies, world_size=ranks, shuffle=False)

    if fits(world_size):
        assert shown_by(plan(world_size)) == list(range(num_studies))
        return
    fitting = max(ranks for ranks in range(1, world_size) if fits(ranks))
    with pytest.raises(InputError, match=rf"repeats none\. Lower trainer\.devices to {fitting}, "):
        plan(world_size)
    assert shown_by(plan(fitting)) == list(range(num_studies))


def test_fewer_studies_than_ranks_is_an_error():
    for shuffle in (True, False):
        with pytest.raises(InputError, match="2 studies cannot be shared by 3 ranks"):
            plan_of([1, 1], world_size=3, shuffle=shuffle)
    with pytest.raises(InputError, match="2 studies cannot be shared by 3 ranks"):
        plan_of([1, 1, 1], world_size=3, weights=np.array([1.0, 0.0, 0.1]))


# ---------------------------------------------------------------- order


@WORLDS
@SEEDS
def test_the_order_is_a_function_of_seed_and_epoch(seed, world_size):  # S7 D53
    options: dict[str, Any] = {"signatures": KINDS, "weights": WEIGHTS}
    for more in ({}, options, {**options, "same_modalities": True}):

        def digests(more=more):
            return [
                plan_of(SIZES, seed=seed, epoch=epoch, world_size=world_size, **more).digest()
                for epoch in range(6)
            ]

        assert digests() == digests()
        assert len(set(digests())) == 6


def test_the_order_is_that_of_another_process_and_release():  # S7 D53
    """The digest was written down; it may change only with the plan's own code."""
    script = (
        "import numpy as np; from neuro.data.sampler import BatchBudget, plan_epoch;"
        "print(plan_epoch(np.arange(1, 30), BatchBudget(max_studies=4, max_tokens=64), seed=3,"
        "epoch=5, world_size=2, shuffle=True, weights=np.arange(1, 30) / 16).digest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "7ef00f7bfcdc6b89"


def test_seeds_do_not_share_their_epochs():
    plans = {
        plan_of(SIZES, seed=seed, epoch=epoch).digest() for seed in range(5) for epoch in range(20)
    }
    assert len(plans) == 100


def test_a_digest_tells_two_plans_apart():
    plan = plan_of(SIZES, world_size=2)
    others = [
        plan_of(SIZES, world_size=4),
        plan_of(SIZES, max_studies=3, world_size=2),
        plan_of(SIZES, seed=2, world_size=2),
        plan_of(SIZES, epoch=1, world_size=2),
    ]
    assert len({other.digest() for other in [plan, *others]}) == 5


@WORLDS
def test_evaluation_keeps_the_given_order(world_size):  # S50 D53
    plans = [plan_of(SIZES, epoch=e, shuffle=False, world_size=world_size) for e in range(3)]
    assert len({plan.digest() for plan in plans}) == 1
    assert shown_by(plans[0]) == list(range(400))


def test_all_studies_are_mixed():
    """Neighbours of a list do not stay neighbours: cohorts and modalities mix."""
    order = np.array(shown_by(plan_of([1] * 1000)))
    assert (np.abs(np.diff(order)) == 1).sum() < 12  # 2 are expected
    places = np.argsort(order)
    assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1


# ---------------------------------------------------------------- the same modalities


@WORLDS
@SEEDS
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_studies", [17, 53, 400])
def test_batches_can_show_the_same_modalities(num_studies, seed, world_size, shuffle):
    sizes, kinds = SIZES[:num_studies], KINDS[:num_studies]
    plan = plan_of(
        sizes,
        seed=seed,
        world_size=world_size,
        shuffle=shuffle,
        same_modalities=True,
        signatures=kinds,
    )
    shown = shown_by(plan)
    assert sorted(shown) == list(range(num_studies))
    check_budget(plan, sizes)
    assert all(len(set(kinds[batch].tolist())) == 1 for batch in batches_of(plan))
    if not shuffle:
        for kind in set(kinds.tolist()):
            own = [study for study in shown if kinds[study] == kind]
            assert own == sorted(own)
        first = [batch[0] for batch in batches_of(plan)]
        assert first == sorted(first)


def test_kinds_of_batches_take_turns_in_proportion():
    """At any point of the epoch, each kind is as far as the others."""
    sizes, kinds = np.ones(4000, int), np.repeat([0, 1, 2], [3000, 800, 200])
    plan = plan_of(sizes, same_modalities=True, signatures=kinds)
    kind = np.array([kinds[batch[0]] for batch in batches_of(plan)])
    done = np.arange(1, len(kind) + 1) / len(kind)
    for each, total in zip((0, 1, 2), (750, 200, 50), strict=True):
        assert (kind == each).sum() == total
        assert np.abs((kind == each).cumsum() - done * total).max() < 5


def test_without_the_option_kinds_share_batches():
    plan = plan_of(SIZES, signatures=KINDS)
    assert plan.digest() == plan_of(SIZES).digest()
    assert any(len(set(KINDS[batch].tolist())) > 1 for batch in batches_of(plan))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.3, 1 / 3, 0.5, 0.9, 1.0, 1.5, 2.5, 3.0])
def test_a_weight_is_how_often_a_study_is_shown(weight):
    """In each epoch the share is exact, and over epochs it is everybody's turn."""
    weights = np.full(150, weight)
    counts = np.stack([draw_counts(weights, seed=1, epoch=epoch) for epoch in range(200)])
    assert counts.min() >= np.floor(weight)
    assert counts.max() <= np.ceil(weight)
    assert np.abs(counts.sum(axis=1) - 150 * weight).max() < 1 + 1e-6
    if weight:
        turns = int(np.ceil(1 / weight))  # every study is seen once within them
        rounds = counts[: 200 // turns * turns].reshape(-1, turns, 150).sum(axis=1)
        assert rounds.min() >= 1
    expected = 200 * weight
    assert np.abs(counts.sum(axis=0) - expected).max() < max(2.0, 0.35 * expected)


@pytest.mark.parametrize("weight", [0.3, 0.5, 2.5])
def test_who_is_shown_is_drawn_anew(weight):
    weights = np.full(60, weight)
    counts = [tuple(draw_counts(weights, seed=1, epoch=epoch)) for epoch in range(50)]
    assert len(set(counts)) == 50
    pairs = np.corrcoef(np.array(counts).T)
    assert np.abs(pairs - np.eye(60)).max() < 0.9  # no two studies go together


@WORLDS
@SEEDS
def test_cohorts_are_mixed_in_proportion_to_their_weights(seed, world_size):
    cohort = np.repeat([0, 1, 2, 3], 100)
    weights = np.array([1.0, 2.5, 0.3, 0.0])[cohort]
    total = np.zeros(400)
    for epoch in range(20):
        plan = plan_of(SIZES, seed=seed, epoch=epoch, world_size=world_size, weights=weights)
        check_budget(plan, SIZES)  # and no batch shows a study twice
        total += np.bincount(shown_by(plan), minlength=400)
    assert total[cohort == 0].tolist() == [20] * 100
    assert total[cohort == 1].sum() == 20 * 250
    assert total[cohort == 2].sum() == 20 * 30
    assert not total[cohort == 3].any()
    assert total[cohort < 3].min() >= 1


def test_what_is_shown_does_not_depend_on_the_ranks_or_the_budget():
    plans = [
        plan_of(SIZES, 4, 16, world_size=1, weights=WEIGHTS),
        plan_of(SIZES, 9, 50, world_size=8, weights=WEIGHTS),
        plan_of(SIZES, weights=WEIGHTS, same_modalities=True, signatures=KINDS),
    ]
    assert len({tuple(sorted(shown_by(plan))) for plan in plans}) == 1


def test_a_study_shown_often_is_never_twice_in_a_batch():
    """The collators tell studies by their ids: two neighbours would become one."""
    for same_modalities in (False, True):
        weights = np.array([9.0, 1, 1, 1, 4.5])
        plan = plan_of(
            [1] * 5,
            32,
            weights=weights,
            signatures=np.array([0, 0, 0, 1, 1]),
            same_modalities=same_modalities,
        )
        check_budget(plan, np.ones(5), 32)
        assert np.bincount(shown_by(plan)).tolist()[:4] == [9, 1, 1, 1]


def test_the_showings_of_a_study_are_spread_over_the_epoch():
    plan = plan_of([1] * 900, weights=np.full(900, 3.0))
    parts = np.array(shown_by(plan)).reshape(3, 900)
    for part in parts:
        assert len(set(part.tolist())) > 850  # a plain shuffle would show 570


def test_few_draws_still_give_every_rank_a_step():
    weights = np.full(10, 0.05)
    seen = set()
    for epoch in range(20):
        plan = plan_of([1] * 10, world_size=4, epoch=epoch, weights=weights)
        assert len(plan) == 1
        seen.update(shown_by(plan))
    assert seen == set(range(10))


def test_a_study_without_weight_is_not_shown_to_fill_a_step():
    weights = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    for epoch in range(10):
        shown = shown_by(plan_of([1] * 5, 1, world_size=2, epoch=epoch, weights=weights))
        assert len(shown) == 4
        assert set(shown) == {2, 3, 4}


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
def test_a_weight_that_is_none_is_an_error(wrong):
    with pytest.raises(InputError, match=f"how often a study is shown.* got {wrong}"):
        plan_of([1, 1, 1], weights=np.array([1.0, wrong, 1.0]))


def test_weights_of_zero_for_all_are_an_error():
    with pytest.raises(InputError, match="all studies have the weight 0"):
        plan_of([1, 1], weights=np.zeros(2))


def test_an_evaluation_refuses_weights():  # S50
    with pytest.raises(InputError, match="an evaluation shows each study once"):
        plan_of([1, 1], shuffle=False, weights=np.ones(2))


# ---------------------------------------------------------------- budgets


def test_a_study_that_is_too_large_names_the_size_it_needs():  # D31
    message = r"has 20 image tokens and data\.max_tokens is 16; 2 of 4 studies .* to 20"
    with pytest.raises(InputError, match=message):
        plan_of([3, 20, 4, 17])
    assert shown_by(plan_of([3, 20], weights=np.array([1.0, 0.0]))) == [0]


@pytest.mark.parametrize("wrong", [{"max_studies": 0}, {"max_tokens": 0}])
def test_budgets_are_positive(wrong):
    with pytest.raises(InputError, match="must be at least 1"):
        BatchBudget(**{"max_studies": 1, "max_tokens": 1, **wrong})


# ---------------------------------------------------------------- large, and for people


@pytest.mark.parametrize("same_modalities", [False, True])
def test_a_million_studies_are_planned(same_modalities):  # S49 S51
    chance = np.random.default_rng(1)
    sizes, kinds = chance.integers(64, 1200, 1_000_000), chance.integers(0, 12, 1_000_000)
    plan = plan_of(
        sizes,
        32,
        16_384,
        world_size=8,
        same_modalities=same_modalities,
        signatures=kinds,
    )
    assert (np.bincount(plan.order) == 1).all()
    counts, tokens = np.diff(plan.bounds), np.add.reduceat(sizes[plan.order], plan.bounds[:-1])
    assert len(counts) == 8 * len(plan)
    assert counts.min() >= 1
    assert counts.max() <= 32
    assert tokens.max() <= 16_384
    assert sum(len(batch) for rank in range(8) for batch in plan.rank(rank)) == 1_000_000


def test_a_plan_can_be_read():
    plan = plan_of([4, 4, 8, 8, 2, 2, 2, 2], world_size=2, shuffle=False)
    text = plan_text(
        plan, np.array([4, 4, 8, 8, 2, 2, 2, 2]), BatchBudget(max_studies=4, max_tokens=16)
    )
    assert batches_of(plan) == [[0, 1, 2], [3, 4], [5, 6], [7]]
    assert text.splitlines() == [
        f"plan              {plan.digest()}",
        "steps             2 on each of 2 ranks",
        "studies           8 shown, 8 different of 8",
        "in a batch                min     median        max  mean fill",
        "studies                     1          2          3      50.0%",
        "image tokens                2          7         16      50.0%",
        "ranks             differ by 66.7% in tokens; "
        "20.0% of a step is waiting for its largest batch",
    ]
