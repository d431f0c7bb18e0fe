"""Ctrl-C ends a pool of threads soon, quietly and without half of anything."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from neuro.data.threads import Threads

SLOW = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
from neuro.data.threads import Threads
with Threads(2) as pool:
    jobs = [pool.submit(time.sleep, 20) for _ in range(8)]
    print("ready", flush=True)
    time.sleep(60)
"""


def test_an_exception_keeps_jobs_from_beginning_and_waits_for_those_that_have():
    begun, ended, go = [], [], threading.Event()

    def job(number):
        begun.append(number)
        go.set()
        pool.stopping.wait(30)
        time.sleep(0.05)
        ended.append(number)

    pool = Threads(2)
    for number in range(20):
        pool.submit(job, number)
    go.wait(30)
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert len(begun) <= 2
    assert sorted(begun) == sorted(ended)


def test_without_an_exception_all_jobs_are_done_and_ctrl_c_is_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with Threads(2) as pool:
        jobs = [pool.submit(pow, number, 2) for number in range(20)]
    assert [job.result() for job in jobs] == [number**2 for number in range(20)]
    with pytest.raises(ValueError, match="full"), Threads(2):
        raise ValueError("full")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_process_at_once_without_a_word():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # the first is being answered: two jobs are waited for
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert time.monotonic() - start < 10
    assert process.returncode == -signal.SIGINT  # and not SIGABRT
    assert errors == ""
