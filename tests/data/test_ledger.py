"""The ledger holds the failures of the latest state: none is missing and none is stale."""

from __future__ import annotations

import errno
import logging
import pickle
from pathlib import Path

import pytest
from permissions import forbidden, open_folder

from neuro.data.ledger import (
    HEADER,
    Ledger,
    NoUsableScan,
    TooManyFailedScans,
    check_tolerance,
    failed,
)
from neuro.data.whole_file import NotWritable
from neuro.errors import InputError, NotAScan, ScanError


def bad(name, reason="it is empty."):
    return ScanError(Path(f"/data/{name}.nii"), "read", reason, "Download it again.")


def files(ledger):
    head, *rows = ledger.path.read_text().splitlines()
    assert head == HEADER
    assert all(row.count("\t") == 3 for row in rows)
    return [Path(row.split("\t")[0]).stem for row in rows]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_a_run_over_all_scans_leaves_exactly_its_failures(ledger):
    ledger.update([bad("b"), bad("a")], None)
    assert files(ledger) == ["a", "b"]
    ledger.update([bad("c"), bad("b", "it is cut off.")], None)
    assert files(ledger) == ["b", "c"]
    assert "cut off" in ledger.path.read_text()
    ledger.update([], None)
    assert not ledger.path.exists()


def test_a_shard_keeps_the_rows_of_the_others_and_forgets_its_own(ledger):
    ledger.update([bad("a"), bad("b"), bad("c")], None)
    ledger.update([bad("d")], [Path("/data/a.nii"), Path("/data/d.nii")])
    assert files(ledger) == ["b", "c", "d"]
    ledger.update([], [Path("/data/b.nii"), Path("/data/c.nii"), Path("/data/d.nii")])
    assert not ledger.path.exists()


def test_a_name_with_odd_spaces_is_the_same_name_the_next_time(ledger):
    path = Path("/data/a  b\tc.nii")
    ledger.update([ScanError(path, "read", "it\nis empty.", "Redo.")], [path])
    assert len(ledger.path.read_text().splitlines()) == 2
    ledger.update([], [path])
    assert not ledger.path.exists()


def test_a_name_that_is_no_text_is_listed(ledger):
    name = b"/data/caf\xe9.nii".decode("utf-8", "surrogateescape")
    ledger.update([ScanError(name, "read", "bad.", "Redo.")], None)
    assert r"caf\udce9.nii" in ledger.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00h\xe9", b"", b"file\nhalf of a ro", b"\x00" * 9])
def test_a_damaged_ledger_is_named_and_written_anew(ledger, content, said):
    ledger.path.write_bytes(content)
    ledger.update([bad("a")], None)
    assert files(ledger) == ["a"]
    assert (f"{ledger.path} is damaged" in said.text) == bool(content)


def test_a_shard_names_a_damaged_ledger_and_keeps_its_sound_rows(ledger, said):
    ledger.update([bad("a"), bad("b")], None)
    with ledger.path.open("ab") as file:
        file.write(b"/data/\xff.nii\tread\tx\ty\nhalf of a ro")
    ledger.update([bad("c")], [Path("/data/c.nii")])
    assert files(ledger) == ["a", "b", "c"]
    (told,) = {(record.levelno, record.message) for record in said.records}
    assert told[0] == logging.WARNING
    assert f"{ledger.path} is damaged: 2 of its lines" in told[1]


def test_nothing_is_written_where_nothing_changes(ledger):
    ledger.update([bad("a")], None)
    before = ledger.path.stat().st_mtime_ns
    ledger.update([bad("a")], None)
    ledger.update([bad("a")], [Path("/data/a.nii")])
    assert ledger.path.stat().st_mtime_ns == before


def test_who_may_not_write_is_warned_and_goes_on(said):
    with open_folder() as folder:
        ledger = Ledger(folder)
        ledger.update([bad("a")], None)
        with forbidden(folder, folder / ".locks"):
            ledger.update([bad("b")], None)
        assert files(ledger) == ["a"]
    assert "Its rows stay as they were" in said.text
    assert "paths.cache_dir" in said.text


def test_a_full_disk_is_an_error(ledger, monkeypatch):
    def full(path, *text, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger.update([bad("a")], None)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(NotWritable, match=r"failures\.tsv: No space .*paths\.cache_dir"):
        ledger.update([bad("b")], None)
    assert files(ledger) == ["a"]


@pytest.mark.parametrize(("num_bad", "stops"), [(29, False), (30, True)])
def test_29_of_100_are_0_29(num_bad, stops):
    failures = [bad(str(number)) for number in range(num_bad)]
    failures.append(NotAScan(Path("/data/shot"), "find", "it is a screen save.", "Leave it."))
    if stops:
        with pytest.raises(TooManyFailedScans, match=r"30 of 100 scans .* allows 29\.") as caught:
            check_tolerance(failures, num_scans=100, max_failed=0.29)
        assert "shot" not in str(caught.value)
        assert len(caught.value.failures) == 31
    else:
        check_tolerance(failures, num_scans=100, max_failed=0.29)
    assert len(failed(failures)) == num_bad


def test_an_error_that_holds_failures_comes_through_a_process_border():
    error = NoUsableScan([bad("a"), bad("b")])
    copy = pickle.loads(pickle.dumps(error))
    assert [str(one) for one in copy.failures] == [str(one) for one in error.failures]
    assert str(copy).endswith("no scan can be used. Mend or replace the files above.")
    many = TooManyFailedScans([bad("a")], num_scans=1, max_failed=0.0)
    assert isinstance(pickle.loads(pickle.dumps(many)), InputError)
