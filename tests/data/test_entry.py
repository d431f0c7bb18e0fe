"""An entry is what was written, or an error that names it; never something else."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from isal import isal_zlib
from permissions import forbidden, open_folder

from neuro.data.entry import Entry, EntryForbidden, Facts, voxel_digest, write_entry
from neuro.data.lock import locked
from neuro.errors import InputError, ScanError

SCAN = Path("scan.nii.gz")
FACTS = Facts(
    source="1|10|20",
    source_shape=(176, 256, 256),
    source_spacing_mm=(1.0, 0.9, 0.9),
    orientation="LAS",
    grid=(3, 2, 2),
    num_frames=0,
    voxels="abc",
    warnings=('odd name \t " ü',),
)


def tensors(num_frames=0):
    generator = torch.Generator().manual_seed(1)
    shape = (num_frames, 6, 4, 4) if num_frames else (12, 32, 32)
    voxels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {
        "voxels": voxels.half() if num_frames else voxels,
        "foreground": torch.randint(0, 256, (12,), dtype=torch.uint8, generator=generator),
        "affine": torch.rand(4, 4, dtype=torch.float64, generator=generator),
    }


def test_what_is_written_is_read(tmp_path):
    path, written = tmp_path / "e.safetensors", tensors()
    write_entry(path, written, FACTS)
    with Entry(path, SCAN) as entry:
        for name, tensor in written.items():
            assert torch.equal(entry.read(name), tensor)
        assert entry.facts() == FACTS
    assert [one.name for one in tmp_path.iterdir()] == ["e.safetensors"]


def test_nothing_is_left_of_a_writer_that_was_killed_within_the_library(tmp_path):
    """Safetensors writes to a file of a name of its own first."""
    path, written = tmp_path / "e.safetensors", {**tensors(), "more": torch.zeros(2**27)}
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=write_locked, args=(path, written))
    writer.start()
    end = time.monotonic() + 30
    while (
        not [one for one in tmp_path.glob(".*.part/*") if one.is_file()] and time.monotonic() < end
    ):
        time.sleep(0.001)
    writer.kill()
    writer.join(30)
    assert writer.exitcode == -signal.SIGKILL
    assert not path.exists()
    write_locked(path, tensors())
    assert {one.name for one in tmp_path.iterdir()} == {".locks", "e.safetensors"}


def write_locked(path, written):
    with locked(path.parent, path.name):
        write_entry(path, written, FACTS)


@pytest.mark.parametrize(("start", "step", "count"), [(0, 1, 4), (3, 2, 4), (9, 1, 1), (0, 3, 4)])
def test_a_window_of_a_run_is_its_frames(tmp_path, start, step, count):
    path, written = tmp_path / "e.safetensors", tensors(num_frames=10)
    write_entry(path, written, FACTS)
    with Entry(path, SCAN) as entry:
        frames = entry.read_frames("voxels", start, step, count)
    assert torch.equal(frames, written["voxels"][start::step][:count])


def test_a_window_past_the_end_is_an_error(tmp_path):
    path = tmp_path / "e.safetensors"
    write_entry(path, tensors(num_frames=10), FACTS)
    with Entry(path, SCAN) as entry, pytest.raises(ScanError, match="frames from 8"):
        entry.read_frames("voxels", 8, 1, 4)


def read_all(path, num_frames):
    with Entry(path, SCAN) as entry:
        if num_frames:
            read = {"voxels": entry.read_frames("voxels", 0, 1, num_frames)}
        else:
            read = {"voxels": entry.read("voxels")}
        read |= {name: entry.read(name) for name in ("foreground", "affine")}
        return read, entry.facts()


@pytest.mark.parametrize("num_frames", [0, 6])
def test_any_flipped_bit_is_found_and_named(tmp_path, num_frames):
    path, written = tmp_path / "e.safetensors", tensors(num_frames)
    write_entry(path, written, FACTS)
    whole = path.read_bytes()
    dice = random.Random(3)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [dice.randrange(header) for _ in range(250)]
    places += [dice.randrange(len(whole)) for _ in range(250)]
    found = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            read, facts = read_all(path, num_frames)
        except ScanError as error:
            found += str(path) in str(error) and "Delete the entry" in str(error)
        else:  # in the padding of the header, where nothing is said
            assert facts == FACTS
            assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
    assert found >= 0.9 * len(places)


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
def test_a_cut_off_entry_is_named(tmp_path, length):
    path = tmp_path / "e.safetensors"
    write_entry(path, tensors(), FACTS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ScanError, match="damaged"), Entry(path, SCAN) as entry:
        entry.read("voxels")


def test_an_absent_entry_is_named(tmp_path):
    with pytest.raises(ScanError, match="absent"), Entry(tmp_path / "none", SCAN):
        pass


def test_an_entry_that_may_not_be_read_is_not_called_absent_or_damaged():
    with open_folder() as folder:
        path = folder / "e.safetensors"
        write_entry(path, tensors(), FACTS)
        with forbidden(path), pytest.raises(EntryForbidden) as caught, Entry(path, SCAN):
            pass
    assert f"{path} cannot be opened (Permission denied)" in str(caught.value)
    assert "read access to it, or set paths.cache_dir" in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("neuro.data.entry.save_file", full)
    with pytest.raises(InputError, match=r"cannot write to the cache .*No space left.*cache_dir"):
        write_entry(tmp_path / "e.safetensors", tensors(), FACTS)
    assert not list(tmp_path.iterdir())


def test_nothing_is_unpickled(tmp_path):  # S36, D56
    path = tmp_path / "e.safetensors"
    write_entry(path, tensors(), FACTS)
    loaded = safetensors.torch.load_file(path)  # the format has no code in it
    assert set(loaded) == {"voxels", "foreground", "affine"}


def test_equal_voxels_have_equal_names_whatever_the_rest():
    one, other = tensors(), tensors()
    other["affine"] = other["affine"] + 1
    views = {"voxels": "mri"}
    assert voxel_digest(one, views) == voxel_digest(other, views)
    other["voxels"] = other["voxels"] ^ 1
    assert voxel_digest(one, views) != voxel_digest(other, views)
    turned = {"voxels": one["voxels"].reshape(32, 12, 32)}
    assert voxel_digest(one, views) != voxel_digest(turned, views)


def about_changed(path, change):
    """Write an entry whose description is another, with a checksum that holds."""
    write_entry(path, tensors(), FACTS)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(metadata)
    metadata["about_crc"] = f"{isal_zlib.crc32(metadata['about'].encode()):x}"
    safetensors.torch.save_file(tensors(), path, metadata)


@pytest.mark.parametrize("about", ["[" * 100_000, "9" * 5000, "[]", "{}", '{"grid": 1}'])
def test_a_description_that_is_none_is_an_error_that_names_the_entry(tmp_path, about):
    path = tmp_path / "e.safetensors"
    about_changed(path, lambda metadata: metadata.update(about=about))
    with Entry(path, SCAN) as entry, pytest.raises(ScanError, match="its description is none"):
        entry.facts()


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Facts)])
def test_a_description_with_a_field_of_another_kind_is_an_error(tmp_path, field):
    path = tmp_path / "e.safetensors"
    about = json.dumps({**dataclasses.asdict(FACTS), field: {"a": 1}})
    about_changed(path, lambda metadata: metadata.update(about=about))
    with Entry(path, SCAN) as entry, pytest.raises(ScanError, match="its description is none"):
        entry.facts()


@pytest.mark.parametrize("crc", ["[" * 100_000, "9" * 5000, "[]", "1"])
def test_checksums_that_are_none_are_an_error_that_names_the_entry(tmp_path, crc):
    path = tmp_path / "e.safetensors"
    about_changed(path, lambda metadata: metadata.update(crc=crc))
    with pytest.raises(ScanError, match=r"e\.safetensors is damaged"), Entry(path, SCAN):
        pass
