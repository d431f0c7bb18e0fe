"""Secrets come from the environment, and are in nothing that a command writes or is started with.

A secret is the value of a variable that is named so: ``WANDB_API_KEY``, ``HF_TOKEN``, anything that
ends in ``_TOKEN``, ``_KEY``, ``_SECRET`` or ``_PASSWORD``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from neuro.errors import InputError

VARIABLE = re.compile(r"(.*_)?(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE)
# Keys of a config, such as api_key and hf_token; data.labels.key and image_token are no secrets.
KEY = re.compile(
    r"(.*_)?(api|access|auth|private|secret)_?(key|token)|(hf|hub|bearer)_token|token|"
    r"(.*_)?(password|passwd|secret|credentials?)",
    re.IGNORECASE,
)
SHORTEST = 6  # characters of a value that is told from a word of the text
Node = TypeVar("Node")


def redact(text: str) -> str:
    """Return text in which the name of a variable stands for the value of each secret."""
    for name, value in _secrets():
        text = text.replace(value, f"<{name}>")
    return text


def redacted(node: Node) -> Node:
    """Return plain containers whose texts are redacted."""
    plain: Any = node
    if isinstance(plain, str):
        plain = redact(plain)
    elif isinstance(plain, Mapping):
        plain = {redacted(key): redacted(one) for key, one in plain.items()}
    elif isinstance(plain, list | tuple):
        plain = type(plain)(redacted(one) for one in plain)
    return plain


class RedactedFormatter(logging.Formatter):
    """Writes lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return redact(super().format(record))


def check_words(words: Sequence[str]) -> None:
    """Check that no word of a command line is, or gives, a secret: other users see it.

    Raises:
        InputError: One does; the message does not repeat it.
    """
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        _check(key.partition("@")[0], value)
        held = next((name for name, secret in _secrets() if secret in word), None)
        if held:
            raise InputError(
                f"the word {redact(word)} of the command line holds the value of ${held}, which "
                f"every user of this machine can see there. Leave it to the environment."
            )


def check_config(node: Any, key: str = "") -> None:
    """Check that no key that is named like a secret has a value of its own.

    Args:
        node: A config as plain containers, interpolations not replaced.
        key: Its dotted name; empty for the whole.

    Raises:
        InputError: One has; the message does not repeat it.
    """
    if isinstance(node, Mapping):
        for name, one in node.items():
            check_config(one, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, one in enumerate(node):
            check_config(one, f"{key}.{index}")
    else:
        _check(key, node)


def _check(key: str, value: Any) -> None:
    name = key.rpartition(".")[2]
    is_given = value not in (None, "", "null", "???") and "${oc.env:" not in str(value)
    if is_given and KEY.fullmatch(name):
        raise InputError(
            f"{key} is a secret, and would be written with the config of the run. Leave it out and "
            f"set it in the environment, as its library reads it (WANDB_API_KEY, HF_TOKEN)."
        )


def _secrets() -> Iterator[tuple[str, str]]:
    """Yield the variables that hold secrets, the longest value first."""
    found = [
        (name, value)
        for name, value in os.environ.items()
        if VARIABLE.fullmatch(name) and len(value) >= SHORTEST
    ]
    yield from sorted(found, key=lambda one: (-len(one[1]), one[0]))
