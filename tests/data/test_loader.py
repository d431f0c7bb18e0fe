"""A loader gives whole studies, each once an epoch, and goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from neuro.data.augment import Augment
from neuro.data.dataset import SeriesDataset
from neuro.data.loader import PlanInput, PlannedBatches, PlannedLoader
from neuro.data.manifest import Manifest
from neuro.data.sampler import BatchBudget
from neuro.data.windows import Windows
from neuro.errors import InputError

BUDGET = BatchBudget(max_studies=4, max_tokens=64)
LIVELY = Augment(flip_front_back=0.5, flip_up_down=0.5, contrast=0.3)


def summary(items):
    """Collate into what the tests compare: ids, all voxels, and what was drawn for them."""
    return (
        tuple(item.study.id for item in items),
        torch.cat(
            [item.tokens.float().flatten() for item in items]
            + [torch.tensor([*item.draw.intensity, item.seed % 2**20]) for item in items]
        ),
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


def dataset_of(members, cache):
    return SeriesDataset(
        Manifest.of(members),
        cache,
        augment=LIVELY,
        seed=1,
        windows=Windows(stride_between_seq=None),
    )


@pytest.fixture(scope="module")
def dataset(members, built_cache):
    return dataset_of(members, built_cache)


def planned_of(dataset, *, budget=BUDGET, weights=None):
    """Return what plans are made of; a study's images say its kind."""
    kinds = [study.modalities for study in dataset.studies]
    names = sorted(set(kinds))
    return PlanInput(
        num_tokens=np.array([8 * len(kind) for kind in kinds]),
        budget=budget,
        signatures=np.array([names.index(kind) for kind in kinds]),
        weights=weights,
    )


def batches_of(dataset, *, rank=0, world_size=1, shuffle=True, seed=1, **more):
    return PlannedBatches(
        dataset,
        planned_of(dataset, **more),
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
    )


def loader_of(dataset, *, num_workers=0, **more):
    batches = batches_of(dataset, **more)
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
            places = np.searchsorted(dataset.bounds, [row for row, _ in batch], side="right") - 1
            ids = [members[place].id for place in places]
            assert all(ids.count(name) == sizes[name] for name in ids)
            assert ids == sorted(ids, key=ids.index)  # the series of a study follow one another


def test_an_epoch_is_shuffled_anew_and_can_be_repeated(dataset, unbroken):  # D53, S7
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
    alone = dataset_of(members, built_cache)
    budget = BatchBudget(max_studies=1, max_tokens=64)
    one = dict(epochs_of(loader_of(alone, budget=budget), 1)[0])
    pairs = [
        pair
        for rank in range(2)
        for pair in epochs_of(
            loader_of(
                dataset_of(members[:12], built_cache),
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


# ---------------------------------------------------------------- mixing


def test_a_cohort_is_shown_as_often_as_its_weight_says(dataset, members):
    weights = np.array([2.5 if index < 4 else 0.5 for index in range(13)])
    batches = batches_of(dataset, weights=weights)
    counts = np.zeros(13)
    for epoch in range(40):
        batches.set_epoch(epoch)
        for batch in batches.plan(epoch).rank(0):
            assert len(set(batch.tolist())) == len(batch)  # never twice in one batch
            counts[batch] += 1
    for index, weight in enumerate(weights):
        assert counts[index] / 40 == pytest.approx(weight, abs=0.15)
    shown = [
        name for ids, _ in epochs_of(loader_of(dataset, weights=weights), 1)[0] for name in ids
    ]
    assert shown.count(members[1].id) in (2, 3)


def test_a_cohort_of_weight_zero_is_not_shown(dataset, members):
    weights = np.array([float(index % 2) for index in range(13)])
    (epoch,) = epochs_of(loader_of(dataset, weights=weights), 1)
    expected = [study.id for study in members[1::2] for _ in study.series]
    assert sorted(ids_of(epoch)) == sorted(expected)


def test_evaluation_shows_every_study_once_whatever_its_weight(dataset, members):  # S50
    weights = np.array([float(index % 2) for index in range(13)])
    (epoch,) = epochs_of(loader_of(dataset, weights=weights, shuffle=False), 1)
    assert ids_of(epoch) == [study.id for study in members for _ in study.series]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_of_one_kind_never_mixes_modalities(dataset, members, world_size):
    budget = BatchBudget(max_studies=4, max_tokens=64, same_modalities=True)
    seen, kinds = [], {study.id: study.modalities for study in members}
    for rank in range(world_size):
        more = {"rank": rank, "world_size": world_size, "budget": budget}
        for ids, _ in epochs_of(loader_of(dataset, **more), 1)[0]:
            assert len({kinds[name] for name in ids}) == 1
            seen += ids
    assert sorted(seen) == sorted(study.id for study in members for _ in study.series)
    mixed = [{kinds[name] for name in ids} for ids, _ in epochs_of(loader_of(dataset), 1)[0]]
    assert max(map(len, mixed)) > 1


# ---------------------------------------------------------------- which plan it is


def test_the_name_of_a_plan_covers_all_that_it_is_made_of(dataset, members, built_cache):
    planned = planned_of(dataset)
    weights = np.ones(13)
    plans = {
        "same": planned,
        "tokens": dataclasses.replace(planned, num_tokens=planned.num_tokens + 1),
        "kinds": dataclasses.replace(planned, signatures=1 - planned.signatures),
        "weights": dataclasses.replace(planned, weights=weights),
        "other weights": dataclasses.replace(planned, weights=2 * weights),
        "studies": dataclasses.replace(planned, budget=BatchBudget(max_studies=3, max_tokens=64)),
        "max tokens": dataclasses.replace(
            planned, budget=BatchBudget(max_studies=4, max_tokens=65)
        ),
        "one kind": dataclasses.replace(
            planned, budget=BatchBudget(max_studies=4, max_tokens=64, same_modalities=True)
        ),
    }
    common = {"seed": 1, "rank": 0, "world_size": 1, "shuffle": True}
    digests = {
        name: PlannedBatches(dataset, plan, **common).digest() for name, plan in plans.items()
    }
    for change in ({"seed": 99}, {"world_size": 2}):
        digests[str(change)] = PlannedBatches(dataset, planned, **{**common, **change}).digest()
    others = [dataclasses.replace(study, id=f"{study.id}x") for study in members]
    digests["ids"] = PlannedBatches(dataset_of(others, built_cache), planned, **common).digest()
    assert len(set(digests.values())) == len(digests)
    other_rank = PlannedBatches(dataset, planned_of(dataset), **{**common, "rank": 1})
    assert other_rank.digest() == digests["same"]
    other_rank.set_epoch(3)
    assert other_rank.digest() == digests["same"]


def test_a_place_in_another_plan_is_refused(dataset):
    """It would skip some studies of the epoch and repeat others."""
    state = loader_of(dataset).state_dict()
    with pytest.raises(InputError, match="other studies, another seed"):
        loader_of(dataset).load_state_dict({**state, "plan": "0123456789abcdef"})
    with pytest.raises(InputError, match=r"data\.weights"):
        loader_of(dataset, weights=np.ones(13)).load_state_dict(state)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who sent a signal")
@pytest.mark.parametrize("signum", ["INT", "TERM", "USR1", "USR2"])
def test_a_signal_to_the_whole_job_stops_nobody_who_reads(dataset, unbroken, signum):
    batches = iter(loader_of(dataset, num_workers=1))
    got = [next(batches)]
    (reader,) = multiprocessing.active_children()
    subprocess.run(["kill", f"-{signum}", str(reader.pid)], check=True)  # by another than its owner
    got += [*batches]
    assert same(got, unbroken[0])


def test_whoever_reads_ends_when_its_owner_says_so(dataset):
    batches = iter(loader_of(dataset, num_workers=1))
    next(batches)
    (reader,) = multiprocessing.active_children()
    os.kill(reader.pid, signal.SIGSTOP)  # it cannot be asked to
    os.kill(reader.pid, signal.SIGTERM)
    os.kill(reader.pid, signal.SIGCONT)
    reader.join(10)
    assert reader.exitcode == 0
