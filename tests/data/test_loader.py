"""A loader gives whole studies, each once an epoch, and goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from neuro.data.augment import Augment
from neuro.data.dataset import SeriesDataset
from neuro.data.loader import PlannedBatches, PlannedLoader, study_tokens
from neuro.data.sampler import BatchBudget
from neuro.errors import InputError

BUDGET = BatchBudget(max_studies=4, max_tokens=64)


def summary(items):
    """Collate into what the tests compare: ids and all voxels."""
    return (
        tuple(item.study.id for item in items),
        torch.cat([item.tokens.float().flatten() for item in items]),
    )


@pytest.fixture(scope="module")
def members(studies):
    """Thirteen studies; every third shows two images."""
    by_kind = {kind: [s for s in studies if s.modalities == (kind,)] for kind in ("T1", "dMRI")}
    members = []
    for index in range(13):
        study = by_kind["T1"][index]
        if index % 3 == 0:
            extra = by_kind["dMRI"][index].series
            study = dataclasses.replace(study, series=study.series + extra)
        members.append(study)
    return members


@pytest.fixture(scope="module")
def dataset(members, built_cache):
    return SeriesDataset(members, built_cache, augment=Augment(max_gain_change=0.3), seed=1)


def loader_of(dataset, *, rank=0, world_size=1, shuffle=True, num_workers=0, budget=BUDGET):
    batches = PlannedBatches(
        dataset, budget, seed=1, rank=rank, world_size=world_size, shuffle=shuffle
    )
    return PlannedLoader(
        batches,
        collate_fn=summary,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def epochs_of(loader, num_epochs, start=0):
    """Run a loader as Lightning does: the epoch is set before it is begun."""
    found = []
    for epoch in range(start, num_epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)  # where Lightning looks for it
        found.append(list(loader))
    return found


@pytest.fixture(scope="module")
def unbroken(dataset):
    """Three epochs without a stop."""
    return epochs_of(loader_of(dataset), 3)


def same(one, two):
    return len(one) == len(two) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True)
    )


def ids_of(batches):
    return [name for ids, _ in batches for name in ids]


# ---------------------------------------------------------------- every study once


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_series_of_every_study_is_given_once_an_epoch(
    dataset, members, num_workers, world_size
):  # D53
    expected = sorted(study.id for study in members for _ in study.series)
    loaders = [
        loader_of(dataset, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    ranks = [epochs_of(loader, 2) for loader in loaders]
    for epoch in range(2):
        assert sorted(name for rank in ranks for name in ids_of(rank[epoch])) == expected
        assert len({len(rank[epoch]) for rank in ranks}) == 1
        assert [len(rank[epoch]) for rank in ranks] == [len(loader) for loader in loaders]


def test_the_number_of_workers_changes_nothing(dataset, unbroken):  # D52 D53
    for one, two in zip(unbroken, epochs_of(loader_of(dataset, num_workers=2), 2), strict=False):
        assert same(one, two)


def test_a_study_is_never_split(dataset, members):  # D53
    sizes = {study.id: len(study.series) for study in members}
    loader = loader_of(dataset, budget=BatchBudget(max_studies=3, max_tokens=40))
    for epoch in range(3):
        loader.batches.set_epoch(epoch)
        for batch in loader.batches:
            ids = [dataset.rows[row][0].id for row, _ in batch]
            assert all(ids.count(name) == sizes[name] for name in ids)
            assert ids == sorted(ids, key=ids.index)  # the series of a study follow one another


def test_an_epoch_is_shuffled_anew_and_can_be_repeated(dataset, unbroken):  # D53
    first, second, third = unbroken
    assert len({tuple(ids_of(epoch)) for epoch in (first, second, third)}) == 3
    again = loader_of(dataset)
    again.batch_sampler.sampler.set_epoch(1)
    assert same(list(again), second)
    again.batch_sampler.sampler.set_epoch(0)
    assert same(list(again), first)


def test_evaluation_keeps_its_order(dataset, members):  # D53
    loader = loader_of(dataset, shuffle=False)
    expected = [study.id for study in members for _ in study.series]
    assert [ids_of(epoch) for epoch in epochs_of(loader, 3)] == [expected] * 3


def test_what_a_study_shows_does_not_depend_on_the_ranks(members, built_cache):  # D53
    alone = SeriesDataset(members, built_cache, augment=Augment(max_gain_change=0.3), seed=1)
    budget = BatchBudget(max_studies=1, max_tokens=64)
    one = dict(epochs_of(loader_of(alone, budget=budget), 1)[0])
    pairs = [
        pair
        for rank in range(2)
        for pair in epochs_of(
            loader_of(
                SeriesDataset(members[:12], built_cache, augment=alone.augment, seed=1),
                rank=rank,
                world_size=2,
                budget=budget,
            ),
            1,
        )[0]
    ]
    assert len(pairs) == 12
    assert all(torch.equal(one[ids], voxels) for ids, voxels in pairs)


# ---------------------------------------------------------------- stop and go on


@pytest.mark.parametrize(
    ("at_epoch", "at_batch", "num_workers"),
    [(0, 1, 0), (0, 3, 0), (1, 2, 0), (2, 1, 0), (0, 2, 2), (1, 1, 2)],
)
def test_a_resumed_loader_goes_on_with_the_next_batch(
    dataset, unbroken, at_epoch, at_batch, num_workers
):  # D53
    whole = unbroken
    assert 0 < at_batch < len(whole[at_epoch])

    stopped = loader_of(dataset, num_workers=num_workers)
    if at_epoch:
        epochs_of(stopped, at_epoch, start=at_epoch - 1)
    stopped.batch_sampler.sampler.set_epoch(at_epoch)
    running = iter(stopped)
    for _ in range(at_batch):
        next(running)
    state = stopped.state_dict()
    assert (state["epoch"], state["num_done"]) == (at_epoch, at_batch)

    resumed = loader_of(dataset, num_workers=num_workers)
    resumed.load_state_dict(state)
    rest = epochs_of(resumed, 3, start=at_epoch)
    assert same(rest[0], whole[at_epoch][at_batch:])
    for one, two in zip(rest[1:], whole[at_epoch + 1 :], strict=True):
        assert same(one, two)


def test_a_loader_can_be_stopped_after_every_batch(dataset, unbroken):  # D53
    whole = unbroken[0]
    seen, state = [], None
    for _ in range(len(whole)):
        loader = loader_of(dataset)
        if state is not None:
            loader.load_state_dict(state)
        seen.append(next(iter(loader)))
        state = loader.state_dict()
    assert same(seen, whole)


def test_a_finished_epoch_goes_on_with_the_next(dataset, unbroken):  # D53
    finished = loader_of(dataset)
    epochs_of(finished, 2, start=1)
    resumed = loader_of(dataset)
    resumed.load_state_dict(finished.state_dict())
    assert same(epochs_of(resumed, 3, start=2)[0], unbroken[2])


def test_only_the_first_epoch_after_a_resume_is_short(dataset, unbroken):  # D53
    resumed = loader_of(dataset)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 0, "num_done": 2})
    assert same(list(resumed), unbroken[0][2:])
    assert same(list(resumed), unbroken[0])  # the same epoch, as a second validation runs it


def test_the_state_belongs_to_the_rank_that_saved_it_or_any_other(dataset):  # D53
    whole = [epochs_of(loader_of(dataset, rank=rank, world_size=2), 1)[0] for rank in range(2)]
    first = loader_of(dataset, rank=0, world_size=2)
    next(iter(first))
    for rank in range(2):  # Lightning keeps the state of rank zero
        resumed = loader_of(dataset, rank=rank, world_size=2)
        resumed.load_state_dict(first.state_dict())
        assert same(list(resumed), whole[rank][1:])


# ---------------------------------------------------------------- sizes


def test_the_size_of_a_study_is_that_of_its_images(dataset, members):
    assert study_tokens(dataset) == [8 * len(study.series) for study in members]
    assert [len(dataset[row, 0].tokens) for row in range(3)] == [8] * 3


def test_a_run_counts_all_its_times(studies, built_cache):
    runs = [study for study in studies if study.modalities == ("rsfMRI",)][:1]
    dataset = SeriesDataset(runs, built_cache, augment=None, seed=1)
    assert study_tokens(dataset) == [len(dataset[0, 0].tokens)] == [16]


def test_a_place_in_another_plan_is_refused(dataset):
    """It would skip some studies of the epoch and repeat others."""
    state = loader_of(dataset).state_dict()
    with pytest.raises(InputError, match="other studies, another seed"):
        loader_of(dataset).load_state_dict({**state, "plan": "0123456789abcdef"})
    for change in ({"seed": 99}, {"world_size": 2}):
        other = PlannedBatches(
            dataset,
            BatchBudget(max_studies=2, max_tokens=10_000),
            **{"seed": 0, "rank": 0, "world_size": 1, "shuffle": True, **change},
        )
        same = PlannedBatches(
            dataset,
            BatchBudget(max_studies=2, max_tokens=10_000),
            seed=0,
            rank=0,
            world_size=1,
            shuffle=True,
        )
        assert other.digest() != same.digest()
