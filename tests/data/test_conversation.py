"""Every format and alias gives the same type, and nothing malformed passes in silence."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pytest

from neuro.data.conversation import (
    Conversation,
    Image,
    ImagePart,
    Turn,
    parse_conversation,
    read_conversations,
    write_conversations,
)
from neuro.errors import InputError

WHERE = "train.json item 3"


def v1(value="<image>\nWhat is the sex?", paths=None, subject="s1", answer="female", **more):
    return {
        "task_id": "c1",
        "subject_id": subject,
        "modality_paths": {"sMRI": "s1/T1.nii.gz"} if paths is None else paths,
        "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}],
        "metadata": {"sex": "F"},
        **more,
    }


def v2(content=None, images=(("s1/T1.nii.gz", "sMRI"),), subjects=("s1",), answer="female", **more):
    if content is None:
        content = [
            *({"type": "image"} for _ in images),
            {"type": "text", "text": "\nWhat is the sex?"},
        ]
    return {
        "task_id": "c1",
        "task_type": "T1",
        "subject_ids": list(subjects),
        "modalities": [modality for _, modality in images],
        "images": [
            {"path": path, "token": "<image>", "modality": modality} for path, modality in images
        ],
        "conversations": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "metadata": {"sex": "F"},
        **more,
    }


def v1b(content="<image>\nWhat is the sex?", **more):
    record = v2(**more)
    del record["conversations"]
    record["conversation"] = [
        {"role": "human", "content": content},
        {"role": "gpt", "content": "female"},
    ]
    return record


def parse(record):
    return parse_conversation(record, WHERE)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# ---------------------------------------------------------------- formats agree


def test_the_three_formats_give_the_same_conversation():  # D27
    expected = Conversation(
        id="c1",
        task="T1",
        turns=(Turn("user", (ImagePart(0), "\nWhat is the sex?")), Turn("assistant", ("female",))),
        images=(Image(path="s1/T1.nii.gz", modality="T1", subject="s1"),),
        metadata={"sex": "F"},
    )
    assert parse(v1(task_type="T1")) == parse(v1b()) == parse(v2()) == expected


def test_parsing_does_not_change_the_record():
    for record in (v1(), v1b(), v2()):
        before = copy.deepcopy(record)
        parse(record)
        assert record == before


def test_each_object_of_a_file_has_its_own_format(tmp_path):
    records = [
        dict(record, task_id=str(number)) for number, record in enumerate((v1(), v1b(), v2()))
    ]
    one, two, three = read_conversations(write_json(tmp_path / "mixed.json", records))
    assert one.turns == two.turns == three.turns
    assert [one.id, two.id, three.id] == ["0", "1", "2"]


def test_v1_turns_among_v2_images_are_an_error_and_not_empty_text():  # D27
    record = v2(conversations=v1()["conversations"])
    with pytest.raises(InputError, match=r"item 3: conversations\[0\]\.role must be .*missing"):
        parse(record)


def test_v2_turns_among_v1_paths_are_an_error_and_not_empty_text():  # D27
    record = v1(conversations=v2()["conversations"])
    with pytest.raises(InputError, match=r"conversations\[0\]\.from must be .*missing"):
        parse(record)


def test_roles_are_named_in_any_case():
    record = v1()
    record["conversations"][0]["from"] = "Human"
    record["conversations"][1]["from"] = "GPT"
    assert [turn.role for turn in parse(record).turns] == ["user", "assistant"]


def test_a_system_turn_may_lead():
    record = v2()
    record["conversations"].insert(0, {"role": "System", "content": "You read scans."})
    first = parse(record).turns[0]
    assert (first.role, first.text) == ("system", "You read scans.")


def test_numeric_ids_become_text():
    conversation = parse(v2(task_id=7, subjects=(100307,)))
    assert (conversation.id, conversation.images[0].subject) == ("7", "100307")


@pytest.mark.parametrize(
    ("metadata", "task_type", "task"),
    [({"task": "sex"}, "T1", "sex"), ({}, "T3_same_sex", "T3_same_sex"), (None, None, "")],
)
def test_the_task_is_that_of_the_metadata_then_the_type_then_nothing(metadata, task_type, task):
    assert parse(v2(metadata=metadata, task_type=task_type)).task == task


@pytest.mark.parametrize(
    ("given", "split"),
    [("train", "train"), ("val", "val"), ("validation", "val"), ("test", "test"), (None, None)],
)
def test_the_split_is_normalised(given, split):
    assert parse(v2(split=given)).split == split
    assert parse(v2()).split is None


@pytest.mark.parametrize("label", ["T1", "T2", "T3", None])
@pytest.mark.parametrize(
    ("images", "subjects", "kind"),
    [
        ((("a", "T1"),), ("s1",), "single"),
        ((("a", "T1"), ("b", "dMRI")), ("s1",), "multimodal"),
        ((("a", "T1"), ("b", "T1")), ("s1", "s2"), "comparison"),
    ],
)
def test_the_kind_follows_subjects_and_images_whatever_the_old_label(images, subjects, kind, label):
    assert parse(v2(images=images, subjects=subjects, task_type=label)).kind == kind


def test_metadata_never_enters_the_text():  # D37
    conversation = parse(v2(metadata={"sex": "SECRET", "task": "sex"}))
    assert not any("SECRET" in turn.text for turn in conversation.turns)


# ---------------------------------------------------------------- modalities


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        *((name, "T1") for name in ("sMRI", "T1w", "T1", "t1")),
        *((name, "rsfMRI") for name in ("fMRI", "rsfMRI", "bold", "rest", "BOLD")),
        *((name, "dMRI") for name in ("dMRI", "dwi", "FA")),
        *((name, "mri") for name in ("mri", "MR")),
        *((name, "ct") for name in ("ct", "CT")),
    ],
)
def test_modality_names_are_canonical_in_every_place_that_names_one(name, canonical):
    def modality(record):
        return parse(record).images[0].modality

    content = [
        {"type": "image", "modality": name, "image_path": "a"},
        {"type": "text", "text": "?"},
    ]
    assert modality(v1(paths={name: "a"})) == canonical
    assert modality(v2(content, images=(("a", canonical),), modalities=[name])) == canonical
    assert modality(v1(f"<image_{name}> ?", paths={canonical: "a"})) == canonical


@pytest.mark.parametrize(
    ("key", "canonical"),
    [("rsfMRI_path", "rsfMRI"), ("fMRI_on_T1", "rsfMRI"), ("dMRI_fa", "dMRI"), ("image_T1w", "T1")],
)
def test_keys_of_v1_are_known_by_a_part_of_them(key, canonical):
    assert parse(v1(paths={key: "a"})).images[0].modality == canonical


@pytest.mark.parametrize(
    "record",
    [
        v1(paths={"PET": "a"}),
        v1("<image_PET> ?"),
        v2(images=(("a", "PET"),)),
        v2(modalities=["PET"]),
        v2([{"type": "image", "modality": "PET"}, {"type": "text", "text": "?"}]),
    ],
)
def test_an_unknown_modality_is_an_error_that_lists_the_known(record):
    with pytest.raises(
        InputError, match=r"item 3: .*'PET' is unknown; known are t1, .*rsfmri, .*dmri"
    ):
        parse(record)


# ---------------------------------------------------------------- slots


def test_slots_stay_where_the_text_has_them():  # D20
    conversation = parse(
        v2("A <image> B\n<image> C", images=(("a", "T1"), ("b", "T1")), subjects=("x", "y"))
    )
    assert conversation.turns[0].parts == ("A ", ImagePart(0), " B\n", ImagePart(1), " C")
    assert conversation.turns[0].text == "A  B\n C"


def test_two_plain_slots_of_one_turn_are_two_images():  # D36
    conversation = parse(v1("<image><image>?", paths={"T1": "a", "dMRI": "b"}))
    assert conversation.turns[0].parts == (ImagePart(0), ImagePart(1), "?")


def test_modality_aliases_find_their_image_whatever_the_order_of_the_file():  # D26
    conversation = parse(
        v1(
            "f <image_fMRI> s <image_sMRI> d <image_dMRI>",
            paths={"T1": "a", "dMRI": "b", "fMRI": "c"},
        )
    )
    assert conversation.turns[0].parts == (
        "f ",
        ImagePart(2),
        " s ",
        ImagePart(0),
        " d ",
        ImagePart(1),
    )
    assert [image.modality for image in conversation.images] == ["T1", "dMRI", "rsfMRI"]


def test_repeated_modality_aliases_take_the_next_image_of_the_modality():
    conversation = parse(
        v2("<image_T1><image_sMRI><image_T1w>?", images=tuple((p, "T1") for p in "abc"))
    )
    assert conversation.turns[0].parts == (ImagePart(0), ImagePart(1), ImagePart(2), "?")


def test_subject_aliases_find_their_subject_whatever_the_order_of_the_text():  # D26 D39
    record = v1(
        "<sub3-image> or <sub1-image> or <SUB2-image>?", {"T1": ["a", "b", "c"]}, ["x", "y", "z"]
    )
    assert parse(record).turns[0].parts == (
        ImagePart(2),
        " or ",
        ImagePart(0),
        " or ",
        ImagePart(1),
        "?",
    )


def test_a_subject_alias_takes_the_next_image_of_that_subject():
    images = (("a", "T1"), ("b", "T1"), ("c", "dMRI"), ("d", "dMRI"))
    record = v2("<sub2-image><sub2-image><sub1-image><sub1-image>?", images, ("x", "y", "x", "y"))
    assert [part.index for part in parse(record).turns[0].parts[:4]] == [1, 3, 0, 2]


def test_a_plain_slot_skips_what_an_alias_used():
    record = v1("<image_dMRI> then <image>", paths={"T1": "a", "dMRI": "b"})
    assert parse(record).turns[0].parts == (ImagePart(1), " then ", ImagePart(0))


def test_aliases_inside_v2_text_items_are_slots_too():  # D26
    content = [
        {"type": "text", "text": "See <image_fMRI> and"},
        {"type": "image", "modality": "sMRI", "image_path": "a"},
        {"type": "text", "text": ""},
    ]
    conversation = parse(v2(content, images=(("a", "T1"), ("b", "rsfMRI"))))
    assert conversation.turns[0].parts == ("See ", ImagePart(1), " and", ImagePart(0))


def test_image_items_take_the_image_they_name():
    content = [
        {"type": "image", "image_path": "b"},
        {"type": "image", "image_path": "a"},
        {"type": "text", "text": "?"},
    ]
    conversation = parse(v2(content, images=(("a", "T1"), ("b", "T1"))))
    assert conversation.turns[0].parts == (ImagePart(1), ImagePart(0), "?")


def test_slots_are_counted_through_all_turns():  # D19 D36
    record = v1("Reference <image>", {"T1": ["a", "b"]}, ["x", "y"])
    record["conversations"] += [
        {"from": "human", "value": "New <image>"},
        {"from": "gpt", "value": "same"},
    ]
    turns = parse(record).turns
    assert [turn.parts for turn in turns] == [
        ("Reference ", ImagePart(0)),
        ("female",),
        ("New ", ImagePart(1)),
        ("same",),
    ]


def test_a_comparison_of_two_subjects_keeps_its_four_turns():  # D20 D30
    """The comparison of the specification: what is known of the first is said, the second asked."""
    images = ref, new = ("ref/T1.nii.gz", "sMRI"), ("new/T1.nii.gz", "sMRI")
    record = v2(
        images=images,
        subjects=("ref", "new"),
        task_type="T3",
        metadata={"reference_label": "male", "subject_label": "female", "task": "sex"},
        conversations=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "This is a scan of a man. "},
                    {"type": "image", "modality": "sMRI", "image_path": ref[0]},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "I will compare."}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Compare "},
                    {"type": "image", "modality": "sMRI", "image_path": new[0]},
                    {"type": "text", "text": " with it."},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "female, unlike it"}]},
        ],
    )
    conversation = parse(record)
    assert conversation.turns == (
        Turn("user", ("This is a scan of a man. ", ImagePart(0))),
        Turn("assistant", ("I will compare.",)),
        Turn("user", ("Compare ", ImagePart(1), " with it.")),
        Turn("assistant", ("female, unlike it",)),
    )
    assert [image.subject for image in conversation.images_in_text()] == ["ref", "new"]
    assert (conversation.kind, conversation.task) == ("comparison", "sex")


def test_several_modalities_of_one_subject_keep_their_sentences():  # D20
    """T2 of the specification: each image stands in the sentence that speaks of it."""
    record = v2(
        "Structure: <image_sMRI>. Function: <image_fMRI>. Tracts: <image_dMRI>. Which sex?",
        images=(("f", "fMRI"), ("d", "dMRI"), ("s", "sMRI")),
        task_type="T2",
    )
    conversation = parse(record)
    assert [image.path for image in conversation.images_in_text()] == ["s", "f", "d"]
    assert conversation.turns[0].parts == (
        "Structure: ",
        ImagePart(2),
        ". Function: ",
        ImagePart(0),
        ". Tracts: ",
        ImagePart(1),
        ". Which sex?",
    )
    assert conversation.kind == "multimodal"


@pytest.mark.parametrize("blocks", [True, False])
def test_examples_before_the_question_alternate_with_their_images(blocks):  # D20
    """In context: text, image, text, image, ...; as items, or as one text with placeholders."""
    said = ["Case 1: ", " is male. Case 2: ", " is female. Case 3: ", " is?"]
    content = "<image>".join(said)
    if blocks:
        content = [{"type": "text", "text": said[0]}]
        for text in said[1:]:
            content += [{"type": "image"}, {"type": "text", "text": text}]
    record = v2(content, images=tuple((path, "T1") for path in "abc"), subjects=("x", "y", "z"))
    (asked, _) = parse(record).turns
    assert asked.parts[::2] == tuple(said)
    assert asked.parts[1::2] == (ImagePart(0), ImagePart(1), ImagePart(2))


def test_images_before_all_text_stay_there():  # D20
    record = v2("<image><image>Two heads. Which?", images=(("a", "T1"), ("b", "T1")))
    assert parse(record).turns[0].parts == (ImagePart(0), ImagePart(1), "Two heads. Which?")


@pytest.mark.parametrize(
    ("token", "canonical"),
    [("<image_sMRI>", "T1"), ("<image_fMRI>", "rsfMRI"), ("<IMAGE_dMRI>", "dMRI")],
)
def test_the_token_of_an_image_says_its_modality_where_nothing_else_does(token, canonical):  # D26
    record = v1b(f"{token}\nWhat is the sex?")
    record |= {"images": [{"path": "a", "token": token}], "modalities": None}
    assert parse(record).images[0].modality == canonical
    assert parse(record).turns[0].parts == (ImagePart(0), "\nWhat is the sex?")


@pytest.mark.parametrize("token", ["<sub1-image>", "<sub2-image>"])
def test_subject_tokens_of_the_images_are_in_their_order(token):  # D26
    images = [{"path": "a", "token": "<sub1-image>"}, {"path": "b", "token": token}]
    images = [{**image, "modality": "sMRI"} for image in images]
    record = v1b("<sub2-image> or <sub1-image>?", subjects=["x", "y"])
    record |= {"images": images, "modalities": ["sMRI", "sMRI"]}
    if token == "<sub1-image>":
        with pytest.raises(
            InputError, match=r"images\[1\]\.token must agree with its image, T1 of y; got '<sub1-"
        ):
            parse(record)
    else:
        assert parse(record).turns[0].parts == (ImagePart(1), " or ", ImagePart(0), "?")


def test_a_token_of_another_modality_is_an_error():
    record = v2(images=(("a", "T1"),))
    record["images"][0]["token"] = "<image_fMRI>"
    with pytest.raises(InputError, match=r"images\[0\]\.token must agree .*got '<image_fMRI>'"):
        parse(record)


def test_a_user_turn_may_be_an_image_alone():
    record = v2([{"type": "image"}])
    assert parse(record).turns[0] == Turn("user", (ImagePart(0),))


# ---------------------------------------------------------------- several subjects in v1


def test_several_subjects_of_v1_keep_roles_turns_and_earlier_answers():  # D30
    record = v1("This is a man: <sub1-image>", {"sMRI": ["a", "b"]}, ["ref", "new"], answer="Seen.")
    record["conversations"] += [
        {"from": "human", "value": "And <sub2-image>?"},
        {"from": "gpt", "value": "a woman"},
    ]
    conversation = parse(record)
    assert [(turn.role, turn.text) for turn in conversation.turns] == [
        ("user", "This is a man: "),
        ("assistant", "Seen."),
        ("user", "And ?"),
        ("assistant", "a woman"),
    ]
    assert [(image.path, image.subject) for image in conversation.images] == [
        ("a", "ref"),
        ("b", "new"),
    ]
    assert conversation.kind == "comparison"


def test_images_of_v1_are_ordered_by_subject_then_modality():
    record = v1("<image><image><image><image>?", {"T1": ["a", "b"], "dMRI": ["c", "d"]}, ["x", "y"])
    assert [image.path for image in parse(record).images] == ["a", "c", "b", "d"]


def test_v1_needs_a_path_for_each_subject():
    with pytest.raises(
        InputError, match=r"modality_paths\.T1 must hold one path per subject \(2\); got 1"
    ):
        parse(v1(paths={"T1": ["a"]}, subject=["x", "y"]))


# ---------------------------------------------------------------- what must not pass


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            v1("no placeholder"),
            r"every image needs a slot; got 0 slot\(s\) for 1 image\(s\)\. Put <image>",
        ),
        (v2("<image> ?", images=(("a", "T1"), ("b", "T1"))), r"got 1 slot\(s\) for 2 image\(s\)"),
        (
            v1("<image> <image>"),
            r"conversations\[0\]\.value: a slot needs an unused image.*"
            r"got '<image>', but none is left of 1",
        ),
        (v1("<image_dMRI>"), "a slot needs an unused image that fits; got '<image_dMRI>'"),
        (v1("<sub2-image>"), "a slot needs an unused image that fits; got '<sub2-image>'"),
        (v1("<sub0-image>"), "a slot needs an unused image"),
        (
            v2([{"type": "image", "image_path": "other"}, {"type": "text", "text": "?"}]),
            "got .*'image_path': 'other'",
        ),
        (
            v2([{"type": "image", "modality": "dMRI"}, {"type": "text", "text": "?"}]),
            "unused image.*'dMRI'",
        ),
    ],
)
def test_slots_and_images_must_match_one_to_one(record, message):
    with pytest.raises(InputError, match=f"^{WHERE}: .*{message}"):
        parse(record)


def test_the_last_answer_is_text_alone():
    record = v2([{"type": "text", "text": "What does it look like?"}])
    record["conversations"][1]["content"] = [{"type": "text", "text": "Like"}, {"type": "image"}]
    with pytest.raises(InputError, match=f"^{WHERE}: the last answer must be text.*question"):
        parse(record)


def test_a_task_is_a_name():
    assert parse(v2(metadata={"task": 3})).task == "3"
    with pytest.raises(InputError, match=f"^{WHERE}: the task must be a name; got .*'sex'"):
        parse(v2(metadata={"task": {"name": "sex"}}))


@pytest.mark.parametrize(
    "roles",
    [
        [],
        ["user"],
        ["assistant"],
        ["system"],
        ["assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "assistant", "assistant"],
        ["user", "assistant", "user"],
        ["system", "system", "user", "assistant"],
        ["user", "system", "assistant"],
    ],
)
def test_roles_alternate_and_the_assistant_speaks_last(roles):
    turns = [
        {"role": role, "content": "<image> text" if n == 0 else "text"}
        for n, role in enumerate(roles)
    ]
    with pytest.raises(
        InputError, match=r"item 3: roles must alternate .* end with assistant; got "
    ):
        parse(v2(conversations=turns))


def test_an_unknown_role_is_an_error():
    record = v2()
    record["conversations"][1]["role"] = "doctor"
    with pytest.raises(
        InputError,
        match=r"conversations\[1\]\.role: 'doctor' is unknown; known are human, user, gpt",
    ):
        parse(record)


@pytest.mark.parametrize(
    "content", ["", "  \n", [], [{"type": "text", "text": ""}], [{"type": "text", "text": " "}]]
)
@pytest.mark.parametrize("turn", [0, 1])
def test_an_empty_turn_is_an_error(content, turn):
    record = v2()
    record["conversations"][turn]["content"] = content
    with pytest.raises(
        InputError, match=rf"conversations\[{turn}\]\.content has empty text"
    ) as caught:
        parse(record)
    assert "\n" not in str(caught.value)


def test_an_empty_later_question_is_an_error():
    record = v1()
    record["conversations"] += [{"from": "human", "value": " "}, {"from": "gpt", "value": "male"}]
    with pytest.raises(InputError, match=r"conversations\[2\]\.value has empty text"):
        parse(record)


def test_an_answer_that_is_only_an_image_is_an_error():
    record = v2("?")
    record["conversations"][1]["content"] = "<image>"
    with pytest.raises(InputError, match=r"conversations\[1\]\.content has empty text"):
        parse(record)


@pytest.mark.parametrize(
    "content", [None, 3, [3], [{"type": "video"}], [{"type": "text"}], {"text": "a"}]
)
def test_content_of_another_kind_is_an_error(content):
    record = v2()
    record["conversations"][0]["content"] = content
    with pytest.raises(
        InputError, match=r"conversations\[0\]\.content must be text, or text and image items"
    ):
        parse(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "there must be images.*got 0 images"),
        ({"images": {"path": "a"}}, "images must be a list"),
        ({"images": ["a"]}, r"images\[0\] must be a JSON object; got 'a'"),
        ({"images": [{"path": "a"}]}, r"images\[0\]\.modality must be .*missing"),
        ({"images": [{"modality": "T1"}]}, r"images\[0\]\.path must be .*missing"),
        (
            {"images": [{"path": " ", "modality": "T1"}]},
            r"images\[0\]\.path must be a non-empty text",
        ),
        (
            {"modalities": ["T1", "T1"]},
            r"modalities must be those of the images, \['T1'\]; got \['T1', 'T1'\]",
        ),
        ({"modalities": []}, r"modalities must be those of the images, \['T1'\]; got \[\]"),
        (
            {"modalities": ["dMRI"]},
            r"modalities must be those of the images, \['T1'\]; got \['dMRI'\]",
        ),
        ({"subject_ids": ["x", "y"]}, "one id for all or each; got 1 images and 2 subject ids"),
        ({"subject_ids": None}, "subject must be a non-empty text; got nothing, it is missing"),
        ({"task_id": None}, "task_id must be a non-empty text; got nothing, it is missing"),
        ({"task_id": ""}, "task_id must be a non-empty text"),
        ({"conversations": {}}, "conversations must be a list"),
        ({"conversations": ["hello"]}, r"conversations\[0\] must be a JSON object; got 'hello'"),
        ({"metadata": ["x"]}, "metadata must be a JSON object"),
        ({"split": "dev"}, "split: 'dev' is unknown; known are train, val, validation, test"),
        ({"split": ["train"]}, "split must be a non-empty text"),
    ],
)
def test_a_broken_field_is_an_error_that_names_the_place(change, message):
    with pytest.raises(InputError, match=f"^{WHERE}: .*{message}"):
        parse({**v2(), **change})


@pytest.mark.parametrize("field", ["task_id", "subject_id"])
def test_a_missing_field_is_an_error(field):
    record = v1()
    del record[field]
    with pytest.raises(InputError, match=f"{field.removesuffix('_id')}.* must be .*missing"):
        parse(record)


def test_a_v1_record_without_paths_is_an_error():
    with pytest.raises(InputError, match="there must be images"):
        parse(v1(paths={}))


@pytest.mark.parametrize(
    ("record", "keys"),
    [
        ({"id": 1, "messages": []}, "id, messages"),
        ({}, "no keys"),
        ({**v1(), "images": []}, "modality_paths"),
        ({"task_id": "a", "conversations": []}, "task_id, conversations"),
    ],
)
def test_an_unknown_format_lists_its_keys_and_the_three_formats(record, keys):
    with pytest.raises(
        InputError, match=rf"item 3: unknown format; .*v1 \(.*v1b \(.*v2 \(.*got .*{keys}"
    ):
        parse(record)


# ---------------------------------------------------------------- files


def test_one_object_and_a_list_of_one_are_the_same(tmp_path):
    one = read_conversations(write_json(tmp_path / "one.json", v2()))
    many = read_conversations(write_json(tmp_path / "many.json", [v2()]))
    assert one == many == (parse(v2()),)


def test_json_lines_skip_blank_lines_and_keep_line_separators_in_text(tmp_path):
    path = tmp_path / "train.jsonl"
    first, second = v2(task_id="a", answer="fe\u2028male"), v2(task_id="b")
    path.write_text(
        f"\n{json.dumps(first, ensure_ascii=False)}\r\n  \n{json.dumps(second)}\n",
        encoding="utf-8-sig",
    )
    conversations = read_conversations(path)
    assert [conversation.id for conversation in conversations] == ["a", "b"]
    assert conversations[0].turns[1].text == "fe\u2028male"


def test_a_folder_is_read_one_level_deep_in_sorted_order(tmp_path):
    for name in ("b.json", "a/z.json", "c/a.json", "a/deep/x.json"):
        write_json(tmp_path / name, v2(task_id=name))
    (tmp_path / "a.jsonl").write_text(json.dumps(v1(task_id="a.jsonl")))
    (tmp_path / "notes.txt").write_text("not a conversation")
    ids = [conversation.id for conversation in read_conversations(tmp_path)]
    assert ids == ["a/z.json", "a.jsonl", "b.json", "c/a.json"]


def test_the_order_of_a_folder_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"{number}.json" for number in range(6)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            write_json(tmp_path / folder / name, v2(task_id=name))
    assert read_conversations(tmp_path / "one") == read_conversations(tmp_path / "two")


def test_a_duplicate_id_in_one_file_names_both_places(tmp_path):
    path = write_json(tmp_path / "train.json", [v2(task_id="a"), v2(task_id="b"), v2(task_id="a")])
    with pytest.raises(
        InputError,
        match=r"train\.json line 1 \(item 3\): task_id 'a' must be unique, .*line 1 \(item 1\)\.",
    ):
        read_conversations(path)


def test_a_duplicate_id_in_two_files_is_an_error(tmp_path):  # D47
    write_json(tmp_path / "train" / "x.json", v2())
    write_json(tmp_path / "validation" / "x.json", v2())
    with pytest.raises(
        InputError,
        match=r"validation/x\.json line 1 .*train/x\.json line 1 \(item 1\)\. .*one split only",
    ):
        read_conversations(tmp_path)


def test_a_malformed_line_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(v2())}\n\n{{'single': 'quotes'}}\n")
    with pytest.raises(InputError, match=r"train\.jsonl line 3: not valid JSON: .*column 2"):
        read_conversations(path)


def test_an_error_of_content_names_the_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(v1(task_id=str(n), **({} if n < 6 else {"split": "x"}))) for n in range(7)
        )
    )
    with pytest.raises(InputError, match=r"train\.jsonl line 7: split: 'x' is unknown"):
        read_conversations(path)


def test_an_error_of_an_item_names_the_line_it_begins_on(tmp_path):
    wrong = v2(answer="")
    path = tmp_path / "train.json"
    text = json.dumps([v2(task_id="a"), {**v2(), "task_id": "b"}, wrong], indent=1)
    path.write_text("\n\n" + text)
    line = 3 + text[: text.rindex('{\n  "task_id"')].count("\n")
    with pytest.raises(InputError, match=rf"train\.json line {line} \(item 3\): .*empty text"):
        read_conversations(path)


def test_a_syntax_error_of_a_json_file_names_the_line(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[\n{"task_id": "a",\n "b" 3}]')
    with pytest.raises(InputError, match=r"train\.json line 3: not valid JSON"):
        read_conversations(path)


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_value_that_is_no_object_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_text("3")
    with pytest.raises(
        InputError, match=rf"{name} line 1( .item 1.)?: a conversation must be a JSON object; got 3"
    ):
        read_conversations(path)


def test_no_conversation_at_all_is_an_error(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for path in (empty, tmp_path / "blank.jsonl", write_json(tmp_path / "list.json", [])):
        with pytest.raises(InputError, match="no conversation in"):
            read_conversations(path)


def test_a_missing_or_binary_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "binary.json"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as text"):
            read_conversations(tmp_path / name)


# ---------------------------------------------------------------- writing


def varied() -> list[Conversation]:
    records = [
        v1(task_id="plain"),
        v1b(task_id="old", split="validation"),
        v1("f <image_fMRI> s <image_sMRI>", {"T1": "a", "fMRI": "b"}, task_id="aliases"),
        v1("<sub2-image> <sub1-image>\n", {"T1": ["same", "same"]}, ["x", "y"], task_id="one path"),
        v2(
            '한국어 <image> \u2028 \\ " end ',
            task_id="text",
            metadata={"task": "sex", "deep": {"a": [1, None, 2.5]}},
        ),
        v2(
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b<image>"}],
            task_id="parts",
            task_type=None,
        ),
        v2(
            images=(("a", "T1"), ("b", "T1")),
            subjects=("x", "y"),
            task_id="pair",
            task_type="T3",
            split="test",
        ),
    ]
    return [parse(record) for record in records]


def test_what_is_written_is_read_back_exactly(tmp_path):  # D39
    conversations = tuple(varied())
    write_conversations(tmp_path / "all.json", conversations)
    assert read_conversations(tmp_path / "all.json") == conversations


def test_a_file_written_twice_is_the_same(tmp_path):
    write_conversations(tmp_path / "one.json", varied())
    write_conversations(tmp_path / "two.json", read_conversations(tmp_path / "one.json"))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_what_is_written_has_every_field_of_v2(tmp_path):
    write_conversations(tmp_path / "all.json", varied())
    for record in json.loads((tmp_path / "all.json").read_text(encoding="utf-8")):
        assert {
            "task_id",
            "task_type",
            "subject_ids",
            "modalities",
            "images",
            "conversations",
            "metadata",
        } <= set(record)
        items = [item for turn in record["conversations"] for item in turn["content"]]
        slots = sum(item["type"] == "image" for item in items)
        assert (
            slots
            == len(record["images"])
            == len(record["modalities"])
            == len(record["subject_ids"])
        )
        assert {image["token"] for image in record["images"]} == {"<image>"}


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "all.json"
    write_conversations(path, varied())
    before = path.read_bytes()

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_conversations(path, varied()[:1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


NOT_READ = {
    "nested": "[" * 100_000,
    "a number of 5000 digits": json.dumps([v2()])[:-1] + ', {"a": ' + "9" * 5000 + "}]",
    "half of a sign": json.dumps([v2(task_id="c\ud83d")]),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("kind", NOT_READ)
def test_json_that_python_cannot_hold_is_an_error_that_names_the_file(tmp_path, kind, suffix):
    path = tmp_path / f"talk{suffix}"
    path.write_text(NOT_READ[kind])
    with pytest.raises(InputError, match=re.escape(str(path))) as told:
        read_conversations(path)
    assert len(str(told.value)) < 2000


def test_both_halves_of_a_sign_are_text(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([v2(task_id="c\U0001f9e0")]))
    assert read_conversations(path)[0].id == "c\U0001f9e0"


def test_a_subject_slot_with_thousands_of_digits_fits_no_image():
    with pytest.raises(InputError, match="a slot needs an unused image"):
        parse(v1b("<sub" + "9" * 5000 + "-image> What?"))
    assert parse(v1b("<sub01-image> What?")).images_in_text()


def test_names_of_keys_are_told_in_one_line():
    with pytest.raises(InputError, match="got a b, c") as told:
        parse({"a\nb": 1, "c": 2})
    assert "\n" not in str(told.value)
