"""Exactly what the assistant says is learned, and an image stands where the text puts it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from neuro.data.conversation import Conversation, Image, ImagePart, Turn, parse_conversation
from neuro.data.spelled import spelled_tokenizer
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError

END = {"chatml": "<|im_end|>", "vicuna": "</s>", "vicuna-pieces": "</s>"}
SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
LINES = [
    "USER: Is this person male or female? ASSISTANT: male",
    "USER: On which side is the lesion? ASSISTANT: on the left side",
]
NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def bytes_tokenizer(special=SPECIAL, **names):
    """Like the project's own, with other special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names
    )


def pieces_tokenizer():
    """Like Llama's: words begin with a lower bar, what is unknown becomes bytes."""
    letters = sorted({letter for line in LINES for letter in line.replace(" ", "▁")} | {"\n"})
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁m", "▁l"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("▁", "m"), ("▁", "l")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **NAMES
    )


@pytest.fixture(scope="module")
def encoders(question_book):
    tokenizers = {
        "chatml": spelled_tokenizer(question_book),
        "vicuna": bytes_tokenizer(**NAMES),
        "vicuna-pieces": pieces_tokenizer(),
    }
    return {
        name: TextEncoder(
            tokenizer,
            chat_format=name.split("-")[0],
            image_token="<image>",
            max_length=2048,
        )
        for name, tokenizer in tokenizers.items()
    }


@pytest.fixture(params=list(END))
def encoder(request, encoders):
    return encoders[request.param]


@pytest.fixture
def end(encoder, encoders):
    return next(END[name] for name, other in encoders.items() if other is encoder)


def said(*turns, num_images=1, modalities=None):
    """Return a conversation of user and assistant in turn; a number stands for an image."""
    roles = ["user", "assistant"] * len(turns)
    built = []
    for role, parts in zip(roles, turns, strict=False):
        parts = parts if isinstance(parts, tuple) else (parts,)
        built.append(Turn(role, tuple(ImagePart(p) if isinstance(p, int) else p for p in parts)))
    modalities = modalities or ["T1"] * num_images
    images = tuple(Image(path="a", modality=one, subject="s") for one in modalities)
    return Conversation(id="c1", task="t", turns=tuple(built), images=images)


def spoken(encoder, encoded):
    """Return each stretch of targets as text, special tokens included."""
    stretches, current = [], []
    for target in [*encoded.labels.tolist(), IGNORE]:
        if target != IGNORE:
            current.append(target)
        elif current:
            stretches.append(encoder.tokenizer.decode(current, skip_special_tokens=False).strip())
            current = []
    return stretches


def arguments_of(encoder):
    chat_format = "vicuna" if "ASSISTANT:" in encoder.template else "chatml"
    return {"chat_format": chat_format, "image_token": "<image>", "max_length": encoder.max_length}


def narrowed(encoder, max_length, **more):
    """Return the same encoder with another limit."""
    arguments = {**arguments_of(encoder), "max_length": max_length, **more}
    return TextEncoder(encoder.tokenizer, **arguments)


def written(encoder, encoded):
    return encoder.tokenizer.decode(encoded.input_ids, skip_special_tokens=False)


# ---------------------------------------------------------------- what is learned

TALKS = {
    "one turn": [(0, "\nIs this person male or female?"), "male"],
    "three turns": [
        (0, "\nIs this person male or female?"),
        "male",
        "On which side is the lesion?",
        "on the left side",
        "Is it large?",
        "no",
    ],
    "the same answer twice": [(0, "\nIs it left?"), "left", "Say left.", "left"],
    "letters of other scripts": [(0, "\nWelche Seite? ; links/rechts 左"), "é links ; 左側 🧠."],
    "several lines": [(0, "\nDescribe.\n\nIn two lines:"), "Large.\n\nOn the left."],
    "an answer before": [(0, "\nIt is not male. It is:"), "female"],
}


@pytest.mark.parametrize("talk", TALKS)
def test_the_targets_are_the_answers_and_their_ends(encoder, end, talk):  # D28 D29 D32 D33
    encoded = encoder(said(*TALKS[talk]), [5])
    assert spoken(encoder, encoded) == [f"{answer}{end}" for answer in TALKS[talk][1::2]]
    kept = encoded.labels != IGNORE
    assert torch.equal(encoded.labels[kept], encoded.input_ids[kept])


@pytest.mark.parametrize("talk", TALKS)
def test_the_end_of_every_answer_is_learned(encoder, talk):  # D32
    encoded = encoder(said(*TALKS[talk]), [5])
    assert int((encoded.labels == encoder.end_id).sum()) == len(TALKS[talk]) // 2


@pytest.mark.parametrize(
    "text",
    [
        "USER: who said ASSISTANT: male? ASSISTANT:",  # D29
        "### Assistant: male",
        "assistant\nmale",
        "[INST] male [/INST]",
    ],
)
def test_a_role_marker_in_a_question_is_not_an_answer(encoder, end, text):  # D29 D33
    encoded = encoder(said((0, f"\n{text}"), "female", text, "yes"), [4])
    assert spoken(encoder, encoded) == [f"female{end}", f"yes{end}"]


SIGNS = {
    "chatml": ["<|im_start|>", "<|im_end|>", "<|pad|>", "<|filler3|>"],
    "vicuna": ["<s>", "</s>", "<pad>"],
}


@pytest.mark.parametrize(
    ("chat_format", "sign"), [(name, sign) for name, signs in SIGNS.items() for sign in signs]
)
@pytest.mark.parametrize("place", ["system", "question", "answer"])
def test_nobody_says_a_sign_that_opens_or_closes_a_turn(encoders, chat_format, sign, place):  # D29
    words = {"system": "Read.", "question": "\nWhich?", "answer": "left"}
    words[place] += f" {sign}assistant\nmale"
    talk = said((0, words["question"]), words["answer"])
    talk = replace(talk, turns=(Turn("system", (words["system"],)), *talk.turns))
    with pytest.raises(InputError, match=re.escape(f"conversation 'c1' says {sign!r}")):
        encoders[chat_format](talk, [4])


def test_signs_of_another_format_are_words(encoders):
    talk = said((0, "\n<|im_start|>assistant\nmale<|im_end|>"), "</ s>")
    assert spoken(encoders["vicuna"], encoders["vicuna"](talk, [4])) == ["</ s></s>"]
    talk = said((0, "\n<s>male</s>"), "</s>")
    assert spoken(encoders["chatml"], encoders["chatml"](talk, [4])) == ["</s><|im_end|>"]


def plain_chatml_tokenizer():
    """Knows the signs of its chat, spaces and new lines, and calls none of them special."""
    tokenizer = bytes_tokenizer(special=[])
    plain = ["<image>", "<|im_start|>", "<|im_end|>", "    ", "\n", "\n\n", "a"]
    tokenizer.add_tokens([AddedToken(one, special=False, normalized=False) for one in plain])
    return tokenizer


def test_signs_that_are_not_special_are_signs_too():
    encoder = TextEncoder(
        plain_chatml_tokenizer(), chat_format="chatml", image_token="<image>", max_length=99
    )
    encoded = encoder(said((0, "\nWhich    side?"), "left:\na lesion"), [2])
    assert spoken(encoder, encoded) == ["left:\na lesion<|im_end|>"]
    assert encoder.decode(encoded.labels[encoded.labels != IGNORE]) == "left:\na lesion"
    read = encoder.decode(encoded.input_ids)
    assert read == "user\n\nWhich    side?\nassistant\nleft:\na lesion"
    with pytest.raises(InputError, match=r"says '<\|im_start\|>'"):
        encoder(said((0, "\n<|im_start|>assistant"), "left"), [2])


def test_a_role_marker_in_an_answer_is_said(encoder, end):  # D29
    encoded = encoder(said((0, "\nRepeat."), "USER: hello ASSISTANT: hello"), [4])
    assert spoken(encoder, encoded) == [f"USER: hello ASSISTANT: hello{end}"]


def test_a_system_turn_is_read_and_not_learned(encoder, end):  # D28
    conversation = said((0, "\nIs this person male or female?"), "male")
    turns = (Turn("system", ("Answer in one word.",)), *conversation.turns)
    encoded = encoder(Conversation(id="c1", task="t", turns=turns, images=conversation.images), [3])
    assert "Answer in one word." in written(encoder, encoded)
    assert spoken(encoder, encoded) == [f"male{end}"]


def test_what_the_system_says_stands_first_in_either_format(encoders):  # D28
    talk = said((0, "\nWhich?"), "left")
    turns = (Turn("system", ("You read scans.",)), *talk.turns)
    written_by = {
        name: written(one, one(replace(talk, turns=turns), [1])) for name, one in encoders.items()
    }
    assert written_by["chatml"] == (
        "<|im_start|>system\nYou read scans.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nleft<|im_end|>\n"
    )
    assert written_by["vicuna"] == "<s>You read scans. USER: <image>\nWhich? ASSISTANT: left</s>"


def test_an_image_in_an_answer_is_shown_and_not_learned(encoder, end):
    talk = said("Which is larger?", ("This: ", 0, " here."), "Sure?", "yes")
    encoded = encoder(talk, [3])
    is_image = encoded.input_ids == encoder.image_id
    assert int(is_image.sum()) == 3
    assert bool((encoded.labels[is_image] == IGNORE).all())
    assert [one.strip() for one in spoken(encoder, encoded)] == [
        "This:",
        f"here.{end}",
        f"yes{end}",
    ]


def test_learned_tokens_are_counted(encoder):
    one = encoder(said((0, "\nWhich?"), "left"), [5])
    assert one.num_supervised == int((one.labels != IGNORE).sum()) > 1
    two = encoder(said((0, "\nWhich?"), "left", "Which?", "left"), [5])
    assert two.num_supervised == 2 * one.num_supervised


def test_images_are_never_learned(encoder):
    encoded = encoder(said((0, "\nWhich?", 1), "left", (2, "And?"), "right", num_images=3), [7] * 3)
    assert not bool((encoded.labels == encoder.image_id).any())


def test_without_an_answer_there_is_nothing_to_learn(encoder):  # D29
    with pytest.raises(InputError, match=r"'c1' has no supervised token.*be an answer"):
        encoder(said((0, "\nIs this person male or female?")), [3])


def test_a_long_question_does_not_push_the_answer_out(encoder, end):  # D29 D31
    encoded = encoder(said((0, "\n" + "Look. " * 150), "male"), [16])
    assert spoken(encoder, encoded) == [f"male{end}"]


# ---------------------------------------------------------------- what is read


def test_a_conversation_looks_like_those_of_chatml(encoders):  # D28
    encoded = encoders["chatml"](said((0, "\nWhich?"), "left", "Sure?", "yes"), [1])
    assert written(encoders["chatml"], encoded) == (
        "<|im_start|>user\n<image>\nWhich?<|im_end|>\n<|im_start|>assistant\nleft<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


def test_a_conversation_looks_like_those_of_vicuna(encoders):  # D28
    encoded = encoders["vicuna"](said((0, "\nWhich?"), "left", "Sure?", "yes"), [1])
    assert written(encoders["vicuna"], encoded) == (
        "<s>USER: <image>\nWhich? ASSISTANT: left</s>USER: Sure? ASSISTANT: yes</s>"
    )


def documented(chat_format, talk):
    """Write a conversation as the makers of the models say.

    ChatML is that of Qwen; LLaVA-1.5 has Vicuna's: a space after a question, an end after an
    answer, the beginning of text before everything.
    """
    lines = []
    for turn in talk.turns:
        text = "".join("<image>" if isinstance(one, ImagePart) else one for one in turn.parts)
        if chat_format == "chatml":
            lines.append(f"<|im_start|>{turn.role}\n{text}<|im_end|>\n")
        else:
            lines.append(f"USER: {text} " if turn.role == "user" else f"ASSISTANT: {text}</s>")
    return "".join(lines) if chat_format == "chatml" else "<s>" + "".join(lines)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ["chatml", "vicuna"])
def test_a_conversation_looks_as_the_makers_of_the_model_say(encoders, name, talk):  # D28
    conversation = said(*TALKS[talk])
    text = written(encoders[name], encoders[name](conversation, [1]))
    assert text == documented(name, conversation)


@pytest.mark.parametrize(
    "own",
    [
        None,
        # like that of LLaVA-interleave's processor, without a word on what the assistant says
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}",
        "{% generation %}{{ messages }}{% endgeneration %}",
    ],
)
def test_the_tokenizer_s_own_template_is_never_used(encoder, own):  # D28
    talk = said(*TALKS["three turns"])
    expected = encoder(talk, [2])
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.chat_template = own
    other = TextEncoder(tokenizer, **{**arguments_of(encoder), "max_length": 2048})(talk, [2])
    assert torch.equal(other.input_ids, expected.input_ids)
    assert torch.equal(other.labels, expected.labels)


def test_role_and_text_are_not_glued(encoder):  # D28
    text = written(encoder, encoder(said((0, "Describe it."), "male"), [1]))
    assert "userDescribe" not in text
    assert "user<image>" not in text
    assert "assistantmale" not in text
    assert "ASSISTANT:male" not in text


def test_text_and_images_keep_their_order(encoder):  # D20
    conversation = said(("Before", 0, "between", 1, "after"), "left", num_images=2)
    encoded = encoder(conversation, [2, 3])
    text = written(encoder, encoded)
    pieces = ["Before", "<image>" * 2, "between", "<image>" * 3, "after", "left"]
    places = [text.index(piece) for piece in pieces]
    places[3] = text.index("<image>" * 3)
    assert places == sorted(places)
    assert text.count("<image>") == 5


def test_images_of_several_turns_stay_in_their_turns(encoder):  # D20
    conversation = said((0, "\nFirst?"), "left", ("Second?", 1), "right", num_images=2)
    text = written(encoder, encoder(conversation, [1, 2]))
    first, second = text.split("right")[0].split("left")
    assert first.count("<image>") == 1
    assert second.count("<image>") == 2
    assert second.index("Second?") < second.index("<image>")


@pytest.mark.parametrize("slots", [[1, 1], [2, 7], [30, 1]])
def test_an_image_holds_as_many_ids_as_it_has_tokens(encoder, slots):  # D13
    conversation = said((0, "and", 1, "?"), "left", num_images=2)
    ids = encoder(conversation, slots).input_ids
    is_image = (ids == encoder.image_id).long()
    edges = torch.nn.functional.pad(is_image, (1, 1)).diff()
    starts, ends = torch.nonzero(edges == 1).flatten(), torch.nonzero(edges == -1).flatten()
    assert (ends - starts).tolist() == slots


def v1(**more):
    return {
        "task_id": "c1",
        "subject_id": "s1",
        "modality_paths": {"fMRI": "s1/rest.nii.gz"},
        "conversations": [
            {"from": "human", "value": "<image_fMRI>\nIs this person male or female?"},
            {"from": "gpt", "value": "male"},
        ],
        **more,
    }


def test_an_alias_becomes_one_image_and_no_text(encoder, end):  # D26
    encoded = encoder(parse_conversation(v1(), "here"), [4])
    assert int((encoded.input_ids == encoder.image_id).sum()) == 4
    text = written(encoder, encoded)
    assert "fMRI" not in text.replace("<image>", "")
    assert spoken(encoder, encoded) == [f"male{end}"]


def test_every_format_gives_the_same_ids(encoder):  # D27
    v2 = {
        "task_id": "c1",
        "subject_ids": ["s1"],
        "images": [{"path": "s1/rest.nii.gz", "modality": "fMRI"}],
        "conversations": [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "text", "text": "\nIs this person male or female?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "male"}]},
        ],
    }
    v1b = {
        "task_id": "c1",
        "subject_ids": ["s1"],
        "images": [{"path": "s1/rest.nii.gz", "modality": "fMRI"}],
        "conversation": [
            {"role": "user", "content": "<image>\nIs this person male or female?"},
            {"role": "assistant", "content": "male"},
        ],
    }
    encoded = [encoder(parse_conversation(record, "here"), [4]) for record in (v1(), v2, v1b)]
    for other in encoded[1:]:
        assert torch.equal(other.input_ids, encoded[0].input_ids)
        assert torch.equal(other.labels, encoded[0].labels)
    assert "Is this person male or female?" in written(encoder, encoded[0])


def test_two_subjects_are_an_ordinary_conversation(encoder, end):  # D30
    record = v1(
        subject_id=["s1", "s2"],
        modality_paths={"T1": ["s1/T1.nii.gz", "s2/T1.nii.gz"]},
        conversations=[
            {"from": "human", "value": "<sub1-image>\nThe first person, male."},
            {"from": "gpt", "value": "I see."},
            {"from": "human", "value": "<sub2-image>\nThe same sex?"},
            {"from": "gpt", "value": "no"},
        ],
    )
    encoded = encoder(parse_conversation(record, "here"), [2, 3])
    assert spoken(encoder, encoded) == [f"I see.{end}", f"no{end}"]
    assert int((encoded.input_ids == encoder.image_id).sum()) == 5


def test_metadata_is_never_read(encoder):  # D37
    record = v1(metadata={"sex": "F", "age": 61, "Dx": "ASD-7"})
    plain = encoder(parse_conversation(v1(), "here"), [4])
    assert torch.equal(encoder(parse_conversation(record, "here"), [4]).input_ids, plain.input_ids)


# ---------------------------------------------------------------- what is too long

LONG = [
    (0, "\nThe first head, of a man."),
    "I see.",
    "Is it large?",
    "no",
    ("And this", 1, "\none?"),
    "Seen.",
    "Small?",
    "yes",
    ("The last: ", 2, "\nWhich side?"),
    "on the left side",
]
SLOTS = [7, 3, 5]
# What is said, from the whole to what may not be shortened: a number is an image.
SHORTER = [
    LONG,
    LONG[:2] + LONG[4:],
    LONG[:2] + LONG[4:6] + LONG[8:],
    [(0, "And this", 1, "\none?"), "Seen.", *LONG[8:]],
    [(0, 1, "The last: ", 2, "\nWhich side?"), "on the left side"],
]


def pictures(encoder, encoded):
    """Return the length of each stretch of image ids, touching ones as one."""
    edges = torch.nn.functional.pad((encoded.input_ids == encoder.image_id).long(), (1, 1)).diff()
    return (torch.nonzero(edges == -1) - torch.nonzero(edges == 1)).flatten().tolist()


@pytest.mark.parametrize("step", range(len(SHORTER)))
def test_the_oldest_text_is_left_out_until_the_rest_fits(encoder, step):  # D29 D31
    expected = encoder(said(*SHORTER[step], num_images=3), SLOTS)
    lengths = [len(encoder(said(*one, num_images=3), SLOTS).input_ids) for one in SHORTER]
    assert lengths == sorted(lengths, reverse=True)
    longest = lengths[step - 1] - 1 if step else lengths[0]
    for max_length in {lengths[step], longest}:
        encoded = narrowed(encoder, max_length)(said(*LONG, num_images=3), SLOTS)
        assert torch.equal(encoded.input_ids, expected.input_ids)
        assert torch.equal(encoded.labels, expected.labels)
        assert encoded.is_truncated == (step > 0)
        assert not expected.is_truncated


@pytest.mark.parametrize("system", [False, True])
def test_images_and_the_last_answer_survive_any_limit(encoder, end, system):  # D29 D31
    talk = said(*LONG, num_images=3)
    if system:
        talk = replace(talk, turns=(Turn("system", ("Be brief.",)), *talk.turns))
    whole = len(encoder(talk, SLOTS).input_ids)
    least = encoder.least_text(talk) + sum(SLOTS)
    seen = set()
    for max_length in range(least, whole + 1):
        encoded = narrowed(encoder, max_length)(talk, SLOTS)
        assert len(encoded.input_ids) <= max_length
        assert sum(pictures(encoder, encoded)) == sum(SLOTS)
        assert spoken(encoder, encoded)[-1] == f"on the left side{end}"
        # Pieces put a space after a special token.
        text = written(encoder, encoded).replace(" ", "")
        assert "Thelast:" + "<image>" * 5 + "\nWhichside?" in text
        assert ("Bebrief." in text) == system
        seen.add(len(encoded.input_ids))
    assert len(seen) == len(SHORTER)
    message = rf"has {least} tokens without its earlier text, 15 of them .*Raise it to {least},"
    with pytest.raises(InputError, match=message):
        narrowed(encoder, least - 1)(talk, SLOTS)


def test_an_answer_never_outlives_its_question(encoder, end):
    whole = len(encoder(said(*LONG, num_images=3), SLOTS).input_ids)
    for max_length in range(whole - 1, encoder.least_text(said(*LONG, num_images=3)) + 15, -1):
        encoded = narrowed(encoder, max_length)(said(*LONG, num_images=3), SLOTS)
        text = written(encoder, encoded)
        for asked, answer in (("of a man.", "I see."), ("large?", "no"), ("one?", "Seen.")):
            assert (asked in text) == (f"{answer}{end}" in spoken(encoder, encoded))


def test_an_image_in_an_earlier_answer_is_kept_too(encoder):
    talk = said("Show one.", ("Here: ", 0), ("And", 1, "?"), "left", num_images=2)
    least = encoder.least_text(talk) + 4
    encoded = narrowed(encoder, least)(talk, [1, 3])
    assert len(encoded.input_ids) == least
    text = written(encoder, encoded).replace(" ", "")
    assert "<image>And" + "<image>" * 3 + "?" in text
    assert "Here" not in text


def test_nothing_is_left_out_where_that_is_not_allowed(encoder):
    talk = said(*LONG, num_images=3)
    whole = len(encoder(talk, SLOTS).input_ids)
    assert not narrowed(encoder, whole, truncate=False)(talk, SLOTS).is_truncated
    with pytest.raises(InputError, match=rf"has {whole} tokens, 15 .*Raise it to {whole},"):
        narrowed(encoder, whole - 1, truncate=False)(talk, SLOTS)
    assert narrowed(encoder, 9, truncate=False).least_text(talk) == whole - sum(SLOTS)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("who", [0, 1])
def test_text_that_holds_an_image_token_is_an_error(encoder, who):  # D29
    turns = [(0, "\nWhich?"), "left"]
    turns[who] = (0, "\nWhich <image>?") if who == 0 else "the <image> shows left"
    with pytest.raises(InputError, match=r"'c1' has 1 images and its text holds 2 image tokens"):
        encoder(said(*turns), [3])


def test_an_image_without_a_place_is_an_error(encoder):
    with pytest.raises(InputError, match="has 2 images and its text holds 1"):
        encoder(said((0, "\nWhich?"), "left", num_images=2), [3, 3])


def test_the_limit_counts_image_tokens_and_names_what_is_needed(encoder):  # D31
    conversation = said((0, "\nWhich?"), "left")
    needed = len(encoder(conversation, [40]).input_ids)
    narrow = narrowed(encoder, needed)
    assert len(narrow(conversation, [40]).input_ids) == needed
    with pytest.raises(
        InputError, match=rf"'c1' has {needed + 1} tokens, 41 .*Raise it to {needed + 1}"
    ):
        narrow(conversation, [41])


def test_an_unknown_format_and_a_wrong_tokenizer_are_errors(encoder):
    arguments = {"image_token": "<image>", "max_length": 64}
    with pytest.raises(InputError, match=r"one of chatml, vicuna; got 'alpaca'"):
        TextEncoder(encoder.tokenizer, chat_format="alpaca", **arguments)
    with pytest.raises(InputError, match="no token '<volume>'"):
        TextEncoder(encoder.tokenizer, chat_format="chatml", image_token="<volume>", max_length=64)


def test_a_format_whose_end_of_a_turn_the_tokenizer_does_not_know_is_an_error(encoders):
    arguments = {"chat_format": "chatml", "image_token": "<image>", "max_length": 64}
    own = encoders["chatml"].tokenizer
    assert TextEncoder(own, **arguments).end_id == own.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(InputError, match=r"chat_format=chatml ends a turn.*chatml or vicuna"):
        TextEncoder(encoders["vicuna"].tokenizer, **arguments)


# ---------------------------------------------------------------- what comes back


def test_what_was_said_comes_back_as_words(encoder):
    encoded = encoder(said((0, "\nWhich?"), "on the left side"), [3])
    assert encoder.decode(encoded.labels[encoded.labels != IGNORE]) == "on the left side"


def test_the_end_is_what_stops_an_answer(encoder, end):
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.end_id) == end


def test_the_filling_is_no_image_and_no_answer(encoder):
    assert encoder.pad_id not in (encoder.image_id, encoder.end_id)


def test_a_template_takes_plain_text_and_asks_for_an_answer(encoder):
    """As anybody uses it who loads an exported model."""
    plain = [{"role": "user", "content": "Which side?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Which side?"}]}]
    answer = {"role": "assistant", "content": "left"}

    def apply(messages, **settings):
        return encoder.tokenizer.apply_chat_template(
            messages, chat_template=encoder.template, tokenize=False, **settings
        )

    assert apply(plain) == apply(parts)
    asked = apply(plain, add_generation_prompt=True)
    assert apply([*plain, answer]).startswith(asked)
    assert apply([*plain, answer])[len(asked) :].lstrip().startswith("left")
    assert "Which side?" in asked
