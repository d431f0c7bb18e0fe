"""The process that reads what is damaged, one case after another, with a limit on its memory.

``python tests/fuzz/child.py TARGET FIRST LAST`` replays cases, with tracebacks. Several targets are
parted by commas.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS), str(TESTS.parent)]

MAX_BYTES = 2 << 30
MAX_S = 10
# What is read: the module of its cases, what makes sound files, and what damages and reads one.
TARGETS = {
    "nifti": ("nifti_cases", "begin", "case"),
    "nifti-real": ("nifti_cases", "begin_real", "case"),
    "dicom": ("dicom_cases", "begin", "case"),
    "dicom-real": ("dicom_cases", "begin_real", "case"),
    "conversations": ("json_cases", "begin", "case"),
    "sidecars": ("json_cases", "begin_sidecars", "sidecar_case"),
    "tables": ("table_cases", "begin", "case"),
    "entries": ("entry_cases", "begin", "case"),
    "index": ("entry_cases", "begin", "index_case"),
    "weights": ("checkpoint_cases", "begin", "case"),
    "checkpoints": ("checkpoint_cases", "begin_whole", "whole_case"),
}


def judged(error: BaseException) -> str:
    """Return ``clear`` for what a command tells in one line, else what is wrong with the error."""
    from neuro.command import explain
    from neuro.errors import InputError

    message = explain(error)
    if message is None:
        return f"{type(error).__name__}: {error}"[:500]
    if not isinstance(error, InputError) and not isinstance(error, OSError):
        return f"not ours: {type(error).__name__}: {error}"[:500]
    many = getattr(error, "failures", None) or getattr(error, "pairs", None)
    if not many and ("\n" in message or len(message) > 2000):
        return f"not one line that can be read, {len(message)} characters: {message[:300]!r}"
    return "clear"


def run(targets: str, first: int, last: int, folder: Path, *, is_told: bool = False) -> None:
    """Run cases of each target; see ``run_one``."""
    for target in targets.split(","):
        run_one(target, first, last, folder / target, is_told=is_told)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps({"end": targets, "children_mib": used}), flush=True)


def run_one(target: str, first: int, last: int, folder: Path, *, is_told: bool) -> None:
    """Run cases and print a line of JSON for each: its number, what came of it, seconds, memory."""
    module, begin, case = TARGETS[target]
    cases = importlib.import_module(module)
    (folder / "seeds").mkdir(parents=True)
    seeds = getattr(cases, begin)(folder / "seeds")
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, resource.RLIM_INFINITY))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for number in range(first, last):
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        print(json.dumps({"target": target, "begin": number}), flush=True)
        read = getattr(cases, case)(Random(f"{target} {number}"), seeds, place)
        _reset_peak()
        before, start = _status("VmRSS"), time.perf_counter()
        faulthandler.dump_traceback_later(MAX_S, exit=True)
        try:
            read()
            outcome = "read"
        except Exception as error:
            outcome = judged(error)
            if is_told:
                logging.disable(logging.NOTSET)
                logging.getLogger().exception("case %d: %s", number, outcome)
                logging.disable(logging.CRITICAL)
        faulthandler.cancel_dump_traceback_later()
        row: dict[str, Any] = {"target": target, "case": number, "outcome": outcome}
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["mib"] = (_status("VmHWM") - before) >> 10
        print(json.dumps(row), flush=True)
    shutil.rmtree(folder)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Return kibibytes."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) == 5:
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        with TemporaryDirectory() as temporary:
            run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(temporary), is_told=True)
