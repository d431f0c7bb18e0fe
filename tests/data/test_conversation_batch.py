"""A part of a batch is exactly its studies, each field has a name, and a model sees no label."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

from neuro.data.batch import VolumeTokens
from neuro.data.conversation_batch import ConversationBatch
from neuro.data.text import IGNORE

# Of each study: the modalities of its images, in textual order, and the length of its text.
SHOWN = {
    "a": (("T1",), 6),
    "b": (("rsfMRI", "T1"), 11),
    "c": (("T1", "T1", "dMRI"), 9),
    "d": (("dMRI",), 5),
    "e": (("T1", "T1"), 7),
}
SPECIFIED = (  # vlm-facts 1.4
    "pixel_values",
    "input_ids",
    "attention_mask",
    "labels",
    "image_mask",
    "num_images_per_sample",
    "task_types",
    "task_ids",
    "sample_indices",
    "metadata",
)
TYPES = {"a": "single", "b": "multimodal", "c": "comparison", "d": "single", "e": "comparison"}


def volume(name, place):
    """Return the tokens of an image: a number of them that is its own, all of one value."""
    number = 10 * "abcde".index(name) + place
    return torch.full((1 + number % 7, 2), number, dtype=torch.uint8)


def packed(images):
    tokens = [volume(*one) for one in images]
    return VolumeTokens(
        tokens=torch.cat(tokens),
        coords=torch.zeros(sum(map(len, tokens)), 3, dtype=torch.int32),
        bounds=torch.tensor([0, *map(len, tokens)]).cumsum(0).int(),
        sizes=torch.ones(len(tokens), 3, dtype=torch.int32),
        kinds=tuple(f"{name}{place}" for name, place in images),
    )


def batch_of(names="abcde"):
    owned = {}
    images = []
    for name in names:
        for place, modality in enumerate(SHOWN[name][0]):
            owned.setdefault(modality, []).append((name, place))
            images.append((modality, len(owned[modality]) - 1))
    lengths = torch.tensor([SHOWN[name][1] for name in names])
    is_text = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    starts = torch.tensor([["abcde".index(name) * 100] for name in names])
    ids = torch.where(is_text, starts + torch.arange(is_text.shape[1]), 0)
    spoken = is_text & (torch.arange(is_text.shape[1]) >= lengths.unsqueeze(1) - 2)
    return ConversationBatch(
        volumes={modality: packed(owned[modality]) for modality in sorted(owned)},
        images=tuple(images),
        num_images_per_sample=tuple(len(SHOWN[name][0]) for name in names),
        input_ids=ids,
        attention_mask=is_text.long(),
        labels=ids.where(spoken, IGNORE),
        study_ids=tuple(names),
        subjects=tuple((f"s-{name}", "ref")[: len(SHOWN[name][0])] for name in names),
        tasks=tuple(f"ask-{name}" for name in names),
        task_types=tuple(TYPES[name] for name in names),
        sample_indices=tuple(range(len(names))),
        metadata=tuple({"sex": f"secret-{name}"} for name in names),
    )


@pytest.fixture
def batch():
    return batch_of()


def assert_equal(one, other, *, but=()):
    """Compare every field, derived ones too."""
    for name in set(one.keys()) - set(but):
        mine, yours = one[name], other[name]
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, yours), name
        elif name == "pixel_values":
            assert list(mine) == list(yours)
            for modality in mine:
                for field in dataclasses.fields(VolumeTokens):
                    a, b = (getattr(volumes[modality], field.name) for volumes in (mine, yours))
                    assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
        else:
            assert mine == yours, name


# ---------------------------------------------------------------- parts


def test_a_batch_is_a_sequence_of_its_studies(batch):
    assert len(batch) == batch.num_studies == 5
    studies = list(batch)
    assert [len(one) for one in studies] == [1] * 5
    assert [one.study_ids for one in studies] == [(name,) for name in "abcde"]
    for row, one in enumerate(studies):
        assert_equal(one, batch[row])
        assert_equal(one, batch[row - 5])
    with pytest.raises(IndexError):
        batch[5]


@pytest.mark.parametrize("name", SHOWN)
def test_a_study_of_a_batch_equals_the_study_alone(batch, name):  # D19
    assert_equal(batch["abcde".index(name)], batch_of(name), but=("sample_indices",))


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (slice(None), "abcde"),
        (slice(1, 3), "bc"),
        (slice(3, None), "de"),
        (slice(-2, None), "de"),
        (slice(None, None, 2), "ace"),
        (slice(None, None, -1), "edcba"),
        (slice(2, 99), "cde"),
    ],
)
def test_a_slice_equals_a_batch_of_its_studies(batch, part, names):  # D15 D19
    assert_equal(batch[part], batch_of(names), but=("sample_indices",))
    assert batch[part].input_ids.shape[1] == max(SHOWN[name][1] for name in names)


def test_each_image_of_a_part_is_the_study_s_own(batch):  # D15 D19
    for part in (batch[1:], batch[::-1], batch[2]):
        places = iter(part.images)
        for name, count in zip(part.study_ids, part.num_images_per_sample, strict=True):
            for place in range(count):
                modality, index = next(places)
                volumes = part.volumes[modality]
                start, stop = volumes.bounds[index : index + 2].tolist()
                assert torch.equal(volumes.tokens[start:stop], volume(name, place))
                assert volumes.kinds[index] == f"{name}{place}"
        assert next(places, None) is None


def test_a_part_holds_no_volume_of_another_study(batch):
    assert set(batch[3].volumes) == {"dMRI"}
    assert set(batch[0:2].volumes) == {"T1", "rsfMRI"}
    for part in (batch[0], batch[1:3], batch[::2]):
        count = sum(volumes.num_volumes for volumes in part.volumes.values())
        assert count == len(part.images) == sum(part.num_images_per_sample)


def test_a_part_knows_its_place_in_the_whole(batch):
    assert batch.sample_indices == (0, 1, 2, 3, 4)
    assert batch[::2].sample_indices == (0, 2, 4)
    assert batch[::2][1].sample_indices == (2,)


def test_the_whole_is_not_changed_by_what_is_taken(batch):
    list(batch)
    assert batch[1:3] is not batch
    assert_equal(batch, batch_of())


def test_a_slice_of_nothing_is_an_error(batch):
    with pytest.raises(IndexError, match="none of the 5 studies"):
        batch[3:3]


# ---------------------------------------------------------------- fields by name


def test_every_field_of_the_specification_is_there_by_its_name(batch):  # D11
    assert set(SPECIFIED) <= set(batch.keys())
    assert len(set(batch.keys())) == len(batch.keys())
    names = batch.keys()
    for name in names:
        assert name in batch
        assert batch[name] is not None
    assert batch["input_ids"] is batch.input_ids
    assert batch["pixel_values"] is batch.volumes
    assert dict(batch).keys() == set(batch.keys())


@pytest.mark.parametrize("name", ["targets", "forward", "take", "_map", "", 3, None])
def test_what_is_no_field_is_not_in_the_batch(batch, name):
    assert name not in batch


def test_an_unknown_name_is_an_error_that_lists_the_known(batch):
    with pytest.raises(KeyError, match=r"no field 'targets'; it has pixel_values, .*metadata"):
        batch["targets"]


def test_images_are_counted_and_masked(batch):
    assert batch.num_images_per_sample == (1, 2, 3, 1, 2)
    assert batch.image_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch[3:].image_mask.tolist() == [[1, 0], [1, 1]]
    assert batch.image_mask.dtype == torch.long


def test_the_modalities_of_a_study_are_in_textual_order(batch):  # D20
    assert batch.modalities == tuple(SHOWN[name][0] for name in "abcde")


def test_the_type_of_a_task_has_a_number(batch):
    assert batch.task_types == ("single", "multimodal", "comparison", "single", "comparison")
    assert batch.task_ids.tolist() == [0, 1, 2, 0, 2]


def test_learned_tokens_are_counted_study_by_study(batch):
    assert batch.num_supervised.tolist() == [2] * 5
    less = dataclasses.replace(
        batch, labels=batch.labels.clone().index_fill_(0, torch.tensor(1), IGNORE)
    )
    assert less.num_supervised.tolist() == [2, 0, 2, 2, 2]


def test_derived_fields_are_where_the_batch_is(batch):  # D7
    moved = batch.to("meta")
    for name in ("image_mask", "task_ids", "num_supervised", "labels"):
        assert moved[name].device.type == "meta"
    assert moved.metadata == batch.metadata


def test_a_loader_and_a_device_take_it_as_it_is(batch):  # D7
    from lightning.pytorch.utilities import move_data_to_device

    (loaded,) = DataLoader([batch], batch_size=None)
    assert loaded is batch
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, ConversationBatch)
    assert moved.input_ids.device.type == "meta"
    assert moved.volumes["T1"].tokens.device.type == "meta"


# ---------------------------------------------------------------- by modality


def test_studies_of_one_modality_each_can_be_had_by_modality():
    batch = batch_of("ade")
    views = batch.by_modality()
    assert list(views) == ["T1", "dMRI"]
    for modality, names in {"T1": "ae", "dMRI": "d"}.items():
        alone = batch_of(names)
        assert list(views[modality]) == ["pixel_values", "input_ids", "attention_mask", "labels"]
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(views[modality][name], alone[name])
        pixels = views[modality]["pixel_values"]
        assert pixels.kinds == alone.volumes[modality].kinds
        assert torch.equal(pixels.tokens, alone.volumes[modality].tokens)


def test_a_study_of_several_modalities_belongs_to_none_of_them(batch):
    with pytest.raises(ValueError, match=r"study 'b' shows rsfMRI, T1\. Take pixel_values"):
        batch.by_modality()


# ---------------------------------------------------------------- what a model sees


def everything(value):
    """Return all that a value holds, at any depth."""
    if isinstance(value, VolumeTokens):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, tuple | list):
        return [leaf for one in value for leaf in everything(one)]
    return [value]


def test_a_model_sees_images_and_text_and_nothing_else(batch):  # D11 D14 D36
    inputs = batch.model_inputs()
    assert inputs._fields == ("volumes", "images", "input_ids", "attention_mask", "labels")
    texts = {leaf for leaf in everything(inputs) if isinstance(leaf, str)}
    kinds = {kind for volumes in batch.volumes.values() for kind in volumes.kinds}
    assert texts == {"T1", "rsfMRI", "dMRI"} | kinds  # which embedder, which statistics


def test_who_a_study_is_and_what_is_known_of_it_does_not_change_what_a_model_sees(batch):  # D37
    other = dataclasses.replace(
        batch,
        study_ids=tuple("vwxyz"),
        subjects=(("x",),) * 5,
        tasks=("other",) * 5,
        task_types=("single",) * 5,
        sample_indices=(9,) * 5,
        metadata=({"sex": "other"},) * 5,
    )
    for mine, yours in zip(batch.model_inputs(), other.model_inputs(), strict=True):
        assert mine is yours


def test_one_slot_is_one_image_whatever_its_name(batch):  # D14 D36
    """Two images of one modality in a study stay two, at places of their own."""
    assert batch[4].images == (("T1", 0), ("T1", 1))
    assert len(set(batch.images)) == len(batch.images)
    counts = {modality: volumes.num_volumes for modality, volumes in batch.volumes.items()}
    for modality, count in counts.items():
        assert sorted(p for m, p in batch.images if m == modality) == list(range(count))
    assert all(start < stop for start, stop in pairwise(batch.volumes["T1"].bounds.tolist()))
