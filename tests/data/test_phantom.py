import csv
import json
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest

from neuro.data import phantom as phantom_module
from neuro.data.phantom import (
    LEVELS,
    draw_phantom,
    draw_split,
    render_bold,
    render_fa,
    render_t1,
    write_phantoms,
)
from neuro.errors import InputError

T1_GRID = ((32, 32, 32), 6.0)
BOLD_GRID = ((24, 24, 24), 8.0)
SMALL = {
    "t1_shape": (24, 24, 24),
    "t1_spacing_mm": 8.0,
    "bold_shape": (16, 16, 16),
    "bold_spacing_mm": 12.0,
}
NUM = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "cohort"
    return root, write_phantoms(root, num_subjects=NUM, seed=3)


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def canonical(path):
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float32)


def auroc(positive, negative):
    pairs = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return (pairs > 0).mean() + (pairs == 0).mean() / 2


def left_and_right(volume, mask, spacing_mm):
    """Return the voxels that lie 12 to 50 mm to the left and right of the centre of a mask."""
    centre = np.argwhere(mask).mean(axis=0)
    x, y, z = (np.indices(mask.shape) - centre[:, None, None, None]) * spacing_mm
    beside = (np.abs(x) > 12) & (np.abs(x) < 50) & (np.abs(y) < 40) & (z > -10) & (z < 36)
    return volume[beside & (x < 0)], volume[beside & (x > 0)]


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
    assert len(images) == 6
    assert all(first[path] != other[path] for path in images)


def test_a_subject_does_not_depend_on_the_size_of_its_cohort(tmp_path):
    for name, num_subjects in (("few", 2), ("more", 3)):
        write_phantoms(
            tmp_path / name, num_subjects=num_subjects, seed=1, modalities=["T1"], **SMALL
        )
    path = "sub-0002/anat/sub-0002_T1w.nii.gz"
    assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    assert not list((tmp_path / "few").rglob("func"))


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
        volumes[phantom.sex].append((render_t1(phantom, 2, *T1_GRID) > 150).sum())
    assert auroc(volumes["M"], volumes["F"]) > 0.95


def test_a_head_stays_inside_the_field_of_view():
    for index in range(40):
        volume = render_t1(draw_phantom(4, index), 4, *T1_GRID)
        faces = [np.take(volume, end, axis) for axis in range(3) for end in (0, -1)]
        assert max(face.mean() for face in faces) < 40
        assert volume[16, 16, 16] > 100


def test_a_lesion_is_bright_in_its_hemisphere(cohort):
    root, phantoms = cohort
    assert {phantom.lesion for phantom in phantoms} == {"none", "left", "right"}
    for phantom in phantoms:
        volume = canonical(root / f"sub-{phantom.subject}/anat/sub-{phantom.subject}_T1w.nii.gz")
        left, right = (
            np.percentile(side, 92) for side in left_and_right(volume, volume > 150, 4.0)
        )
        brighter = "left" if left > 1.1 * right else "right" if right > 1.1 * left else "none"
        assert brighter == phantom.lesion


def test_a_tract_has_reduced_fa_in_its_hemisphere(cohort):
    root, phantoms = cohort
    for phantom in phantoms:
        volume = canonical(
            root / f"sub-{phantom.subject}/dwi/sub-{phantom.subject}_param-FA_dwimap.nii.gz"
        )
        assert volume.min() == 0
        assert 0.5 < volume.max() <= 1
        left, right = (np.percentile(side, 90) for side in left_and_right(volume, volume > 0, 4.0))
        assert (left < right) == (phantom.tract == "left")


def test_a_network_varies_in_its_hemisphere(cohort):
    root, phantoms = cohort
    for phantom in phantoms:
        series = canonical(
            root / f"sub-{phantom.subject}/func/sub-{phantom.subject}_task-rest_bold.nii.gz"
        )
        varies = series.var(axis=-1)
        left, right = (
            np.percentile(side, 90) for side in left_and_right(varies, series.mean(-1) > 150, 8.0)
        )
        assert (left > right) == (phantom.network == "left")


def test_the_repetition_time_of_header_side_car_and_phantom_agree(cohort):
    root, phantoms = cohort
    assert {phantom.tr_s for phantom in phantoms} == {1.0, 2.0}
    for phantom in phantoms:
        stem = root / f"sub-{phantom.subject}/func/sub-{phantom.subject}_task-rest_bold"
        image = nib.load(f"{stem}.nii.gz")
        side_car = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        assert image.header.get_zooms()[3] == side_car["RepetitionTime"] == phantom.tr_s
        assert image.header.get_xyzt_units() == ("mm", "sec")
        assert image.shape[3] * phantom.tr_s == 48


def test_every_fourth_subject_is_stored_from_right_to_left(cohort):
    root, phantoms = cohort
    for phantom in phantoms:
        image = nib.load(root / f"sub-{phantom.subject}/anat/sub-{phantom.subject}_T1w.nii.gz")
        stored = "LAS" if int(phantom.subject) % 4 == 0 else "RAS"
        assert "".join(nib.aff2axcodes(image.affine)) == stored
        np.testing.assert_allclose(image.get_qform(), image.get_sform())
        np.testing.assert_allclose(image.affine @ [23.5, 23.5, 23.5, 1], [0, 0, 0, 1])
        rendered = render_t1(phantom, 3, (48, 48, 48), 4.0)
        assert (canonical(image.get_filename()) == rendered).all()


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


def test_the_table_names_every_subject_its_answers_and_its_split(cohort):
    root, phantoms = cohort
    rows = participants(root)
    assert [row["participant_id"] for row in rows] == [
        f"sub-{phantom.subject}" for phantom in phantoms
    ]
    for index, (row, phantom) in enumerate(zip(rows, phantoms, strict=True)):
        assert row["split"] == draw_split(3, index)
        assert all(row[name] == getattr(phantom, name) for name in LEVELS)
        assert int(row["age"]) == phantom.age
    described = json.loads((root / "participants.json").read_text())
    assert set(rows[0]) - {"participant_id"} == set(described)


def test_a_killed_writer_leaves_nothing(tmp_path):
    def kill(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "cohort", num_subjects=6, seed=1, on_progress=kill, **SMALL)
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(phantom_module, "_write_subject", None)
    assert write_phantoms(root, num_subjects=2, seed=1, **SMALL) == written
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(InputError, match=r"must be absent, empty or hold the cohort.*seed 2"):
        write_phantoms(root, num_subjects=2, seed=2, **SMALL)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        write_phantoms(tmp_path, num_subjects=1, seed=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


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


def test_fa_is_a_fraction_and_is_zero_outside_the_brain():
    for index in range(4):
        volume = render_fa(draw_phantom(1, index), 1, *T1_GRID)
        assert volume.min() == 0
        assert volume.max() <= 1
        assert 0.05 < (volume > 0).mean() < 0.4
