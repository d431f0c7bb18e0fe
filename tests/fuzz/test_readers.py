"""Whatever is in a file, a reader returns what it says or tells in one line what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from child import MAX_BYTES, MAX_S, TARGETS

CHILD = Path(__file__).with_name("child.py")
# How many cases the whole suite has of each; those of real files come on top where there are any.
COUNTS = {
    "nifti": 1300,
    "dicom": 700,
    "conversations": 900,
    "sidecars": 400,
    "tables": 900,
    "entries": 500,
    "index": 200,
    "weights": 700,
    "checkpoints": 400,
}
REAL = {"nifti-real": 200, "dicom-real": 150}
QUICK, NUM_QUICK = [name for name in COUNTS if name != "checkpoints"], 15


def cases_of(targets: str, count: int, folder: Path) -> list[dict]:
    """Run cases in a process of their own and return what came of each."""
    done = subprocess.run(
        [sys.executable, str(CHILD), targets, "0", str(count), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [line for line in lines if "case" in line]
    if done.returncode != 0:
        last = next(
            (line for line in reversed(lines) if "begin" in line), {"target": targets, "begin": 0}
        )
        how = replay(last["target"], last["begin"])
        pytest.fail(f"it hangs for {MAX_S} s or crashes: {how}\n{done.stderr[-3000:]}")
    assert "Traceback" not in done.stderr, done.stderr
    assert lines[-1]["children_mib"] << 20 < MAX_BYTES
    return rows


def replay(target: str, number: int) -> str:
    return f"replay with: python tests/fuzz/child.py {target} {number} {number + 1}"


def check(rows: list[dict], count: int) -> None:
    bad = [row for row in rows if row["outcome"] not in ("read", "clear")]
    told = [f"{row['outcome']}\n    {replay(row['target'], row['case'])}" for row in bad[:10]]
    assert not bad, f"{len(bad)} of {len(rows)} cases:\n" + "\n".join(told)
    assert len(rows) == count
    slow = max(rows, key=lambda row: row["seconds"])
    assert slow["seconds"] < MAX_S, f"{slow['seconds']} s: {replay(slow['target'], slow['case'])}"
    large = max(rows, key=lambda row: row["mib"])
    assert large["mib"] < 512, f"{large['mib']} MiB: {replay(large['target'], large['case'])}"


def test_the_whole_suite_has_five_thousand_cases():
    assert sum(COUNTS.values()) >= 5000
    assert {*COUNTS, *REAL} == {*TARGETS}


def test_damaged_files_of_every_kind_end_in_clear_errors(tmp_path, fuzzed):
    rows = cases_of(",".join(QUICK), NUM_QUICK, tmp_path / "child")
    check(rows, len(QUICK) * NUM_QUICK)
    for name in QUICK:
        fuzzed(name, [row for row in rows if row["target"] == name])


@pytest.mark.slow
@pytest.mark.parametrize("target", COUNTS)
def test_thousands_of_damaged_files_end_in_clear_errors(target, tmp_path, fuzzed):
    rows = cases_of(target, COUNTS[target], tmp_path / "child")
    check(rows, COUNTS[target])
    fuzzed(target, rows)
    # Seeds that are refused before they are damaged would test nothing.
    assert sum(row["outcome"] == "read" for row in rows) > len(rows) // 100
    assert sum(row["outcome"] == "clear" for row in rows) > len(rows) // 10


@pytest.mark.slow
@pytest.mark.parametrize("target", REAL)
def test_damaged_real_scans_end_in_clear_errors(target, tmp_path, fuzzed):
    import dicom_cases
    import nifti_cases

    module = dicom_cases if target.startswith("dicom") else nifti_cases
    if not module.real_files():
        pytest.skip("no public scans are at hand; set NEURO_TEST_DATA")
    rows = cases_of(target, REAL[target], tmp_path / "child")
    check(rows, REAL[target])
    fuzzed(target, rows)
