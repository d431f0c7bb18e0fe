"""A run comes out on one grid and one clock, whatever cohort it is from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scans import scan

from neuro.data.bold_run import BoldRun, pad_or_crop, scale_bold, time_weights
from neuro.data.volume import read_volume
from neuro.errors import InputError, ScanError

# Native grids of the cohorts: ABCD, UKB, HCP, HBN, ABIDE, then those of SwiFT, then odd ones.
NATIVE = [
    (96, 96, 95),
    (88, 88, 64),
    (91, 109, 91),
    (81, 95, 81),
    (97, 115, 97),
    (78, 96, 84),
    (75, 93, 81),
    (79, 97, 85),
    (1, 1, 1),
    (300, 2, 97),
]


def run_of(signal, tr_s, shape=(6, 6, 6)):
    """Return a run in which each voxel of a small head follows a signal."""
    head = np.zeros(shape, np.float32)
    head[1:-1, 1:-1, 1:-1] = 100
    return scan(head[..., None] * (1 + 0.1 * np.asarray(signal)), tr_s=tr_s)


def bold(num_frames, tr_s, *, shape=(6, 6, 6), scaling="none", short_run="refuse"):
    return BoldRun(
        shape=(*shape, num_frames),
        patch=(*shape, num_frames),
        repetition_time_s=tr_s,
        scaling=scaling,
        short_run=short_run,
    )


def test_a_turned_copy_of_a_run_gives_the_same_voxels(save_nifti, tmp_path):  # D51
    rng = np.random.default_rng(0)
    run = rng.normal(100, 10, (7, 8, 5, 6)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    mirrored = affine.copy()
    mirrored[0, 0], mirrored[0, 3] = -2.0, 2.0 * 6
    recipe = bold(6, 2.0, scaling="znorm_minback")
    one = recipe.apply(read_volume(save_nifti(tmp_path / "a.nii", run, affine=affine, tr_s=2.0)))
    two = recipe.apply(
        read_volume(save_nifti(tmp_path / "b.nii", run[::-1].copy(), affine=mirrored, tr_s=2.0))
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": (16, 16, 16, 5)}, "axis T .* Set it to 20 or 25"),  # D17 D18
        ({"shape": (96, 90, 96, 24)}, "axis H"),  # D18
        ({"scaling": "zscore"}, "scaling must be one of none, minmax"),
        ({"short_run": "drop"}, "short_run must be one of refuse, repeat"),
        ({"repetition_time_s": 0.0}, "repetition_time_s must be positive"),
        ({"shape": (96, 96, 96), "patch": (16, 16, 16)}, "4"),
    ],
)
def test_a_wrong_run_recipe_is_refused_at_once(wrong, message):
    right = {"shape": (96, 96, 96, 24), "patch": (16, 16, 16, 3), "repetition_time_s": 2.0}
    with pytest.raises(InputError, match=message):
        BoldRun(**{**right, **wrong})


@pytest.mark.parametrize("shape", NATIVE)
def test_every_native_grid_becomes_96_cubed_with_its_content_centred(shape):  # D41
    volume = torch.zeros(shape)
    middle = tuple(size // 2 for size in shape)
    volume[middle] = 1
    out = pad_or_crop(volume, (96, 96, 96), fill=0.0)
    assert out.shape == (96, 96, 96)
    found = torch.nonzero(out)
    assert len(found) == 1
    for at, size in zip(found[0].tolist(), shape, strict=True):
        # the middle of a grid is between two voxels where their number is even
        assert abs((at - 47.5) - (size // 2 - (size - 1) / 2)) <= 0.5


@pytest.mark.parametrize("shape", NATIVE[:8])
def test_nothing_but_the_border_is_lost(shape):  # D41
    volume = torch.rand(shape) + 1
    out = pad_or_crop(volume, (96, 96, 96), fill=0.0)
    kept = torch.tensor([min(size, 96) for size in shape])
    assert int((out > 0).sum()) == int(kept.prod())
    corner = torch.nonzero(out).amin(dim=0)
    inner = out[tuple(slice(int(a), int(a + n)) for a, n in zip(corner, kept, strict=True))]
    start = [(size - int(n)) // 2 for size, n in zip(shape, kept, strict=True)]
    cut = volume[tuple(slice(a, a + int(n)) for a, n in zip(start, kept, strict=True))]
    assert torch.equal(inner, cut)


@pytest.mark.parametrize("shape", [*NATIVE[:8], (48, 192, 96), (33, 47, 101)])
def test_a_run_of_any_grid_becomes_96_cubed(shape):  # D18 D41
    recipe = BoldRun(shape=(96, 96, 96, 1), patch=(16, 16, 16, 1), repetition_time_s=2.0)
    head = np.zeros((*shape, 1), np.float32)
    head[tuple(slice(size // 4, size - size // 4) for size in shape)] = 100
    out = recipe.apply(scan(head, tr_s=2.0))
    assert out["voxels"].shape == (1, 96, 96, 96)
    assert out["foreground"].shape == (6 * 6 * 6,)
    centre = (out["voxels"][0].abs() < 1e-3).float()  # zeroback: the mean of a flat head is 0
    assert bool(centre[40:56, 40:56, 40:56].all())


# The pad (or, below 0, crop) tuples of vlm-facts 1.2 that do end in 96 cubed, for H, W and D, by
# native grid: ABCD, HBN, ABIDE, raw MNI of 2 mm (UKB, HCP), SwiFT's HCP, brain-cropped UKB and HCP.
TUPLES = {
    (96, 96, 95): (0, 0, 0),
    (81, 95, 81): (7, 1, 7),
    (97, 115, 97): (-1, -10, 0),
    (91, 109, 91): (3, -7, 3),
    (75, 93, 81): (11, 2, 8),
    (78, 96, 84): (10, 0, 3),
}


@pytest.mark.parametrize("shape", TUPLES)
def test_what_is_computed_lies_within_a_voxel_of_the_declared_tuples(shape):  # D41 D45
    """But one: (3, 9) voxels around 84 are not centred."""
    recipe = BoldRun(shape=(96, 96, 96, 1), patch=(16, 16, 16, 1), repetition_time_s=2.0)
    run = scan(np.random.default_rng(0).uniform(1, 2, (*shape, 1)), tr_s=2.0)
    out = recipe.apply(run)
    assert out["voxels"].shape == (1, 96, 96, 96)
    before = -out["affine"][:3, 3]  # of 1 mm voxels that begin at 0
    for size, got, declared in zip(shape, before.tolist(), TUPLES[shape], strict=True):
        assert got == np.trunc((96 - size) / 2)
        assert abs(got - declared) <= (3 if (size, declared) == (84, 3) else 1)


def test_what_pads_a_run_is_what_background_is():  # D41
    recipe = bold(2, 2.0, shape=(10, 10, 10), scaling="znorm_minback")
    voxels = recipe.apply(run_of(np.array([-1.0, 1.0]), 2.0))["voxels"].float()
    background = voxels[:, 2, 2, 2]  # the rim of the small head's own grid
    assert bool((voxels[:, 0, 0, 0] == background).all())
    assert float(background[0]) == pytest.approx(-10, rel=0.01)  # mean 100, deviation 10


@pytest.mark.parametrize("num_frames", [2, 6, 7, 100])
def test_a_run_keeps_its_axes_however_long_it_is(num_frames):  # D42
    frames = np.random.default_rng(0).uniform(1, 2, (6, 7, 5, num_frames)).astype(np.float32)
    recipe = bold(num_frames, 2.0, shape=(6, 7, 5))
    voxels = recipe.apply(scan(frames, tr_s=2.0))["voxels"]
    assert voxels.shape == (num_frames, 6, 7, 5)
    np.testing.assert_allclose(voxels.numpy(), np.moveaxis(frames, -1, 0), rtol=1e-3)


def test_frames_are_in_order_on_a_time_axis():  # D43
    run = run_of(np.arange(8.0), 2.0)
    courses = bold(8, 2.0).apply(run)["voxels"][:, 3, 3, 3].float()
    np.testing.assert_allclose(courses, 100 + 10 * np.arange(8), rtol=1e-3)


def test_a_single_volume_is_not_a_run(round_head):
    with pytest.raises(ScanError, match=r"4-D run; this scan has shape \(28, 32, 26\)"):
        bold(2, 2.0).apply(scan(round_head(), tr_s=2.0))


def test_a_run_without_a_repetition_time_is_refused():  # D44
    with pytest.raises(ScanError, match="Write RepetitionTime"):
        bold(2, 2.0).apply(run_of(np.arange(4.0), None))


def test_a_run_that_is_too_short_says_how_long_it_is():  # D54
    with pytest.raises(ScanError, match=r"5 frames of 2\.0 s.*takes 8.* to 5 or fewer.*repeat"):
        bold(8, 2.0).apply(run_of(np.arange(10.0), 1.0))


def test_a_run_that_is_too_short_is_repeated_from_its_start_where_that_is_asked_for():  # D54
    recipe = bold(8, 2.0, short_run="repeat")
    short, long = run_of(np.arange(3.0), 2.0), run_of(np.arange(9.0), 2.0)
    courses = recipe.apply(short)["voxels"][:, 3, 3, 3].float()
    np.testing.assert_allclose(courses, 100 + 10 * np.array([0, 1, 2, 0, 1, 2, 0, 1]), rtol=1e-3)
    assert recipe.warnings(short) == ("its 3 frames are repeated to fill a window of 8",)
    assert len(recipe.apply(long)["voxels"]) == 9
    assert recipe.warnings(long) == ()


@pytest.mark.parametrize("tr_s", [2000.0, 0.002])
def test_milliseconds_are_not_taken_for_seconds(tr_s):  # D44
    """A side-car that says 2000 would make a run of an hour, frame by frame."""
    with pytest.raises(ScanError, match="not plausible"):
        bold(2, 2.0).apply(run_of(np.arange(4.0), tr_s))


def test_a_run_without_a_head_is_refused():
    with pytest.raises(ScanError, match="no mean of a voxel exceeds"):
        bold(2, 2.0).apply(scan(np.full((4, 4, 4, 2), -1.0) - np.eye(4)[..., None, None], tr_s=2.0))


def slow(seconds):
    return np.sin(2 * np.pi * 0.02 * seconds) + 0.5 * np.cos(2 * np.pi * 0.035 * seconds + 1)


@pytest.mark.parametrize("tr_s", [0.72, 0.735, 0.8, 1.0, 1.5, 2.0, 3.0])
def test_one_signal_sampled_by_several_clocks_comes_out_equal(tr_s):  # D44
    num_frames = 60
    seconds = np.arange(int(130 / tr_s)) * tr_s
    voxels = bold(num_frames, 2.0).apply(run_of(slow(seconds), tr_s))["voxels"]
    got = (voxels[:num_frames, 3, 3, 3].float().numpy() - 100) / 10
    expected = slow(np.arange(num_frames) * 2.0)
    np.testing.assert_allclose(got[1:-1], expected[1:-1], atol=0.1)
    np.testing.assert_allclose(got, expected, atol=0.2)  # the ends have half a neighbourhood


def test_two_cohorts_come_out_equal_after_scaling():  # D44
    recipe = bold(60, 2.0, scaling="znorm_zeroback")
    fast, slowly = (
        recipe.apply(run_of(slow(np.arange(int(130 / tr_s)) * tr_s), tr_s))["voxels"][:60]
        for tr_s in (0.8, 2.0)
    )
    np.testing.assert_allclose(fast[1:-1, 3, 3, 3], slowly[1:-1, 3, 3, 3], atol=0.15)


@pytest.mark.parametrize("hertz", [0.4, 0.45, 0.5, 0.55, 0.6])
def test_what_is_faster_than_the_new_clock_does_not_fold_back(hertz):  # D44
    seconds = np.arange(400) * 0.8
    course = time_weights(400, 0.8, 2.0) @ np.sin(2 * np.pi * hertz * seconds + 0.3)
    # taking the nearest frame, or interpolating between two, leaves more than half
    assert course[2:-2].std() < 0.2 * np.sqrt(0.5)


def test_the_same_clock_changes_nothing():
    np.testing.assert_array_equal(time_weights(7, 2.0, 2.0), np.eye(7))


@pytest.mark.parametrize(("from_s", "to_s"), [(0.8, 2.0), (0.72, 2.0), (2.0, 0.8), (1.0, 2.0)])
def test_a_constant_stays_and_the_run_keeps_its_length(from_s, to_s):  # D44
    weights = time_weights(100, from_s, to_s)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    last_s = (len(weights) - 1) * to_s
    assert last_s <= 99 * from_s + 1e-3 < last_s + to_s + 1e-3


@pytest.mark.parametrize(
    ("scaling", "expected", "pad"),
    [
        ("none", [0, 2, 6], 0),
        ("minmax", [0, 0.25, 0.75], 0),
        ("znorm_zeroback", [0, 0, 2], 0),
        ("znorm_minback", [-1, 0, 2], -1),
    ],
)
def test_the_four_scalings_give_the_vector_of_the_specification(scaling, expected, pad):  # D46
    scaled, fill = scale_bold(
        torch.tensor([[0.0, 2.0, 6.0]]),
        torch.tensor([True, False, False]),
        mean=2.0,
        std=2.0,
        maximum=8.0,
        scaling=scaling,
    )
    torch.testing.assert_close(scaled.flatten(), torch.tensor(expected, dtype=torch.float32))
    assert fill == pad


def test_statistics_are_those_of_the_head_over_the_whole_run():  # D51
    signal = np.array([-1.0, 1.0, 1.0, -1.0])
    recipe = bold(4, 2.0, scaling="znorm_zeroback")
    voxels = recipe.apply(run_of(signal, 2.0))["voxels"].float()
    np.testing.assert_allclose(voxels[:, 3, 3, 3], signal, rtol=0.01)
    assert float(voxels[:, 0, 0, 0].abs().max()) == 0


@pytest.mark.parametrize("scaling", ["minmax", "znorm_zeroback", "znorm_minback"])
def test_a_slow_drift_of_one_percent_survives_sixteen_bits(scaling):
    courses = bold(8, 2.0, scaling=scaling).apply(run_of(np.arange(8) / 70, 2.0))["voxels"]
    assert bool((courses[:, 3, 3, 3].float().diff() > 0).all())


def test_intensities_beyond_sixteen_bits_do_not_become_infinite():
    big = run_of(np.arange(4.0), 2.0)
    with pytest.raises(ScanError, match="scaling"):
        bold(4, 2.0).apply(scan(big.voxels * 1000, tr_s=2.0))
