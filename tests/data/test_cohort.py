"""What all sources share: labels and splits; conversations; and several sources as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from some_studies import manifest_of, split_of, study

from neuro.data.cohort import ConversationCohort, MixedCohorts, finished
from neuro.data.labels import LabelRules
from neuro.data.leaks import LeakError
from neuro.data.manifest import Manifest
from neuro.data.modes import Modes
from neuro.data.splits import ListedSplits, SubjectSplits
from neuro.data.study_folders import StudyFolders
from neuro.errors import InputError, ScanError

SPLITS = SubjectSplits(val=0.2, test=0.2)
FAILURE = ScanError("x.nii", "find", "it is bad.", "Mend it.")


class Source:
    """A cohort that is a given manifest."""

    def __init__(self, manifest):
        self.given = manifest

    def manifest(self):
        return self.given


def silent(*studies, failures=()):
    """Return studies without text."""
    return Manifest.of([replace(one, conversation=None) for one in studies], failures)


# -- labels and splits ---------------------------------------------------------------------------


def labelled(manifest, text, tmp_path, **options):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    rules = LabelRules(file=path, names=["y"], **options)
    return finished(manifest, splits=SPLITS, labels=rules)


def test_a_split_may_be_spelled_in_any_case():
    names = ("train", "VAL", " Validation ", "Test")
    manifest = finished(
        manifest_of(*(study(f"s{i}", split=one) for i, one in enumerate(names))), splits=SPLITS
    )
    assert [one.split for one in manifest] == ["train", "val", "val", "test"]


def test_not_available_is_no_split():
    manifest = finished(
        manifest_of(study("a", split="n/a"), study("b", split="N/A")), splits=SPLITS
    )
    assert set(split_of(manifest).values()) <= {"train", "val", "test"}


def test_a_leak_stops_every_source():  # S10
    with pytest.raises(LeakError):
        finished(
            manifest_of(study("a", "s", split="train"), study("b", "s", split="test")),
            splits=SPLITS,
        )


def test_studies_without_a_label_are_left_out_and_never_negative(tmp_path, said):  # S40
    manifest = labelled(
        silent(study("001"), study("1"), study("2")), "study,y\n001,1\n2,0\n", tmp_path
    )
    assert {one.id: one.labels for one in manifest} == {"001": (1.0,), "2": (0.0,)}  # S39
    assert "1 of 3 studies have no label and are left out" in said.text


def test_studies_without_a_label_are_masked_where_asked(tmp_path):  # S40
    manifest = labelled(
        silent(study("a"), study("b"), study("c")),
        "study,y\na,1\nb,0\n",
        tmp_path,
        unlabelled="mask",
    )
    assert np.array_equal([one.labels[0] for one in manifest], [1, 0, np.nan], equal_nan=True)


def test_labels_are_joined_by_subject_too(tmp_path):  # S39
    manifest = labelled(
        silent(study("a", "01"), study("b", "02")), "subject,y\nsub-01,1\n02,0\n", tmp_path
    )
    assert [one.labels for one in manifest] == [(1.0,), (0.0,)]


def test_what_failed_stays_known_when_studies_are_left_out(tmp_path):  # S33
    manifest = silent(study("a"), study("b"), study("c"), failures=[FAILURE])
    assert labelled(manifest, "study,y\na,1\nb,0\n", tmp_path).failures == (FAILURE,)


def test_a_label_file_that_is_absent_is_an_error(tmp_path):  # S40
    rules = LabelRules(file=tmp_path / "no.csv", names=["y"])
    with pytest.raises(InputError, match=r"no\.csv is not a file"):
        finished(silent(study("a")), splits=SPLITS, labels=rules)


# -- conversations -------------------------------------------------------------------------------


def record(name, images, text, **more):
    return {
        "task_id": name,
        "subject_ids": [subject for subject, _, _ in images],
        "images": [{"path": path, "modality": modality} for _, modality, path in images],
        "conversations": [
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": [{"type": "text", "text": "left"}]},
        ],
        **more,
    }


def read(tmp_path, *records, root=None):
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(records))
    return ConversationCohort(root or tmp_path, path, SPLITS).manifest()


def test_the_series_of_a_study_are_in_the_order_of_the_text(tmp_path):  # D20
    images = [("s1", "T1", "t1.nii"), ("s1", "rsfMRI", "rest.nii"), ("s1", "dMRI", "fa.nii")]
    text = "<image_dMRI> or <image_fMRI>, not <image_T1>?"
    (one,) = read(tmp_path, record("a", images, text))
    assert [series.path.name for series in one.series] == ["fa.nii", "rest.nii", "t1.nii"]
    assert [series.name for series in one.series] == ["fa", "rest", "t1"]


def test_the_images_of_two_subjects_are_in_the_order_of_the_text(tmp_path):  # D20
    images = [("s1", "T1", "1.nii"), ("s2", "T1", "2.nii")]
    (one,) = read(tmp_path, record("a", images, "Is <sub2-image> older than <sub1-image>?"))
    assert [series.subject for series in one.series] == ["s2", "s1"]


def test_a_side_car_beside_a_run_gives_its_repetition_time(tmp_path):  # D44
    (tmp_path / "rest.json").write_text('{"RepetitionTime": 0.8}')
    images = [("s1", "rsfMRI", "rest.nii.gz"), ("s1", "rsfMRI", "other.nii.gz")]
    (one,) = read(tmp_path, record("a", images, "<image> and <image>?"))
    assert [series.repetition_time_s for series in one.series] == [0.8, None]


def test_a_broken_side_car_costs_its_own_studies_and_is_named_once(tmp_path):  # D50
    (tmp_path / "bad.json").write_text("{")
    runs = ("good", "bad", "bad", "fine")
    records = [
        record(f"t{i}", [(f"s{i}", "rsfMRI", f"{run}.nii")], "<image>?")
        for i, run in enumerate(runs)
    ]
    manifest = read(tmp_path, *records)
    assert manifest.ids == ["t0", "t3"]
    assert [one.path.name for one in manifest.failures] == ["bad.nii"]
    assert manifest.num_left_out == 2


def test_a_root_that_is_no_folder_is_told_before_the_file_is_read(tmp_path):
    for root, message in (("", "data.root is empty"), (tmp_path / "no", "/no is not a folder")):
        with pytest.raises(InputError, match=message):
            ConversationCohort(root, tmp_path / "absent.json", SPLITS).manifest()
    with pytest.raises(InputError, match=r"data\.conversations is empty"):
        ConversationCohort(tmp_path, "", SPLITS)


def test_a_path_that_holds_nul_is_an_error_that_names_the_conversation(tmp_path):
    with pytest.raises(
        InputError, match=r"conversation 'a': path 'a\\x00\.nii' holds the sign NUL"
    ):
        read(tmp_path, record("a", [("s1", "T1", "a\0.nii")], "<image>?"))


def test_conversations_can_have_labels_from_a_file(tmp_path):  # S40
    names = [f"s{index}" for index in range(3)]
    records = [record(one, [(one, "T1", f"{one}.nii")], "<image>?") for one in names]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    (tmp_path / "y.csv").write_text("subject,y\ns0,1\ns1,0\n")
    rules = LabelRules(file=tmp_path / "y.csv", names=["y"])
    manifest = ConversationCohort(tmp_path, tmp_path / "talk.json", SPLITS, rules).manifest()
    assert {one.id: one.labels for one in manifest} == {"s0": (1.0,), "s1": (0.0,)}
    assert manifest.conversations is not None


@pytest.mark.parametrize("path", ["../other/a.nii", "/etc/a.nii"])
def test_an_image_outside_the_root_is_an_error(tmp_path, path):
    with pytest.raises(InputError, match=r"conversation 'a': path .* leaves the data root"):
        read(tmp_path, record("a", [("s1", "T1", path)], "<image>?"))


def test_a_root_with_dots_is_the_folder_it_means(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    (one,) = read(tmp_path, record("a", [("s1", "T1", "x/a.nii")], "<image>?"), root="../data")
    assert one.series[0].path == tmp_path / "data" / "x" / "a.nii"


def test_conversations_keep_the_split_they_bring(tmp_path):
    records = [
        record(name, [(name, "T1", f"{name}.nii")], "<image>?", split=split)
        for name, split in (("a", "train"), ("b", "validation"), ("c", "test"))
    ]
    assert [one.split for one in read(tmp_path, *records)] == ["train", "val", "test"]


def test_a_subject_in_two_splits_of_a_file_is_an_error(tmp_path):  # D47
    records = [
        record(name, [("s1", "T1", "a.nii")], "<image>?", split=split)
        for name, split in (("a", "train"), ("b", "test"))
    ]
    with pytest.raises(LeakError, match="subject: 1, file: 1"):
        read(tmp_path, *records)


# -- several sources -----------------------------------------------------------------------------


def mixed(**manifests):
    return MixedCohorts({name: Source(one) for name, one in manifests.items()}).manifest()


def assigned(*studies):
    return SPLITS.assign(silent(*studies))


def test_the_same_number_in_two_cohorts_is_two_people():
    manifest = mixed(
        oslo=silent(study("001", "1", split="train", paths=["o/1.nii"])),
        paris=silent(study("001", "1", split="test", paths=["p/1.nii"])),
    )
    assert manifest.ids == ["oslo/001", "paris/001"]
    assert [one.subjects for one in manifest] == [("oslo/1",), ("paris/1",)]
    assert [one.cohort for one in manifest] == ["oslo", "paris"]


def test_a_mix_holds_each_study_as_it_was():
    ours = assigned(study("a", "s1", "s2"), study("b"))
    theirs = assigned(study("a", "s3"), study("c", "s4", "s5", "s6"))
    manifest = mixed(x=ours, y=theirs)
    assert split_of(manifest) == {
        f"{name}/{one.id}": one.split for name, part in (("x", ours), ("y", theirs)) for one in part
    }
    for one, part in zip(manifest, [*ours, *theirs], strict=True):
        assert [series.path for series in one.series] == [series.path for series in part.series]
    assert manifest.bounds.tolist() == [0, 2, 3, 4, 7]


def test_failures_of_all_cohorts_are_kept():  # S33
    other = ScanError("y.nii", "find", "it is bad.", "Mend it.")
    parts = [
        silent(study(one, split="train"), failures=[bad])
        for one, bad in (("a", FAILURE), ("b", other))
    ]
    assert mixed(x=parts[0], y=parts[1]).failures == (FAILURE, other)


def test_a_file_in_two_cohorts_and_two_splits_is_a_leak(tmp_path):  # S10, D47
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "scan.nii").touch()
    (tmp_path / "link.nii").symlink_to(tmp_path / "store" / "scan.nii")
    parts = {
        name: silent(study(name, split=split, paths=[str(tmp_path / path)]))
        for name, split, path in (("x", "train", "store/scan.nii"), ("y", "test", "link.nii"))
    }
    with pytest.raises(LeakError, match=r"file: 1.*'x/x'.*'y/y'"):
        mixed(**parts)


def test_a_series_in_two_cohorts_and_two_splits_is_a_leak():  # S10
    one = replace(study("a", split="train"), conversation=None)
    other = replace(study("b", split="test"), conversation=None)
    one, other = (replace(x, series=(replace(x.series[0], uid="1.2.3"),)) for x in (one, other))
    with pytest.raises(LeakError, match="SeriesInstanceUID: 1"):
        mixed(x=Manifest.of([one]), y=Manifest.of([other]))


def test_conversations_of_all_cohorts_are_kept():
    ours, theirs = manifest_of(study("a", split="train")), manifest_of(study("b", split="val"))
    manifest = mixed(x=ours, y=theirs)
    assert [talk.id for talk in manifest.conversations or ()] == ["a", "b"]


def test_cohorts_with_and_without_conversations_do_not_mix():
    with pytest.raises(InputError, match=r"^y of data\.cohorts have no conversations"):
        mixed(x=manifest_of(study("a", split="train")), y=silent(study("b", split="train")))


def labelled_source(tmp_path, name, *values, **options):
    for index in range(len(values)):
        path = tmp_path / name / f"s{index}" / "T1.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = tmp_path / f"{name}.csv"
    table.write_text("study,y\n" + "".join(f"s{i},{one}\n" for i, one in enumerate(values)))
    rules = LabelRules(file=table, names=["y"], **options)
    return StudyFolders(tmp_path / name, Modes(default="mri"), SPLITS, rules)


def test_labels_of_all_cohorts_are_one_column(tmp_path):
    sources = {
        "x": labelled_source(tmp_path, "x", 0, 1),
        "y": labelled_source(tmp_path, "y", 1, 0, "n/a", unlabelled="mask"),
    }
    manifest = MixedCohorts(sources).manifest()
    assert manifest.ids == ["x/s0", "x/s1", "y/s0", "y/s1", "y/s2"]
    labels = [one.labels[0] for one in manifest]
    assert np.array_equal(labels, [0, 1, 1, 0, np.nan], equal_nan=True)


def test_cohorts_whose_labels_differ_do_not_mix(tmp_path):
    sources = {
        "x": labelled_source(tmp_path, "x", "f", "m"),
        "y": labelled_source(tmp_path, "y", "a", "b"),
    }
    message = r"got x: y \(binary of f, m\); y: y \(binary of a, b\)\. Give each the same"
    with pytest.raises(InputError, match=message):
        MixedCohorts(sources).manifest()
    with pytest.raises(InputError, match=r"x: y \(binary of f, m\); z: none"):
        MixedCohorts({"x": sources["x"], "z": Source(silent(study("a", split="train")))}).manifest()


def test_a_mix_knows_what_each_of_its_cohorts_lost_and_how_each_is_divided():  # S33
    one = Manifest.of([replace(study("a"), conversation=None, num_failed=2)], num_left_out=1)
    two = replace(one, num_left_out=2)
    sources = {
        "x": Source(SubjectSplits(val=0.0, test=0.0).assign(one)),
        "y": Source(ListedSplits(train=["a"], val=[], test=[]).assign(two)),
    }
    mixed = MixedCohorts(sources).manifest()
    assert [study.num_failed for study in mixed] == [2, 2]
    assert mixed.num_left_out == 3
    assert "Raise data.splits.val" in mixed.cures["val"]
    assert "List some studies in data.splits.val" in mixed.cures["val"]


def test_the_name_of_a_cohort_is_text():
    with pytest.raises(InputError, match=r"data\.cohorts takes names; got 202001"):
        MixedCohorts({202001: Source(silent(study("a")))})


def test_no_cohort_at_all_is_an_error():
    with pytest.raises(InputError, match=r"data\.cohorts names no source"):
        MixedCohorts({})


def test_lists_of_studies_divide_a_cohort_of_a_mix(tmp_path):  # S10
    source = labelled_source(tmp_path, "x", 0, 1)
    listed = ListedSplits(train=["s0"], val=[], test=["s1"])
    cohort = StudyFolders(Path(source.root), source.modes, listed)
    assert split_of(MixedCohorts({"x": cohort}).manifest()) == {"x/s0": "train", "x/s1": "test"}
