"""Masked volumes lie end to end, each with its own masks; what admits none is left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from neuro.data.augment import IDENTITY
from neuro.data.collate import Background
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Series, Study
from neuro.data.masked import MaskedCollator
from neuro.data.masking import BlockMask
from neuro.data.tokens import grid_coords
from neuro.errors import InputError


def item(name, size=(8, 9, 7), *, seed=0, in_training=False, modality="mri", filled=0.6):
    coords = grid_coords(size)
    generator = torch.Generator().manual_seed(seed)
    centre = (torch.tensor(size) - 1) / 2
    place = (coords - centre) / (torch.tensor(size) / 2)
    study = Study(id=name, series=(Series(subject=name, modality=modality, path=Path(f"/{name}")),))
    return SeriesTokens(
        study=study,
        name="s1",
        modality=modality,
        kind="mri",
        tokens=torch.randint(0, 256, (len(coords), 6), dtype=torch.uint8, generator=generator),
        coords=coords,
        foreground=((place.norm(dim=1) < 2 * filled) * 255).to(torch.uint8),
        size=size,
        draw=IDENTITY,
        seed=seed,
        in_training=in_training,
    )


def collator(num_masks=1, drop=0.0):
    background = Background(min_foreground=0.5, patch_drop_rate=drop)
    return MaskedCollator(background, [BlockMask()] * num_masks)


ITEMS = [item("a", seed=1), item("b", (6, 10, 10), seed=2), item("c", (12, 8, 8), seed=3)]


@pytest.mark.parametrize("num_masks", [1, 2])
def test_context_and_target_share_out_the_tokens_of_each_volume(num_masks):  # S1, S18
    batch = collator(num_masks)(ITEMS)
    assert len(batch.views) == num_masks
    bounds = batch.volumes.bounds.tolist()
    for view in batch.views:
        both = torch.cat([view.context, view.target])
        assert torch.equal(both.sort().values, torch.arange(bounds[-1]))
        for volume, (start, stop) in enumerate(itertools.pairwise(bounds)):
            for rows, own in (
                (view.context, view.context_bounds),
                (view.target, view.target_bounds),
            ):
                mine = rows[own[volume] : own[volume + 1]]
                assert ((mine >= start) & (mine < stop)).all()
                assert len(mine)
        assert view.context_lengths == tuple(view.context_bounds.diff().tolist())
        assert view.lengths == batch.lengths == tuple(batch.volumes.bounds.diff().tolist())
        hidden = view.target_bounds.diff()
        assert torch.equal(view.targets_of_own_volume, hidden.repeat_interleave(hidden))


def test_masks_of_one_batch_differ():  # S18
    first, second = collator(2)(ITEMS).views
    assert not torch.equal(first.context, second.context)


def test_a_volume_has_the_same_mask_alone_and_among_others():
    together = collator()(ITEMS)
    for place, one in enumerate(ITEMS):
        alone = collator()([one])
        start, stop = together.volumes.bounds[place : place + 2].tolist()
        view, own = together.views[0], alone.views[0]
        mine = view.context[(view.context >= start) & (view.context < stop)] - start
        assert torch.equal(mine, own.context)
        assert torch.equal(together.volumes.tokens[start:stop], alone.volumes.tokens)


def test_a_volume_without_a_mask_is_left_out_and_counted():  # S19
    tiny = item("tiny", (1, 1, 1), filled=2.0)
    batch = collator()([ITEMS[0], tiny, ITEMS[1]])
    assert batch.num_left_out == 1
    assert batch.lengths == collator()([ITEMS[0], ITEMS[1]]).lengths
    assert torch.equal(batch.volumes.tokens, collator()([ITEMS[0], ITEMS[1]]).volumes.tokens)


def test_nothing_but_volumes_without_a_mask_is_an_empty_batch():  # S19
    batch = collator()([item("tiny", (1, 1, 1), filled=2.0)])
    assert batch.lengths == ()
    assert batch.num_left_out == 1
    assert len(batch.volumes.tokens) == 0


def test_dropped_tokens_are_neither_context_nor_target():  # S20
    lively = [item(name, seed=seed, in_training=True) for seed, name in enumerate("abc")]
    whole, less = collator()(lively), collator(drop=0.3)(lively)
    assert len(less.volumes.tokens) == pytest.approx(0.7 * len(whole.volumes.tokens), rel=0.15)
    view = less.views[0]
    assert len(view.context) + len(view.target) == len(less.volumes.tokens)
    still = collator(drop=0.3)(ITEMS)
    assert len(still.volumes.tokens) == sum(collator()(ITEMS).lengths)


def test_ct_shows_less():
    shares = {
        modality: collator()([item("x", (10, 12, 12), seed=4, modality=modality)])
        for modality in ("mri", "ct")
    }
    context = {
        name: len(one.views[0].context) / len(one.volumes.tokens) for name, one in shares.items()
    }
    assert context["mri"] == pytest.approx(0.25, abs=0.02)
    assert context["ct"] == pytest.approx(0.2, abs=0.02)


def test_a_batch_moves_with_its_masks():
    batch = collator(2)(ITEMS)
    moved = batch.to("meta")
    assert {view.context.device.type for view in moved.views} == {"meta"}
    assert moved.views[0].lengths == batch.lengths


def test_no_mask_is_an_error():
    with pytest.raises(InputError, match=r"data\.masks is empty"):
        MaskedCollator(Background(), [])
