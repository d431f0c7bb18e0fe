"""A NIfTI file is read whole, however it is written, or refused with its path."""

from __future__ import annotations

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest
from permissions import forbidden, open_folder

from neuro.data.nifti import read_nifti
from neuro.data.volume import read_volume
from neuro.errors import ScanError


def noise(*shape):
    return np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)


def refused(path, step, reason):
    with pytest.raises(ScanError, match=re.escape(str(path))) as caught:
        read_nifti(path)
    assert caught.value.path == path
    assert caught.value.step == step
    assert re.search(reason, caught.value.reason)
    assert caught.value.cure
    assert "\n" not in str(caught.value)


def packed(path):
    """Pack a file under its name with .gz."""
    other = path.with_name(f"{path.name}.gz")
    other.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return other


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_both_versions_and_both_byte_orders_are_read(tmp_path, kind, order, dtype):
    numbers = np.arange(60).reshape(3, 4, 5)
    image = kind(numbers.astype(dtype), np.eye(4), kind.header_class(endianness=order))
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(stored.voxels, numbers)
    assert stored.voxels.dtype == np.dtype(dtype).newbyteorder(order)
    assert stored.slope is None
    assert stored.warnings == ()


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("pack", [(), ("a.hdr",), ("a.img",), ("a.hdr", "a.img")])
def test_either_file_of_a_pair_gives_the_scan(tmp_path, kind, pack):
    voxels = noise(3, 4, 5)
    nib.save(kind(voxels, np.eye(4)), tmp_path / "a.img")
    for name in pack:
        packed(tmp_path / name)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for path in files:
        np.testing.assert_array_equal(read_nifti(path).voxels, voxels)


def test_a_file_that_may_not_be_read_says_so_and_not_that_it_is_damaged():
    with open_folder() as folder:
        nib.save(nib.Nifti1Image(noise(3, 4, 5), np.eye(4)), folder / "a.nii")
        nib.save(nib.Nifti1Pair(noise(3, 4, 5), np.eye(4)), folder / "b.hdr")
        for asked, closed in (("a.nii", "a.nii"), ("b.hdr", "b.img"), ("b.img", "b.hdr")):
            with forbidden(folder / closed), pytest.raises(ScanError) as caught:
                read_nifti(folder / asked)
            assert (caught.value.path, caught.value.step) == (folder / asked, "read")
            assert caught.value.reason == f"{folder / closed} cannot be opened (Permission denied)."
            assert caught.value.cure == "Give yourself access to it."


@pytest.mark.parametrize("name", ["a.hdr", "a.img.gz"])
def test_half_of_a_pair_says_which_half_is_missing(tmp_path, name):
    nib.save(nib.Nifti1Pair(noise(3, 4, 5), np.eye(4)), tmp_path / "a.img")
    path = tmp_path / name
    if name.endswith(".gz"):
        path = packed(tmp_path / name.removesuffix(".gz"))
    other = {"a.hdr": "a.img", "a.img.gz": "a.hdr"}[name]
    (tmp_path / other).unlink()
    refused(path, "find", f"half of a pair; there is no {other}")


def test_an_analyze_pair_is_refused_because_it_has_no_left(tmp_path):
    nib.save(nib.AnalyzeImage(noise(3, 4, 5), np.eye(4)), tmp_path / "a.img")
    refused(tmp_path / "a.hdr", "read", "ANALYZE header, which does not tell left from right")


def test_dicom_with_the_suffix_of_a_pair_is_named(tmp_path):
    path = tmp_path / "0001.img"
    path.write_bytes(bytes(128) + b"DICM" + bytes(600))
    refused(path, "read", "it is DICOM")


def test_an_archive_without_its_suffix_is_unpacked_and_a_plain_file_with_it_is_not(tmp_path):
    voxels = noise(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "plain.nii")
    plain = (tmp_path / "plain.nii").read_bytes()
    for name, content in (("a.nii", gzip.compress(plain)), ("b.nii.gz", plain), ("c.gz", plain)):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, voxels)


def test_several_archives_one_behind_the_other_are_one_file(tmp_path):
    """As parallel packers write them."""
    voxels = noise(8, 8, 8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:900]) + gzip.compress(content[900:]))
    np.testing.assert_array_equal(read_nifti(path).voxels, voxels)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_extensions_are_passed_over(tmp_path, name):
    voxels = noise(3, 4, 5)
    image = nib.Nifti1Image(voxels, np.eye(4))
    for size in (7, 4000):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    nib.save(image, tmp_path / name)
    np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, voxels)


def test_the_slope_is_handed_over(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "a.nii")
    stored = read_nifti(tmp_path / "a.nii")
    assert stored.slope == (0.5, 10.0)
    assert stored.voxels.dtype == np.int16


# D50: what cannot be read is an error that names the file, never zeros.


def test_a_missing_file_is_named(tmp_path):  # D50
    refused(tmp_path / "nowhere.nii.gz", "find", "no such file")


def test_a_link_to_nothing_says_how_to_fetch_it(tmp_path):  # D50
    (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "objects" / "absent")
    with pytest.raises(ScanError, match="datalad get"):
        read_nifti(tmp_path / "annexed.nii.gz")


def test_an_empty_file_is_named(tmp_path):  # D50
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "read", "0 bytes")


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nii"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(save_nifti, tmp_path, name, share):  # D50
    path = save_nifti(tmp_path / name, noise(16, 16, 16))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "read", "cannot be read as NIfTI")


def test_a_damaged_archive_is_named(save_nifti, tmp_path):  # D50
    path = save_nifti(tmp_path / "bits.nii.gz", noise(16, 16, 16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    refused(path, "read", "cannot be read as NIfTI")


@pytest.mark.parametrize("name", ["letter.nii", "letter.nii.gz", "letter.mgz.nii"])
def test_a_text_that_is_named_like_a_scan_is_named(tmp_path, name):  # D50
    (tmp_path / name).write_text("Dear colleague, " * 100)
    refused(tmp_path / name, "read", "cannot be read as NIfTI")


def test_a_zipped_text_is_named(tmp_path):  # D50
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"Dear colleague, " * 100))
    refused(tmp_path / "a.nii.gz", "read", "cannot be read as NIfTI")


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "complex64"])
def test_colours_and_complex_numbers_are_refused(tmp_path, dtype):  # D50
    voxels = np.zeros((4, 4, 4), dtype)
    voxels[1] = 7 if dtype == "complex64" else (1, 2, 3)
    path = tmp_path / "odd.nii"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(ScanError, match=re.escape(str(path))):
        read_nifti(path)


@pytest.mark.parametrize("place", [-8, -6, -4, -1])
def test_a_checksum_that_does_not_fit_is_found(save_nifti, tmp_path, place):
    """It stands behind the voxels, where readers stop."""
    path = save_nifti(tmp_path / "a.nii.gz", noise(16, 16, 16))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    refused(path, "read", "cannot be read as NIfTI")


def test_what_is_behind_the_voxels_is_reported(tmp_path):
    nib.save(nib.Nifti1Image(noise(3, 4, 5), np.eye(4)), tmp_path / "a.nii")
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes() + bytes(1000)))
    (warning,) = read_nifti(path).warnings
    assert "1000 bytes more" in warning


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_promises_too_much_costs_no_memory(tmp_path, name):
    header = nib.Nifti2Header()
    header.set_data_shape((10**6, 10**6, 10**6))
    header.set_data_dtype(np.float64)
    content = header.binaryblock + bytes(4000)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    refused(path, "read", "promises 8000000000000000000 bytes")


@pytest.mark.parametrize("offset", [0.0, 100.0, float("nan"), 1e9])
def test_an_odd_place_of_the_voxels_is_mended_or_named(tmp_path, offset):
    voxels = noise(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = struct.pack("<f", offset)
    path = tmp_path / "b.nii"
    path.write_bytes(bytes(content))
    if offset == offset and offset < 352:
        stored = read_nifti(path)
        np.testing.assert_array_equal(stored.voxels, voxels)
        assert len(stored.warnings) == (offset > 0)
    else:
        refused(path, "read", "cannot be read as NIfTI")


def test_an_unknown_type_of_numbers_is_named(tmp_path):
    nib.save(nib.Nifti1Image(noise(3, 4, 5), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[70:72] = struct.pack("<h", 999)
    (tmp_path / "b.nii").write_bytes(bytes(content))
    refused(tmp_path / "b.nii", "read", "no numbers have the type 999")


FIELDS = [nib.Nifti1Header.template_dtype, nib.Nifti2Header.template_dtype]
ODD_NUMBERS = [0, 1, -1, 3, 255, 32767, 1e-9, 1e9, 1e30, float("nan"), float("inf"), -2, 0.001]


def mutated(content, fields, rng):
    """Return a file with a few changes, most of them in the header."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        name = fields.names[rng.integers(len(fields.names))]
        dtype, place = fields.fields[name][:2]
        choice = rng.integers(3)
        if choice == 0:
            content[rng.integers(len(content))] = rng.integers(256)
        elif choice == 1 or dtype.base.kind not in "iuf":
            content[place : place + dtype.itemsize] = rng.bytes(dtype.itemsize)
        else:
            number = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
            if dtype.base.kind != "f":
                number = int(np.nan_to_num(number, posinf=7)) % (1 << (8 * dtype.base.itemsize - 1))
            place += int(rng.integers(dtype.itemsize // dtype.base.itemsize)) * dtype.base.itemsize
            content[place : place + dtype.base.itemsize] = np.array(number, dtype.base).tobytes()
    if rng.random() < 0.1:
        del content[rng.integers(len(content)) :]
    return bytes(content)


def outcome(path):
    try:
        return read_volume(path)
    except ScanError as error:
        return error


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, seed):  # D50
    """420 of them; nothing else is ever raised."""
    rng = np.random.default_rng(seed)
    kind = (nib.Nifti1Image, nib.Nifti2Image)[seed % 2]
    shape, dtype = [((10, 11, 12), "i2"), ((8, 9, 10, 4), "f4"), ((6, 7, 8, 1, 3), "f8")][seed // 2]
    image = kind(rng.normal(100, 30, shape).astype(dtype), np.diag([2.0, 2, 3, 1]))
    image.set_qform(image.affine, 1)
    outcomes = set()
    for number in range(70):
        content = mutated(image.to_bytes(), FIELDS[seed % 2], rng)
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(gzip.compress(content, 1) if number % 2 else content)
        volume = outcome(path)
        outcomes.add(volume.step if isinstance(volume, ScanError) else "read whole")
        if isinstance(volume, ScanError):
            assert volume.path == path
            assert "\n" not in str(volume)
        else:
            assert np.isfinite(volume.voxels).all()
            assert np.isfinite(volume.affine).all()
            assert all(stride > 0 for stride in volume.voxels.strides)  # torch takes no others
    assert {"read whole", "read"} <= outcomes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("avg152T1_LR_nifti.nii", "avg152T1_LR_nifti.nii.gz"),
        ("avg152T1_LR_nifti.nii.gz", "avg152T1_LR_nifti2.nii.gz"),
        ("big.nii.gz", "little.nii.gz"),
        ("air.hdr.gz", "air.img.gz"),
        ("air.hdr.gz", "air2.img.gz"),
    ],
)
def test_public_files_of_one_scan_have_equal_voxels(real_data, one, other):
    folder = real_data / "NIFTI-Reader-JS" / "data"
    if not (folder / one).is_file():
        pytest.skip(f"{folder} is absent")
    first, second = read_volume(folder / one), read_volume(folder / other)
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)


def test_public_files_are_read_as_nibabel_reads_them(real_data):
    paths = sorted((real_data / "NIFTI-Reader-JS" / "data").glob("*.nii*"))
    paths += sorted((real_data / "dcm_qa_nih").rglob("*.nii"))
    if not paths:
        pytest.skip(f"{real_data} has no NIfTI files")
    num_equal = 0
    for path in paths:
        volume = outcome(path)
        if isinstance(volume, ScanError):
            assert path.name in ("5D_small.nii", "5D_zeros.nii.gz", "not-nifti.nii")
            continue
        image = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(volume.voxels, np.squeeze(image.dataobj).astype(np.float32))
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
        num_equal += 1
    assert num_equal > 5


def test_public_files_of_0_bytes_are_refused_one_by_one(real_data):
    paths = sorted((real_data / "bids-examples").rglob("*.nii.gz"))
    if not paths:
        pytest.skip(f"{real_data} has no BIDS examples")
    for path in paths:
        refused(path, "read", "0 bytes")


ZEROS = gzip.compress(bytes(1 << 24), 9)  # a member of an archive may be followed by others


def promising(edge, path):
    """Write the header of a cube of bytes, packed."""
    header = nib.Nifti1Header()
    header.set_data_shape((edge, edge, edge))
    header.set_data_dtype(np.uint8)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    return path


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is(tmp_path):
    path = promising(1290, tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + ZEROS * 128)
    refused(path, "read", "it unpacks to 10.. times its size, as no scan does")


def test_an_archive_with_far_more_than_its_header_says_is_not_read_to_its_end(tmp_path):
    path = promising(8, tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + ZEROS * 16)
    refused(path, "read", "it holds more than 134217728 bytes behind what its header says")


def test_the_header_of_a_pair_is_not_read_into_memory(tmp_path):
    nib.save(nib.Nifti1Pair(noise(3, 4, 5), np.eye(4)), tmp_path / "a.img")
    path = packed(tmp_path / "a.hdr")
    path.write_bytes(path.read_bytes() + ZEROS * 16)
    refused(path, "read", "it holds more than")


def test_a_small_scan_of_little_may_pack_well(tmp_path, save_nifti):
    voxels = np.zeros((128, 128, 128), np.float32)
    voxels[60:64, 60:64, 60:64] = 1
    path = save_nifti(tmp_path / "a.nii.gz", voxels)
    assert path.stat().st_size * 100 < voxels.nbytes
    assert read_nifti(path).voxels.any()
