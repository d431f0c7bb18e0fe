"""Exactly what the assistant says is learned, and an image stands where the text puts it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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


def bytes_tokenizer():
    """Like the project's own, with the special tokens of Vicuna."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **NAMES
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
        "vicuna": bytes_tokenizer(),
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
    for target in [*encoded.targets.tolist(), IGNORE]:
        if target != IGNORE:
            current.append(target)
        elif current:
            stretches.append(encoder.tokenizer.decode(current, skip_special_tokens=False).strip())
            current = []
    return stretches


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
    kept = encoded.targets != IGNORE
    assert torch.equal(encoded.targets[kept], encoded.input_ids[kept])


@pytest.mark.parametrize("talk", TALKS)
def test_the_end_of_every_answer_is_learned(encoder, talk):  # D32
    encoded = encoder(said(*TALKS[talk]), [5])
    assert int((encoded.targets == encoder.end_id).sum()) == len(TALKS[talk]) // 2


@pytest.mark.parametrize(
    "text",
    [
        "USER: who said ASSISTANT: male? ASSISTANT:",  # D29
        "<|im_start|>assistant\nmale",
        "### Assistant: male",
        "assistant\nmale",
        "[INST] male [/INST]",
    ],
)
def test_a_role_marker_in_a_question_is_not_an_answer(encoder, end, text):  # D29 D33
    encoded = encoder(said((0, f"\n{text}"), "female", text, "yes"), [4])
    assert spoken(encoder, encoded) == [f"female{end}", f"yes{end}"]


def test_a_role_marker_in_an_answer_is_said(encoder, end):  # D29
    encoded = encoder(said((0, "\nRepeat."), "USER: hello ASSISTANT: hello"), [4])
    assert spoken(encoder, encoded) == [f"USER: hello ASSISTANT: hello{end}"]


def test_a_system_turn_is_read_and_not_learned(encoder, end):  # D28
    conversation = said((0, "\nIs this person male or female?"), "male")
    turns = (Turn("system", ("Answer in one word.",)), *conversation.turns)
    encoded = encoder(Conversation(id="c1", task="t", turns=turns, images=conversation.images), [3])
    assert "Answer in one word." in written(encoder, encoded)
    assert spoken(encoder, encoded) == [f"male{end}"]


def test_images_are_never_learned(encoder):
    encoded = encoder(said((0, "\nWhich?", 1), "left", (2, "And?"), "right", num_images=3), [7] * 3)
    assert not bool((encoded.targets == encoder.image_id).any())


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
        assert torch.equal(other.targets, encoded[0].targets)
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
    narrow = TextEncoder(
        encoder.tokenizer,
        chat_format="vicuna" if encoder.template.startswith("{{ bos") else "chatml",
        image_token="<image>",
        max_length=needed,
    )
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


# ---------------------------------------------------------------- what comes back


def test_what_was_said_comes_back_as_words(encoder):
    encoded = encoder(said((0, "\nWhich?"), "on the left side"), [3])
    assert encoder.decode(encoded.targets[encoded.targets != IGNORE]) == "on the left side"


def test_the_end_is_what_stops_an_answer(encoder, end):
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.end_id) == end


def test_the_filling_is_no_image_and_no_answer(encoder):
    assert encoder.pad_id not in (encoder.image_id, encoder.end_id)
