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

from neuro.data.lock import locked
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
    with locked(tmp_path, path.name):
        write_whole(path, "text")
    assert {one.name for one in tmp_path.iterdir()} == {".locks", path.name}
    assert path.read_text() == "text"


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
    found = {one.name for one in tmp_path.iterdir()} - {".locks"}
    assert not path.exists() or found == {path.name}
    with locked(tmp_path, path.name):
        write_whole(path, "again")
    assert {one.name for one in tmp_path.iterdir()} == {".locks", path.name}


@pytest.mark.parametrize("left", ["file", "link", "folder"])
def test_whatever_has_the_name_beside_it_a_file_is_written(tmp_path, left):
    path = tmp_path / "a.txt"
    for end in ("part", "done"):
        other = tmp_path / f".a.txt.{end}"
        if left == "file":
            other.write_text("x")
        elif left == "link":
            other.symlink_to(tmp_path)
        else:
            (other / "more").mkdir(parents=True)
    with locked(tmp_path, path.name):
        write_whole(path, "text")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".locks", "a.txt"]


def test_what_a_colleague_left_does_not_stop_anyone():
    with open_folder() as folder:
        folder.chmod(0o777)
        (folder / ".a.txt.part").mkdir(mode=0o755)
        (folder / ".a.txt.part" / "a.txt").touch()  # nobody else may remove it
        with forbidden(), locked(folder, "a.txt"):
            write_whole(folder / "a.txt", "text")
        assert (folder / "a.txt").read_text() == "text"


def test_two_writers_without_locks_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as mine:
        mine.write_text("mine")
        process = multiprocessing.get_context("fork").Process(
            target=write_whole, args=(path, "theirs")
        )
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def dies_at_a_call(path, num_calls):
    """Be killed before the call of this number among those that change a folder."""
    calls = iter(range(num_calls))

    def watch(event, _arguments):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open")
        if changes and next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    with locked(path.parent, path.name):
        sys.addaudithook(watch)
        write_whole(path, "text")


def dies_in_the_middle(path):
    with locked(path.parent, path.name), whole(path) as temporary:
        temporary.write_text("half of something long")
        temporary.with_name(".tmp1qeDLH").write_text("what safetensors writes to first")
        os.kill(os.getpid(), signal.SIGKILL)
