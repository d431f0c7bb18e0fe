import json
from dataclasses import replace
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from scans import canonical

from neuro.data.phantom import (
    LEVELS,
    draw_phantom,
    draw_split,
    render_bold,
    render_fa,
    render_t1,
)

T1_GRID = ((32, 32, 32), 6.0)
BOLD_GRID = ((24, 24, 24), 8.0)


def auroc(positive, negative):
    pairs = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return (pairs > 0).mean() + (pairs == 0).mean() / 2


def left_and_right(volume, mask, spacing_mm):
    """Return the voxels that lie 12 to 50 mm to the left and right of the centre of a mask."""
    centre = np.argwhere(mask).mean(axis=0)
    x, y, z = (np.indices(mask.shape) - centre[:, None, None, None]) * spacing_mm
    beside = (np.abs(x) > 12) & (np.abs(x) < 50) & (np.abs(y) < 40) & (z > -10) & (z < 36)
    return volume[beside & (x < 0)], volume[beside & (x > 0)]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_factors_are_balanced_and_independent(seed):
    phantoms = [draw_phantom(seed, index) for index in range(600)]
    indicators = [np.array([p.age > 50 for p in phantoms]), np.array([p.tr_s for p in phantoms])]
    for name, levels in LEVELS.items():
        values = np.array([getattr(p, name) for p in phantoms])
        counts = [(values == level).sum() for level in levels]
        assert max(counts) - min(counts) <= 6
        indicators.append(np.array([levels.index(value) for value in values]))
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.25 for a, b in combinations(indicators, 2))
    assert {p.age for p in phantoms} <= set(range(20, 81))


def test_splits_are_eight_to_one_to_one_and_balanced():
    splits = np.array([draw_split(5, index) for index in range(200)])
    assert {name: (splits == name).sum() for name in ("train", "val", "test")} == {
        "train": 160,
        "val": 20,
        "test": 20,
    }
    for name in ("train", "val", "test"):
        members = [draw_phantom(5, index) for index in np.flatnonzero(splits == name).tolist()]
        assert sum(p.sex == "M" for p in members) == len(members) / 2
        assert abs(sum(p.lesion == "none" for p in members) - len(members) / 3) <= 1


def test_sex_is_the_volume_of_the_head():
    volumes = {"M": [], "F": []}
    for index in range(40):
        phantom = draw_phantom(2, index)
        volumes[phantom.sex].append((render_t1(phantom, 2, *T1_GRID)[0] > 150).sum())
    assert auroc(volumes["M"], volumes["F"]) > 0.95


def test_a_head_stays_inside_the_field_of_view():
    for index in range(40):
        volume, _ = render_t1(draw_phantom(4, index), 4, *T1_GRID)
        faces = [np.take(volume, end, axis) for axis in range(3) for end in (0, -1)]
        assert max(face.mean() for face in faces) < 40
        assert volume[16, 16, 16] > 100


def test_a_lesion_is_bright_in_its_hemisphere(written_heads):
    root, phantoms = written_heads
    assert {phantom.lesion for phantom in phantoms} == {"none", "left", "right"}
    for phantom in phantoms:
        volume = canonical(root / f"sub-{phantom.subject}/anat/sub-{phantom.subject}_T1w.nii.gz")
        left, right = (
            np.percentile(side, 92) for side in left_and_right(volume, volume > 150, 4.0)
        )
        brighter = "left" if left > 1.1 * right else "right" if right > 1.1 * left else "none"
        assert brighter == phantom.lesion


def test_the_mask_of_a_lesion_is_where_it_is_brighter_than_the_same_head_without():
    for index in range(12):
        phantom = draw_phantom(3, index)
        image, mask = render_t1(phantom, 3, *T1_GRID)
        healthy, nothing = render_t1(replace(phantom, lesion="none"), 3, *T1_GRID)
        assert not nothing.any()
        assert mask.any() == (phantom.has_lesion == "yes")
        changed = image - healthy > 30  # noise and microlesion are the same in both
        assert (mask[~changed] == 0).mean() > 0.99
        assert not mask.any() or changed[mask == 1].mean() > 0.9
        if mask.any():
            assert (np.argwhere(mask)[:, 0].mean() > 15.5) == (phantom.lesion == "right")


def test_a_tract_has_reduced_fa_in_its_hemisphere(written_heads):
    root, phantoms = written_heads
    for phantom in phantoms:
        volume = canonical(
            root / f"sub-{phantom.subject}/dwi/sub-{phantom.subject}_param-FA_dwimap.nii.gz"
        )
        assert volume.min() == 0
        assert 0.5 < volume.max() <= 1
        left, right = (np.percentile(side, 90) for side in left_and_right(volume, volume > 0, 4.0))
        assert (left < right) == (phantom.tract == "left")


def test_a_network_varies_in_its_hemisphere(written_heads):
    root, phantoms = written_heads
    for phantom in phantoms:
        series = canonical(
            root / f"sub-{phantom.subject}/func/sub-{phantom.subject}_task-rest_bold.nii.gz"
        )
        varies = series.var(axis=-1)
        left, right = (
            np.percentile(side, 90) for side in left_and_right(varies, series.mean(-1) > 150, 8.0)
        )
        assert (left > right) == (phantom.network == "left")


def test_the_repetition_time_of_header_side_car_and_phantom_agree(written_heads):
    root, phantoms = written_heads
    assert {phantom.tr_s for phantom in phantoms} == {1.0, 2.0}
    for phantom in phantoms:
        stem = root / f"sub-{phantom.subject}/func/sub-{phantom.subject}_task-rest_bold"
        image = nib.load(f"{stem}.nii.gz")
        side_car = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        assert image.header.get_zooms()[3] == side_car["RepetitionTime"] == phantom.tr_s
        assert image.header.get_xyzt_units() == ("mm", "sec")
        assert image.shape[3] * phantom.tr_s == 48


def test_rhythm_is_a_frequency_of_the_midline():
    fast, slow = [], []
    for index in range(24):
        phantom = draw_phantom(6, index)
        series = render_bold(phantom, 6, *BOLD_GRID, 48.0)[10:14, 5:9, 14:18].mean(axis=(0, 1, 2))
        power = np.abs(np.fft.rfft(series - series.mean())) ** 2
        hertz = np.fft.rfftfreq(len(series), phantom.tr_s)
        share = power[(hertz > 0.06) & (hertz < 0.1)].sum() / power.sum()
        (fast if phantom.rhythm == "fast" else slow).append(share)
    assert auroc(fast, slow) > 0.8


def test_fa_is_a_fraction_and_is_zero_outside_the_brain():
    for index in range(4):
        volume = render_fa(draw_phantom(1, index), 1, *T1_GRID)
        assert volume.min() == 0
        assert volume.max() <= 1
        assert 0.05 < (volume > 0).mean() < 0.4
