"""Annotations of constructors against plain values: whether they fit, and the rule in words."""

from __future__ import annotations

import inspect
import json
import shlex
import types
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

LISTS = (list, tuple, set, frozenset, Sequence, Collection)
MAPPINGS = (dict, Mapping, MutableMapping)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
WORDS |= {None: "null", types.NoneType: "null", Path: "a path", Any: "anything"}
SAMPLES = {int: "1", float: "0.5", bool: "true", str: "name", Path: "some/path"}


def fits(value: Any, kind: Any) -> bool:
    """Return whether a plain value is what an annotation says; True where it cannot be told."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if isinstance(value, dict) and "_target_" in value:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is float:
        return type(value) in (int, float)
    if origin in (None, types.NoneType):
        return value is None
    if origin in (int, bool, str):
        return type(value) is origin
    if origin is Path:
        return isinstance(value, str)
    if origin in LISTS:
        kinds = element_kinds(value, origin, arguments) if isinstance(value, list) else None
        return kinds is not None and all(map(fits, value, kinds))
    if origin in MAPPINGS:
        keys, values = arguments or (Any, Any)
        return isinstance(value, dict) and all(
            fits(key, keys) and fits(one, values) for key, one in value.items()
        )
    if value is None and inspect.isclass(origin):
        return origin in (Any, object)
    return not is_built(origin)


def element_kinds(value: list[Any], origin: Any, arguments: tuple[Any, ...]) -> list[Any] | None:
    """Return what each element of a list must be; None where its length is wrong."""
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return list(arguments) if len(arguments) == len(value) else None
    return [arguments[0] if arguments else Any] * len(value)


def is_built(kind: Any) -> bool:
    """Return whether a kind comes from a _target_ only, so that no plain value is one."""
    if not inspect.isclass(kind):
        return False
    if getattr(kind, "_is_protocol", False):
        is_told = getattr(kind, "_is_runtime_protocol", False)
        return is_told and kind.__module__.startswith("neuro.")
    if issubclass(kind, str | int | float):
        return False
    return kind.__module__.startswith("neuro.") or _is_tensor(kind)


def _is_tensor(kind: Any) -> bool:
    return (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == ("torch", "Tensor")


def members(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives that an annotation allows."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(inner for one in get_args(kind) for inner in members(one))
    return (kind,)


def sentence(
    name: str, pattern: str, value: Any, kinds: tuple[Any, ...], written: str | None = None
) -> str:
    """Say what is wrong, the rule, what was got and the cure.

    Args:
        name: Where the value stands.
        pattern: How it is typed; ``%s`` stands for the value.
        value: What does not fit.
        kinds: What it may be, the alternatives one by one.
        written: How the user typed it: 2020_01 for the number 202001; None where it is not known.
    """
    number = _number_for_a_name(value, kinds)
    if number is not None:
        sample = shlex.quote(f"+{name}.2020_01={number[1]}")
        return (
            f"{name} takes names; got {number[0]!r}, which is what YAML makes of some names that "
            f"stand without quotes: 2020_01 is the number 202001. Write each name as a key, like "
            f"{sample}, or in a file between quotes."
        )
    kinds = tuple(one for one in kinds if not _is_tensor(one)) or kinds
    choices = [str(one) for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    words = list(dict.fromkeys(_words(kind) for kind in kinds if get_origin(kind) is not Literal))
    if float in kinds and int in kinds:
        words.remove(WORDS[int])
    if Path in kinds and str in kinds:
        words.remove(WORDS[str])
    if choices:
        words.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    got = json.dumps(value, ensure_ascii=False, default=str)
    cure = _cure(name, pattern, value, kinds, written)
    return f"{name} must be {' or '.join(words)}; got {got}. {cure}."


def _number_for_a_name(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, str] | None:
    """Return the first key of a mapping that is no text, and a value as it is typed."""
    for kind in kinds:
        arguments = get_args(kind)
        if isinstance(value, dict) and get_origin(kind) in MAPPINGS and arguments[0] is str:
            wrong = [key for key in value if not isinstance(key, str)]
            if wrong:
                return wrong[0], _sample(members(arguments[1])[0]) or "VALUE"
    return None


def _cure(name: str, pattern: str, value: Any, kinds: tuple[Any, ...], written: str | None) -> str:
    def typed(text: str) -> str:
        return shlex.quote(pattern.replace("%s", text))

    if type(value) is float and value.is_integer() and int in kinds:
        return f"Write {typed(str(int(value)))}"
    if type(value) in (int, float, bool) and (str in kinds or Path in kinds):
        as_text = typed(f'"{written or json.dumps(value)}"')
        return f"Write {as_text}"
    samples = [one for kind in kinds if (one := _sample(kind)) is not None]
    if samples:
        return f"Write for example {typed(samples[0])}"
    below = f"et the keys below it, like {name}.KEY=VALUE"
    if value is not None:
        return f"S{below}"
    if pattern != f"{name}=%s":  # one of a mapping
        return f"To leave it out, write {shlex.quote('~' + name)}; or s{below}"
    return f"Do not set it to null; s{below}"


def _sample(kind: Any) -> str | None:
    """Return a value of a kind as it is typed; None if there is none to type."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return str(arguments[0])
    if origin in LISTS:
        inner = [_sample(members(one)[0]) for one in arguments if one is not Ellipsis]
        return f"[{','.join(one or 'name' for one in inner or ['name'])}]"
    if origin in MAPPINGS and arguments:
        inner = [one for kind in members(arguments[1]) if (one := _sample(kind))]
        return f"{{name: {inner[0]}}}" if inner else None
    return SAMPLES.get(origin)


def _words(kind: Any) -> str:
    """Return what an annotation says, in words."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in LISTS:
        inner = [_any_of(one) for one in arguments if one is not Ellipsis]
        if origin is tuple and inner and Ellipsis not in arguments:
            return f"a list of {len(inner)}: {', '.join(inner)}"
        return f"a list, each {inner[0]}" if inner and inner[0] != WORDS[Any] else "a list"
    if origin in MAPPINGS:
        inner = [_any_of(one) for one in arguments]
        return f"a mapping, each {inner[1]}" if inner and inner[1] != WORDS[Any] else "a mapping"
    if origin in WORDS:
        return WORDS[origin]
    return f"the settings of {getattr(origin, '__name__', origin)}"


def _any_of(kind: Any) -> str:
    built = [one for one in members(kind) if not is_built(one)]
    return " or ".join(dict.fromkeys(_words(one) for one in built or members(kind)))
