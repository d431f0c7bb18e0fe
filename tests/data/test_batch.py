"""A batch travels whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from neuro.data.batch import StudyBatch, VolumeTokens
from neuro.data.conversation_batch import ConversationBatch


def volumes(num, axes=3, changed=False):
    bounds = torch.arange(0, 2 * num + 1, 2, dtype=torch.int32)
    return VolumeTokens(
        tokens=torch.zeros(2 * num, 8, dtype=torch.uint8),
        coords=torch.zeros(2 * num, axes, dtype=torch.int32),
        bounds=bounds,
        sizes=torch.ones(num, axes, dtype=torch.int32),
        kinds=("mri",) * num,
        intensity=torch.ones(num, 4) if changed else None,
        seeds=torch.ones(num, dtype=torch.long) if changed else None,
    )


@pytest.fixture
def talk():
    return ConversationBatch(
        volumes={"T1": volumes(3, changed=True), "rsfMRI": volumes(1, axes=4)},
        images=(("T1", 0), ("rsfMRI", 0), ("T1", 1), ("T1", 2)),
        num_images_per_sample=(2, 1, 1),
        input_ids=torch.ones(3, 9, dtype=torch.long),
        attention_mask=torch.ones(3, 9, dtype=torch.long),
        labels=torch.full((3, 9), -100),
        study_ids=("a", "b", "c"),
        subjects=(("s1", "s2"), ("s1",), ("s3",)),
        tasks=("sex", "sex", "age"),
        task_types=("comparison", "single", "single"),
        sample_indices=(0, 1, 2),
        metadata=({"sex": "F"}, {}, {}),
    )


@pytest.fixture
def studies():
    """Two studies, of one and of two series."""
    return StudyBatch(
        volumes=volumes(3, changed=True),
        study_bounds=torch.tensor([0, 1, 3], dtype=torch.int32),
        labels=torch.tensor([[1.0, float("nan")], [0.0, 1.0]]),
        study_ids=("a", "b"),
        series_names=("t1", "t1", "head.bone"),
    )


@pytest.fixture(params=["talk", "studies"])
def batch(request):
    return request.getfixturevalue(request.param)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors(item)]
    return []


def test_every_tensor_is_moved(batch):
    moved = tensors(batch.to("meta"))
    assert len(moved) == len(tensors(batch))
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert {tensor.device.type for tensor in tensors(batch)} == {"cpu"}


def test_every_tensor_is_found(talk, studies):
    assert len(tensors(talk)) == 3 + 6 + 4
    assert len(tensors(studies)) == 2 + 6


def test_what_is_no_tensor_stays(talk, studies):
    shared = ("study_ids", "num_studies")
    own = (
        (talk, ("images", "num_images_per_sample", "tasks", "modalities", "metadata", "subjects")),
        (studies, ("series_names",)),
    )
    for batch, names in own:
        moved = batch.to("meta")
        for name in (*shared, *names):
            assert getattr(moved, name) == getattr(batch, name)
        assert [t.dtype for t in tensors(moved)] == [t.dtype for t in tensors(batch)]
    assert studies.to("meta").volumes.kinds == ("mri",) * 3
    assert talk.to("meta").volumes["rsfMRI"].intensity is None


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("places", [[1], [2, 0], [3, 1, 2, 0]])
def test_a_part_of_the_volumes_is_those_volumes(places, changed):
    bounds = torch.tensor([0, 3, 4, 9, 11], dtype=torch.int32)
    whole = VolumeTokens(
        tokens=torch.arange(22, dtype=torch.uint8).reshape(11, 2),
        coords=torch.arange(33, dtype=torch.int32).reshape(11, 3),
        bounds=bounds,
        sizes=torch.arange(12, dtype=torch.int32).reshape(4, 3),
        kinds=("mri", "run", "bone", "brain"),
        intensity=torch.rand(4, 4) if changed else None,
        seeds=torch.arange(4) if changed else None,
    )
    part = whole.take(places)
    assert part.num_volumes == len(places)
    assert part.bounds.dtype == bounds.dtype
    assert int(part.bounds[-1]) == len(part.tokens) == len(part.coords)
    for new, old in enumerate(places):
        mine = slice(*part.bounds[new : new + 2].tolist())
        theirs = slice(*bounds[old : old + 2].tolist())
        assert torch.equal(part.tokens[mine], whole.tokens[theirs])
        assert torch.equal(part.coords[mine], whole.coords[theirs])
        assert torch.equal(part.sizes[new], whole.sizes[old])
        assert part.kinds[new] == whole.kinds[old]
        if changed:
            assert torch.equal(part.intensity[new], whole.intensity[old])
            assert part.seeds[new] == whole.seeds[old]
    assert (part.intensity is None) == (part.seeds is None) == (not changed)


def test_a_study_owns_the_tokens_of_all_its_series(studies):
    assert studies.num_studies == 2
    assert studies.volumes.num_volumes == 3
    assert studies.token_bounds.tolist() == [0, 2, 6]


def test_a_batch_cannot_be_changed(batch):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.study_ids = ()


@pytest.mark.gpu
def test_every_tensor_is_pinned(batch):
    assert all(tensor.is_pinned() for tensor in tensors(batch.pin_memory()))
