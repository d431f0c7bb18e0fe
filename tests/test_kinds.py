"""A plain value is held against an annotation; what cannot be told passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Protocol, Union

import pytest
import torch

from neuro.data.recipes import Recipe
from neuro.data.sampler import BatchBudget
from neuro.kinds import fits, members, sentence


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int),
        (1, float),
        (0.5, float),
        (True, bool),
        ("a", str),
        ("a", Path | str),
        ("a", Path),
        (None, Optional[int]),  # noqa: UP045, third parties write so
        (2, Union[float, torch.Tensor]),  # noqa: UP007
        ([1, 2], Sequence[float]),
        ([1, 2], tuple[int, ...]),
        ([1, 2], tuple[int, int]),
        ({"a": 1}, Mapping[str, float]),
        ("min", Literal["min", "max"]),
        (3, Any),
        (None, Any),
        ({"_target_": "a.B"}, Recipe),
        ({"a": {"_target_": "a.B"}}, Mapping[str, Recipe]),
    ],
)
def test_what_an_annotation_says_fits(value, kind):
    assert fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (True, float),
        (1, bool),
        ("maybe", bool),
        (2.5, int),
        ("1", int),
        (1, str),
        (None, int),
        ("sex", Sequence[str]),
        ([1, "x"], Sequence[float]),
        ([1], tuple[int, int]),
        ([1, 2], Mapping[str, float]),
        ({"a": "x"}, Mapping[str, float]),
        ("mean", Literal["min", "max"]),
        (3, BatchBudget),
        ("fast", Union[float, torch.Tensor]),  # noqa: UP007
        (3, Recipe),
        (None, Recipe),
        (None, torch.dtype),
        ({"a": {"_target_": "a.B"}, "b": None}, Mapping[str, Recipe]),
    ],
)
def test_what_an_annotation_does_not_say_does_not_fit(value, kind):
    assert not fits(value, kind)


class Speaks(Protocol):
    def speak(self) -> None: ...


@pytest.mark.parametrize(
    "kind", [Speaks, Callable[..., int], torch.dtype, "forward", Path | Speaks]
)
def test_what_cannot_be_told_passes(kind):
    assert fits(3, kind)


@pytest.mark.parametrize(
    ("value", "kind", "cure"),
    [
        (1e4, int, "a whole number; got 10000.0. Write a.b=10000."),
        (7, str, "a text; got 7. Write 'a.b=\"7\"'."),
        ("x", float | None, 'a number or null; got "x". Write for example a.b=0.5.'),
        (
            "x",
            Sequence[int],
            "a list, each a whole number; got \"x\". Write for example 'a.b=[1]'.",
        ),
        (
            3,
            BatchBudget,
            "the settings of BatchBudget; got 3. Set the keys below it, like a.b.KEY=",
        ),
    ],
)
def test_a_sentence_says_the_rule_and_what_to_type(value, kind, cure):
    assert sentence("a.b", "a.b=%s", value, members(kind)).startswith(f"a.b must be {cure}")


def test_null_is_told_with_how_to_leave_something_out():
    element = sentence("a.b", "a={b: %s}", None, (Recipe,))
    assert "got null. To leave it out, write '~a.b'; or set" in element
    assert "Do not set it to null" in sentence("a.b", "a.b=%s", None, (Recipe,))


def test_a_number_that_is_meant_as_a_name_is_shown_as_it_was_typed():
    kinds = members(str | None)
    assert sentence("a", "a=%s", 202001, kinds, "2020_01").endswith("Write 'a=\"2020_01\"'.")
    assert sentence("a", "a=%s", True, kinds, "true").endswith("Write 'a=\"true\"'.")


def test_a_mapping_with_a_number_for_a_name_is_told_with_a_key_of_its_own():
    said = sentence("a.b", "a.b=%s", {202001: 0.5}, members(Mapping[str, float] | None))
    assert said.startswith("a.b takes names; got 202001")
    assert "like +a.b.2020_01=0.5" in said
