"""Image slots and kept tokens agree, image by image, whatever else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neuro.data.cohort import ConversationCohort
from neuro.data.collate import ConversationCollator, foreground_tokens
from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Series, Study, SubjectSplits
from neuro.data.text import IGNORE, TextEncoder
from neuro.data.tokens import grid_coords
from neuro.errors import InputError

GRIDS = {"T1": (2, 3, 2), "dMRI": (2, 2, 2), "rsfMRI": (2, 2, 1, 3)}


def study_of(name, *modalities, answer="left", order=None):
    """Return a study that asks about its images, named in an order."""
    order = range(len(modalities)) if order is None else order
    parts = tuple(part for index in order for part in (ImagePart(index), f" is image {index}, "))
    images = tuple(Image(path=one, modality=one, subject=name) for one in modalities)
    return Study(
        id=name,
        series=tuple(Series(subject=name, modality=one, path=Path(one)) for one in modalities),
        conversation=Conversation(
            id=name,
            task="side",
            turns=(Turn("user", (*parts, "which?")), Turn("assistant", (answer,))),
            images=images,
        ),
        split="train",
    )


def items_of(study, seed):
    """Return noise for each image; about half of the tokens are background."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for series in study.series:
        coords = grid_coords(GRIDS[series.modality])
        foreground = torch.randint(0, 256, (len(coords),), generator=generator, dtype=torch.uint8)
        foreground[0] = 255
        items.append(
            SeriesTokens(
                study=study,
                modality=series.modality,
                tokens=torch.randint(
                    0, 256, (len(coords), 8), generator=generator, dtype=torch.uint8
                ),
                coords=coords,
                foreground=foreground,
            )
        )
    return items


@pytest.fixture(scope="module")
def mixed():
    """Return studies of one to three images with their items."""
    studies = [
        study_of("a", "T1"),
        study_of("b", "rsfMRI", "T1", answer="right"),
        study_of("c", "T1", "T1", "dMRI", answer="on the left side, I think"),
        study_of("d", "dMRI"),
        study_of("e", "rsfMRI", "rsfMRI"),
    ]
    return {study.id: items_of(study, seed) for seed, study in enumerate(studies)}


@pytest.fixture(scope="module")
def collate(text):
    return ConversationCollator(text, min_foreground=0.5)


def batch_of(collate, mixed, names="abcde"):
    return collate([item for name in names for item in mixed[name]])


def slots_of(batch, row, image_id):
    """Return the length of each stretch of image ids."""
    is_image = torch.nn.functional.pad((batch.input_ids[row] == image_id).long(), (1, 1))
    edges = is_image.diff()
    return (torch.nonzero(edges == -1) - torch.nonzero(edges == 1)).flatten().tolist()


def volume_of(batch, modality, place):
    packed = batch.volumes[modality]
    part = slice(int(packed.bounds[place]), int(packed.bounds[place + 1]))
    return packed.tokens[part], packed.coords[part]


# ---------------------------------------------------------------- background


def test_background_is_dropped_and_the_rest_is_untouched(collate, mixed):
    batch = batch_of(collate, mixed)
    items = [item for name in "abcde" for item in mixed[name]]
    assert len(batch.images) == len(items)
    for item, (modality, place) in zip(items, batch.images, strict=True):
        assert modality == item.modality
        kept = item.foreground.float() / 255 >= 0.5
        assert 0 < int(kept.sum()) < len(kept)
        tokens, coords = volume_of(batch, modality, place)
        assert torch.equal(tokens, item.tokens[kept])
        assert torch.equal(coords, item.coords[kept])


def test_slots_and_kept_tokens_agree_image_by_image(collate, mixed, text):  # D13 D15
    batch = batch_of(collate, mixed)
    places = iter(batch.images)
    for row, num_images in enumerate(batch.num_images):
        expected = [len(volume_of(batch, *next(places))[0]) for _ in range(num_images)]
        assert slots_of(batch, row, text.image_id) == expected


@pytest.mark.parametrize(
    ("share", "kept"), [(0.0, [0, 1, 2, 3]), (0.01, [1, 2, 3]), (0.5, [2, 3]), (1.0, [3])]
)
def test_the_share_of_head_decides(share, kept):
    foreground = torch.tensor([0, 3, 128, 255], dtype=torch.uint8)
    assert foreground_tokens(foreground, share, where="here").tolist() == kept


def test_an_image_of_background_only_is_an_error(text, mixed):
    (item,) = mixed["a"]
    empty = SeriesTokens(**{**vars(item), "foreground": torch.full((12,), 100, dtype=torch.uint8)})
    with pytest.raises(InputError, match=r"study 'a'.*min_foreground=0\.5.*largest is 0\.39"):
        ConversationCollator(text, min_foreground=0.5)([empty])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_nothing_and_all(text, share):
    with pytest.raises(InputError, match=r"data\.min_foreground must be a share"):
        ConversationCollator(text, min_foreground=share)


# ---------------------------------------------------------------- rows


def test_rows_are_padded_to_the_longest_of_the_batch_only(collate, mixed, text):  # D31
    lengths = {name: batch_of(collate, mixed, name).input_ids.shape[1] for name in "abcde"}
    assert len(set(lengths.values())) > 1
    for names in ("ad", "abcde", "d"):
        batch = batch_of(collate, mixed, names)
        assert batch.input_ids.shape[1] == max(lengths[name] for name in names)
        assert batch.attention_mask.sum(dim=1).tolist() == [lengths[name] for name in names]


def test_padding_is_never_read_or_learned(collate, mixed, text):  # D34
    batch = batch_of(collate, mixed)
    padding = batch.attention_mask == 0
    assert bool(padding.any())
    assert bool((batch.targets[padding] == IGNORE).all())
    assert bool((batch.input_ids[padding] == text.pad_id).all())
    assert bool((batch.attention_mask.diff(dim=1) <= 0).all())  # all of it on the right


def test_the_targets_of_a_row_are_its_own_answer(collate, mixed, text):  # D29
    batch = batch_of(collate, mixed)
    for row, name in enumerate(batch.study_ids):
        said = text.decode(batch.targets[row][batch.targets[row] != IGNORE])
        assert said == mixed[name][0].study.conversation.turns[-1].text


@pytest.mark.parametrize("names", ["edcba", "cbead", "bd"])
def test_permuting_studies_permutes_rows(collate, mixed, text, names):  # D15 D19
    batch, other = batch_of(collate, mixed), batch_of(collate, mixed, names)
    starts = [sum(batch.num_images[:row]) for row in range(5)]
    image = 0
    for row, name in enumerate(names):
        source = "abcde".index(name)
        length = int(batch.attention_mask[source].sum())
        assert int(other.attention_mask[row].sum()) == length
        assert torch.equal(other.input_ids[row, :length], batch.input_ids[source, :length])
        assert torch.equal(other.targets[row, :length], batch.targets[source, :length])
        assert other.num_images[row] == batch.num_images[source]
        for offset in range(batch.num_images[source]):
            one, two = other.images[image], batch.images[starts[source] + offset]
            assert one[0] == two[0]
            for a, b in zip(volume_of(other, *one), volume_of(batch, *two), strict=True):
                assert torch.equal(a, b)
            image += 1
    assert image == len(other.images)


def test_changing_one_image_changes_only_its_row(collate, mixed):  # D19
    batch = batch_of(collate, mixed)
    items = [item for name in "abcde" for item in mixed[name]]
    items[1] = SeriesTokens(**{**vars(items[1]), "tokens": 255 - items[1].tokens})  # of study b
    changed = collate(items)
    assert torch.equal(changed.input_ids, batch.input_ids)
    for place in batch.images:
        same = torch.equal(volume_of(changed, *place)[0], volume_of(batch, *place)[0])
        assert same == (place != batch.images[1])


def test_a_row_knows_its_study_its_task_and_its_modalities(collate, mixed):  # D11
    batch = batch_of(collate, mixed)
    assert batch.study_ids == tuple("abcde")
    assert batch.tasks == ("side",) * 5
    assert batch.modalities == (
        ("T1",),
        ("rsfMRI", "T1"),
        ("T1", "T1", "dMRI"),
        ("dMRI",),
        ("rsfMRI", "rsfMRI"),
    )


def test_a_batch_does_not_depend_on_the_fullest_study(collate, mixed):  # D4
    for name in "abcde":
        assert batch_of(collate, mixed, name).num_images == (len(mixed[name]),)


# ---------------------------------------------------------------- order


def test_each_slot_holds_the_image_that_the_text_means(tmp_path, text):  # D20
    """From a file to a batch: <image_fMRI> stands first, though T1 is first in the list."""
    record = {
        "task_id": "c1",
        "subject_ids": ["s1"],
        "images": [
            {"path": "t1.nii", "modality": "T1"},
            {"path": "rest.nii", "modality": "fMRI"},
        ],
        "conversations": [
            {"role": "user", "content": "<image_fMRI> or <image_T1>?"},
            {"role": "assistant", "content": "left"},
        ],
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps([record]))
    cohort = ConversationCohort(tmp_path, path, SubjectSplits(val=0.1, test=0.1))
    (study,) = cohort.manifest().studies
    batch = ConversationCollator(text, min_foreground=0.0)(items_of(study, 0))
    asked = study.conversation.turns[0].parts
    means = [study.conversation.images[part.index].modality for part in asked[::2]]
    assert means == ["rsfMRI", "T1"]
    assert batch.modalities == (tuple(means),)
    assert slots_of(batch, 0, text.image_id) == [12, 12]
    assert [modality for modality, _ in batch.images] == means


def test_text_between_two_images_stays_between_them(collate, mixed, text):  # D20
    batch = batch_of(collate, mixed, "c")
    (words,) = text.tokenizer.batch_decode(batch.input_ids)
    pieces = words.split("<image>")
    pieces = [piece for piece in pieces if piece]
    assert len(pieces) == 4
    assert pieces[1:3] == [" is image 0, ", " is image 1, "]
    assert pieces[3].startswith(" is image 2, which?")


# ---------------------------------------------------------------- limits


def test_a_study_can_be_checked_before_it_is_a_batch(text, mixed):  # D31
    items = mixed["c"]
    foreground = [item.foreground for item in items]
    needed = ConversationCollator(text, min_foreground=0.5)(items).input_ids.shape[1]
    for max_length, fits in ((needed, True), (needed - 1, False)):
        encoder = TextEncoder(
            text.tokenizer, chat_format="chatml", image_token="<image>", max_length=max_length
        )
        collate = ConversationCollator(encoder, min_foreground=0.5)
        if fits:
            collate.check(items[0].study, foreground)
        else:
            with pytest.raises(InputError, match=f"has {needed} tokens.*Raise it to {needed}"):
                collate.check(items[0].study, foreground)
