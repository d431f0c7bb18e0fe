"""Runs commands one after another in a process of their own; their words are a JSON list."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS), str(TESTS.parent)]

if __name__ == "__main__":
    from commands import call

    for command in json.loads(sys.argv[1]):
        status, said = call(*command)
        print(said, flush=True)
        print(f"status {status}", flush=True)
