import csv
import json

import nibabel as nib
import numpy as np
import pytest
from scans import canonical

from neuro.data import phantom_files
from neuro.data.phantom import LEVELS, draw_split, render_t1
from neuro.data.phantom_files import lesion_mask, phantom_grids, write_phantoms
from neuro.errors import InputError

SMALL = {
    "t1_shape": (24, 24, 24),
    "t1_spacing_mm": 8.0,
    "bold_shape": (16, 16, 16),
    "bold_spacing_mm": 12.0,
}


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def participants(root):
    with (root / "participants.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantoms(tmp_path / name, num_subjects=2, seed=seed, **SMALL)
    first, second, other = (files_of(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == other.keys()
    images = [path for path in first if path.name.endswith(".nii.gz")]
    assert len(images) == 8
    assert all(first[path] != other[path] for path in images if "lesion" not in path.name)


def test_a_subject_does_not_depend_on_the_size_of_its_cohort(tmp_path):
    for name, num_subjects in (("few", 2), ("more", 3)):
        write_phantoms(
            tmp_path / name, num_subjects=num_subjects, seed=1, modalities=["T1"], **SMALL
        )
    path = "sub-0002/anat/sub-0002_T1w.nii.gz"
    assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    assert not list((tmp_path / "few").rglob("func"))


def test_every_fourth_subject_is_stored_from_right_to_left(written_heads):
    root, phantoms = written_heads
    for phantom in phantoms:
        image = nib.load(root / f"sub-{phantom.subject}/anat/sub-{phantom.subject}_T1w.nii.gz")
        stored = "LAS" if int(phantom.subject) % 4 == 0 else "RAS"
        assert "".join(nib.aff2axcodes(image.affine)) == stored
        np.testing.assert_allclose(image.get_qform(), image.get_sform())
        np.testing.assert_allclose(image.affine @ [23.5, 23.5, 23.5, 1], [0, 0, 0, 1])
        rendered, lesion = render_t1(phantom, 3, (48, 48, 48), 4.0)
        assert (canonical(image.get_filename()) == rendered).all()
        mask = root / lesion_mask(f"sub-{phantom.subject}")
        assert (canonical(mask) == lesion).all()


def test_the_table_names_every_subject_its_answers_and_its_split(written_heads):
    root, phantoms = written_heads
    rows = participants(root)
    assert [row["participant_id"] for row in rows] == [
        f"sub-{phantom.subject}" for phantom in phantoms
    ]
    for index, (row, phantom) in enumerate(zip(rows, phantoms, strict=True)):
        assert row["split"] == draw_split(3, index)
        assert all(row[name] == getattr(phantom, name) for name in LEVELS)
        assert int(row["age"]) == phantom.age
        assert (row["midlife"] == "n/a") == (phantom.age < 35 or phantom.age >= 65)
        assert row["midlife"] in ("n/a", "early" if phantom.age < 50 else "late")
        assert (row["has_lesion"] == "no") == (row["lesion"] == "none")
    described = json.loads((root / "participants.json").read_text())
    assert set(rows[0]) - {"participant_id"} == set(described)


def test_a_killed_writer_leaves_nothing(tmp_path):
    def kill(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "cohort", num_subjects=6, seed=1, on_progress=kill, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spacing_mm", [1.6, 2, 2.4, 5, 7.3])
def test_a_grid_holds_a_head_and_no_more(spacing_mm):
    grids = phantom_grids(t1_spacing_mm=spacing_mm, bold_spacing_mm=2 * spacing_mm / 1.25)
    for name in ("t1", "bold"):
        (edge,) = set(grids[f"{name}_shape"])
        assert 192 - 1e-3 <= edge * grids[f"{name}_spacing_mm"] < 192 + grids[f"{name}_spacing_mm"]


def test_grids_are_drawn_as_they_stand_unless_told_otherwise(tmp_path):
    write_phantoms(tmp_path / "told", num_subjects=1, seed=1, **phantom_grids())
    write_phantoms(tmp_path / "silent", num_subjects=1, seed=1)
    assert files_of(tmp_path / "told") == files_of(tmp_path / "silent")


def test_a_head_is_the_same_in_larger_voxels(written_heads, tmp_path):
    root, phantoms = written_heads
    grids = phantom_grids(t1_spacing_mm=6.0)
    write_phantoms(tmp_path / "coarse", num_subjects=8, seed=3, modalities=["T1"], **grids)
    for phantom in phantoms:
        name = f"sub-{phantom.subject}"
        for path in (f"{name}/anat/{name}_T1w.nii.gz", lesion_mask(name)):
            coarse, fine = nib.load(tmp_path / "coarse" / path), nib.load(root / path)
            litres = [
                (image.get_fdata() * np.prod(image.header.get_zooms())).sum() / 1e6
                for image in (coarse, fine)
            ]
            np.testing.assert_allclose(*litres, rtol=0.1, atol=0.002)


def test_progress_counts_the_subjects(tmp_path):
    seen = []
    write_phantoms(
        tmp_path, num_subjects=3, seed=1, on_progress=seen.append, modalities=("T1",), **SMALL
    )
    assert seen == [1, 2, 3]


def test_an_existing_cohort_is_not_written_again(tmp_path, monkeypatch):
    root = tmp_path / "cohort"
    written = write_phantoms(root, num_subjects=2, seed=1, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(phantom_files, "_write_subject", None)
    assert write_phantoms(root, num_subjects=2, seed=1, **SMALL) == written
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(InputError, match=r"must be absent, empty or hold the cohort.*seed 2"):
        write_phantoms(root, num_subjects=2, seed=2, **SMALL)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        write_phantoms(tmp_path, num_subjects=1, seed=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["t1", "bold"])
@pytest.mark.parametrize("spacing_mm", [0.0, -2, 20])
def test_voxels_that_show_no_head_are_refused(name, spacing_mm):
    with pytest.raises(InputError, match=rf"data\.{name}_spacing_mm must be in \[0.5, 12\], got"):
        phantom_grids(**{f"{name}_spacing_mm": spacing_mm})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_subjects": 0}, r"num_subjects must be in \[1, 9999\], got 0"),
        ({"seed": -3}, r"seed must be 0 or more, got -3. Use 3"),
        ({"duration_s": 1.0}, "duration_s must be 4 or more"),
        ({"modalities": ("T1", "CT")}, r"modalities must be some of .* got \('T1', 'CT'\)"),
        ({"t1_shape": (40, 48, 48)}, r"t1_shape times t1_spacing_mm .* Set t1_spacing_mm to 4.8"),
        ({"bold_spacing_mm": 4.0}, r"bold_shape times bold_spacing_mm .* Set bold_spacing_mm to 8"),
    ],
)
def test_a_wrong_argument_is_named_with_its_cure(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        write_phantoms(tmp_path / "cohort", **{"num_subjects": 1, "seed": 1, **wrong})
    assert list(tmp_path.iterdir()) == []
