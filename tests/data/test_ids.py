"""Names are text; what YAML took for a number or a truth value is told with how to write it."""

from __future__ import annotations

import pytest

from neuro.data.ids import texts
from neuro.errors import InputError


def test_a_lone_name_is_a_list_of_one_and_nothing_is_none():
    assert texts(["001", "1"], "data.label") == ["001", "1"]
    assert texts("001", "data.label") == ["001"]
    assert texts(None, "data.label") == texts([], "data.label") == []


@pytest.mark.parametrize("wrong", [202001, 1.0, True, None])
def test_what_yaml_took_for_something_else_is_told_with_quotes(wrong):  # S39
    with pytest.raises(InputError) as caught:
        texts(["a", wrong], "data.splits.val")
    assert f"got {wrong!r}" in str(caught.value)
    assert '\'data.splits.val=["001", "2020_01"]\'' in str(caught.value)


def test_what_the_cure_shows_is_what_the_command_line_reads():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (read,) = OverridesParser.create().parse_overrides(['data.splits.val=["001", "2020_01"]'])
    assert texts([*map(str, read.value())], "data.splits.val") == ["001", "2020_01"]
    (bare,) = OverridesParser.create().parse_overrides(["data.splits.val=[2020_01]"])
    with pytest.raises(InputError, match="got 202001"):
        texts(bare.value(), "data.splits.val")
