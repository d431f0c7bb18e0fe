"""Words of the command line that Hydra cannot read or does not know, and what to type instead."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuro.errors import InputError

PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout has it beside.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# What stands in a value, or in the name of a mapping, without quotes.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_/\-+.$%*@?|\\]+")
ESCAPED = re.compile(r"([()\[\]{}:=, ])")


# What says where the config is.
PLACES = {"-cd": "--config-dir", "-cn": "--config-name", "-cp": "--config-path"}
TAKES_A_VALUE = ("--cfg", "-c", "--package", "-p", *PLACES, *PLACES.values())


def program() -> list[str]:
    """Return what Python was told to run: a file, or -m and a module.

    Within submitit, runpy puts the job in the place of the main module that there was.
    """
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def given() -> list[str]:
    """Return the key=value words of the command line."""
    words = sys.argv[1:]
    values = {place + 1 for place, word in enumerate(words) if word in TAKES_A_VALUE}
    return [
        word for place, word in enumerate(words) if not word.startswith("-") and place not in values
    ]


def split_places(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what says where the config is, each as one word, and the other words.

    Hydra takes these only before the first key=value.
    """
    places: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, _ = word.partition("=")
        if name in PLACES or name in PLACES.values():
            places.append(word if equals else f"{name}={next(left, '')}")
        else:
            others.append(word)
    return places, others


def written(text: str) -> str:
    """Return the value of a word that Hydra reads as this text: in quotes, where it needs them."""
    read = _parsed(f"key={text}")
    is_plain = read is not None and not read.is_sweep_override() and read.value() == text
    return text if is_plain else _quoted(text)


def unreadable(words: Sequence[str]) -> str | None:
    """Return what is wrong with the first word that Hydra cannot read, and how to write it.

    Args:
        words: The key=value words.

    Returns:
        One line; None if every word can be read.
    """
    for index, word in enumerate(words):
        if _parsed(word) is not None:
            continue
        key, equals, _ = word.partition("=")
        if not equals:
            joined = _readable(f"{words[index - 1]} {word}") if index else None
            cure = f"If it belongs to the word before it, write {_shell(joined)}" if joined else ""
            return f"{word!r} is not of the form key=value. {cure or 'Write key=value'}."
        if _parsed(f"{key}=1") is None:
            return (
                f"{key!r} is not a key: keys are names joined by dots, of letters, digits, "
                f"- and _. See `python train.py --cfg job` for the keys there are."
            )
        cure = _readable(word)
        if cure is not None:
            return (
                f"{word} cannot be read: a value with other signs than plain letters, digits and "
                f"/ - + . _ $ % * @ ? | must be quoted. Write {_shell(cure)}"
            )
        return (
            f"{word} cannot be read. Put the value in quotes, and the whole word in others for the "
            f'shell, like \'key="value"\', \'key=["one","two"]\'; names of a mapping cannot be '
            f"quoted, they are of letters without accents."
        )
    return None


def ambiguous(words: Sequence[str]) -> str | None:
    """Return how to write the first word that means several runs; None if there is none."""
    for word in words:
        override = _parsed(word)
        if override is not None and override.is_sweep_override():
            key, _, value = word.partition("=")
            text = _readable(word)
            ways = [f"for a text {_shell(text)}"] if text else []
            if _parsed(f"{key}=[{value}]") is not None:
                ways.append(f"for a list {_shell(f'{key}=[{value}]')}")
            return f"{word!r} means several runs. Write {', '.join(ways)}; or add -m for the runs."
    return None


def unknown(key: str, words: Sequence[str], config_name: str) -> str:
    """Return that there is no such key, and which one may be meant.

    Args:
        key: What was typed, dotted.
        words: The whole command line; its groups decide which keys there are.
        config_name: The command's config.
    """
    values = _known_values(words, config_name)
    known = [*values]
    word = next((word for word in words if word.startswith(f"{key}=")), f"{key}=...")
    if key in known:  # then something below it is new
        return f"{key} has no such name yet. To add one, write {_shell('+' + word)}"
    above = key.rpartition(".")[0]
    if values.get(above, "") is None:
        return f"{above} is null, and has no {key[len(above) + 1 :]}. Write {_shell('+' + word)}"
    near = _near(key, known)
    options = _options_with(key)
    if options:
        cure = "add one of them" if len(options) > 1 else "add that"
        hint = f"It is a key of {' and of '.join(options)}: {cure}."
    elif near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    elif f"{key.rpartition('.')[0]}._target_" in known:
        hint = f"If its _target_ takes it, add it with a plus: +{key}=..."
    else:
        hint = "See `python train.py --cfg job` for the keys there are."
    return f"there is no config key {key!r}. {hint}"


def no_option(group: str, name: str, options: Sequence[str], words: Sequence[str] = ()) -> str:
    """Return that a group has no such file, and which ones it has.

    Args:
        group: A folder of ``conf/``.
        name: What was taken for one of its files.
        options: Its files.
        words: The command line, where the group may stand with a place: ``recipe@data.recipes.T1``.
    """
    choices = [one for one in options if one != "base"]  # a part of the others
    near = difflib.get_close_matches(name, choices, n=1)
    pairs = [word.partition("=") for word in words]
    typed = (
        key for key, _, value in pairs if value == name and key.lstrip("+").split("@")[0] == group
    )
    key = next(typed, group)
    hint = f"Did you mean {key}={near[0]}?" if near else "Take one of them."
    return f"there is no {key}={name}; there is {', '.join(choices)}. {hint}"


def no_name_of_an_option(words: Sequence[str]) -> str | None:
    """Return what is wrong with the first word that gives a group a number or the like."""
    for word in words:
        override = _parsed(word)
        folder = CONF / (override.key_or_group if override else "")
        if override is None or not folder.is_dir() or isinstance(override.value(), str | list):
            continue
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        return no_option(override.key_or_group, word.partition("=")[2], options, words)
    return None


def added_twice(group: str, words: Sequence[str]) -> str | None:
    """Return how to choose from a group that has a choice already; None if no word adds one."""
    word = next((word for word in words if word.startswith(f"+{group}=")), None)
    if word is None:
        return None
    return f"{word} adds a choice to {group}, which has one. Write {_shell(word[1:])} to change it"


def recipe_of(modality: str, key: str) -> str | None:
    """Return the word that gives a modality its usual recipe, if that has a key."""
    for entry in OmegaConf.load(CONF / "data" / "base.yaml").defaults:
        if not isinstance(entry, str) and f"/recipe@recipes.{modality}" in entry:
            name = entry[f"/recipe@recipes.{modality}"]
            if key in [*OmegaConf.load(CONF / "recipe" / f"{name}.yaml")]:
                return f"recipe@data.recipes.{modality}={name}"
    return None


def _near(key: str, known: Sequence[str]) -> list[str]:
    """Return up to two keys that end alike, or else are spelled alike."""
    last = key.rpartition(".")[2]

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, key, other).ratio()

    same = sorted(
        (one for one in known if one.rpartition(".")[2] == last), key=likeness, reverse=True
    )
    if same:
        return [one for one in same[:2] if likeness(one) > 0.8 * likeness(same[0])]
    return (
        difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        or [
            one
            for name in difflib.get_close_matches(
                last, {one.rpartition(".")[2] for one in known}, n=1, cutoff=0.75
            )
            for one in known
            if one.rpartition(".")[2] == name
        ][:1]
    )


def composed(words: Sequence[str], config_name: str) -> Any:
    """Return a config of some words, as it is without them where they do not fit it."""
    try:
        return composed_here(words, config_name)
    except (HydraException, OmegaConfBaseException):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(config_name)


def composed_here(words: Sequence[str], config_name: str) -> Any:
    """Return a config of some words, from where the command line says that it is.

    Raises:
        InputError: There is no such folder.
    """
    pairs = (one.partition("=") for one in split_places(sys.argv[1:])[0])
    said = {PLACES.get(name, name): value for name, _, value in pairs}
    more = []
    if folder := said.get("--config-dir"):
        if not Path(folder).is_dir():
            raise InputError(f"--config-dir={folder}: there is no such folder. Correct its path.")
        more = [f"hydra.searchpath=[{_quoted(f'file://{Path(folder).absolute()}')}]"]
    # As Hydra reads it, seen from the module that names conf/.
    conf = PACKAGE / said.get("--config-path", str(CONF))
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(said.get("--config-name", config_name), overrides=[*words, *more])


def _known_values(words: Sequence[str], config_name: str) -> dict[str, Any]:
    """Return the keys that the chosen groups bring with their values, and the groups."""
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    chosen = [
        word
        for word in words
        if (override := _parsed(word)) is not None
        and override.type is OverrideType.CHANGE
        and override.key_or_group in groups
    ]
    plain = OmegaConf.to_container(composed(chosen, config_name), resolve=False)
    return {**dict(_dotted(plain)), **dict.fromkeys(groups, "")}


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}", value
            yield from _dotted(value, f"{prefix}{key}.")


def _options_with(key: str) -> list[str]:
    """Return the options whose file sets a key, like data=manifest, splits@data.splits=listed."""
    *parts, name = key.split(".")
    group, place = parts[-1] if parts else "", ".".join(parts)
    choice = group if place == group else f"{group}@{place}"
    return [
        f"{choice}={path.stem}"
        for path in sorted((CONF / group).glob("*.yaml"))
        if parts and name in [*OmegaConf.load(path)]  # "in" does not find ???
    ]


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _shell(word: str) -> str:
    return shlex.quote(word)


def _readable(word: str) -> str | None:
    """Return key=value with quotes where they are needed; None if that does not help."""
    key, _, value = word.partition("=")
    if value[:1] in ('"', "'"):  # quoted already, and still not readable
        return None
    written = f"{key}={_requoted(value.strip()) or _quoted(value)}"
    return written if _parsed(written) else None


def _quoted(value: str) -> str:
    """Return a text in quotes; a backslash before a quote would take it with it."""
    quote = '"' if '"' not in value else "'"
    doubled = re.sub(rf"(\\+)({quote}|\Z)", r"\1\1\2", value)
    return quote + doubled.replace(quote, f"\\{quote}") + quote


def _requoted(value: str) -> str | None:
    """Return a list or a mapping with its elements quoted where needed; None for anything else."""
    if value[:1] + value[-1:] not in ("[]", "{}") or len(value) < 2:
        return None
    parts = [part.strip() for part in _split(value[1:-1])]
    if value[0] == "[":
        return f"[{','.join(_element(part) for part in parts)}]"
    pairs = [part.partition(":") for part in parts]
    inner = ",".join(f"{_name(key)}: {_element(one.strip())}" for key, _, one in pairs)
    return f"{{{inner}}}"


def _element(text: str) -> str:
    return _requoted(text) or (text if _parsed(f"key=[{text}]") else _quoted(text))


def _name(text: str) -> str:
    """Return a name of a mapping as Hydra reads it: escaped, never quoted."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text if PLAIN_NAME.fullmatch(text) else ESCAPED.sub(r"\\\1", text)


def _split(text: str) -> Iterator[str]:
    """Yield what stands between the commas that are in no bracket and in no quotes."""
    depth, quote, start = 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in "]})":
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    if text.strip():
        yield text[start:]
