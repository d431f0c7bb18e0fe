"""The index says what is in the entries, whatever happened to it."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import torch
from damage import flip
from isal import isal_zlib

from neuro.data.entry import Facts, write_entry
from neuro.data.index import LAYOUT, Index
from neuro.errors import ScanError


def facts_of(number):
    return Facts(
        source=f"1|{number}|20",
        source_shape=(8, 8, 8),
        source_spacing_mm=(1.0, 0.9, 0.9),
        orientation="LAS",
        grid=(2, 2, 2),
        num_frames=number,
        voxels=f"v{number}",
        warnings=("odd",),
    )


def write(path, number):
    """Write an entry with ``number`` tokens that are all head, of eight."""
    path.parent.mkdir(exist_ok=True)
    tensors = {
        "voxels": torch.full((8, 8, 8), number, dtype=torch.uint8),
        "foreground": torch.tensor([255] * number + [100] * (8 - number), dtype=torch.uint8),
        "affine": torch.eye(4, dtype=torch.float64),
    }
    write_entry(path, tensors, facts_of(number))


@pytest.fixture
def entries(tmp_path):
    """Entry to scan, of six."""
    paths = [tmp_path / f"T1-{number % 2}" / f"s{number}.safetensors" for number in range(6)]
    for number, path in enumerate(paths):
        write(path, number)
    return {path: tmp_path / f"{number}.nii" for number, path in enumerate(paths)}


def right(entries):
    return {path: facts_of(number) for number, path in enumerate(entries)}


def kept(entries):
    return dict(zip(entries, range(6), strict=True))


def assert_right(root, entries):
    """Check that a process that starts anew is told the truth, and leaves it behind."""
    index = Index(root)
    assert index.facts(entries) == right(entries)
    assert index.num_kept(entries, 0.5) == kept(entries)
    index.refresh(entries)
    rows = [json.loads(line) for line in index.path.read_text().splitlines()]
    assert {root / row["entry"] for row in rows} == set(entries)


def test_it_tells_what_is_in_the_entries(tmp_path, entries):
    assert_right(tmp_path, entries)
    assert_right(tmp_path, entries)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.jsonl"]


def test_it_opens_nothing_that_it_knows(tmp_path, entries, monkeypatch):
    assert_right(tmp_path, entries)
    monkeypatch.setattr("neuro.data.index.Entry", None)
    assert_right(tmp_path, entries)


def test_each_share_has_a_count_of_its_own(tmp_path, entries):
    index = Index(tmp_path)
    shares = {
        0.5: kept(entries),
        0.0: dict.fromkeys(entries, 8),
        100 / 255: dict.fromkeys(entries, 8),
    }
    above = 100.0001 / 255
    for share, counts in (*shares.items(), (above, kept(entries))):
        assert index.num_kept(entries, share) == counts
        assert Index(tmp_path).num_kept(entries, share) == counts


@pytest.mark.parametrize("known", [True, False])
def test_it_may_be_deleted(tmp_path, entries, known):
    index = Index(tmp_path)
    index.refresh(entries)
    index.path.unlink()
    if known:
        index.refresh(entries)
        assert index.path.exists()
    assert_right(tmp_path, entries)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x00\xff\xfe half",
        b'[1, 2]\n"a"\nnull\n7\n',
        b'{"entry": "T1-0/s0.safetensors"}\n',
        b'{"entry": "T1-0/s0.safetensors", "stamp": "x", "facts": {}, "kept": {}}\n',
        b'{"entry": "T1-0/s0.safetensors", "stamp": "x", "facts": [], "kept": {}}\n',
        b'{"entry": ["T1-0"], "stamp": "x", "facts": {}, "kept": []}\n',
    ],
)
def test_it_may_be_damaged(tmp_path, entries, damage):
    assert_right(tmp_path, entries)
    path = tmp_path / "index.jsonl"
    whole = path.read_bytes()
    for content in (damage, whole[: len(whole) // 2] + damage, damage + whole, whole[7:]):
        path.write_bytes(content)
        assert_right(tmp_path, entries)


def test_damaged_lines_are_counted_and_named(tmp_path, entries, said):
    assert_right(tmp_path, entries)
    assert not said.records
    path = tmp_path / "index.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"LAS", b"RAS"), *lines[1:5], b"\xff\xfe\n"]))
    assert_right(tmp_path, entries)
    assert f"{path}: 2 of its 6 lines are damaged" in said.text
    assert len({id(one) for one in said.records}) == 1  # told once
    said.clear()
    assert_right(tmp_path, entries)
    assert not said.records


def test_entries_that_cannot_be_read_are_gathered_where_that_is_asked_for(tmp_path, entries):
    Index(tmp_path).refresh(entries)
    bad = [*entries][2:4]
    for path in bad:
        flip(path, "foreground")
    damaged = {}
    counts = Index(tmp_path).num_kept(entries, 0.5, damaged)
    assert [*damaged] == bad
    assert all("is damaged" in str(error) for error in damaged.values())
    assert counts == {path: count for path, count in kept(entries).items() if path not in bad}


def test_any_flipped_bit_is_survived(tmp_path, entries):
    assert_right(tmp_path, entries)
    path = tmp_path / "index.jsonl"
    whole, dice = path.read_bytes(), random.Random(5)
    for _ in range(200):
        changed = bytearray(whole)
        changed[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        index = Index(tmp_path)
        assert index.facts(entries) == right(entries)
        assert index.num_kept(entries, 0.5) == kept(entries)


def test_lines_of_another_version_are_read_from_the_entries_again(tmp_path, entries, monkeypatch):
    monkeypatch.setattr("neuro.data.index.LAYOUT", 1)
    assert_right(tmp_path, entries)
    monkeypatch.undo()
    assert_right(tmp_path, entries)


def test_a_stale_row_is_read_anew(tmp_path, entries):
    """Another entry under the same name, of the same size."""
    index = Index(tmp_path)
    index.refresh(entries)
    index.num_kept(entries, 0.5)
    first, second = [*entries][2], [*entries][4]
    os.replace(second, first)
    write(second, 5)
    now = dict(zip(entries, (0, 1, 4, 3, 5, 5), strict=True))
    for one in (index, Index(tmp_path)):
        assert {path: facts.num_frames for path, facts in one.facts(entries).items()} == now
        assert one.num_kept(entries, 0.5) == now


def test_two_writers_keep_each_others_rows(tmp_path, entries):
    halves = [dict([*entries.items()][start:][:3]) for start in (0, 3)]
    one, other = Index(tmp_path), Index(tmp_path)
    one.facts(halves[0])
    other.facts(halves[1])
    one.refresh(halves[0])
    other.refresh(halves[1])
    one.num_kept(halves[0], 0.5)
    assert len(one.path.read_text().splitlines()) == 6
    assert_right(tmp_path, entries)


def test_a_writer_with_old_news_does_not_undo_newer_ones(tmp_path, entries, monkeypatch):
    first, *_, last = entries
    slow = Index(tmp_path)
    slow.refresh(entries)
    write(first, 7)  # made again by another job, which counts it too
    other = Index(tmp_path)
    other.num_kept({first: entries[first]}, 0.5)
    slow.num_kept({last: entries[last]}, 0.5)
    monkeypatch.setattr("neuro.data.index.Entry", None)
    assert Index(tmp_path).num_kept({first: entries[first]}, 0.5) == {first: 7}


def test_an_entry_that_is_gone_or_damaged_is_not_told_of(tmp_path, entries):
    assert_right(tmp_path, entries)
    first, second, third, *_ = entries
    first.unlink()
    second.write_bytes(b"half")
    content = bytearray(third.read_bytes())
    place = bytes(content).index(b"LAS")
    content[place] ^= 1  # its description, not its tensors
    third.write_bytes(content)
    index = Index(tmp_path)
    assert list(index.facts(entries)) == [*entries][3:]
    for path in (first, second, third):
        with pytest.raises(ScanError, match="Delete the entry") as caught:
            Index(tmp_path).num_kept({path: entries[path]}, 0.5)
        assert str(path) in str(caught.value)
        assert caught.value.path == entries[path]


def test_counts_are_those_of_the_share_whatever_the_type(tmp_path, entries):
    counts = np.array([*Index(tmp_path).num_kept(entries, 100 / 255).values()])
    assert (counts == 8).all()


@pytest.mark.parametrize("change", [{"facts": {}}, {"kept": [1]}, {"stamp": 5}, {"entry": None}])
def test_a_row_of_another_kind_is_read_from_its_entry_again(entries, tmp_path, change):
    before = Index(tmp_path)
    before.refresh(entries)
    lines = before.path.read_text().splitlines()
    body = json.dumps(
        {key: one for key, one in {**json.loads(lines[0]), **change}.items() if key != "crc"}
    )
    crc = isal_zlib.crc32(body.encode(), LAYOUT)  # which holds
    before.path.write_text("\n".join([f'{{"crc": "{crc:08x}", {body[1:]}', *lines[1:], ""]))
    assert Index(tmp_path).facts(entries) == before.facts(entries)
