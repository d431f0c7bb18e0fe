"""Hypothesis makes up what no mutation of a sound file comes to; it is read or refused."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_cases import SIDECAR, V1, V1B, V2
from nifti_cases import images

from neuro.data.contract import Contract
from neuro.data.conversation import parse_conversation
from neuro.data.scan_files import read_sidecar, repetition_time
from neuro.data.table import read_table
from neuro.data.volume import read_volume
from neuro.errors import InputError

FOLDER = Path(tempfile.mkdtemp(prefix="neuro-fuzz-"))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
WORDS = st.sampled_from(
    ["<image>", "<image_T1>", "<sub1-image>", "human", "gpt", "user", "s1", "T1", "?"]
)
TEXTS = st.lists(WORDS | st.text(max_size=5), max_size=4).map(" ".join)
PLAIN = JSON | TEXTS | st.dictionaries(st.sampled_from(["path", "type", "text", "role"]), TEXTS)


def with_some(record: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return the record with some of its fields made up."""
    return st.fixed_dictionaries(
        {}, optional={name: st.just(value) | PLAIN for name, value in record.items()}
    )


CONTRACT = {
    "recipes": {},
    "min_foreground": 0.1,
    "statistics": {},
    "labels": [],
    "task": "",
    "classes": [],
}
RECIPE = {
    "recipe": "FixedGrid",
    "version": 2,
    "shape": [24, 24, 24],
    "spacing_mm": 8.0,
    "patch": [4, 4, 4],
    "percentiles": [0.5, 99.5],
    "window": None,
    "foreground_level": 0.1,
}
CELLS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", '"', "1e999", "NA"]
)
HEADER = images()[0].to_bytes()


@st.composite
def headers(draw: Callable) -> bytes:
    """Return a NIfTI-1 file with numbers of any size in its header."""
    data = bytearray(HEADER)
    for _ in range(draw(st.integers(1, 4))):
        kind, start, stop = draw(
            st.sampled_from([("<h", 40, 76), ("<f", 76, 120), ("<f", 256, 328), ("<h", 252, 256)])
        )
        size = struct.calcsize(kind)
        place = start + size * draw(st.integers(0, (stop - start) // size - 1))
        value = draw(st.integers(-(2**15), 2**15 - 1) if kind == "<h" else st.floats(width=32))
        struct.pack_into(kind, data, place, value)
    return bytes(data)


def written(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def of_sidecar(value: Any) -> object:
    path = written("scan.json", json.dumps(value).encode())
    return repetition_time(read_sidecar(path, FOLDER / "scan.nii"), FOLDER / "scan.nii")


KINDS: dict[str, tuple[st.SearchStrategy, Callable[[Any], object]]] = {
    "conversations": (
        st.one_of(map(with_some, (V1, V1B, V2))) | st.dictionaries(st.text(), JSON),
        lambda record: parse_conversation(record, "here"),
    ),
    "sidecars": (with_some(SIDECAR) | JSON, of_sidecar),
    "contracts": (
        st.tuples(with_some(CONTRACT), with_some(RECIPE), st.booleans()),
        lambda given: Contract.of_plain(
            {**given[0], "recipes": {"T1": given[1]}} if given[2] else given[0], "here"
        ).plain(),
    ),
    "headers": (headers(), lambda data: read_volume(written("scan.nii", data))),
    "tables": (
        st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5),
        lambda rows: read_table(written("table.csv", "\n".join(map(",".join, rows)).encode())),
    ),
    "json tables": (
        JSON.map(lambda value: json.dumps(value).encode()),
        lambda data: read_table(written("table.json", data)),
    ),
    "bytes": (st.binary(max_size=400), lambda data: read_volume(written("scan.nii", data))),
}


def try_many(kind: str, count: int) -> list[dict[str, str]]:
    """Make up so many values and return what came of each; what is unclear is raised, shrunk."""
    strategy, read = KINDS[kind]
    rows: list[dict[str, str]] = []

    @settings(
        max_examples=count, deadline=10_000, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    @given(strategy)
    def once(value: Any) -> None:
        try:
            read(value)
            rows.append({"outcome": "read"})
        except InputError as error:
            told = str(error)
            rows.append({"outcome": "clear"})
        else:
            told = ""
        assert "\n" not in told
        assert len(told) < 2500

    once()
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_up_ends_in_clear_errors(kind, fuzzed):
    fuzzed(f"made-up {kind}", try_many(kind, 20))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_made_up_end_in_clear_errors(kind, fuzzed):
    fuzzed(f"made-up {kind}", try_many(kind, 300))
