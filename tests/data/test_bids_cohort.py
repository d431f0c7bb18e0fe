"""A BIDS folder as questions, as labels or as images; no prompt gives an answer away."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict

import numpy as np
import pytest

from neuro.data.bids_cohort import BidsCohort
from neuro.data.conversation import ImagePart
from neuro.data.labels import LabelRules
from neuro.data.leaks import LeakError
from neuro.data.splits import SubjectSplits
from neuro.errors import InputError

SPLITS = SubjectSplits(val=0.2, test=0.2)
QUESTIONS = ["sex", "lesion", "tract", "network", "rhythm", "dropout", "age"]


def table_of(root):
    with (root / "participants.tsv").open() as file:
        return {row["participant_id"][4:]: row for row in csv.DictReader(file, delimiter="\t")}


def rewrite(root, column, value, subjects):
    rows = table_of(root)
    for subject in subjects:
        rows[subject][column] = value
    lines = ["\t".join(next(iter(rows.values())))]
    lines += ["\t".join(row.values()) for row in rows.values()]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def tables(phantom_root, tmp_path):
    """The phantoms' tables and files of zero bytes, to be changed."""
    root = tmp_path / "bids"
    for path in phantom_root.rglob("*"):
        copy = root / path.relative_to(phantom_root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".nii.gz"):
            copy.touch()
        elif path.is_file():
            shutil.copy(path, copy)
    return root


@pytest.fixture
def ask(question_book):
    def ask(root, questions=(), splits=SPLITS, **options):
        return BidsCohort(root, [*questions], question_book, splits, **options).manifest()

    return ask


@pytest.fixture(scope="module")
def asked(phantom_root, question_book):
    return BidsCohort(phantom_root, QUESTIONS, question_book, SPLITS).manifest()


# ---------------------------------------------------------------- questions


def test_each_scan_is_asked_each_question_of_its_modality(asked, question_book, phantom_root):
    assert len(asked) == 20 * len(QUESTIONS)
    table = table_of(phantom_root)
    for study in asked:
        question = question_book[study.conversation.task]
        assert study.modalities == (question.modality,)
        value = table[study.subjects[0]][study.conversation.task]
        assert study.conversation.turns[-1].text == question.answer(value, where="here")


def test_ids_are_unique_and_in_the_same_order_on_every_machine(asked, phantom_root, ask):  # D47
    assert ask(phantom_root, QUESTIONS).ids == asked.ids
    assert len(set(asked.ids)) == len(asked)


def test_all_questions_about_a_subject_are_in_one_split(asked):  # D47
    splits = defaultdict(set)
    for study in asked:
        splits[study.subjects[0]].add(study.split)
    assert all(len(names) == 1 for names in splits.values())


@pytest.mark.parametrize("missing", ["n/a", "N/A", ""])
def test_a_missing_answer_is_left_out_and_counted(tables, ask, said, missing):
    rewrite(tables, "sex", missing, ["0003", "0007"])
    manifest = ask(tables, ["sex", "age"])
    left = {study.subjects[0] for study in manifest if study.conversation.task == "sex"}
    assert left == set(table_of(tables)) - {"0003", "0007"}
    assert sum(study.conversation.task == "age" for study in manifest) == 20
    assert "question sex: 2 scans left out" in said.text
    assert "question age" not in said.text


def test_none_is_an_answer(tables, ask):
    rewrite(tables, "lesion", "none", table_of(tables))
    assert len(ask(tables, ["lesion"])) == 20


def test_a_subject_without_a_row_is_counted_too(tables, ask, said):
    lines = (tables / "participants.tsv").read_text().splitlines()
    (tables / "participants.tsv").write_text("\n".join(lines[:-3]) + "\n")
    assert len(ask(tables, ["sex"])) == 17
    assert "question sex: 3 scans left out" in said.text


def test_a_row_without_a_scan_is_counted(tables, ask, said):
    shutil.rmtree(tables / "sub-0003")
    assert len(ask(tables, ["sex"])) == 19
    assert "1 subjects of participants.tsv have no scan: ['0003']" in said.text


def test_an_unknown_column_lists_the_columns(phantom_root, ask):
    message = r"names 'gender'.*participants\.tsv; got sex, age, .*lesion"
    with pytest.raises(InputError, match=message):
        ask(phantom_root, ["sex", "gender"])


def test_a_column_without_a_template_names_the_templates(tables, ask):
    text = (tables / "participants.tsv").read_text().replace("\tsex\t", "\tmood\t")
    (tables / "participants.tsv").write_text(text)
    with pytest.raises(InputError, match=r"'mood', for which there is no template.*sex, gender"):
        ask(tables, ["mood"])


@pytest.mark.parametrize("value", ["1", "2", "X"])
def test_a_value_that_is_not_in_the_code_book_is_an_error(tables, ask, value):  # D49
    rewrite(tables, "sex", value, ["0005"])
    with pytest.raises(InputError, match=rf"sub-0005, column 'sex': value '{value}'.*knows m, f"):
        ask(tables, ["sex"])


def test_a_question_without_any_answer_is_an_error_and_not_silence(tables, ask):
    rewrite(tables, "sex", "n/a", table_of(tables))
    with pytest.raises(InputError, match="has no study"):
        ask(tables, ["sex"])


def test_a_question_about_scans_that_there_are_not_is_an_error(tables, ask):
    for path in tables.rglob("*bold.nii.gz"):
        path.unlink()
    with pytest.raises(InputError, match=r"'network', which asks about rsfMRI; .* no such scan"):
        ask(tables, ["network"])


def test_questions_without_a_table_say_that_it_is_missing(tables, ask):
    (tables / "participants.tsv").unlink()
    with pytest.raises(InputError, match=r"participants\.tsv is missing"):
        ask(tables, ["sex"])


def test_a_lone_word_is_no_list_of_questions(phantom_root, question_book):
    with pytest.raises(InputError, match=r"got 'sex'. Write 'data.questions=\[sex\]'"):
        BidsCohort(phantom_root, "sex", question_book, SPLITS)


# ---------------------------------------------------------------- nothing leaks into a prompt


def prompt_of(study):
    """Return all that is said before the answer, an image as its number."""
    return tuple(
        f"<{part.index}>" if isinstance(part, ImagePart) else part
        for turn in study.conversation.turns[:-1]
        for part in turn.parts
    )


def test_a_prompt_is_the_same_for_every_subject(asked, question_book):  # D37
    for study in asked:
        assert prompt_of(study) == ("<0>", f"\n{question_book[study.conversation.task].ask}")


def test_a_prompt_holds_no_value_of_the_table(asked, phantom_root, question_book):  # D37
    table = table_of(phantom_root)
    for study in asked:
        ask = question_book[study.conversation.task].ask  # may offer the answers to choose from
        rest = "".join(prompt_of(study)).replace(ask, "")
        row = table[study.subjects[0]]
        assert not [value for value in row.values() if value in rest.replace("<0>", "")]
        assert study.conversation.turns[-1].text not in rest


def test_what_the_model_reads_does_not_depend_on_the_table(tables, asked, ask, text):  # D37
    for column, value in {"sex": "F", "age": "77", "lesion": "left", "network": "left"}.items():
        rewrite(tables, column, value, table_of(tables))
    other = ask(tables, QUESTIONS)
    for one, two in zip(asked[::9], other[::9], strict=True):
        read = []
        for study in (one, two):
            encoded = text(study.conversation, [3])
            read.append(encoded.input_ids[: int((encoded.labels >= 0).nonzero()[0])].tolist())
        assert read[0] == read[1]


# ---------------------------------------------------------------- images and labels


def test_without_questions_each_session_is_a_study(tmp_path, ask):
    touch(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/dtifit/sub-02/sub-02_FA.nii.gz",
    )
    manifest = ask(tmp_path)
    assert {one.id: sorted(one.modalities) for one in manifest} == {
        "sub-01_ses-a": ["T1", "mri"], "sub-01_ses-b": ["T1"], "sub-02": ["T1", "dMRI"],
    }  # fmt: skip
    assert [one.subjects for one in manifest if "01" in one.id] == [("01",), ("01",)]
    assert manifest.conversations is None


def test_kinds_that_are_not_read_are_told(tmp_path, ask, said):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii", "sub-01/dwi/sub-01_dwi.nii")
    touch(tmp_path, *(f"sub-01/func/sub-01_task-nback_run-{i}_bold.nii" for i in (1, 2)))
    ask(tmp_path)
    assert "3 images of other kinds are not read: 2 bold of task nback, 1 dwi" in said.text


def test_the_task_chooses_the_runs(tmp_path, ask):
    touch(tmp_path, *(f"sub-01/func/sub-01_task-{one}_bold.nii" for one in ("rest", "nback")))
    assert len(ask(tmp_path).series) == 1
    assert len(ask(tmp_path, task=None).series) == 2


def test_failures_reach_the_manifest(tmp_path, ask):  # S33
    touch(tmp_path, *(f"sub-01/anat/sub-01_{one}" for one in ("T1w.nii", "T1w.nii.gz", "T2w.nii")))
    manifest = ask(tmp_path)
    assert [one.path.name for one in manifest.failures] == ["sub-01_T1w.nii", "sub-01_T1w.nii.gz"]
    assert [one.modalities for one in manifest] == [("mri",)]
    assert manifest[0].num_failed > 0


def test_sessions_that_lost_everything_are_counted_if_they_would_be_shown(tmp_path, ask):  # S33
    for subject in ("01", "02"):
        names = ("T1w.nii", "T1w.nii.gz") if subject == "01" else ("T1w.nii",)
        touch(tmp_path, *(f"sub-{subject}/anat/sub-{subject}_{one}" for one in names))
        touch(tmp_path, f"sub-{subject}/func/sub-{subject}_task-rest_bold.nii")
    assert [one.num_failed > 0 for one in ask(tmp_path)] == [True, False]
    shown = ask(tmp_path, modalities=["T1"])
    assert (shown.ids, shown.num_left_out) == (["sub-02"], 1)
    shown = ask(tmp_path, modalities=["rsfMRI"])
    assert (shown.ids, shown.num_left_out) == (["sub-01", "sub-02"], 0)
    assert [one.num_failed for one in shown] == [0, 0]


def test_a_root_that_is_empty_is_not_the_folder_one_works_in(ask):
    with pytest.raises(
        InputError, match=r"data\.root is empty\. Give the folder that holds sub-01"
    ):
        ask("")


def test_questions_that_yaml_took_for_numbers_are_told_with_quotes(phantom_root, question_book):
    with pytest.raises(InputError, match=r"data\.questions takes names; got 202001"):
        BidsCohort(phantom_root, [202001], question_book, SPLITS)
    with pytest.raises(InputError, match=r"data\.modalities takes names; got 1"):
        BidsCohort(phantom_root, [], question_book, SPLITS, modalities=[1])


def people(root, header, *rows):
    touch(root, *(f"sub-{row[0]}/anat/sub-{row[0]}_T1w.nii" for row in rows))
    lines = ["\t".join(one) for one in (("participant_id", *header), *rows)]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def test_the_column_split_counts(tmp_path, ask):  # S10
    people(tmp_path, ["split"], ["1", "Train"], ["2", "validation"], ["3", "test"])
    assert [one.split for one in ask(tmp_path)] == ["train", "val", "test"]


def test_a_split_for_some_is_an_error(tmp_path, ask):  # S10
    people(tmp_path, ["split"], ["1", "train"], ["2", "n/a"])
    with pytest.raises(InputError, match="1 of 2 studies give a split"):
        ask(tmp_path)


def test_labels_are_columns_of_the_participants(tmp_path, ask, said):  # S39, S40
    people(tmp_path, ["sex", "study"], ["001", "f", "A"], ["1", "m", "A"], ["2", "n/a", "B"])
    labels = LabelRules(file=None, names=["sex"])
    manifest = ask(tmp_path, labels=labels)
    assert {one.id: one.labels for one in manifest} == {"sub-001": (0.0,), "sub-1": (1.0,)}
    assert "1 of 3 studies have no label and are left out" in said.text


def test_labels_that_nobody_knows_are_masked_where_asked(tmp_path, ask):  # S40
    people(tmp_path, ["sex"], ["1", "f"], ["2", "n/a"], ["3", "m"])
    labels = LabelRules(file=None, names=["sex"], unlabelled="mask")
    values = [one.labels[0] for one in ask(tmp_path, labels=labels)]
    assert np.array_equal(values, [0.0, np.nan, 1.0], equal_nan=True)


def test_sessions_of_a_subject_share_its_label(tmp_path, ask):
    people(tmp_path, ["sex"], ["1", "f"], ["2", "m"])
    touch(tmp_path, "sub-2/ses-b/anat/sub-2_ses-b_T1w.nii")
    manifest = ask(tmp_path, labels=LabelRules(file=None, names=["sex"]))
    labels = {one.id: one.labels[0] for one in manifest}
    assert labels == {"sub-1": 0.0, "sub-2": 1.0, "sub-2_ses-b": 1.0}


def test_a_subject_that_is_a_link_to_another_is_not_lost(tmp_path, ask):  # D47
    people(tmp_path, ["split"], ["1", "train"])
    (tmp_path / "sub-2" / "anat").mkdir(parents=True)
    link = tmp_path / "sub-2" / "anat" / "sub-2_T1w.nii"
    link.symlink_to(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tsplit\n1\ttrain\n2\ttest\n")
    with pytest.raises(LeakError, match="file: 1"):
        ask(tmp_path)


# ---------------------------------------------------------------- real folders


def test_a_real_cohort_is_asked_and_labelled(real_data, ask):
    root = real_data / "ds002748"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    images = {one for one in root.rglob("*_T1w.nii.gz") if one.exists()}
    manifest = ask(root, ["gender", "age"])
    assert {one.path for one in manifest.scans()} == images
    assert len(manifest) == 2 * len(images)
    labelled = ask(root, labels=LabelRules(file=None, names=["group"]))
    assert labelled.labels.classes == ("control", "depr")
    assert len(labelled) == len(images)
    raven = ask(root, labels=LabelRules(file=None, names=["IQ_Raven"], task="regression"))
    assert not np.isnan(raven.labels.values).any()


@pytest.mark.parametrize("name", ["ds001", "ds006", "ds114"])
def test_real_folders_become_manifests(real_data, ask, name):  # D50
    root = real_data / "bids-examples" / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    manifest = ask(root, task=None)
    subjects = {one.name[4:] for one in root.glob("sub-*")}
    assert {subject for one in manifest for subject in one.subjects} == subjects
    assert not manifest.failures
