"""What fuzzing counts, told at the end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS)]
CASES = "fuzz cases"


@pytest.fixture
def fuzzed(record_property):
    """Count the cases of a target; they go with the report of the test, to other processes too."""

    def count(target: str, rows: list[dict]) -> None:
        record_property(CASES, [target, len(rows)])

    return count


def pytest_terminal_summary(terminalreporter):
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == CASES:
                counts[value[0]] += value[1]
    if counts:
        kinds = ", ".join(f"{name} {count}" for name, count in counts.items())
        terminalreporter.write_line(
            f"fuzzing: {sum(counts.values())} cases ({kinds}), no crash, no hang"
        )
