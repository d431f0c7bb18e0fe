"""One transform of a header places a scan; what cannot is told, and is not used."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuro.data.geometry import find_affine
from neuro.data.volume import read_volume
from neuro.errors import ScanError

SHAPE = (20, 30, 10)
PATH = Path("scan.nii")


def affine_of(*, spacing_mm=(1.0, 2.0, 3.0), place_mm=(-7.0, 4.0, 2.0), degrees=0.0):
    affine = np.diag([*spacing_mm, 1.0])
    turn = np.eye(4)
    angle = np.radians(degrees)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] = place_mm
    return affine


def header_of(sform=None, qform=None):
    """Return the header of an image, with the edge lengths that its writer would give it."""
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    first = qform if qform is not None else sform
    if first is not None:
        header.set_zooms(np.linalg.norm(first[:3, :3], axis=0))
    if qform is not None:
        header.set_qform(qform, 1)
    if sform is not None:
        header.set_sform(sform, 1)
    return header


def found(header):
    return find_affine(header, SHAPE, PATH)


def refused(header, reason):
    with pytest.raises(ScanError, match=reason) as caught:
        found(header)
    assert caught.value.step == "geometry"
    assert caught.value.cure


@pytest.mark.parametrize("degrees", [0, 17, 90])
def test_two_transforms_that_agree_are_used_without_a_word(degrees):
    affine = affine_of(degrees=degrees)
    got, spacing_mm, warnings = found(header_of(affine, affine))
    np.testing.assert_allclose(got, affine, atol=1e-5)
    assert spacing_mm == (1.0, 2.0, 3.0)  # of the header, not 0.99999 of the affine
    assert warnings == []


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"place_mm": (-7.0, 4.0, 6.5)}, "4.5 mm apart, turned by 0.0 degrees"),
        ({"degrees": 3.0}, "turned by 3.0 degrees"),
        ({"spacing_mm": (1.0, 2.0, 3.6)}, "voxels 17 % unlike"),
    ],
)
def test_a_disagreement_says_how_large_it_is_and_what_is_used(other, text):
    sform = affine_of()
    got, _, warnings = found(header_of(sform, affine_of(**other)))
    np.testing.assert_allclose(got, sform, atol=1e-5)
    (warning,) = warnings
    assert text in warning
    assert "the sform is used" in warning


@pytest.mark.parametrize(
    "other", [{"place_mm": (-7.0, 4.05, 2.0)}, {"degrees": 0.1, "place_mm": (-7.0, 4.0, 2.0)}]
)
def test_rounding_is_no_disagreement(other):
    assert found(header_of(affine_of(), affine_of(**other)))[2] == []


def test_either_transform_alone_is_enough():
    affine = affine_of(degrees=10)
    for header in (header_of(sform=affine), header_of(qform=affine)):
        got, _, warnings = found(header)
        np.testing.assert_allclose(got, affine, atol=1e-5)
        assert warnings == []


def test_without_a_transform_the_orientation_is_assumed_and_said_to_be():
    header = header_of()
    header.set_zooms((1.0, 2.0, 3.0))
    got, _, warnings = found(header)
    assert nib.aff2axcodes(got) == ("L", "A", "S")
    assert len(warnings) == 1
    assert "nothing says where the axes point" in warnings[0]


def broken(kind):
    affine = affine_of()
    if kind == "zero":
        affine[:3, :3] = 0
    elif kind == "not finite":
        affine[1, 3] = np.nan
    elif kind == "flat":
        affine[:3, 1] = affine[:3, 0] * 2
    elif kind == "far":
        affine[2, 3] = 1e7
    elif kind == "coarse":
        affine[:3, 2] *= 30
    elif kind == "fine":
        affine[:3, 0] *= 0.01
    elif kind == "wide":
        affine[:3, :3] *= 16
    return affine


FAULTS = {
    "zero": "voxels of 0 x 0 x 0 mm",
    "not finite": "not finite",
    "flat": "in one plane",
    "far": "far outside",
    "coarse": "voxels of 1 x 2 x 90 mm .plausible are 0.05 to 50",
    "fine": "voxels of 0.01 x 2 x 3 mm",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_transform_that_is_no_place_for_a_head_is_refused(kind):  # S17 D51
    refused(header_of(sform=broken(kind)), f"its sform gives .*{FAULTS[kind]}")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_sform_leaves_the_qform(kind):  # S17
    header = header_of(qform=affine_of())
    header.set_sform(broken(kind), 1)
    got, _, warnings = found(header)
    np.testing.assert_allclose(got, affine_of(), atol=1e-5)
    (warning,) = warnings
    assert re.search(f"the sform gives .*{FAULTS[kind]}.*; qform is used", warning)


def test_a_broken_qform_leaves_the_sform():
    header = header_of(affine_of(), affine_of())
    header["quatern_b"] = header["quatern_c"] = 0.9  # no rotation has these
    got, _, warnings = found(header)
    np.testing.assert_allclose(got, affine_of(), atol=1e-5)
    (warning,) = warnings
    assert re.search("the qform gives no transform .*; sform is used", warning)


def test_where_both_are_broken_both_are_named():
    header = header_of(affine_of(), affine_of())
    header.set_sform(broken("zero"), 1)
    header["pixdim"][3] = 0
    refused(header, "its sform gives .*; its qform gives ")


def test_a_field_of_view_beyond_any_scanner_is_refused():
    """It would be resampled to more voxels than there is memory."""
    header = header_of(sform=affine_of(spacing_mm=(40.0, 40.0, 40.0)))
    with pytest.raises(ScanError, match="field of view beyond 3000 mm"):
        find_affine(header, (200, 200, 200), PATH)


def test_edge_lengths_with_a_sign_lose_it():
    header = header_of(qform=affine_of())
    header["pixdim"][2] *= -1
    got, _, warnings = found(header)
    np.testing.assert_allclose(got, affine_of(), atol=1e-5)
    assert len(warnings) == 1
    assert "negative edge lengths" in warnings[0]


def test_a_missing_handedness_is_the_usual_one():
    header = header_of(qform=affine_of())
    header["pixdim"][0] = 0
    np.testing.assert_allclose(found(header)[0], affine_of(), atol=1e-5)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3)])
def test_other_units_become_millimetres(unit, factor):
    scale = np.diag([factor] * 3 + [1.0])
    header = header_of(sform=scale @ affine_of())
    header.set_xyzt_units(unit)
    got, spacing_mm, warnings = found(header)
    np.testing.assert_allclose(got, affine_of(), rtol=1e-4)
    assert spacing_mm == pytest.approx((1, 2, 3))
    assert len(warnings) == 1
    assert "converted" in warnings[0]


def test_a_unit_that_makes_no_sense_is_not_believed():
    header = header_of(sform=affine_of())
    header.set_xyzt_units("micron")
    got, spacing_mm, warnings = found(header)
    np.testing.assert_allclose(got, affine_of(), rtol=1e-4)
    assert spacing_mm == (1.0, 2.0, 3.0)
    assert len(warnings) == 1
    assert "makes no sense" in warnings[0]


def test_an_identity_that_a_program_left_is_told():
    """The edge lengths in the header are others."""
    header = header_of(qform=affine_of())
    header["qform_code"] = 0
    header.set_sform(np.eye(4), 1)
    _, spacing_mm, warnings = found(header)
    assert spacing_mm == (1.0, 1.0, 1.0)
    assert len(warnings) == 1
    assert "voxels of 1 x 1 x 1 mm, pixdim of 1 x 2 x 3" in warnings[0]


def test_axes_that_are_not_at_right_angles_are_told():  # S17
    affine = affine_of()
    affine[1, 2] = 3 * np.tan(np.radians(12))  # a gantry that was tilted
    got, _, warnings = found(header_of(sform=affine))
    np.testing.assert_allclose(got, affine, atol=1e-5)
    assert any("12.0 degrees away from right angles" in warning for warning in warnings)


def test_the_two_public_scans_with_odd_headers(real_data):
    folder = real_data / "ds002748"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    disagrees, only_qform = (
        read_volume(folder / f"sub-{one}" / "anat" / f"sub-{one}_T1w.nii.gz") for one in (21, 40)
    )
    assert "sform and qform disagree" in disagrees.warnings[0]
    assert only_qform.warnings == ()
    for volume in (disagrees, only_qform):
        assert volume.orientation == "LAS"
        assert volume.source_spacing_mm == pytest.approx((0.868, 0.868, 1.0), abs=1e-3)
