"""A mosaic looks the same however a volume is stored, and shows what is kept."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from neuro.report.mosaic import OUTLINE, data_uri, mosaic

CODES = [
    "".join(code)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for code in itertools.product(*order)
]


def stored(volume, code, spacing_mm=(1.0, 1.0, 1.0)):
    """Store a RAS array another way; return it with its affine."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-70, -110, -60)
    to = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(code))
    )
    array = nib.orientations.apply_orientation(volume.numpy(), to)
    affine = affine @ nib.orientations.inv_ornt_aff(to, volume.shape[:3])
    return torch.from_numpy(np.ascontiguousarray(array)), affine


def pixels(picture):
    return torch.from_numpy(np.array(picture))


def teal(picture):
    """Rows and columns of the pixels of the line."""
    return (pixels(picture) == torch.tensor(OUTLINE)).all(dim=-1).nonzero()


@pytest.mark.parametrize("code", CODES)
def test_a_head_looks_the_same_however_it_is_stored(code):
    head = torch.rand(12, 8, 16)
    kept = torch.rand(3, 4, 4) > 0.5
    spacing_mm = (1.0, 4.0, 1.5)
    expected, affine = stored(head, "RAS", spacing_mm)
    picture = mosaic(expected, affine=affine, outline=kept, slice_pixels=40)
    voxels, affine = stored(head, code, spacing_mm)
    outline, _ = stored(kept, code)
    turned = mosaic(voxels, affine=affine, outline=outline, slice_pixels=40)
    assert torch.equal(pixels(turned), pixels(picture))


@pytest.mark.parametrize("code", ["RAS", "LPS", "SRA", "IPR", "PIL"])
def test_the_right_front_top_of_the_head_is_where_a_reader_expects_it(code):
    head = torch.zeros(16, 16, 16)
    head[12:14, 12:14, 12:14] = 1
    kept = torch.zeros(8, 8, 8, dtype=torch.bool)
    kept[6, 6, 6] = True
    voxels, affine = stored(head, code)
    outline, _ = stored(kept, code)
    gray = pixels(mosaic(voxels, affine=affine, outline=outline, slice_pixels=64)).float()
    for place in range(3):
        bright = gray[:50, 64 * place : 64 * (place + 1)].amin(dim=-1)  # without the letters
        row, column = (bright > 200).nonzero().float().mean(dim=0)
        # right and front of the axial slice, right and top of the coronal, front and top
        assert (row, column) == pytest.approx((11.5, 51.5), abs=1)


def test_an_oblique_volume_is_shown_along_the_nearest_axes():
    head = torch.zeros(16, 16, 16)
    head[12, 12, 8] = 1
    voxels, affine = stored(head, "PSL")
    angle = np.radians(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = mosaic(voxels, affine=turn @ affine, slice_pixels=32)
    assert torch.equal(pixels(turned), pixels(mosaic(head, slice_pixels=32)))


def test_millimetres_are_as_long_along_all_axes():
    head = torch.zeros(16, 64, 32)  # 64 mm each way
    head[4:12, 16:48, 8:24] = 1  # a cube of 32 mm
    affine = torch.diag(torch.tensor([4.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    gray = pixels(mosaic(head, affine=affine, slice_pixels=64)).float().mean(dim=-1)
    for place in range(3):
        inside = gray[:50, 64 * place : 64 * (place + 1)] > 128
        assert inside.any(dim=0).sum() == pytest.approx(32, abs=2)
        assert inside.any(dim=1).sum() == pytest.approx(32, abs=2)


def test_a_thin_slab_is_no_cube():
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    gray = pixels(mosaic(torch.ones(60, 60, 4), affine=affine, slice_pixels=60))
    black = (gray == torch.tensor((12, 14, 18))).all(dim=-1)
    assert not black[:40, :60].any()
    assert (~black[:40, 60:120]).any(dim=1).sum() == 20


def test_the_line_is_where_kept_tokens_end():
    kept = torch.zeros(8, 8, 8, dtype=torch.bool)
    kept[2:4, 2:6, 4:6] = True
    picture = mosaic(torch.zeros(32, 32, 32), outline=kept, slice_pixels=80)
    line = teal(picture)
    # (left, right, top, bottom) of the border in each slice of 80 pixels, ten to a token
    borders = ((20, 40, 20, 60), (20, 40, 20, 40), (20, 60, 20, 40))
    for place, (left, right, top, bottom) in enumerate(borders):
        here = line[(line[:, 1] >= 80 * place) & (line[:, 1] < 80 * (place + 1))]
        rows, columns = here[:, 0], here[:, 1] - 80 * place
        assert (rows.min(), rows.max()) == pytest.approx((top, bottom), abs=1)
        assert (columns.min(), columns.max()) == pytest.approx((left, right), abs=1)
        inside = (rows > top + 1) & (rows < bottom - 1)
        inside &= (columns > left + 1) & (columns < right - 1)
        assert not inside.any()


def test_a_hole_has_a_border_too():
    kept = torch.ones(3, 3, 3, dtype=torch.bool)
    kept[1, 1, 1] = False
    rows, columns = teal(mosaic(torch.zeros(9, 9, 9), outline=kept, slice_pixels=90)).T
    assert ((rows > 20) & (rows < 70) & (columns > 20) & (columns < 70)).any()


def test_slices_go_through_the_middle_of_what_is_kept():
    head = torch.zeros(32, 32, 32)
    head[24:28, 24:28, 24:28] = 1
    kept = torch.zeros(8, 8, 8, dtype=torch.bool)
    kept[5:8, 5:8, 5:8] = True
    kept[0, 0, 0] = True  # a stray token moves nothing
    assert pixels(mosaic(head)).amin(dim=-1)[:100].max() < 20
    assert pixels(mosaic(head, outline=kept)).amin(dim=-1)[:100].max() > 100


def test_where_nothing_is_kept_the_middle_is_shown():
    head = torch.rand(16, 16, 16)
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    assert torch.equal(pixels(mosaic(head, outline=nothing)), pixels(mosaic(head)))


def test_a_run_stored_any_way_is_its_mean():
    run = torch.rand(12, 8, 16, 5)
    voxels, affine = stored(run.mean(dim=-1), "PIR")
    frames = torch.stack([stored(run[..., frame], "PIR")[0] for frame in range(5)], dim=-1)
    together = mosaic(frames, affine=affine, slice_pixels=32)
    mean = mosaic(voxels, affine=affine, slice_pixels=32)
    assert (pixels(together).int() - pixels(mean).int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float32])
def test_any_number_makes_a_picture(dtype):
    picture = mosaic((torch.rand(8, 8, 8) * 200).to(dtype), slice_pixels=16)
    assert picture.size == (48, 16)
    assert pixels(picture).max() > 200


def test_a_page_with_many_pictures_takes_small_ones():
    picture = mosaic(torch.rand(32, 32, 32))
    assert isinstance(picture, Image.Image)
    small, exact = data_uri(picture, webp_quality=75), data_uri(picture)
    assert small.startswith("data:image/webp;base64,")
    assert exact.startswith("data:image/png;base64,")
    assert len(small) < len(exact) / 2
