"""A lock is held by one, and dies with its holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
from permissions import forbidden, open_folder

from neuro.data.lock import locked
from neuro.data.whole_file import NotWritable


def hold(folder, ready, seconds):
    with locked(folder, "x"):
        ready.set()
        time.sleep(seconds)


def test_threads_of_one_process_wait_for_each_other(tmp_path):
    inside, seen = [], []

    def work(number):
        with locked(tmp_path, "x"):
            inside.append(number)
            seen.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_a_killed_holder_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, 60))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    start = time.monotonic()
    with locked(tmp_path, "x"):
        assert time.monotonic() - start < 5


def test_locks_that_may_not_be_taken_name_the_setting():
    with open_folder() as folder:
        (folder / ".locks").mkdir()
        for closed in (folder / ".locks", folder):
            with (
                forbidden(closed),
                pytest.raises(NotWritable, match=r"\.locks.*denied.*paths\.cache_dir"),
                locked(folder, "x"),
            ):
                pass
            if closed != folder:
                closed.rmdir()
