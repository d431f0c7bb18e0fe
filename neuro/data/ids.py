"""Names and ids that a config gives: they are text, and YAML takes some of them for numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from neuro.errors import InputError

Given = str | int | float | bool  # what YAML may make of a name


def texts(values: Any, key: str) -> list[str]:
    """Return a list of names or ids; a lone one is a list of one, null a list of none.

    Args:
        values: What the config gives.
        key: What the config calls it.

    Raises:
        InputError: It is no list, or one of them is no text: unquoted, ``2020_01`` is 202001.
    """
    if values is None:
        return []
    listed = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    check_texts(listed, f'\'{key}=["001", "2020_01"]\'', key)
    return [*listed]


def check_texts(values: Iterable[Any], cure: str, key: str) -> None:
    """Check that names or ids are text.

    Args:
        values: What the config gives.
        cure: What could be typed instead.
        key: What the config calls it.

    Raises:
        InputError: One of them is a number, a truth value or nothing.
    """
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise InputError(
            f"{key} takes names; got {wrong[0]!r}, which is what YAML makes of some names that "
            f"stand without quotes: 2020_01 is the number 202001, and no is false. Put each into "
            f"double quotes, and the whole into single ones on a command line: {cure}"
        )
