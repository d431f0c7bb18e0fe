"""The synthetic cohort is a source like any other, and no prompt gives an answer away."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from neuro.data.conversation import ImagePart
from neuro.data.labels import LabelRules
from neuro.data.phantom_cohort import PhantomCohort
from neuro.data.question import QuestionBook
from neuro.data.splits import SubjectSplits
from neuro.errors import InputError

SPLITS = SubjectSplits(val=0.2, test=0.2)
QUESTIONS = ["sex", "tract", "dropout"]


def table_of(root):
    with (root / "participants.tsv").open() as file:
        return {row["participant_id"][4:]: row for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def heads(tmp_path_factory, question_book):
    root = tmp_path_factory.mktemp("phantom-cohort")
    return PhantomCohort(root, 10, 3, QUESTIONS, question_book, joint=True, splits=SPLITS)


@pytest.fixture(scope="module")
def drawn(heads):
    return heads.manifest()


@pytest.fixture
def again(heads, drawn):
    """The same heads, asked otherwise."""

    def again(questions, question_book, **options):
        options = {"joint": False, "splits": SPLITS, **options}
        return PhantomCohort(heads.root.parent, 10, 3, questions, question_book, **options)

    return again


def test_the_phantom_keeps_the_splits_of_its_table(heads, drawn):
    table = table_of(heads.root)
    assert {study.split for study in drawn} == {"train", "val", "test"}
    for study in drawn:
        assert {table[subject]["split"] for subject in study.subjects} == {study.split}


def test_folds_of_the_phantom_are_dealt(again, question_book):
    splits = SubjectSplits(val=0.2, test=0.2, folds=5, fold=1)
    manifest = again(["sex"], question_book, splits=splits).manifest()
    assert len(manifest.split("test")) == 2


def test_the_phantom_answers_what_was_drawn(heads, drawn, question_book):
    table = table_of(heads.root)
    for study in drawn:
        value = table[study.subjects[0]][study.conversation.task]
        answer = question_book[study.conversation.task].answer(value, where="here")
        assert study.conversation.turns[-1].text == answer


def test_prompts_of_the_phantom_are_the_same_for_every_subject(drawn, question_book):  # D37
    for study in drawn:
        said = tuple(
            f"<{part.index}>" if isinstance(part, ImagePart) else part
            for turn in study.conversation.turns[:-1]
            for part in turn.parts
        )
        images = [f"<{index}>" for index in range(len(study.series))]
        assert said == (*images, f"\n{question_book[study.conversation.task].ask}")


def test_a_joint_study_shows_two_modalities_in_either_order(drawn, question_book):
    joint = [study for study in drawn if len(study.series) == 2]
    assert len(joint) == 10
    for study in joint:
        assert len(set(study.modalities)) == 2
        assert question_book[study.conversation.task].modality in study.modalities
        assert len(study.subjects) == 1
    places = {
        study.modalities.index(question_book[study.conversation.task].modality) for study in joint
    }
    assert places == {0, 1}


def test_comparisons_and_reports_are_asked_for_where_they_are_wanted(again, question_book):
    plain = again(QUESTIONS, question_book).manifest()
    assert {study.conversation.kind for study in plain} == {"single"}
    wanted = again(QUESTIONS, question_book, comparisons=True, report=True).manifest()
    single, comparison, report = (
        [study for study in wanted if study.conversation.kind == kind]
        for kind in ("single", "comparison", "multimodal")
    )
    assert [study.id for study in single] == [study.id for study in plain]
    assert {study.split for study in comparison} == {"train"}  # the others have one head each
    assert len(comparison) == 16
    for study in comparison:
        assert len(set(study.subjects)) == len(study.series) == 2
        assert len(set(study.modalities)) == 1
    assert len(report) == 10
    assert {study.modalities for study in report} == {("T1", "rsfMRI", "dMRI")}


def test_the_subjects_of_a_comparison_are_of_one_split(heads, again, question_book):
    table = table_of(heads.root)
    for study in again(QUESTIONS, question_book, comparisons=True).manifest():
        assert {table[subject]["split"] for subject in study.subjects} == {study.split}


def test_a_phantom_that_is_there_is_only_read(heads, drawn, again, question_book):
    before = {path: path.stat().st_mtime_ns for path in heads.root.rglob("*")}
    assert list(again(QUESTIONS, question_book, joint=True).manifest()) == list(drawn)
    assert before == {path: path.stat().st_mtime_ns for path in heads.root.rglob("*")}


def test_a_changed_template_reaches_the_phantom(again, question_book):
    templates = dict(question_book.templates)
    templates["sex"] = replace(templates["sex"], ask="Is this a man or a woman?")
    other = again(["sex"], QuestionBook(templates)).manifest()
    asked = {study.conversation.turns[0].text.strip() for study in other}
    assert asked == {"Is this a man or a woman?"}


def test_what_is_not_known_of_a_head_is_not_asked(heads, again, question_book):
    table = table_of(heads.root)
    known = {name for name, row in table.items() if row["midlife"] != "n/a"}
    assert 0 < len(known) < len(table)
    asked = again(["midlife"], question_book).manifest()
    assert {study.series[0].subject for study in asked} == known
    both = again(["midlife", "sex"], question_book, joint=True, comparisons=True, report=True)
    about = [study for study in both.manifest() if study.conversation.task.startswith("midlife")]
    assert {subject for study in about for subject in study.subjects} <= known


def test_heads_can_have_one_image_alone(tmp_path, again, heads, question_book):
    few = PhantomCohort(
        tmp_path, 10, 3, ["sex"], question_book, False, SPLITS, modalities=["T1"]
    ).manifest()
    assert {study.modalities for study in few} == {("T1",)}
    assert not [*tmp_path.rglob("*bold.nii*")]
    with pytest.raises(InputError, match=r"'tract', which asks about dMRI; the phantom has T1\."):
        again(["tract"], question_book, modalities=["T1"]).manifest()
    with pytest.raises(InputError, match=r"gives it T1 alone. Set data.joint=false"):
        again(["sex"], question_book, modalities=["T1"], joint=True).manifest()


def test_an_unknown_factor_lists_the_factors(again, question_book):
    with pytest.raises(InputError, match=r"names 'group'.*no factor of the phantom; got .*sex"):
        again(["group"], question_book).manifest()


def test_a_question_about_an_image_that_there_is_not_says_so(again, question_book):
    templates = {"sex": replace(question_book["sex"], modality="ct")}
    with pytest.raises(InputError, match="asks about ct; the phantom has T1, rsfMRI, dMRI"):
        again(["sex"], QuestionBook(templates)).manifest()


def test_labels_of_heads_are_known_whether_or_not_anything_is_asked(again, question_book):  # S40
    rules = LabelRules(file=None, names=["sex"])
    asked = again(["sex", "tract"], question_book, labels=rules).manifest()
    silent = again([], question_book, labels=rules).manifest()
    known = {one.subjects[0]: one.labels for one in silent}
    assert silent.labels.classes == asked.labels.classes
    assert {one.subjects[0]: one.labels for one in asked} == known
    assert set(known.values()) == {(0.0,), (1.0,)}


def test_each_grid_has_a_folder_of_its_own(again, heads, question_book):
    names = [
        again(["sex"], question_book, **grid).root.name
        for grid in ({}, {"t1_spacing_mm": 2}, {"bold_spacing_mm": 2}, {"duration_s": 24})
    ]
    assert len(set(names)) == 4
    assert names[0] == heads.root.name
    assert names[1] == f"{heads.root.name}-2mm-8mm-48s"
    assert again(["sex"], question_book, duration_s=48).root == heads.root


def test_heads_are_not_drawn_into_the_folder_one_works_in(question_book):
    with pytest.raises(InputError, match=r"data\.root is empty"):
        PhantomCohort("", 4, 1, ["sex"], question_book, False, SubjectSplits(val=0.2, test=0.2))
