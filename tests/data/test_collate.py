"""Image slots and kept tokens agree, image by image, whatever else is in the batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from neuro.data.augment import IDENTITY, Draw
from neuro.data.bold_run import BoldRun
from neuro.data.cohort import ConversationCohort
from neuro.data.collate import Background, ConversationCollator, StudyCollator
from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.data.dataset import SeriesTokens
from neuro.data.fixed_grid import FixedGrid
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.masked import MaskedCollator
from neuro.data.masking import BlockMask
from neuro.data.splits import SubjectSplits
from neuro.data.text import IGNORE, TextEncoder
from neuro.data.tokens import foreground_shares, grid_coords
from neuro.errors import InputError

CUBE = {"shape": (4, 4, 4), "spacing_mm": 1.0, "patch": (2, 2, 2)}
FIXED = {
    "T1": FixedGrid(**CUBE, percentiles=(0.5, 99.5)),
    "dMRI": FixedGrid(**CUBE, window=(0.0, 1.0)),
    "rsfMRI": BoldRun(shape=(4, 4, 4, 8), patch=(2, 2, 2, 4), repetition_time_s=2.0),
}
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
    for index, series in enumerate(study.series):
        size = GRIDS[series.modality]
        coords = grid_coords(size)
        foreground = torch.randint(0, 256, (len(coords),), generator=generator, dtype=torch.uint8)
        foreground[0] = 255
        items.append(
            SeriesTokens(
                study=study,
                name=f"image{index}",
                modality=series.modality,
                kind="mri",
                tokens=torch.randint(
                    0, 256, (len(coords), 8), generator=generator, dtype=torch.uint8
                ),
                coords=coords,
                foreground=foreground,
                size=size,
                draw=IDENTITY,
                seed=seed,
                in_training=False,
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


HALF = Background(min_foreground=0.5)


@pytest.fixture(scope="module")
def collate(text):
    return ConversationCollator(text, HALF)


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
    for row, num_images in enumerate(batch.num_images_per_sample):
        expected = [len(volume_of(batch, *next(places))[0]) for _ in range(num_images)]
        assert slots_of(batch, row, text.image_id) == expected


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (0, [0, 1, 2, 3, 4, 5]),  # everything stays
        (0.0, [0, 1, 2, 3, 4, 5]),  # S46
        (0.01, [2, 3, 4, 5]),
        (0.5, [3, 4, 5]),
        (1.0, [5]),
        ("any", [5]),  # of it is background: out
        ("majority", [3, 4, 5]),
        ("all", [1, 2, 3, 4, 5]),
    ],
)
def test_the_share_of_head_or_the_name_of_a_rule_decides(rule, kept):  # S12, S46
    shares = torch.tensor([0, 1, 3, 128, 254, 255], dtype=torch.uint8)
    assert Background(min_foreground=rule).foreground(shares, where="here").tolist() == kept


def test_background_that_is_not_to_be_dropped_stays_whatever_the_rule():
    shares = torch.tensor([0, 1, 255], dtype=torch.uint8)
    for rule in (0.5, "any", "majority", "all"):
        whole = Background(min_foreground=rule, drop=False)
        assert whole.share == 0
        assert whole.foreground(shares, where="here").tolist() == [0, 1, 2]


def test_half_of_a_token_is_not_the_majority():  # S12
    voxels = torch.arange(4 * 256).reshape(4, 16, 16) % 2 == 0
    (share,) = foreground_shares(voxels, (4, 16, 16))
    assert len(Background(min_foreground="majority").foreground(share.reshape(1), "here")) == 1


@pytest.mark.parametrize("made", ["talk", "study"])
def test_an_image_of_background_only_is_an_error_that_names_it(text, mixed, made):  # S13 S45
    collate = ConversationCollator(text, HALF) if made == "talk" else StudyCollator(HALF)
    (item,) = mixed["a"]
    empty = replace(item, foreground=torch.full((12,), 100, dtype=torch.uint8))
    with pytest.raises(
        InputError, match=r"study 'a', image0: .*min_foreground=0\.5.*largest is 0\.39"
    ):
        collate([*mixed["d"], empty])


@pytest.mark.parametrize("made", ["talk", "study"])
def test_an_image_of_background_only_is_found_before_training(text, mixed, made):  # S13 S45
    collate = ConversationCollator(text, HALF) if made == "talk" else StudyCollator(HALF)
    studies = Manifest.of([mixed["b"][0].study, mixed["a"][0].study])
    collate.check_tokens(studies, np.array([5, 3, 4]))
    with pytest.raises(InputError, match=r"study 'b', T1: .*min_foreground=0\.5.* for 2 images"):
        collate.check_tokens(studies, np.array([5, 0, 0]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"min_foreground": -0.1}, r"data\.min_foreground must be a share"),
        ({"min_foreground": 1.1}, r"data\.min_foreground must be a share"),
        ({"min_foreground": math.nan}, r"data\.min_foreground must be a share"),
        ({"min_foreground": "most"}, r"one of any, majority, all; got most"),
        ({"patch_drop_rate": 1.0}, r"data\.patch_drop_rate must be a share in \[0, 1\)"),
        ({"patch_drop_rate": -0.5}, r"data\.patch_drop_rate must be a share"),
    ],
)
def test_shares_are_between_nothing_and_all(wrong, says):
    with pytest.raises(InputError, match=says):
        Background(**wrong)


# ---------------------------------------------------------------- dropped at random


def many(num_tokens=2000, *, in_training=True, seed=3):
    """Return an item of many tokens; a third of them are background."""
    (item,) = items_of(study_of("z", "T1"), 0)
    coords = grid_coords((num_tokens // 4, 2, 2))
    foreground = torch.full((num_tokens,), 255, dtype=torch.uint8)
    foreground[::3] = 0
    return replace(
        item,
        tokens=torch.arange(num_tokens).remainder(251).to(torch.uint8).reshape(-1, 1).repeat(1, 8),
        coords=coords,
        foreground=foreground,
        size=(num_tokens // 4, 2, 2),
        seed=seed,
        in_training=in_training,
    )


def test_training_drops_a_share_of_what_is_left_and_it_is_gone(text):  # S20
    half = Background(min_foreground=0.5, patch_drop_rate=0.25)
    item = many()
    whole = StudyCollator(HALF)([item]).volumes
    batch = StudyCollator(half)([item]).volumes
    assert len(whole.tokens) == 1333
    assert abs(len(batch.tokens) / 1333 - 0.75) < 0.04
    assert len(batch.tokens) == len(batch.coords) == int(batch.bounds[-1])
    kept = {tuple(row) for row in batch.coords.tolist()}
    assert len(kept) == len(batch.coords)
    assert kept < {tuple(row) for row in whole.coords.tolist()}  # never background instead
    # In a conversation, what is dropped leaves no slot behind.
    short = replace(item, **{name: getattr(item, name)[:80] for name in ("tokens", "coords")},
                    foreground=item.foreground[:80])  # fmt: skip
    talk = ConversationCollator(text, half)([short])
    slots = int((talk.input_ids == text.image_id).sum())
    assert slots == len(talk.volumes["T1"].tokens) < 53


def test_each_epoch_and_series_drops_others(text):  # S20 S8
    rate = Background(min_foreground=0.5, patch_drop_rate=0.5)
    kept = [frozenset(rate.kept(many(seed=seed)).tolist()) for seed in (1, 2, 1)]
    assert kept[0] == kept[2]
    assert len(kept[0] & kept[1]) < 0.6 * len(kept[0])
    counts = torch.zeros(2000)
    for seed in range(200):
        counts[rate.kept(many(seed=seed))] += 1
    assert (counts[::3] == 0).all()
    seen = counts[torch.arange(2000) % 3 != 0] / 200
    assert abs(float(seen.mean()) - 0.5) < 0.01
    assert float(seen.min()) > 0.3  # no token is always dropped
    assert float(seen.max()) < 0.7


def test_evaluation_drops_nothing_at_random(text):  # S20
    rate = Background(min_foreground=0.5, patch_drop_rate=0.9)
    item = many(in_training=False)
    assert torch.equal(rate.kept(item), HALF.kept(item))


def test_something_is_always_left(mixed):  # S13 S20
    rate = Background(min_foreground=1.0, patch_drop_rate=0.99)
    one = many(num_tokens=4)  # two are head
    for seed in range(50):
        kept = rate.kept(replace(one, seed=seed)).tolist()
        assert len(kept) >= 1
        assert set(kept) <= {1, 2}


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
    assert bool((batch.labels[padding] == IGNORE).all())
    assert bool((batch.input_ids[padding] == text.pad_id).all())
    assert bool((batch.attention_mask.diff(dim=1) <= 0).all())  # all of it on the right


def test_the_targets_of_a_row_are_its_own_answer(collate, mixed, text):  # D29
    batch = batch_of(collate, mixed)
    for row, name in enumerate(batch.study_ids):
        said = text.decode(batch.labels[row][batch.labels[row] != IGNORE])
        assert said == mixed[name][0].study.conversation.turns[-1].text


@pytest.mark.parametrize("names", ["edcba", "cbead", "bd"])
def test_permuting_studies_permutes_rows(collate, mixed, text, names):  # D15 D19
    batch, other = batch_of(collate, mixed), batch_of(collate, mixed, names)
    starts = [sum(batch.num_images_per_sample[:row]) for row in range(5)]
    image = 0
    for row, name in enumerate(names):
        source = "abcde".index(name)
        length = int(batch.attention_mask[source].sum())
        assert int(other.attention_mask[row].sum()) == length
        assert torch.equal(other.input_ids[row, :length], batch.input_ids[source, :length])
        assert torch.equal(other.labels[row, :length], batch.labels[source, :length])
        assert other.num_images_per_sample[row] == batch.num_images_per_sample[source]
        for offset in range(batch.num_images_per_sample[source]):
            one, two = other.images[image], batch.images[starts[source] + offset]
            assert one[0] == two[0]
            for a, b in zip(volume_of(other, *one), volume_of(batch, *two), strict=True):
                assert torch.equal(a, b)
            image += 1
    assert image == len(other.images)


def test_changing_one_image_changes_only_its_row(collate, mixed):  # D19
    batch = batch_of(collate, mixed)
    items = [item for name in "abcde" for item in mixed[name]]
    items[1] = replace(items[1], tokens=255 - items[1].tokens)  # of study b
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


def test_what_is_known_of_a_study_survives_and_reaches_no_model(collate, mixed):  # D11 D37
    """Metadata, subject and type travel with each study; what a model sees does not change."""
    known = {
        name: [
            replace(
                item,
                study=replace(
                    item.study,
                    conversation=replace(item.study.conversation, metadata={"sex": name}),
                ),
            )
            for item in items
        ]
        for name, items in mixed.items()
    }
    batch, plain = batch_of(collate, known), batch_of(collate, mixed)
    assert batch.metadata == tuple({"sex": name} for name in "abcde")
    assert plain.metadata == ({},) * 5
    assert batch.subjects == tuple((name,) for name in "abcde")
    assert batch.task_types == ("single", "multimodal", "multimodal", "single", "multimodal")
    assert batch.sample_indices == (0, 1, 2, 3, 4)
    assert batch_of(collate, known, "db").metadata == ({"sex": "d"}, {"sex": "b"})
    for mine, yours in zip(batch.model_inputs()[1:], plain.model_inputs()[1:], strict=True):
        assert mine == yours if isinstance(mine, tuple) else torch.equal(mine, yours)
    for modality, volumes in batch.model_inputs().volumes.items():
        assert torch.equal(volumes.tokens, plain.volumes[modality].tokens)


@pytest.mark.parametrize("names", ["abcde", "cb", "d"])
def test_a_study_of_a_batch_equals_the_study_collated_alone(collate, mixed, names):  # D15 D19
    for name, one in zip(names, batch_of(collate, mixed, names), strict=True):
        alone = batch_of(collate, mixed, name)
        assert one.images == alone.images
        assert torch.equal(one.input_ids, alone.input_ids)
        assert torch.equal(one.labels, alone.labels)
        assert torch.equal(one.attention_mask, alone.attention_mask)
        assert list(one.volumes) == list(alone.volumes)
        for place in alone.images:
            for mine, yours in zip(volume_of(one, *place), volume_of(alone, *place), strict=True):
                assert torch.equal(mine, yours)


def test_a_batch_does_not_depend_on_the_fullest_study(collate, mixed):  # D4
    for name in "abcde":
        assert batch_of(collate, mixed, name).num_images_per_sample == (len(mixed[name]),)


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
    (study,) = cohort.manifest()
    batch = ConversationCollator(text, Background(min_foreground=0))(items_of(study, 0))
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
    studies = Manifest.of([mixed["a"][0].study, items[0].study])
    num_tokens = np.array([len(HALF.kept(item)) for item in [*mixed["a"], *items]])
    needed = ConversationCollator(text, HALF)(items).input_ids.shape[1]
    for max_length, fits in ((needed, True), (needed - 1, False)):
        encoder = TextEncoder(
            text.tokenizer, chat_format="chatml", image_token="<image>", max_length=max_length
        )
        collate = ConversationCollator(encoder, HALF)
        for checked_before in (False, True):
            if checked_before:
                collate.check(studies, FIXED)
            if fits:
                collate.check_tokens(studies, num_tokens)
            else:
                with pytest.raises(InputError, match=f"has {needed} tokens.*Raise it to {needed}"):
                    collate.check_tokens(studies, num_tokens)


def test_a_text_that_leaves_no_room_for_its_images_is_told_before_they_are_prepared(text):
    study = study_of("a", "T1", "rsfMRI", "dMRI")
    needed = len(text(study.conversation, [1, 1, 1]).input_ids)
    for max_length, fits in ((needed, True), (needed - 1, False)):
        encoder = TextEncoder(
            text.tokenizer, chat_format="chatml", image_token="<image>", max_length=max_length
        )
        collate = ConversationCollator(encoder, HALF)
        if fits:
            collate.check(Manifest.of([study]), FIXED)
        else:
            whole = needed - 3 + 8 + 8 + 16  # every token of every grid
            with pytest.raises(
                InputError, match=rf"{needed - 3} tokens of text .*it; {whole} holds"
            ):
                collate.check(Manifest.of([study]), FIXED)
        assert encoder.max_length == max_length


def test_the_modality_whose_grid_follows_the_scan_is_named_with_a_recipe_that_fits(text, clinical):
    collate = ConversationCollator(text, HALF)
    studies = Manifest.of([study_of("a", "T1", "rsfMRI", "dMRI")])
    for modality, cure in (("T1", "cube_t1"), ("dMRI", "cube_fa"), ("rsfMRI", "bold_run")):
        with pytest.raises(InputError, match=rf"Take recipe@data\.recipes\.{modality}={cure}"):
            collate.check(studies, {**FIXED, modality: clinical["mri"]})


def test_a_study_without_a_text_is_no_conversation(text, mixed):
    silent = replace(mixed["a"][0].study, conversation=None)
    collate = ConversationCollator(text, HALF)
    with pytest.raises(InputError, match=r"study 'a' has no conversation.*data\.questions"):
        collate.check(Manifest.of([silent]), FIXED)


# ---------------------------------------------------------------- too long a text


def narrow(text, max_length, **more):
    return TextEncoder(
        text.tokenizer,
        chat_format="chatml",
        image_token="<image>",
        max_length=max_length,
        **more,
    )


def talk_of(study, *earlier):
    """Return the study with some turns before its own."""
    turns = tuple(
        Turn("assistant" if place % 2 else "user", (text,)) for place, text in enumerate(earlier)
    )
    talk = study.conversation
    return replace(study, conversation=replace(talk, turns=(*turns, *talk.turns)))


def test_what_is_left_out_of_long_conversations_is_counted_once(text, said):  # D29 D31
    plain = [study_of("a", "T1"), study_of("b", "T1")]
    studies = [*plain, talk_of(study_of("c", "T1"), "Is it large?", "no")]
    num_tokens = np.full(3, 12)
    fits = len(text(plain[0].conversation, [12]).input_ids)
    collate = ConversationCollator(narrow(text, fits), HALF)
    collate.check(Manifest.of(studies), FIXED)
    collate.check_tokens(Manifest.of(studies), num_tokens)
    (message,) = [one.getMessage() for one in set(said.records)]
    assert message.startswith(
        f"1 of 3 conversations of the train split are longer than data.max_length={fits};"
    )
    said.clear()
    collate.check_tokens(Manifest.of(plain), num_tokens[:2])
    assert not said.records
    items = [
        replace(one, foreground=torch.full_like(one.foreground, 255))
        for one in items_of(studies[2], 0)
    ]
    batch = collate(items)
    assert batch.input_ids.shape[1] == fits
    assert "large" not in text.tokenizer.decode(batch.input_ids[0])


def test_a_long_conversation_is_an_error_before_preparation_only_if_its_rest_is_too_long(text):
    study = talk_of(study_of("a", "T1"), "Is it large?", "no")
    least = text.least_text(study.conversation) + 1
    whole = len(text(study.conversation, [1]).input_ids)
    assert least < whole
    for max_length, truncate, fits in (
        (least, True, True),
        (least - 1, True, False),
        (whole, False, True),
        (whole - 1, False, False),
    ):
        collate = ConversationCollator(narrow(text, max_length, truncate=truncate), HALF)
        if fits:
            collate.check(Manifest.of([study]), FIXED)
        else:
            stays = (least if truncate else whole) - 1
            message = rf"{stays} tokens of text .* at least 1 each.*it; {whole + 7} holds"
            with pytest.raises(InputError, match=message):
                collate.check(Manifest.of([study]), FIXED)


# ---------------------------------------------------------------- so many slots an image


@pytest.mark.parametrize("slots", [1, 5])
def test_an_image_may_take_so_many_slots_whatever_its_tokens(text, mixed, slots):  # D13
    plain = batch_of(ConversationCollator(text, HALF), mixed)
    batch = batch_of(ConversationCollator(text, HALF, slots_per_image=slots), mixed)
    for row, count in enumerate(batch.num_images_per_sample):
        assert slots_of(batch, row, text.image_id) == [slots] * count
    assert batch.images == plain.images
    for modality, volumes in batch.volumes.items():  # all the same, its tokens are all there
        assert torch.equal(volumes.tokens, plain.volumes[modality].tokens)


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("windows", [("brain", "blood", "bone"), ("blood",)])
def test_the_windows_of_a_scan_stand_together_where_the_text_shows_it(text, slots, windows):
    """Evaluation shows all of them, and the text shows the scan once."""
    study = study_of("a", "ct", "T1", "ct")
    plain = items_of(study_of("a", "T1", "T1", "T1"), seed=1)
    items = [
        replace(item, study=study, modality=series.modality, kind=kind)
        for item, series in zip(plain, study.series, strict=True)
        for kind in (windows if series.modality == "ct" else ("mri",))
    ]
    collate = ConversationCollator(text, HALF, slots_per_image=slots, any_grid=True)
    batch = collate([*items, *items_of(study_of("b", "T1"), seed=2)])
    kept = [slots or len(HALF.kept(item)) for item in plain]
    per_scan = [kept[0] * len(windows), kept[1], kept[2] * len(windows)]
    assert slots_of(batch, 0, text.image_id) == per_scan
    assert batch.num_images_per_sample == (2 * len(windows) + 1, 1)
    assert batch.volumes["ct"].kinds == windows * 2


def test_room_is_reckoned_with_the_slots_that_images_take(text):  # D31
    study = study_of("a", "T1", "rsfMRI")
    needed = len(text(study.conversation, [6, 6]).input_ids)
    studies = Manifest.of([study])
    roomy = ConversationCollator(narrow(text, needed), HALF, slots_per_image=6)
    roomy.check(studies, FIXED)
    roomy.check_tokens(studies, np.array([500, 500]))
    tight = ConversationCollator(narrow(text, needed - 1), HALF, slots_per_image=6)
    with pytest.raises(InputError, match=rf"at least 6 each; .*Raise it to {needed}\."):
        tight.check(studies, FIXED)
    with pytest.raises(InputError, match=f"has {needed} tokens, 12 of them from 2 images"):
        tight.check_tokens(studies, np.array([1, 1]))
    with pytest.raises(InputError, match=r"min_foreground=0\.5; that is so for 1 images"):
        roomy.check_tokens(studies, np.array([500, 0]))  # an empty image is one all the same


@pytest.mark.parametrize("slots", [0, -1])
def test_an_image_takes_a_slot_at_least(text, slots):
    with pytest.raises(InputError, match=rf"slots_per_image must be at least 1, .*got {slots}"):
        ConversationCollator(text, HALF, slots_per_image=slots)


def test_images_may_have_the_grid_of_the_scan_where_their_voxels_agree(text, clinical):
    loose = ConversationCollator(text, HALF, any_grid=True)
    studies = Manifest.of([study_of("a", "T1", "dMRI")])
    recipes = {"T1": clinical["mri"], "dMRI": clinical["mri"]}
    loose.check(studies, recipes)
    with pytest.raises(InputError, match=r"T1 of 32 on 3 axes and dMRI of 8 on 3 axes"):
        loose.check(studies, {**recipes, "dMRI": FIXED["dMRI"]})
    with pytest.raises(InputError, match=r"needs a fixed shape"):
        ConversationCollator(text, HALF).check(studies, recipes)
    whole = len(text(study_of("a", "T1", "dMRI").conversation, [1, 1]).input_ids)
    tight = ConversationCollator(narrow(text, whole - 1), HALF, any_grid=True)
    with pytest.raises(InputError, match=rf"data\.max_length is {whole - 1}\. Raise it\.$"):
        tight.check(studies, recipes)


# ---------------------------------------------------------------- studies


KINDS = ("mri", "brain", "blood", "bone")


def clinical(name, *grids, labels=(1.0,), seed=0):
    """Return the items of a study: a series per grid, each of a kind of its own."""
    study = Study(
        id=name,
        series=tuple(Series(subject=name, modality="mri", path=Path(f"{name}")) for _ in grids),
        labels=labels,
    )
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index, size in enumerate(grids):
        foreground = torch.randint(
            0, 256, (math.prod(size),), generator=generator, dtype=torch.uint8
        )
        foreground[-1] = 255
        shape = (math.prod(size), 16)
        items.append(
            SeriesTokens(
                study=study,
                name=f"{name}.{index}",
                modality="ct" if index else "mri",
                kind=KINDS[index % 4],
                tokens=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
                coords=grid_coords(size),
                foreground=foreground,
                size=size,
                draw=IDENTITY,
                seed=index,
                in_training=False,
            )
        )
    return items


@pytest.fixture(scope="module")
def exams():
    """Studies of one to four series, each on a grid of its own."""
    return {
        "a": clinical("a", (3, 4, 5), (2, 6, 6), labels=(1.0, math.nan), seed=1),
        "b": clinical("b", (9, 3, 3), labels=(math.nan, 0.0), seed=2),
        "c": clinical("c", (2, 2, 2), (5, 4, 3), (5, 4, 3), (5, 4, 3), labels=(0.0, 1.0), seed=3),
    }


def exam_batch(exams, names="abc"):
    return StudyCollator(HALF)([item for name in names for item in exams[name]])


def volumes_of(batch):
    """Return each volume: what is said of it, and its tokens."""
    volumes = batch.volumes
    return [
        (
            batch.series_names[index],
            volumes.kinds[index],
            volumes.sizes[index].tolist(),
            volumes.tokens[start:stop],
            volumes.coords[start:stop],
        )
        for index, (start, stop) in enumerate(pairwise(volumes.bounds.tolist()))
    ]


def studies_of(batch):
    """Return each study: its id, its labels and its volumes."""
    volumes = volumes_of(batch)
    return {
        name: (batch.labels[row], volumes[start:stop])
        for row, (name, (start, stop)) in enumerate(
            zip(batch.study_ids, pairwise(batch.study_bounds.tolist()), strict=True)
        )
    }


def assert_same_study(one, other):
    torch.testing.assert_close(one[0], other[0], equal_nan=True)
    for mine, yours in zip(one[1], other[1], strict=True):
        assert mine[:3] == yours[:3]
        assert torch.equal(mine[3], yours[3])
        assert torch.equal(mine[4], yours[4])


@pytest.mark.parametrize("names", ["abc", "cab", "ba", "c"])
def test_studies_that_are_packed_equal_studies_one_by_one(exams, names):
    together = studies_of(exam_batch(exams, names))
    assert list(together) == list(names)
    for name in names:
        assert_same_study(together[name], studies_of(exam_batch(exams, name))[name])


def test_a_packed_study_is_its_kept_tokens_and_nothing_else(exams):
    batch = exam_batch(exams)
    items = [item for name in "abc" for item in exams[name]]
    for item, (name, kind, size, tokens, coords) in zip(items, volumes_of(batch), strict=True):
        kept = item.foreground.float() / 255 >= 0.5
        assert 0 < int(kept.sum()) < len(kept)
        assert torch.equal(tokens, item.tokens[kept])
        assert torch.equal(coords, item.coords[kept])
        assert (name, kind, tuple(size)) == (item.name, item.kind, item.size)


def test_each_study_owns_its_own_series_and_tokens(exams):
    batch = exam_batch(exams)
    assert batch.num_studies == 3
    assert batch.study_bounds.tolist() == [0, 2, 3, 7]
    assert batch.study_bounds.dtype == batch.volumes.bounds.dtype == torch.int32
    for (start, stop), name in zip(pairwise(batch.token_bounds.tolist()), "abc", strict=True):
        own = studies_of(batch)[name][1]
        assert torch.equal(batch.volumes.tokens[start:stop], torch.cat([one[3] for one in own]))
    assert int(batch.token_bounds[-1]) == len(batch.volumes.tokens)


def test_what_is_not_known_of_a_study_stays_unknown(exams):  # S41
    labels = exam_batch(exams).labels
    assert labels.shape == (3, 2)
    assert labels.isnan().tolist() == [[False, True], [True, False], [False, False]]
    assert labels[~labels.isnan()].tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_studies_without_labels_have_no_findings(exams, names):
    items = [
        replace(item, study=replace(item.study, labels=()))
        for name in names
        for item in exams[name]
    ]
    assert StudyCollator(HALF)(items).labels.shape == (len(names), 0)


def test_what_was_drawn_for_a_series_travels_with_it(exams):
    draws = [
        Draw(intensity=(1.5, 0.9, 0.1, 0.2), seed=11),
        IDENTITY,
        Draw(intensity=(1.0, 1.1, 0.0, 0.3), seed=2**62 - 1),
    ]
    items = [
        replace(item, draw=draw)
        for item, draw in zip([*exams["a"], *exams["b"]], draws, strict=True)
    ]
    volumes = StudyCollator(HALF)(items).volumes
    expected = torch.tensor([draw.intensity for draw in draws])
    assert torch.equal(volumes.intensity, expected)
    assert volumes.seeds.tolist() == [11, 0, 2**62 - 1]
    plain = exam_batch(exams, "ab").volumes
    assert plain.intensity is None
    assert plain.seeds is None
    assert torch.equal(plain.tokens, volumes.tokens)  # intensities are changed on the device


@pytest.mark.parametrize(
    ("modalities", "found"),
    [
        (("mri", "T1"), "mri of 32 on 3 axes and T1 of 1728 on 3 axes"),
        (("dMRI", "T1", "rsfMRI"), "dMRI of 1728 on 3 axes and rsfMRI of 6912 on 4 axes"),
    ],
)
@pytest.mark.parametrize("made", ["study", "masked"])
def test_modalities_whose_tokens_do_not_fit_together_are_told_before_they_are_prepared(
    recipes, clinical, modalities, found, made
):
    collate = StudyCollator(HALF) if made == "study" else MaskedCollator(HALF, [BlockMask()])
    studies = Manifest.of([replace(study_of("a", *modalities), conversation=None)])
    with pytest.raises(InputError, match=rf"{found}\. Set data\.recipes\.NAME\.patch"):
        collate.check(studies, {**recipes, **clinical})
    collate.check(studies.with_series(np.arange(len(modalities)) == 0), {**recipes, **clinical})
