"""The constructor is the schema: values of the config are held against its annotations."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from neuro.errors import InputError
from neuro.kinds import LISTS, MAPPINGS, element_kinds, fits, members, sentence

# What is read by a command itself and reaches no constructor.
KEYS: dict[str, Any] = {
    "seed": int,
    "plan": bool,
    "ckpt_path": Path | None,
    "init_from": Path | None,
    "optimized_metric": str | None,
    "shard": str | None,
    "max_pictures": int,
    "run.name": str | None,
    # Of what prepares scans only a part is built where nothing is trained, in neuro.prepare.
    "data.recipes": Mapping[str, Mapping],
    "data.weights": Mapping[str, float] | None,
    "data.window_probabilities": Mapping[str, float] | None,
    "data.num_workers": int,
    "data.max_failed": float,
    "paths.root": Path,
    "paths.data_dir": Path,
    "paths.cache_dir": Path,
    "paths.output_dir": Path,
}


@dataclass(frozen=True)
class Place:
    """A value of the config.

    Attributes:
        name: The key that the user types to change it.
        pattern: How it is typed; ``%s`` stands for the value.
        raw: What stands there, interpolations not replaced.
        value: What it resolves to.
    """

    name: str
    raw: Any
    value: Any
    pattern: str = "%s"


def check(
    raw: Mapping[str, Any],
    resolved: Mapping[str, Any],
    parts: Sequence[str] = ("",),
    words: Sequence[str] = (),
) -> None:
    """Check each value that a constructor or a command is given.

    Nothing is converted, and what an annotation does not say is not checked: third-party classes
    take more than they write.

    Args:
        raw: A config as plain containers, interpolations not replaced.
        resolved: The same, interpolations replaced.
        parts: Dotted keys of what will be built; the classes of these are imported. "": all.
        words: The key=value words of the command line, so that a cure shows what was typed.

    Raises:
        InputError: Values are of a wrong type; all of them are named, by the keys that set them.
    """
    lines: dict[str, str] = {}
    for place, kind in _given(raw, resolved, parts):
        for wrong, expected in _faults(place, kind, raw):
            lines.setdefault(wrong.name, _line(wrong, expected, words))
    if len(lines) > 1:
        raise InputError("\n  ".join([f"{len(lines)} values have a wrong type:", *lines.values()]))
    if lines:
        raise InputError(*lines.values())


def _line(place: Place, kind: Any, words: Sequence[str]) -> str:
    typed = {key.lstrip("+"): text for key, _, text in (word.partition("=") for word in words)}
    written = typed.get(place.name)
    return sentence(place.name, place.pattern, place.value, members(kind), written)


def _given(
    raw: Any, resolved: Mapping[str, Any], parts: Sequence[str]
) -> Iterator[tuple[Place, Any]]:
    """Yield what is given to commands and constructors, and what they take."""
    root = Place("", raw, resolved)
    for key, kind in KEYS.items():
        place = _at(root, key)
        if place is not None:
            yield place, kind
    for part in parts:
        place = _at(root, part)
        if place is not None:
            yield from _arguments(place, raw)


def _at(root: Place, key: str) -> Place | None:
    """Return what stands at a dotted key; None if nothing does."""
    place = root
    for part in key.split(".") if key else ():
        if not isinstance(place.value, dict) or part not in place.value:
            return None
        place = _child(place, part, root.raw)
    return place


def _arguments(place: Place, root: Any) -> Iterator[tuple[Place, Any]]:
    """Yield what the constructors named below a place are given, and what they take."""
    if isinstance(place.value, dict):
        kinds = _parameters(place.value.get("_target_"))
        for key in place.value:
            child = _child(place, key, root)
            kind, default = kinds.get(key, (Any, None))
            # Some default to what their annotation leaves out, mostly None.
            if not (child.value is None and default is None):
                yield child, kind
            yield from _arguments(child, root)
    elif isinstance(place.value, list):
        for index in range(len(place.value)):
            yield from _arguments(_child(place, index, root), root)


def _child(place: Place, key: Any, root: Any) -> Place:
    """Return what lies below a place; where it is taken from another key, under that name."""
    name = f"{place.name}.{key}" if place.name else str(key)
    raw = place.raw[key] if isinstance(place.raw, dict | list) else place.raw
    value = place.value[key]
    while isinstance(raw, str) and (path := _reference(raw)) is not None:
        name, raw = path, root
        for part in path.split("."):
            if not isinstance(raw, dict) or part not in raw:
                return Place(name, value, value, f"{name}=%s")
            raw = raw[part]
    return Place(name, raw, value, f"{name}=%s")


def _reference(raw: str) -> str | None:
    """Return the key of ``${some.key}``; None for every other text."""
    path = raw[2:-1]
    is_one = raw.startswith("${") and raw.endswith("}") and path.replace(".", "_").isidentifier()
    return path if is_one and not path.startswith(".") else None


def _parameters(target: Any) -> dict[str, tuple[Any, Any]]:
    """Return what the parameters of a class or function take, and their defaults."""
    try:
        found: Any = pkgutil.resolve_name(target)
        function = found.__init__ if inspect.isclass(found) else found
        parameters = inspect.signature(function).parameters
        names = inspect.unwrap(function).__globals__
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}  # building it says what is wrong, with the name of the config's node
    return {
        name: (_evaluated(one.annotation, names), one.default)
        for name, one in parameters.items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """Return what an annotation says; Any where it needs names that only type checkers have."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, names)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _faults(place: Place, kind: Any, root: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the innermost values that do not fit and have a key of their own."""
    if fits(place.value, kind):
        return
    inner: list[tuple[Place, Any]] = []
    for member in members(kind):
        for key, one in _below(place.value, member):
            for fault, expected in _faults(_child(place, key, root), one, root):
                if not fault.name.startswith(f"{place.name}."):
                    inner.append((fault, expected))
                elif isinstance(place.value, dict):  # no key sets one element of a list
                    pattern = f"{place.name}={{{key}: {fault.pattern.partition('=')[2]}}}"
                    inner.append((replace(fault, pattern=pattern), expected))
    yield from inner or [(place, kind)]


def _below(value: Any, kind: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what each element of a container must be."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if isinstance(value, list) and origin in LISTS:
        yield from enumerate(element_kinds(value, origin, arguments) or ())
    elif isinstance(value, dict) and origin in MAPPINGS and arguments:
        yield from ((key, arguments[1]) for key in value if fits(key, arguments[0]))
