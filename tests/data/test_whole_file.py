"""A file of the cache is whole or as it was, and an error names it and the setting."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import sys

import pytest
from permissions import forbidden, open_folder

from neuro.data.whole_file import NotWritable, make_folder, remove, whole, write_whole


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_what_stops_the_writing_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def interrupted():
        with whole(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises((NotWritable, KeyboardInterrupt)):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_colleagues_may_read_what_the_umask_lets_them(tmp_path):
    (tmp_path / "plain").touch()
    with whole(tmp_path / "a.txt") as temporary:
        temporary.touch(mode=0o600)  # as safetensors does
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "a.txt")]
    assert modes[0] == modes[1]


def test_a_full_disk_is_told_with_the_file_and_the_setting(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(NotWritable) as caught, whole(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == (
        f"cannot write to the cache at {path}: No space left on device. "
        f"Free space, or set paths.cache_dir to another folder."
    )
    assert not caught.value.is_forbidden
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.is_forbidden) == (str(caught.value), False)


def test_a_folder_that_is_read_only_is_told_with_permissions_and_the_setting():
    with open_folder() as folder:
        path = folder / "a.txt"
        path.touch()
        for act in (
            lambda: write_whole(path, "text"),
            lambda: remove(path),
            lambda: make_folder(folder / "more"),
        ):
            with (
                forbidden(folder),
                pytest.raises(NotWritable, match=r"denied.*write access.*paths\.cache_dir") as told,
            ):
                act()
            assert told.value.is_forbidden


def test_what_a_killed_process_left_is_written_over(tmp_path):
    path = tmp_path / "a.txt"
    process = multiprocessing.get_context("fork").Process(target=dies_in_the_middle, args=(path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    write_whole(path, "text")
    assert {one: one.read_text() for one in tmp_path.iterdir()} == {path: "text"}


@pytest.mark.parametrize("num_calls", range(10))
def test_wherever_a_process_is_killed_nothing_is_left_beside_a_file_that_is_there(
    tmp_path, num_calls
):
    path = tmp_path / "a.txt"
    process = multiprocessing.get_context("fork").Process(
        target=dies_at_a_call, args=(path, num_calls)
    )
    process.start()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL)
    assert not path.exists() or list(tmp_path.iterdir()) == [path]
    write_whole(path, "again")
    assert list(tmp_path.iterdir()) == [path]


def dies_at_a_call(path, num_calls):
    """Be killed before the call of this number among those that change a folder."""
    calls = iter(range(num_calls))

    def watch(event, _arguments):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open")
        if changes and next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    write_whole(path, "text")


def dies_in_the_middle(path):
    with whole(path) as temporary:
        temporary.write_text("half of something long")
        temporary.with_name(".tmp1qeDLH").write_text("what safetensors writes to first")
        os.kill(os.getpid(), signal.SIGKILL)
