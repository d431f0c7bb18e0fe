"""Conversations about brain images: three file formats in, one type out.

* v1: ``conversations`` of ``{from, value}``, ``modality_paths``; ``subject_id`` and paths may be
  lists.
* v1b: ``conversation`` of ``{role, content}`` with text contents, ``images``.
* v2: ``conversations`` of ``{role, content}`` with lists of text and image items, ``images``.

In the text of any of them ``<image>`` is the next unused image, ``<image_fMRI>`` the next unused
one of that modality, and ``<sub2-image>`` that of the second subject.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, TypeAlias

from neuro.errors import InputError

KINDS = ("single", "multimodal", "comparison")  # T1, T2 and T3 of the old task types
_MODALITY_NAMES = {
    **dict.fromkeys(("t1", "t1w", "smri"), "T1"),
    **dict.fromkeys(("rsfmri", "fmri", "bold", "rest"), "rsfMRI"),
    **dict.fromkeys(("dmri", "dwi", "fa"), "dMRI"),
    **dict.fromkeys(("mri", "mr"), "mri"),  # a clinical series of any sequence, on its own grid
    "ct": "ct",
}
# Looked for in keys of v1 in this order: 'fMRI_on_T1' is an fMRI.
_KEY_SUBSTRINGS = ("fmri", "dmri", "smri", "t1")
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant"), "assistant"),
    "system": "system",
}
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_PATTERNS = ("*.json", "*.jsonl", "*/*.json", "*/*.jsonl")
_ALIAS = re.compile(r"(<image(?:[_-][^<>\s]+)?>|<sub[0-9]+-image>)", re.IGNORECASE)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a sign beyond 16 bits, or both halves
_FORMATS = {  # the keys of the turns, the images, and in a turn the speaker and the content
    "v1": ("conversations", "modality_paths", "from", "value"),
    "v1b": ("conversation", "images", "role", "content"),
    "v2": ("conversations", "images", "role", "content"),
}


@dataclass(frozen=True)
class ImagePart:
    """The place of an image in a turn; ``index`` is its position in ``Conversation.images``."""

    index: int


Part: TypeAlias = str | ImagePart


@dataclass(frozen=True)
class Turn:
    """What ``system``, ``user`` or ``assistant`` says: text as written and images, in order."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image file with its canonical modality; the path as written."""

    path: str
    modality: str
    subject: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Questions and answers about the images of one or several subjects.

    Attributes:
        id: Unique among the conversations that are read together.
        task: Name of the question, free text; may be empty.
        turns: User and assistant in alternation, after an optional system turn; the assistant
            speaks last.
        images: Every image; each is the target of exactly one ``ImagePart``.
        split: ``train``, ``val``, ``test``, or ``None`` where the file does not say.
        metadata: Anything else known about the sample. It holds labels, so it never enters a
            prompt.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...]
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def images_in_text(self) -> tuple[Image, ...]:
        """Return the images in the order of their slots in the text."""
        slots = [part for turn in self.turns for part in turn.parts if isinstance(part, ImagePart)]
        return tuple(self.images[slot.index] for slot in slots)

    @property
    def kind(self) -> str:
        """``comparison`` of subjects, ``multimodal`` (images of one subject) or ``single``."""
        if len({image.subject for image in self.images}) > 1:
            return "comparison"
        return "multimodal" if len(self.images) > 1 else "single"


def read_conversations(path: Path) -> tuple[Conversation, ...]:
    """Read a ``.json`` or ``.jsonl`` file, or those of a folder and its direct subfolders, sorted.

    Raises:
        InputError: If anything is unreadable, malformed or there twice, or if there is nothing.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in _PATTERNS for file in path.glob(pattern))
    conversations, places = [], {}
    for where, value in (pair for file in files for pair in _decode(file).items()):
        record = _expect(value, Mapping, f"{where}: a conversation")
        conversation = parse_conversation(record, where)
        first = places.setdefault(conversation.id, where)
        if first != where:
            rule = f"task_id {conversation.id!r} must be unique, but it is already used at {first}"
            raise InputError(f"{where}: {rule}. Rename it, or read the files of one split only.")
        conversations.append(conversation)
    if not conversations:
        raise InputError(
            f"{path}: no conversation in {len(files)} .json or .jsonl file(s). Add one."
        )
    return tuple(conversations)


def parse_conversation(record: Mapping[str, Any], where: str) -> Conversation:
    """Turn one JSON object of any of the three formats into a conversation.

    Raises:
        InputError: If a rule is broken; the message starts with ``where``: file, line or item.
    """
    fitting = [keys for keys in _FORMATS.values() if set(keys[:2]) <= record.keys()]
    if len(fitting) != 1:
        known = ", ".join(f"{name} ({keys[0]} + {keys[1]})" for name, keys in _FORMATS.items())
        rule = f"unknown format; an object must have the keys of exactly one of {known}"
        got = " ".join(", ".join(record).split()) or "no keys"
        raise InputError(f"{where}: {rule}; got {got}. Rename or add keys.")
    images = _read_images(record, where)
    metadata = _expect(record.get("metadata") or {}, Mapping, f"{where}: metadata")
    split = record.get("split")
    return Conversation(
        id=_expect(record.get("task_id"), str, f"{where}: task_id"),
        task=_task(metadata.get("task") or record.get("task_type") or "", where),
        turns=tuple(_read_turns(record, fitting[0], images, where)),
        images=images,
        split=None if split is None else _look_up(split, _SPLITS, f"{where}: split"),
        metadata=dict(metadata),
    )


def _task(name: Any, where: str) -> str:
    """Return the name of a question, which some files give as a number."""
    if not isinstance(name, str | int | float):
        raise InputError(f"{where}: the task must be a name; got {shorten(name)}. Correct it.")
    return str(name)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write a v2 ``.json`` that ``read_conversations`` reads back unchanged; all or nothing."""
    text = json.dumps([*map(_to_v2, conversations)], indent=1, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_v2(conversation: Conversation) -> dict[str, Any]:
    images, turns = conversation.images, conversation.turns
    slots = [{"modality": i.modality, "image_path": i.path, "subject": i.subject} for i in images]

    def item(part: Part) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image", **slots[part.index]}

    return {
        "task_id": conversation.id,
        "task_type": conversation.task,
        **({"split": conversation.split} if conversation.split else {}),
        "subject_ids": [image.subject for image in images],
        "modalities": [image.modality for image in images],
        "images": [
            {"path": image.path, "token": "<image>", "modality": image.modality} for image in images
        ],
        "conversations": [
            {"role": turn.role, "content": [*map(item, turn.parts)]} for turn in turns
        ],
        "metadata": conversation.metadata,
    }


def _decode(file: Path) -> dict[str, Any]:
    """Return every JSON value of one file by its place."""
    found, line = {}, 1
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix != ".jsonl":
            values = _as_list(json.loads(text))
            found = {
                f"{file} line {line} (item {number})": value
                for number, (line, value) in enumerate(
                    zip(_item_lines(text), values, strict=True), 1
                )
            }
            return _without_half_signs(text, found)
        # splitlines() would cut at U+2028 inside a text.
        for line, row in enumerate(text.split("\n"), 1):
            if row.strip():
                found[f"{file} line {line}"] = json.loads(row)
    except json.JSONDecodeError as error:
        where = f"{file} line {line + error.lineno - 1}"
        raise InputError(
            f"{where}: not valid JSON: {error.msg}, column {error.colno}. Fix it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: cannot be read as text: {error}. Check the path and the file."
        ) from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # deeper, or with a longer number, than Python has
        where = f"{file} line {line}" if file.suffix == ".jsonl" else str(file)
        raise InputError(
            f"{where}: cannot be read: {error}. No conversation is so. Fix it."
        ) from error
    return _without_half_signs(text, found)


def _without_half_signs(text: str, found: dict[str, Any]) -> dict[str, Any]:
    """Check that JSON values are text that can be written again, and return them."""
    if _SURROGATE.search(text):
        for where, value in found.items():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{where}: half of a surrogate pair (\\ud800) is no text. Remove it."
                ) from error
    return found


def _item_lines(text: str) -> list[int]:
    """Return the line on which each item of a JSON list begins; one line if it is no list."""
    skip, decoder = re.compile(r"[\s,]*"), json.JSONDecoder()
    place = re.compile(r"\s*").match(text).end()  # pyright: ignore[reportOptionalMemberAccess]
    if text[place] != "[":
        return [text.count("\n", 0, place) + 1]
    lines, line, counted, place = [], 1, 0, place + 1
    while True:
        place = skip.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]
        if text[place] == "]":
            return lines
        line, counted = line + text.count("\n", counted, place), place
        lines.append(line)
        _, place = decoder.raw_decode(text, place)


def _expect(value: Any, kind: type, what: str) -> Any:
    """Return a ``str`` (not blank; a whole number becomes text), ``list`` or ``Mapping``."""
    value = str(value) if kind is str and type(value) is int else value
    if not isinstance(value, kind) or (kind is str and not value.strip()):
        rule = {str: "a non-empty text", list: "a list", Mapping: "a JSON object"}[kind]
        got = "nothing, it is missing" if value is None else shorten(value)
        raise InputError(f"{what} must be {rule}; got {got}. Add or correct it.")
    return value


def _look_up(name: Any, table: Mapping[str, str], what: str) -> str:
    lower = _expect(name, str, what).strip().lower()
    if lower not in table:
        raise InputError(
            f"{what}: {name!r} is unknown; known are {', '.join(table)} (any case). Rename it."
        )
    return table[lower]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_images(record: Mapping[str, Any], where: str) -> tuple[Image, ...]:
    """Read the images; those of v1 are all modalities of one subject, then those of the next."""
    subjects = _as_list(record.get("subject_ids", record.get("subject_id")))
    if "modality_paths" in record:
        columns = []
        paths = _expect(record["modality_paths"], Mapping, f"{where}: modality_paths")
        for key, value in paths.items():
            name = next((part for part in _KEY_SUBSTRINGS if part in key.lower()), key)
            columns.append([{"path": path, "modality": name} for path in _as_list(value)])
            if len(columns[-1]) != len(subjects):
                rule = f"modality_paths.{key} must hold one path per subject ({len(subjects)})"
                raise InputError(f"{where}: {rule}; got {len(columns[-1])}. Make them match.")
        entries = [entry for row in zip(*columns, strict=True) for entry in row]
        subjects = [subject for subject in subjects for _ in columns]
    else:
        entries = _expect(record["images"], list, f"{where}: images")
        subjects = subjects * len(entries) if len(subjects) == 1 else subjects
    if not entries or len(subjects) != len(entries):
        got = f"{len(entries)} images and {len(subjects)} subject ids"
        raise InputError(
            f"{where}: there must be images, and one id for all or each; got {got}. Add them."
        )
    images = []
    for number, (subject, entry) in enumerate(zip(subjects, entries, strict=True)):
        what = f"{where}: images[{number}]"
        path = _expect(_expect(entry, Mapping, what).get("path"), str, f"{what}.path")
        modality = entry.get("modality") or _modality_of(entry.get("token"))
        modality = _look_up(modality, _MODALITY_NAMES, f"{what}.modality")
        subject = _expect(subject, str, f"{what} subject")
        images.append(Image(path=path, modality=modality, subject=subject))
    for number, (entry, image) in enumerate(zip(entries, images, strict=True)):
        token = entry.get("token")
        if isinstance(token, str) and _ALIAS.fullmatch(token):
            what = f"{where}: images[{number}].token"
            if not _wanted(token, images, what).items() <= vars(image).items():
                rule = f"must agree with its image, {image.modality} of {image.subject}"
                raise InputError(f"{what} {rule}; got {token!r}. Correct one of them.")
    found = [image.modality for image in images]
    listed = found if record.get("modalities") is None else _as_list(record["modalities"])
    if [_look_up(name, _MODALITY_NAMES, f"{where}: modalities") for name in listed] != found:
        raise InputError(
            f"{where}: modalities must be those of the images, {found}; got {listed}. Fix it."
        )
    return tuple(images)


def _read_turns(
    record: Mapping, keys: Sequence[str], images: Sequence[Image], where: str
) -> list[Turn]:
    turns_key, _, role_key, content_key = keys
    turns, unused = [], list(range(len(images)))  # each slot uses up one image
    for number, item in enumerate(_expect(record[turns_key], list, f"{where}: {turns_key}")):
        what = f"{where}: {turns_key}[{number}]"
        role = _look_up(_expect(item, Mapping, what).get(role_key), _ROLES, f"{what}.{role_key}")
        what, content = f"{what}.{content_key}", _as_list(item.get(content_key))
        parts = [part for piece in content for part in _read_parts(piece, images, unused, what)]
        turns.append(Turn(role, tuple(parts)))
        may_be_silent = role == "user" and any(isinstance(part, ImagePart) for part in parts)
        if not turns[-1].text.strip() and not may_be_silent:
            raise InputError(f"{what} has empty text; a turn must say something. Fill or drop it.")
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise InputError(
            f"{where}: roles must alternate user, assistant (after an optional system turn) and "
            f"end with assistant; got {', '.join(roles) or 'no turn'}. Add, merge or drop turns."
        )
    if any(isinstance(part, ImagePart) for part in turns[-1].parts):
        raise InputError(
            f"{where}: the last answer must be text, which is what a model says; got an image in "
            f"it. Put the image into the question."
        )
    if unused:
        got = f"{len(images) - len(unused)} slot(s) for {len(images)} image(s)"
        raise InputError(
            f"{where}: every image needs a slot; got {got}. Put <image> where it belongs."
        )
    return turns


def _read_parts(item: Any, images: Sequence[Image], unused: list[int], what: str) -> Iterator[Part]:
    """Yield texts and slots of a content item, in order; a slot uses up the first fitting image."""
    item = item if isinstance(item, Mapping) else {"type": "text", "text": item}
    text = item.get("text") if item.get("type") == "text" else None
    if item.get("type") != "image" and not isinstance(text, str):
        raise InputError(
            f"{what} must be text, or text and image items; got {shorten(item)}. Correct it."
        )
    pieces: list[Any] = _ALIAS.split(text) if isinstance(text, str) else ["", item]
    for position, piece in enumerate(pieces):
        if position % 2:  # the split alternates text and alias
            wanted = _wanted(piece, images, what)
            index = next((i for i in unused if wanted.items() <= vars(images[i]).items()), None)
            if index is None:
                got = f"{shorten(piece)}, but none is left of {len(images)} image(s)"
                raise InputError(
                    f"{what}: a slot needs an unused image that fits; got {got}. Add it."
                )
            unused.remove(index)
            yield ImagePart(index)
        elif piece:
            yield piece


def _wanted(slot: str | Mapping[str, Any], images: Sequence[Image], what: str) -> dict[str, str]:
    """Return what an alias or an image item says about its image, as attributes of ``Image``."""
    if isinstance(slot, str) and slot[:4].lower() == "<sub":
        people = enumerate(dict.fromkeys(image.subject for image in images), 1)
        numbers = {str(number): subject for number, subject in people}
        return {"subject": numbers.get(slot[4:-7].lstrip("0"), "")}
    said = {"modality": _modality_of(slot)} if isinstance(slot, str) else slot
    wanted = {"path": said.get("image_path"), "subject": said.get("subject")}
    if said.get("modality"):
        wanted["modality"] = _look_up(said["modality"], _MODALITY_NAMES, f"{what} modality")
    return {name: value for name, value in wanted.items() if value}


def _modality_of(token: Any) -> str | None:
    """Return what ``<image_fMRI>`` names; ``<image>`` and subjects name no modality."""
    return token[7:-1] if isinstance(token, str) and token[:6].lower() == "<image" else None
