"""A command that is given damaged files leaves with 0, 1 or 2, and never with a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import GROUPS, MAX_S

CHILD = Path(__file__).with_name("commands.py")
COUNTS = {
    "nifti,dicom,sidecars": 5,  # commands, of which each meets fifteen damaged files
    "tables,conversations,cache": 12,
    "checkpoints": 30,
}


def replay(row: dict) -> str:
    number = row["case"]
    return f"replay with: python tests/fuzz/commands.py {row['target']} {number} {number + 1}"


def test_each_group_is_tried():
    assert ",".join(COUNTS).split(",") == [*GROUPS]


@pytest.mark.slow
@pytest.mark.parametrize("groups", COUNTS)
def test_commands_tell_what_is_damaged_in_one_line(groups, tmp_path, fuzzed):
    done = subprocess.run(
        [sys.executable, str(CHILD), groups, "0", str(COUNTS[groups]), str(tmp_path / "child")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [line for line in lines if "case" in line]
    assert done.returncode == 0, (
        f"{lines[-1:]}: it takes {MAX_S} s, or crashes\n{done.stderr[-3000:]}"
    )
    bad = [row for row in rows if row["outcome"] not in ("read", "clear")]
    assert not bad, "\n".join(f"{row['outcome']}\n    {replay(row)}" for row in bad[:10])
    assert len(rows) == COUNTS[groups] * len(groups.split(","))
    for group in groups.split(","):
        own = [row for row in rows if row["target"] == group]
        fuzzed(f"commands on {group}", [row for row in own for _ in range(row["files"])])
