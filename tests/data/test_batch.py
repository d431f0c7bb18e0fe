"""A batch travels whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from neuro.data.batch import ConversationBatch, VolumeTokens


def volumes(num, axes=3):
    bounds = torch.arange(0, 2 * num + 1, 2, dtype=torch.int32)
    return VolumeTokens(
        tokens=torch.zeros(2 * num, 8, dtype=torch.uint8),
        coords=torch.zeros(2 * num, axes, dtype=torch.int32),
        bounds=bounds,
    )


@pytest.fixture
def batch():
    return ConversationBatch(
        volumes={"T1": volumes(3), "rsfMRI": volumes(1, axes=4)},
        images=(("T1", 0), ("rsfMRI", 0), ("T1", 1), ("T1", 2)),
        num_images=(2, 1, 1),
        input_ids=torch.ones(3, 9, dtype=torch.long),
        attention_mask=torch.ones(3, 9, dtype=torch.long),
        targets=torch.full((3, 9), -100),
        study_ids=("a", "b", "c"),
        tasks=("sex", "sex", "age"),
    )


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
    assert len(moved) == 3 + 2 * 3
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert {tensor.device.type for tensor in tensors(batch)} == {"cpu"}


def test_what_is_no_tensor_stays(batch):
    moved = batch.to("meta")
    for name in ("images", "num_images", "study_ids", "tasks", "num_studies", "modalities"):
        assert getattr(moved, name) == getattr(batch, name)
    assert [t.dtype for t in tensors(moved)] == [t.dtype for t in tensors(batch)]


def test_the_modalities_of_a_study_are_in_textual_order(batch):  # D20
    assert batch.modalities == (("T1", "rsfMRI"), ("T1",), ("T1",))
    assert batch.num_studies == 3
    assert batch.volumes["T1"].num_volumes == 3


def test_a_batch_cannot_be_changed(batch):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.tasks = ()


@pytest.mark.gpu
def test_every_tensor_is_pinned(batch):
    assert all(tensor.is_pinned() for tensor in tensors(batch.pin_memory()))
