"""A plan holds every study once, under its budgets, and the same number of batches on each rank."""

from __future__ import annotations

import pytest
import torch

from neuro.data.sampler import BatchBudget, plan_epoch
from neuro.errors import InputError

SIZES = torch.randint(1, 9, (53,), generator=torch.Generator().manual_seed(0)).tolist()


def plan_of(sizes, max_studies=4, max_tokens=16, *, epoch=0, world_size=1, shuffle=True, seed=1):
    return plan_epoch(
        sizes,
        BatchBudget(max_studies=max_studies, max_tokens=max_tokens),
        seed=seed,
        epoch=epoch,
        world_size=world_size,
        shuffle=shuffle,
    )


def studies_of(plan):
    return [study for rank in plan for batch in rank for study in batch]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_studies", [16, 17, 53])
def test_a_plan_keeps_all_its_promises(num_studies, world_size, shuffle):  # D53
    sizes = SIZES[:num_studies]
    for epoch in range(5):
        plan = plan_of(sizes, epoch=epoch, world_size=world_size, shuffle=shuffle)
        assert len(plan) == world_size
        assert sorted(studies_of(plan)) == list(range(num_studies))
        assert len({len(rank) for rank in plan}) == 1
        for rank in plan:
            for batch in rank:
                assert 1 <= len(batch) <= 4
                assert sum(sizes[study] for study in batch) <= 16


@pytest.mark.parametrize(
    ("num_studies", "world_size", "max_studies"),
    [(3, 2, 1), (7, 4, 1), (5, 3, 1), (5, 4, 2), (9, 8, 1), (4, 3, 4), (6, 4, 6)],
)
def test_no_batch_is_ever_empty(num_studies, world_size, max_studies):  # D53
    """Where the promises cannot all be kept, the user is told."""
    fewest = -(-num_studies // max_studies)
    possible = any(
        count % world_size == 0 for count in range(max(fewest, world_size), num_studies + 1)
    )
    if not possible:
        with pytest.raises(InputError, match=r"max_studies|devices"):
            plan_of([1] * num_studies, max_studies, world_size=world_size)
        return
    plan = plan_of([1] * num_studies, max_studies, world_size=world_size)
    assert sorted(studies_of(plan)) == list(range(num_studies))
    assert len({len(rank) for rank in plan}) == 1
    assert all(batch for rank in plan for batch in rank)


def test_large_studies_alone_in_their_batches_are_not_left_empty():  # D53
    with pytest.raises(InputError, match=r"max_tokens|devices"):
        plan_of([16, 16, 16], max_studies=4, max_tokens=16, world_size=2)


def test_a_repeated_epoch_is_the_same_and_another_is_not():  # D53
    for world_size in (1, 3):
        plans = [plan_of(SIZES, epoch=epoch, world_size=world_size) for epoch in range(6)]
        again = [plan_of(SIZES, epoch=epoch, world_size=world_size) for epoch in range(6)]
        assert plans == again
        assert len(set(plans)) == 6


def test_another_seed_gives_another_order():
    assert plan_of(SIZES, seed=1) != plan_of(SIZES, seed=2)


def test_seeds_do_not_share_their_epochs():
    ahead = {plan_of(SIZES, seed=1, epoch=epoch) for epoch in range(20)}
    other = {plan_of(SIZES, seed=2, epoch=epoch) for epoch in range(20)}
    assert not ahead & other


def test_evaluation_keeps_the_order_in_every_epoch():  # D53
    for epoch in range(3):
        plan = plan_of(SIZES, epoch=epoch, shuffle=False)
        assert studies_of(plan) == list(range(53))


def test_batches_are_as_full_as_their_budget():
    assert [len(batch) for batch in plan_of([1] * 10, 4)[0]] == [4, 4, 2]
    assert [len(batch) for batch in plan_of([8] * 10, 4)[0]] == [2] * 5


def test_all_studies_are_mixed():
    """Neighbours of a list do not stay neighbours: cohorts and modalities mix."""
    pairs = {pair for batch in plan_of([1] * 100, 2)[0] for pair in [tuple(sorted(batch))]}
    assert sum(second - first == 1 for first, second in pairs) < 6


def test_a_study_that_is_too_large_names_the_size_it_needs():  # D31
    with pytest.raises(InputError, match=r"has 20 image tokens and data\.max_tokens is 16.* to 20"):
        plan_of([3, 20, 4])


def test_fewer_studies_than_ranks_is_an_error():
    with pytest.raises(InputError, match="2 studies cannot be shared by 3 ranks"):
        plan_of([1, 1], world_size=3)


@pytest.mark.parametrize("wrong", [{"max_studies": 0}, {"max_tokens": 0}])
def test_budgets_are_positive(wrong):
    with pytest.raises(InputError, match="must be at least 1"):
        BatchBudget(**{"max_studies": 1, "max_tokens": 1, **wrong})
