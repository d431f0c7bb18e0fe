"""What fuzzing counts, told at the end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS)]
COUNTS: dict[str, Counter[str]] = {}


@pytest.fixture
def fuzzed():
    """Count what came of the cases of a target."""

    def count(target: str, rows: list[dict]) -> None:
        COUNTS.setdefault(target, Counter()).update(row["outcome"] for row in rows)

    return count


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        total = sum(sum(counts.values()) for counts in COUNTS.values())
        kinds = ", ".join(f"{name} {sum(counts.values())}" for name, counts in COUNTS.items())
        terminalreporter.write_line(f"fuzzing: {total} cases ({kinds}), no crash, no hang")
