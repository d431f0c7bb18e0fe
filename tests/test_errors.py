"""What is told can be read on a terminal, whatever is in the file that it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuro.command import explain
from neuro.errors import LONGEST, InputError, ScanError, legible


def test_signs_that_move_a_cursor_are_spelled_out():
    assert (
        str(InputError("a\x1b[2Jb\x00\rc\td\ud800\n\x9b"))
        == "a\\x1b[2Jb\\x00\\rc\\td\\ud800\n\\x9b"
    )
    assert legible("é 語 \U0001f9e0") == "é 語 \U0001f9e0"


def test_a_long_line_keeps_its_beginning_and_its_end():
    told = str(ScanError("a.nii", "find", "x" * 1_000_000, "Mend it."))
    assert told.startswith("a.nii: find: xxx")
    assert told.endswith("x Mend it.")
    assert len(told) < LONGEST


def test_each_line_of_many_is_as_it_was():
    lines = "\n".join(f"scan {number} is bad" for number in range(10_000))
    assert str(InputError(lines)) == lines


def test_a_file_with_a_name_that_no_system_takes_is_told_in_a_short_line():
    with pytest.raises(OSError, match="too long") as caught:
        Path("a" * 100_000).read_bytes()
    assert len(explain(caught.value) or "") < LONGEST
