"""Each source of studies gives the same kind of manifest, and no prompt gives an answer away."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict

import pytest

from neuro.data.cohort import BidsCohort, ConversationCohort, PhantomCohort
from neuro.data.conversation import ImagePart
from neuro.data.manifest import SubjectSplits
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


@pytest.fixture(scope="module")
def asked(phantom_root, question_book):
    return BidsCohort(phantom_root, QUESTIONS, question_book, SPLITS).manifest()


@pytest.fixture(scope="module")
def heads(tmp_path_factory, question_book):
    """The phantom as a cohort of its own."""
    root = tmp_path_factory.mktemp("phantom-cohort")
    return PhantomCohort(root, 10, 3, ["sex", "tract", "dropout"], question_book, joint=True)


@pytest.fixture(scope="module")
def drawn(heads):
    return heads.manifest()


# ---------------------------------------------------------------- BIDS


def test_each_scan_is_asked_each_question_of_its_modality(asked, question_book, phantom_root):
    assert len(asked.studies) == 20 * len(QUESTIONS)
    table = table_of(phantom_root)
    for study in asked.studies:
        question = question_book[study.conversation.task]
        assert study.modalities == (question.modality,)
        value = table[study.subjects[0]][study.conversation.task]
        assert study.conversation.turns[-1].text == question.answer(value, where="here")


def test_ids_are_unique_and_in_the_same_order_on_every_machine(
    asked, phantom_root, question_book
):  # D47
    again = BidsCohort(phantom_root, QUESTIONS, question_book, SPLITS).manifest()
    assert [study.id for study in again.studies] == [study.id for study in asked.studies]
    assert len({study.id for study in asked.studies}) == len(asked.studies)


def test_all_questions_about_a_subject_are_in_one_split(asked):  # D47
    splits = defaultdict(set)
    for study in asked.studies:
        splits[study.subjects[0]].add(study.split)
    assert all(len(names) == 1 for names in splits.values())


@pytest.mark.parametrize("missing", ["n/a", ""])
def test_a_missing_answer_is_left_out_and_counted(tables, question_book, said, missing):
    rewrite(tables, "sex", missing, ["0003", "0007"])
    manifest = BidsCohort(tables, ["sex", "age"], question_book, SPLITS).manifest()
    left = {study.subjects[0] for study in manifest.studies if study.conversation.task == "sex"}
    assert left == set(table_of(tables)) - {"0003", "0007"}
    assert sum(study.conversation.task == "age" for study in manifest.studies) == 20
    assert "question sex: 2 scans left out" in said.text
    assert "question age" not in said.text


def test_a_subject_without_a_row_is_counted_too(tables, question_book, said):
    lines = (tables / "participants.tsv").read_text().splitlines()
    (tables / "participants.tsv").write_text("\n".join(lines[:-3]) + "\n")
    manifest = BidsCohort(tables, ["sex"], question_book, SPLITS).manifest()
    assert len(manifest.studies) == 17
    assert "question sex: 3 scans left out" in said.text


def test_an_unknown_column_lists_the_columns(phantom_root, question_book):
    with pytest.raises(
        InputError, match=r"names 'gender'.*participants\.tsv; got sex, age, lesion"
    ):
        BidsCohort(phantom_root, ["sex", "gender"], question_book, SPLITS).manifest()


def test_a_column_without_a_template_names_the_templates(tables, question_book):
    rewrite(tables, "sex", "M", [])
    text = (tables / "participants.tsv").read_text().replace("\tsex\t", "\tmood\t")
    (tables / "participants.tsv").write_text(text)
    with pytest.raises(InputError, match=r"'mood', for which there is no template.*sex, gender"):
        BidsCohort(tables, ["mood"], question_book, SPLITS).manifest()


@pytest.mark.parametrize("value", ["1", "2", "X"])
def test_a_value_that_is_not_in_the_code_book_is_an_error(tables, question_book, value):  # D49
    rewrite(tables, "sex", value, ["0005"])
    with pytest.raises(InputError, match=rf"sub-0005, column 'sex': value '{value}'.*knows m, f"):
        BidsCohort(tables, ["sex"], question_book, SPLITS).manifest()


def test_a_cohort_without_an_answer_is_an_error(tables, question_book):
    rewrite(tables, "sex", "n/a", table_of(tables))
    with pytest.raises(InputError, match="has no study"):
        BidsCohort(tables, ["sex"], question_book, SPLITS).manifest()


# ---------------------------------------------------------------- nothing leaks into a prompt


def prompt_of(study):
    """Return all that is said before the answer, an image as its number."""
    return tuple(
        f"<{part.index}>" if isinstance(part, ImagePart) else part
        for turn in study.conversation.turns[:-1]
        for part in turn.parts
    )


def test_a_prompt_is_the_same_for_every_subject(asked, question_book):  # D37
    for study in asked.studies:
        assert prompt_of(study) == ("<0>", f"\n{question_book[study.conversation.task].ask}")


def test_a_prompt_holds_no_value_of_the_table(asked, phantom_root, question_book):  # D37
    table = table_of(phantom_root)
    for study in asked.studies:
        ask = question_book[study.conversation.task].ask  # may offer the answers to choose from
        rest = "".join(prompt_of(study)).replace(ask, "")
        row = table[study.subjects[0]]
        assert not [value for value in row.values() if value in rest.replace("<0>", "")]
        assert study.conversation.turns[-1].text not in rest


def test_what_the_model_reads_does_not_depend_on_the_table(
    tables, asked, question_book, text
):  # D37
    for column, value in {"sex": "F", "age": "77", "lesion": "left", "network": "left"}.items():
        rewrite(tables, column, value, table_of(tables))
    other = BidsCohort(tables, QUESTIONS, question_book, SPLITS).manifest()
    for one, two in zip(asked.studies[::9], other.studies[::9], strict=True):
        read = []
        for study in (one, two):
            encoded = text(study.conversation, [3])
            read.append(encoded.input_ids[: int((encoded.targets >= 0).nonzero()[0])].tolist())
        assert read[0] == read[1]


def test_prompts_of_the_phantom_are_the_same_for_every_subject(drawn, question_book):  # D37
    for study in drawn.studies:
        images = [f"<{index}>" for index in range(len(study.series))]
        ask = question_book[study.conversation.task].ask
        assert prompt_of(study) == (*images, f"\n{ask}")


# ---------------------------------------------------------------- the phantom


def test_the_phantom_keeps_the_splits_of_its_table(heads, drawn):
    table = table_of(heads.root)
    assert {study.split for study in drawn.studies} == {"train", "val", "test"}
    for study in drawn.studies:
        assert {table[subject]["split"] for subject in study.subjects} == {study.split}


def test_the_phantom_answers_what_was_drawn(heads, drawn, question_book):
    table = table_of(heads.root)
    for study in drawn.studies:
        value = table[study.subjects[0]][study.conversation.task]
        answer = question_book[study.conversation.task].answer(value, where="here")
        assert study.conversation.turns[-1].text == answer


def test_a_joint_study_shows_two_modalities_in_either_order(drawn, question_book):
    joint = [study for study in drawn.studies if len(study.series) == 2]
    assert len(joint) == 10
    for study in joint:
        assert len(set(study.modalities)) == 2
        assert question_book[study.conversation.task].modality in study.modalities
        assert len(study.subjects) == 1
    places = {
        study.modalities.index(question_book[study.conversation.task].modality) for study in joint
    }
    assert places == {0, 1}


def test_a_phantom_that_is_there_is_only_read(heads, drawn, question_book):
    before = {path: path.stat().st_mtime_ns for path in heads.root.rglob("*")}
    again = PhantomCohort(
        heads.root.parent, 10, 3, ["sex", "tract", "dropout"], question_book, joint=True
    )
    assert again.manifest() == drawn
    assert before == {path: path.stat().st_mtime_ns for path in heads.root.rglob("*")}


def test_a_changed_template_reaches_the_phantom(heads, drawn, question_book):
    from dataclasses import replace

    from neuro.data.question import QuestionBook

    templates = dict(question_book.templates)
    templates["sex"] = replace(templates["sex"], ask="Is this a man or a woman?")
    other = PhantomCohort(
        heads.root.parent,
        10,
        3,
        ["sex", "tract", "dropout"],
        QuestionBook(templates),
        joint=True,
    )
    asked = {
        study.conversation.turns[0].text.strip()
        for study in other.manifest().studies
        if study.conversation.task == "sex"
    }
    assert asked == {"Is this a man or a woman?"}


def test_an_unknown_factor_lists_the_factors(heads, drawn, question_book):
    cohort = PhantomCohort(heads.root.parent, 10, 3, ["group"], question_book, joint=False)
    with pytest.raises(InputError, match=r"names 'group'.*no factor of the phantom"):
        cohort.manifest()


# ---------------------------------------------------------------- conversations


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


def read(tmp_path, *records):
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(records))
    return ConversationCohort(tmp_path, path, SPLITS).manifest()


def test_the_series_of_a_study_are_in_the_order_of_the_text(tmp_path):  # D20
    images = [("s1", "T1", "t1.nii"), ("s1", "rsfMRI", "rest.nii"), ("s1", "dMRI", "fa.nii")]
    (study,) = read(
        tmp_path, record("a", images, "<image_dMRI> or <image_fMRI>, not <image_T1>?")
    ).studies
    assert [series.path.name for series in study.series] == ["fa.nii", "rest.nii", "t1.nii"]


def test_the_images_of_two_subjects_are_in_the_order_of_the_text(tmp_path):  # D20
    images = [("s1", "T1", "1.nii"), ("s2", "T1", "2.nii")]
    (study,) = read(
        tmp_path, record("a", images, "Is <sub2-image> older than <sub1-image>?")
    ).studies
    assert [series.subject for series in study.series] == ["s2", "s1"]


def test_a_side_car_beside_a_run_gives_its_repetition_time(tmp_path):  # D44
    (tmp_path / "rest.json").write_text('{"RepetitionTime": 0.8}')
    images = [("s1", "rsfMRI", "rest.nii.gz"), ("s1", "rsfMRI", "other.nii.gz")]
    (study,) = read(tmp_path, record("a", images, "<image> and <image>?")).studies
    assert [series.repetition_time_s for series in study.series] == [0.8, None]


@pytest.mark.parametrize("path", ["../other/a.nii", "/etc/a.nii"])
def test_an_image_outside_the_root_is_an_error(tmp_path, path):
    with pytest.raises(InputError, match=r"conversation 'a': path .* leaves the data root"):
        read(tmp_path, record("a", [("s1", "T1", path)], "<image>?"))


def test_conversations_keep_the_split_they_bring(tmp_path):
    records = [
        record(name, [(name, "T1", f"{name}.nii")], "<image>?", split=split)
        for name, split in (("a", "train"), ("b", "validation"), ("c", "test"))
    ]
    assert [study.split for study in read(tmp_path, *records).studies] == ["train", "val", "test"]


def test_a_subject_in_two_splits_of_a_file_is_an_error(tmp_path):  # D47
    records = [
        record(name, [("s1", "T1", "a.nii")], "<image>?", split=split)
        for name, split in (("a", "train"), ("b", "test"))
    ]
    with pytest.raises(InputError, match="'s1' is in test and train"):
        read(tmp_path, *records)
