"""A run may be a folder of frames, raw or normalised, and what is wrong with one is told."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from permissions import forbidden, open_folder

from neuro.data.bold_run import BoldRun
from neuro.data.cache import Cache, source_stamp
from neuro.data.cohort import ConversationCohort
from neuro.data.frames import read_frames
from neuro.data.manifest import Series
from neuro.data.modes import Modes
from neuro.data.splits import SubjectSplits
from neuro.data.table_cohort import TableCohort
from neuro.data.volume import read_volume
from neuro.errors import InputError, ScanError

SPACE, NUM_FRAMES = (10, 12, 9), 12
SPLITS = SubjectSplits(val=0.2, test=0.2)
RECIPE = BoldRun(
    shape=(12, 12, 12, 8), patch=(6, 6, 6, 4), repetition_time_s=0.8, scaling="znorm_zeroback"
)


def run():
    """Return a head of 500 to 1500 in a background of 0, time last."""
    rng = np.random.default_rng(0)
    voxels = rng.uniform(500, 1500, SPACE)[..., None] + rng.normal(0, 20, (*SPACE, NUM_FRAMES))
    outside = np.ones(SPACE, bool)
    outside[2:-2, 2:-3, 2:-2] = False
    voxels[outside] = 0
    return voxels.astype(np.float32), ~outside


def prepared(how):
    """Return a run as SwiFT prepares it: z-normed over the head, which is all that is not 0."""
    voxels, head = run()
    if how == "raw":
        return voxels
    inside = voxels[head]
    voxels = (voxels - inside.mean()) / inside.std()
    voxels[~head] = voxels[head].min() if how == "minback" else 0
    return voxels


def write(folder, voxels, dtype=torch.float16):
    folder.mkdir(parents=True)
    for index in range(voxels.shape[-1]):
        frame = torch.from_numpy(voxels[..., index : index + 1].copy()).to(dtype)  # a channel last
        torch.save(frame, folder / f"frame_{index}.pt")
    torch.save({"global_mean": 1.0, "global_std": 1.0}, folder / "global_stats.pt")
    return folder


def write_talk(folder, path):
    """Write a conversation about a run."""
    talk = {
        "task_id": "a",
        "subject_ids": ["1"],
        "images": [{"path": path, "token": "<image>", "modality": "fMRI"}],
        "conversations": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Sex?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "F"}]},
        ],
    }
    (folder / "talk.json").write_text(json.dumps([talk]))


def refused(folder, reason):
    with pytest.raises(ScanError, match=reason) as caught:
        read_volume(folder)
    assert caught.value.path == folder
    assert "\n" not in str(caught.value)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):  # D43
    voxels, _ = run()
    folder = write(tmp_path / "run", voxels, torch.float32)
    volume = read_volume(folder, 0.8)
    assert np.array_equal(volume.voxels, voxels)  # 10 comes after 9, not after 1
    assert volume.repetition_time_s == 0.8
    assert any("orientation" in warning for warning in volume.warnings)


@pytest.mark.parametrize("how", ["raw", "minback", "zeroback"])
def test_a_run_comes_out_equal_however_its_frames_were_normalised(tmp_path, save_nifti, how):
    voxels, head = run()
    nifti = save_nifti(tmp_path / "a.nii", voxels, affine=np.diag([2.0, 2.0, 2.0, 1.0]), tr_s=0.8)
    expected = RECIPE.apply(read_volume(nifti))
    volume = read_volume(write(tmp_path / "run", prepared(how)), 0.8)
    assert any("normalised" in one for one in volume.warnings) == (how != "raw")
    assert ((volume.voxels > 0).all(axis=-1) == head).all()
    found = RECIPE.apply(volume)
    assert torch.equal(found["foreground"], expected["foreground"])
    assert torch.equal(found["affine"][:3, :3], expected["affine"][:3, :3])
    torch.testing.assert_close(found["voxels"], expected["voxels"], atol=0.02, rtol=0)


def test_a_conversation_and_a_table_may_name_a_folder_of_frames(tmp_path):
    folder = write(tmp_path / "img" / "NDAR_1", prepared("minback"))
    (tmp_path / "img" / "NDAR_1.json").write_text('{"RepetitionTime": 0.8}')
    write_talk(tmp_path, "img/NDAR_1")
    (tmp_path / "table.csv").write_text("path,modality\nimg/NDAR_1,rsfMRI\n")
    cohorts = (
        ConversationCohort(tmp_path, tmp_path / "talk.json", SPLITS),
        TableCohort(tmp_path / "table.csv", tmp_path, Modes(default="mri"), SPLITS),
    )
    cache = Cache(tmp_path / "cache", {"rsfMRI": RECIPE})
    for cohort in cohorts:
        manifest = cohort.manifest()
        assert not manifest.failures
        ((one,),) = (study.series for study in manifest)
        assert (one.path, one.repetition_time_s, one.name) == (folder, 0.8, "NDAR_1")
        assert not cache.build([one], max_failed=0.0)
        window, _ = cache.read_window(one, 0, 1)
        assert window.shape == (12, 12, 12, 8)


def test_frames_that_are_made_again_are_noticed(tmp_path):  # S32
    voxels, _ = run()
    folder = write(tmp_path / "run", voxels)
    series = Series(subject="1", modality="rsfMRI", path=folder)
    before = source_stamp(series)
    assert source_stamp(series) == before
    torch.save(torch.zeros(3, 3, 3), folder / "frame_0.pt")  # in its place: the folder is the same
    assert source_stamp(series) != before
    for path in (folder / "frame_0.pt", folder):
        os.utime(path, ns=(0, 0))
    before = source_stamp(series)
    (folder / "frame_12.pt").write_bytes(b"")
    assert source_stamp(series) != before


def test_what_is_no_run_of_frames_is_named(tmp_path):  # D50
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "it is a folder without frames")
    voxels, _ = run()
    folder = write(tmp_path / "gap", voxels)
    (folder / "frame_3.pt").unlink()
    refused(folder, r"frame_3\.pt is missing; the last one is frame_11\.pt")
    refused(write(tmp_path / "still", np.ones((*SPACE, 3))), "all of its frames are equal")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (torch.zeros(3, 3, 4), "its shape"),
        (torch.zeros(5, 5), "a volume has 3 axes"),
        (torch.zeros(*SPACE, 2), "a volume has 3 axes"),
        (torch.zeros(0, 5, 5), "a volume has 3 axes"),
        (torch.zeros(*SPACE, dtype=torch.complex64), "not plain numbers"),
        (torch.zeros(*SPACE).to_sparse(), "not plain numbers"),
        (torch.zeros(1).expand(9000, 9000, 9000), "more voxels than it holds"),
        (torch.zeros(*SPACE, device="meta"), "more voxels than it holds"),
        ({"frame": torch.zeros(*SPACE)}, "it holds a dict"),
        (torch.zeros(*SPACE).to(torch.uint8).view(torch.bits8), "."),
    ],
)
def test_a_frame_that_is_none_is_named(tmp_path, frame, reason):  # D50
    voxels, _ = run()
    folder = write(tmp_path / "run", voxels)
    torch.save(frame, folder / "frame_4.pt")
    refused(folder, rf"frame_4\.pt.*{reason}")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_frame_that_is_damaged_or_runs_code_is_refused(tmp_path, monkeypatch):  # D50
    monkeypatch.chdir(tmp_path)
    voxels, _ = run()
    folder = write(tmp_path / "run", voxels)
    path = folder / "frame_4.pt"
    whole = path.read_bytes()
    torch.save(torch.zeros(*SPACE), path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    for content in (old[:-20], old[: len(old) // 3], old.replace(b"storage", b"stOrage")):
        path.write_bytes(content)
        refused(folder, r"frame_4\.pt: it is damaged")
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"Dear colleague, " * 100):
        path.write_bytes(content)
        refused(folder, r"frame_4\.pt: it is damaged")
    torch.save(Attack(), path)
    refused(folder, r"frame_4\.pt: it is damaged, or holds more than a tensor")
    assert not (tmp_path / "attacked").exists()


def test_a_run_that_is_a_little_below_zero_was_not_normalised(tmp_path, save_nifti):
    voxels, head = run()
    voxels[~head] = np.random.default_rng(1).normal(0, 5, voxels[~head].shape)  # air, not masked
    voxels[np.nonzero(~head)[0][:1], 0, 0, :1] = -30
    nifti = save_nifti(tmp_path / "a.nii", np.abs(voxels), affine=np.eye(4), tr_s=0.8)
    volume = read_volume(write(tmp_path / "run", np.abs(voxels) - 3, torch.float32), 0.8)
    assert not any("normalised" in one for one in volume.warnings)
    found, expected = RECIPE.apply(volume), RECIPE.apply(read_volume(nifti))
    assert torch.equal(found["foreground"], expected["foreground"])


def test_what_is_infinite_in_a_normalised_run_is_mended(tmp_path):
    voxels = prepared("minback")
    voxels[5, 5, 5, 3], voxels[5, 5, 5, 4] = np.inf, 3e38
    volume = read_volume(write(tmp_path / "run", voxels, torch.float32))
    assert np.isfinite(volume.voxels).all()
    assert len(volume.warnings) == 3
    refused(
        write(tmp_path / "half", run()[0] * 60), r"frame_0\.pt: its brightest voxels do not fit"
    )


def test_one_frame_is_a_volume(tmp_path):
    voxels, _ = run()
    assert read_volume(write(tmp_path / "run", voxels[..., :1])).voxels.shape == SPACE


def test_links_within_a_folder_do_not_lead_out_of_the_root(tmp_path):
    outside = write(tmp_path / "outside", run()[0])
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    for frame in outside.iterdir():
        (root / "run" / frame.name).symlink_to(frame)
    (tmp_path / "table.csv").write_text("path,modality\nrun,rsfMRI\n")
    write_talk(tmp_path, "run")

    def cohorts(**more):
        table, talk = tmp_path / "table.csv", tmp_path / "talk.json"
        yield TableCohort(table, root, Modes(default="mri"), SPLITS, **more)
        yield ConversationCohort(root, talk, SPLITS, **more)

    for cohort in cohorts(linked_roots=[str(outside)]):
        assert len(cohort.manifest()) == 1
    for cohort in cohorts():
        with pytest.raises(InputError, match=r"frame_0\.pt is really .* outside of data\.root"):
            cohort.manifest()


@pytest.mark.parametrize("name", [".", "frame_4.pt"])
def test_what_may_not_be_read_is_told(name):
    voxels, _ = run()
    with open_folder() as parent:
        folder = write(parent / "run", voxels)
        (folder / name).chmod(0)
        with forbidden():
            refused(folder, r"cannot be opened \(Permission denied\)")


def test_voxels_that_are_no_numbers_are_mended_as_everywhere(tmp_path):
    voxels, head = run()
    voxels[tuple(np.argwhere(head)[0])] = np.nan
    volume = read_volume(write(tmp_path / "run", voxels, torch.float32))
    assert np.isfinite(volume.voxels).all()
    assert any("are not numbers" in warning for warning in volume.warnings)
    with pytest.raises(ScanError, match="all voxels have the same value"):
        read_volume(write(tmp_path / "flat", np.zeros((*SPACE, 1), np.float32)))


def test_frames_lie_in_memory_one_after_another(tmp_path):
    voxels, _ = run()
    found, _ = read_frames(write(tmp_path / "run", voxels))
    assert np.moveaxis(found, -1, 0).flags.c_contiguous  # as the recipe takes them
