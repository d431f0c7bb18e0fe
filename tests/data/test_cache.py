"""An entry is whole or absent, fits its recipe and its scan, and a bad scan is named."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from damage import flip
from permissions import forbidden, open_folder

from neuro.data.bold_run import BoldRun
from neuro.data.cache import Cache, source_stamp
from neuro.data.entry import EntryForbidden
from neuro.data.fixed_grid import FixedGrid
from neuro.data.ledger import TooManyFailedScans
from neuro.data.manifest import Series
from neuro.data.tokens import grid_of
from neuro.data.volume import read_volume
from neuro.data.whole_file import NotWritable
from neuro.errors import InputError, NotAScan, ScanError

GRID = FixedGrid(shape=(8, 8, 8), spacing_mm=2.0, patch=(4, 4, 4), percentiles=(0.5, 99.5))
RUN = BoldRun(shape=(8, 8, 8, 4), patch=(4, 4, 4, 2), repetition_time_s=2.0)


@pytest.fixture
def scans(tmp_path, save_nifti):
    """Write four small scans and a run."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(4):
        voxels = rng.uniform(0, 100, (8, 8, 8)).astype(np.float32)
        path = save_nifti(tmp_path / "data" / f"{index}.nii.gz", voxels, spacing_mm=2.0)
        found.append(Series(subject=f"s{index}", modality="T1", path=path))
    voxels = rng.uniform(50, 100, (8, 8, 8, 9)).astype(np.float32)
    path = save_nifti(tmp_path / "data" / "run.nii.gz", voxels, spacing_mm=2.0, tr_s=2.0)
    return [*found, Series(subject="s0", modality="rsfMRI", path=path)]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", {"T1": GRID, "rsfMRI": RUN})


def entries(cache):
    """Return every file in the folders of the recipes, with when it was written."""
    return {
        path: path.stat().st_mtime_ns
        for path in cache.root.rglob("*")
        if path.is_file()
        and path.name not in ("recipe.json", "failures.tsv", "index.jsonl")
        and path.parent.name != ".locks"
    }


def build(cache, scans, **more):
    return cache.build(scans, **{"max_failed": 0.0, **more})


# ---------------------------------------------------------------- what is kept


def test_what_is_read_is_what_the_recipe_made(cache, scans):
    build(cache, scans)
    for scan in scans:
        made = cache.recipes[scan.modality].apply(read_volume(scan.path, scan.repetition_time_s))
        voxels, shares = cache.read(scan)
        assert torch.equal(voxels, made["voxels"])
        assert shares.shape == (2, 2, 2)
        assert torch.equal(shares.flatten(), made["foreground"])
        assert torch.equal(cache.affine(scan), made["affine"])


@pytest.mark.parametrize(("start", "step"), [(0, 1), (3, 1), (5, 1), (0, 2), (2, 2)])
def test_a_window_of_a_run_is_that_part_of_it(cache, scans, start, step):  # D42
    build(cache, scans)
    whole, shares = cache.read(scans[-1])
    assert len(whole) == cache.facts(scans)[scans[-1]].num_frames == 9
    frames, window = cache.read_window(scans[-1], start, step)
    assert torch.equal(frames, whole[start::step][:4].movedim(0, -1))
    assert window.shape == (2, 2, 2, 2)  # the head is where it is at every time
    assert all(torch.equal(window[..., time], shares) for time in range(2))


def test_each_window_of_a_ct_is_a_view_of_one_entry(clinical_cache, clinical_studies):  # S2
    series = clinical_studies[0].series[0]
    recipe = clinical_cache.recipes["ct"]
    made = recipe.apply(read_volume(series.path))
    for view in ("brain", "blood", "bone"):
        voxels, shares = clinical_cache.read(series, view)
        assert torch.equal(voxels, made[view])
        assert shares.shape == grid_of(tuple(voxels.shape), recipe.patch)
    assert not torch.equal(made["brain"], made["bone"])


def test_what_is_known_of_a_scan_is_known_without_its_voxels(cache, scans, monkeypatch):
    build(cache, scans)
    monkeypatch.setattr("neuro.data.index.Entry", None)  # nothing is opened
    facts = Cache(cache.root, cache.recipes).facts(scans)
    assert list(facts) == scans
    for scan, one in facts.items():
        assert one.source == source_stamp(scan)
        assert (one.source_shape[:3], one.grid) == ((8, 8, 8), (2, 2, 2))
        assert one.source_spacing_mm[:3] == (2.0, 2.0, 2.0)
        assert one.orientation == "RAS"
    assert [one.num_frames for one in facts.values()] == [0, 0, 0, 0, 9]
    assert len({one.voxels for one in facts.values()}) == 5


def test_the_same_voxels_have_the_same_name_in_another_file(cache, scans, tmp_path):  # S10
    twin = dataclasses.replace(scans[0], subject="other", path=tmp_path / "data" / "copy.nii.gz")
    shutil.copy(scans[0].path, twin.path)
    build(cache, [*scans, twin])
    facts = cache.facts([*scans, twin])
    assert facts[twin].voxels == facts[scans[0]].voxels
    assert len({one.voxels for one in facts.values()}) == 5


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1 / 255, 1.0])
def test_as_many_tokens_are_counted_as_a_collator_keeps(cache, scans, share):
    build(cache, scans)
    kept = cache.num_kept(scans, share)
    for scan in scans:
        _, shares = cache.read(scan)
        (same,) = {int((shares.float() >= share * 255).sum()), kept[scan]}
        assert same == 8 or share == 1.0


def test_a_scan_that_is_listed_twice_is_built_once(cache, scans):
    copies = [dataclasses.replace(scan) for scan in scans]
    build(cache, [*scans, *copies, *scans])
    assert len(entries(cache)) == len(scans)


def test_nothing_is_built_twice(cache, scans):
    build(cache, scans)
    before = entries(cache)
    build(cache, scans)
    build(Cache(cache.root, cache.recipes), scans)
    assert entries(cache) == before


def test_the_same_name_in_two_folders_is_two_entries(cache, scans, tmp_path, save_nifti):
    other = np.random.default_rng(9).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    path = save_nifti(tmp_path / "elsewhere" / scans[0].path.name, other, spacing_mm=2.0)
    twin = dataclasses.replace(scans[0], path=path)
    build(cache, [scans[0], twin])
    assert not torch.equal(cache.read(scans[0])[0], cache.read(twin)[0])


# ---------------------------------------------------------------- when it is made anew


def test_a_changed_source_is_built_again(cache, scans, save_nifti):
    build(cache, scans)
    before, (old, _) = entries(cache), cache.read(scans[0])
    voxels = np.random.default_rng(5).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    save_nifti(scans[0].path, voxels, spacing_mm=2.0)
    build(cache, scans)
    changed = [path for path, when in entries(cache).items() if before[path] != when]
    assert changed == [cache.entry(scans[0])]
    assert not torch.equal(cache.read(scans[0])[0], old)


def test_another_repetition_time_is_another_entry(cache, scans):  # D44
    run = scans[-1]
    faster = dataclasses.replace(run, repetition_time_s=1.0)
    build(cache, [run, faster])
    facts = cache.facts([run, faster])
    assert [facts[one].num_frames for one in (run, faster)] == [9, 5]


def test_a_changed_recipe_says_what_changed(cache, scans, said):
    build(cache, scans)
    assert "changed" not in said.text
    other = dataclasses.replace(GRID, spacing_mm=2.5, patch=(2, 4, 4))
    build(Cache(cache.root, {"T1": other, "rsfMRI": RUN}), scans)
    (line,) = {record.message for record in said.records if "changed" in record.message}
    assert "recipe of T1 changed" in line
    assert "spacing_mm: 2.0 -> 2.5" in line
    assert "patch: [4, 4, 4] -> [2, 4, 4]" in line
    assert "shape" not in line
    assert "rsfMRI" not in line


def test_an_old_recipe_finds_its_entries_again(cache, scans):
    build(cache, scans)
    before = entries(cache)
    other = Cache(cache.root, {"T1": dataclasses.replace(GRID, spacing_mm=2.5), "rsfMRI": RUN})
    build(other, scans)
    assert not {other.entry(scan) for scan in scans[:4]} & before.keys()
    build(cache, scans)
    assert before.items() <= entries(cache).items()


# ---------------------------------------------------------------- whole or absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failing:
    """A recipe that fails on one scan, in a way that nobody foresaw."""

    version = 1
    shape = (8, 8, 8)
    patch = (4, 4, 4)

    views = MappingProxyType({"voxels": "mri"})

    def apply(self, volume):
        if volume.path.name == "2.nii.gz":
            raise MemoryError("too large")
        return GRID.apply(volume)

    def warnings(self, volume):
        return ()


def test_an_exception_leaves_no_part_of_a_file(tmp_path, scans):
    cache = Cache(tmp_path / "cache", {"T1": Failing()})
    with pytest.raises(MemoryError):
        build(cache, scans[:4])
    left = entries(cache)
    assert all(path.name.endswith(".safetensors") for path in left)
    assert not cache.entry(scans[2]).exists()
    for scan in scans[:4]:
        if cache.entry(scan) in left:
            voxels, shares = cache.read(scan)
            assert voxels.shape == (8, 8, 8)
            assert shares.shape == (2, 2, 2)


def test_a_full_disk_is_an_error_that_leaves_nothing(cache, scans):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write to the cache .*paths\.cache_dir"):
            build(cache, scans[:1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(cache) == {}


def build_until_killed(cache, scan):
    """Build in a process that the system kills at the 600th byte it writes."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    build(cache, [scan])


def test_a_killed_process_leaves_no_half_entry(cache, scans):
    child = multiprocessing.get_context("fork").Process(
        target=build_until_killed, args=(cache, scans[0])
    )
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGXFSZ
    assert not cache.entry(scans[0]).exists()
    build(cache, scans[:1])
    assert cache.read(scans[0])[0].shape == (8, 8, 8)


@pytest.mark.parametrize("name", ["recipe.json", "index.jsonl", "failures.tsv"])
def test_a_disk_that_is_full_by_then_is_an_error_that_leaves_nothing(
    cache, broken, monkeypatch, name
):
    """Each of the small files is the last straw once."""
    write = Path.write_text

    def full(path, text, **more):
        if name in path.name:
            write(path, text[: len(text) // 2], **more)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot write to the cache .*No space.*paths\.cache_dir"):
        build(cache, broken, max_failed=0.5)
    assert not list(cache.root.rglob(f"*{name}*"))
    monkeypatch.undo()
    assert len(build(cache, broken, max_failed=0.5)) == 2


def test_nothing_is_written_where_nothing_is_new(cache, scans):
    """A cache may be shared by many who cannot write to it."""
    build(cache, scans)
    cache.num_kept(scans, 0.5)
    before = {path: path.stat().st_mtime_ns for path in [cache.root, *cache.root.rglob("*")]}
    again = Cache(cache.root, cache.recipes)
    build(again, scans)
    again.num_kept(scans, 0.5)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def shared(tmp_path, scans):
    """Two scans and their cache, in a folder that others may be kept from writing to."""
    with open_folder() as folder:
        own = []
        for index in (0, 1):
            path = folder / f"{index}.nii.gz"
            shutil.copy(scans[index].path, path)
            own.append(dataclasses.replace(scans[index], path=path))
        cache = Cache(folder / "cache", {"T1": GRID})
        build(cache, own)
        yield cache, own


def folders_of(cache):
    return [path for path in [cache.root, *cache.root.rglob("*")] if path.is_dir()]


def test_a_cache_that_may_only_be_read_serves_and_still_names_bad_scans(shared):
    cache, scans = shared
    bad = scans[0].path.with_name("bad.nii.gz")
    bad.write_bytes(b"")
    scans = [*scans, dataclasses.replace(scans[0], path=bad)]
    (told,) = build(cache, scans, max_failed=0.5)
    with forbidden(*folders_of(cache)):
        again = Cache(cache.root, cache.recipes)
        (failure,) = build(again, scans, max_failed=0.5)
        assert again.read(scans[1])[0].shape == (8, 8, 8)
        assert len(again.num_kept(scans[:2], 0.25)) == 2  # a share that nobody asked for before
    assert str(failure) == str(told)


@pytest.mark.parametrize("what", ["all", "locks"])
def test_a_cache_that_must_be_written_to_and_may_not_names_the_setting(shared, save_nifti, what):
    cache, scans = shared
    voxels = np.random.default_rng(5).uniform(0, 100, (8, 8, 9)).astype(np.float32)
    save_nifti(scans[0].path, voxels, spacing_mm=2.0)
    folders = folders_of(cache)
    if what == "locks":
        folders = [path for path in folders if path.name == ".locks"]
        for path in folders:
            shutil.rmtree(path)
            path.mkdir()
    with forbidden(*folders), pytest.raises(NotWritable, match=r"write access.*paths\.cache_dir"):
        build(Cache(cache.root, cache.recipes), scans)


def test_an_entry_that_may_not_be_read_is_not_damaged_and_stays(shared):
    cache, scans = shared
    entry = cache.entry(scans[0])
    before = entry.stat()
    cache.index.path.unlink()
    with forbidden(entry):
        for act in (
            lambda own: own.read(scans[0]),
            lambda own: build(own, scans),
            lambda own: own.num_kept(scans, 0.5),
            lambda own: own.facts(scans),
        ):
            with pytest.raises(EntryForbidden, match=r"Permission denied.*read access") as caught:
                act(Cache(cache.root, cache.recipes))
            assert str(entry) in str(caught.value)
            assert "damaged" not in str(caught.value)
    after = entry.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("shape", [(8, 8, 2), (2, 8, 8), (8, 2, 8), (8, 8, 1), (8, 2, 8, 9)])
def test_fewer_than_three_slices_are_no_volume(tmp_path, cache, save_nifti, clinical, shape):
    voxels = np.random.default_rng(5).uniform(50, 100, shape).astype(np.float32)
    tr_s = 2.0 if len(shape) == 4 else None
    path = save_nifti(tmp_path / "thin.nii.gz", voxels, spacing_mm=2.0, tr_s=tr_s)
    both = Cache(cache.root, {**cache.recipes, **clinical})
    for modality in ("T1", "mri", "ct", "rsfMRI"):
        (failure,) = build(
            both, [Series(subject="s", modality=modality, path=path)], max_failed=1.0
        )
        assert (failure.path, failure.step) == (path, "geometry")
        assert "at least 3 voxels along each axis" in failure.reason
        assert "Give the whole volume" in failure.cure


def test_damaged_entries_are_mended_and_named_or_told_to_be_lost(cache, scans, said):
    build(cache, scans)
    whole = cache.read(scans[1])[0].clone()
    for scan in scans[1:3]:
        flip(cache.entry(scan), "foreground")
    scans[2].path.unlink()
    damaged = {}
    kept = Cache(cache.root, cache.recipes).num_kept(scans, 0.5, damaged)
    assert [*damaged] == scans[1:3]
    assert [*kept] == [scans[0], *scans[3:]]
    (lost,) = cache.mend(damaged)
    assert (lost.path, lost.step) == (scans[2].path, "find")
    assert not cache.entry(scans[2]).exists()
    assert torch.equal(cache.read(scans[1])[0], whole)
    for scan in scans[1:3]:
        assert f"{scan.path}: its cache entry {cache.entry(scan)} is damaged" in said.text


def test_training_stops_at_a_damaged_entry(cache, scans):
    build(cache, scans)
    flip(cache.entry(scans[1]), "foreground")
    flip(cache.entry(scans[2]), "voxels")
    for act in (
        lambda: cache.num_kept(scans, 0.5),
        lambda: cache.read(scans[1]),
        lambda: cache.read(scans[2]),
    ):
        with pytest.raises(ScanError, match="is damaged"):
            act()


def interrupted_build(cache, scans, ready):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    apply = FixedGrid.apply

    def slowly(self, volume):
        ready.set()
        time.sleep(0.5)
        return apply(self, volume)

    FixedGrid.apply = slowly
    try:
        build(cache, scans)
    except KeyboardInterrupt:
        os._exit(7)


def test_ctrl_c_stops_a_build_soon_and_the_next_one_goes_on(cache, scans, tmp_path, capfd):
    many = []
    for number in range(40):
        path = tmp_path / "many" / f"{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(scans[0].path, path)
        many.append(dataclasses.replace(scans[0], subject=f"m{number}", path=path))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=interrupted_build, args=(cache, many, ready))
    child.start()
    assert ready.wait(30)
    start = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    assert time.monotonic() - start < 4  # of 10 s on two cores
    assert child.exitcode == 7  # KeyboardInterrupt came through
    assert "Traceback" not in capfd.readouterr().err
    assert not list(cache.root.rglob("*.part"))
    done = entries(cache)
    assert len(done) < len(many)
    assert build(cache, many) == []
    assert done.items() <= entries(cache).items()


def build_in_turn(cache, scans, seconds):
    """Build where each recipe takes a while, and tells its process by a file."""
    torch.set_num_threads(1)
    apply = FixedGrid.apply

    def slowly(self, volume):
        with (cache.root / f"{volume.path.name}.{os.getpid()}.made").open("w"):
            time.sleep(seconds)
        return apply(self, volume)

    FixedGrid.apply = slowly
    build(cache, scans)


def test_two_builders_at_once_do_no_double_work(cache, scans):
    cache.root.mkdir()
    context = multiprocessing.get_context("fork")
    builders = [
        context.Process(target=build_in_turn, args=(cache, order, 0.2))
        for order in (scans[:4], scans[3::-1])
    ]
    for one in builders:
        one.start()
    for one in builders:
        one.join(60)
    assert [one.exitcode for one in builders] == [0, 0]
    made = [path.name.split(".")[0] for path in cache.root.glob("*.made")]
    assert sorted(made) == ["0", "1", "2", "3"]
    fresh = Cache(cache.root, cache.recipes)
    assert len(fresh.facts(scans[:4])) == 4
    for scan in scans[:4]:
        assert fresh.read(scan)[0].shape == (8, 8, 8)


def test_a_builder_that_is_killed_leaves_the_rest_to_the_next(cache, scans):
    cache.root.mkdir()
    builder = multiprocessing.get_context("fork").Process(
        target=build_in_turn, args=(cache, scans[:4], 30)
    )
    builder.start()
    deadline = time.monotonic() + 30
    while not list(cache.root.glob("*.made")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(10)
    assert build(cache, scans[:4]) == []  # no lock is left to wait for
    assert cache.read(scans[3])[0].shape == (8, 8, 8)


def test_shards_share_all_scans_out(cache, scans):
    seen = []
    for number in (1, 2, 3):
        own = Cache(cache.root, cache.recipes)
        before = set(entries(cache))
        build(own, scans, shard=(number, 3))
        seen.append(set(entries(cache)) - before)
    assert sum(map(len, seen)) == len(set.union(*seen)) == 5
    before = entries(cache)
    build(Cache(cache.root, cache.recipes), scans)
    assert entries(cache) == before


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_broken_entry_is_built_again(cache, scans, content):
    build(cache, scans)
    path = cache.entry(scans[1])
    whole = [one.clone() for one in cache.read(scans[1])]  # they are views of the file
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half if content is None else content)
    build(cache, scans)
    assert all(map(torch.equal, cache.read(scans[1]), whole))


def test_an_entry_that_breaks_during_a_run_names_scan_and_entry(cache, scans):  # D50
    build(cache, scans)
    path = cache.entry(scans[1])
    path.write_bytes(b"half")
    with pytest.raises(ScanError, match="Delete the entry") as caught:
        cache.read(scans[1])
    assert caught.value.path == scans[1].path
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ScanError):
        cache.read(scans[1])


@pytest.mark.parametrize("subject", ["../../outside", "a/b", "/etc/x", "s" * 300])
def test_an_entry_lies_in_the_folder_of_its_recipe(cache, scans, subject):
    scan = dataclasses.replace(scans[0], subject=subject)
    entry = Path(os.path.normpath(cache.entry(scan)))
    assert entry.parent == cache.folders["T1"]
    build(cache, [scan])
    assert cache.read(scan)[0].shape == (8, 8, 8)


# ---------------------------------------------------------------- what cannot be used


@pytest.fixture
def broken(scans):
    """Two of the four T1 are broken: one is empty, one is gone."""
    scans[1].path.write_bytes(b"")
    scans[2].path.unlink()
    return scans


def test_too_many_bad_scans_stop_and_each_is_named_once(cache, broken):  # D50
    with pytest.raises(TooManyFailedScans) as caught:
        build(cache, [*broken, *broken])
    message = str(caught.value)
    for index in (1, 2):
        assert message.count(str(broken[index].path)) == 1
    assert "2 of 5 scans cannot be used" in message
    assert "data.max_failed=0.0 allows 0" in message
    assert [failure.path for failure in caught.value.failures] == [
        broken[1].path,
        broken[2].path,
    ]


@pytest.mark.parametrize(("max_failed", "stops"), [(0.39, True), (0.4, False), (1.0, False)])
def test_a_share_of_bad_scans_is_tolerated(cache, broken, max_failed, stops):  # D50
    if stops:
        with pytest.raises(TooManyFailedScans, match="allows 1"):
            build(cache, broken, max_failed=max_failed)
    else:
        failures = build(cache, broken, max_failed=max_failed)
        assert [failure.path for failure in failures] == [broken[1].path, broken[2].path]
    assert sum(path.suffix == ".safetensors" for path in entries(cache)) == 3
    assert not cache.entry(broken[1]).exists()


def test_what_the_source_could_not_use_counts_too(cache, scans):  # D50
    """Of five scans and one that the source refused, one is bad: 0.167 of all."""
    refused = ScanError(Path("/data/localizer"), "find", "it has one slice.", "Leave it out.")
    with pytest.raises(TooManyFailedScans, match=r"1 of 6 scans .*max_failed=0\.1 allows 0"):
        build(cache, scans, known_failures=[refused], max_failed=0.1)
    assert build(cache, scans, known_failures=[refused], max_failed=0.17) == [refused]
    ledger = (cache.root / "failures.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in ledger[1:]] == ["/data/localizer"]
    scans[0].path.write_bytes(b"")
    with pytest.raises(TooManyFailedScans, match="2 of 6 scans"):
        build(cache, scans, known_failures=[refused], max_failed=0.17)


def test_what_never_was_a_scan_is_named_and_does_not_count(cache, scans):  # D50
    shot = NotAScan(Path("/data/shot"), "find", "it is a screen save.", "Leave it out.")
    assert build(cache, scans, known_failures=[shot]) == [shot]
    assert "/data/shot" in (cache.root / "failures.tsv").read_text()
    scans[0].path.write_bytes(b"")
    with pytest.raises(TooManyFailedScans, match="1 of 5 scans"):
        build(cache, scans, known_failures=[shot])


def test_the_ledger_lists_the_bad_scans_until_they_are_mended(cache, broken, save_nifti):  # D50
    build(cache, broken, max_failed=0.5)
    rows = [row.split("\t") for row in (cache.root / "failures.tsv").read_text().splitlines()]
    assert rows[0] == ["file", "step", "reason", "cure"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        (str(broken[1].path), "read"),
        (str(broken[2].path), "find"),
    ]
    assert all(len(row) == 4 for row in rows)
    voxels = np.random.default_rng(5).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    for index in (1, 2):
        save_nifti(broken[index].path, voxels, spacing_mm=2.0)
    assert build(cache, broken) == []
    assert not (cache.root / "failures.tsv").exists()


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_a_scan_that_went_bad_loses_its_entry(cache, scans, how):  # D50
    build(cache, scans)
    time.sleep(0.01)
    if how == "emptied":
        scans[1].path.write_bytes(b"")
    else:
        scans[1].path.unlink()
    failures = build(cache, scans, max_failed=0.5)
    assert [failure.path for failure in failures] == [scans[1].path]
    assert not cache.entry(scans[1]).exists()  # or it would be used, though it is in the ledger


def test_a_run_given_as_a_volume_is_named(cache, scans):  # D50
    wrong = dataclasses.replace(scans[-1], modality="T1")
    with pytest.raises(TooManyFailedScans, match=r"run\.nii\.gz: recipe: FixedGrid takes a single"):
        build(cache, [*scans, wrong])


def test_a_modality_without_a_recipe_is_an_error(cache, scans):
    with pytest.raises(InputError, match=r"'CT' has no recipe; known are T1, rsfMRI"):
        build(cache, [dataclasses.replace(scans[0], modality="CT")])
