import os
import signal
import subprocess
import sys
import textwrap

import pytest

from neuro import stopping
from neuro.stopping import SIGNALS, Stopped, StopSignals


@pytest.fixture
def signals():
    # What is ignored stays so; tests may run in the background, or under nohup.
    usual = {signal.SIGINT: signal.default_int_handler}
    before = {one: signal.signal(one, usual.get(one, signal.SIG_DFL)) for one in SIGNALS}
    yield StopSignals()
    for one, handler in before.items():
        signal.signal(one, handler)


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", set(SIGNALS) - {signal.SIGINT}, ids=str)
def test_a_signal_stops_where_it_comes(signals, signum, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with signals.answered(), pytest.raises(Stopped) as caught:
        send(signum)
    assert caught.value.signum == signum
    assert caught.value.code == 1


def test_ctrl_c_is_ctrl_c(signals):
    with pytest.raises(KeyboardInterrupt), signals.answered():
        send(signal.SIGINT)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_deferred_signal_is_noted(signals, signum):
    with signals.answered(), signals.deferred():
        send(signum)
        assert signals.asked == signum
        send(signal.SIGTERM)
        assert signals.asked == signum  # the first one says why


def test_what_is_ignored_stays_ignored(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with signals.answered():
        send(signal.SIGHUP)
        signals.take()
        send(signal.SIGHUP)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_ctrl_c_after_that_does_not_wait(signals, first):
    with signals.answered(), signals.deferred():
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_who_answered_before_answers_again(signals):
    before = [signal.getsignal(one) for one in SIGNALS]
    with signals.answered():
        assert all(signal.getsignal(one) == signals._answer for one in SIGNALS)
        with signals.answered():  # a command within a command
            pass
        assert signal.getsignal(signal.SIGTERM) == signals._answer
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_signal_is_taken_back_from_one_who_put_himself_in_front(signals):
    with signals.answered():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning does
        signals.take()
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_a_signal_is_handed_on_to_the_scheduler_that_waits_for_it(signals):
    """As submitit puts its own handler before it calls the job."""
    asked = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: asked.append(signum))
    try:
        with signals.answered():
            with signals.deferred():
                send(signal.SIGUSR2)
            assert not asked  # not before everything is saved
            with pytest.raises(Stopped):
                signals.stop(signals.asked)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert asked == [signal.SIGUSR2]


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a stand-in on the path that writes down how it was called; its status is in a file."""
    path = tmp_path / "scontrol"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit $(cat {tmp_path}/status)\n')
    path.chmod(0o755)
    (tmp_path / "status").write_text("0")
    (tmp_path / "calls").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "12"}, "requeue 12\n"),
        ({"SLURM_JOB_ID": "12", "SLURM_PROCID": "0"}, "requeue 12\n"),
        ({"SLURM_JOB_ID": "12", "SLURM_PROCID": "1"}, ""),
        (
            {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"},
            "requeue 10_3\n",
        ),
        ({"SLURM_JOB_ID": "12; rm -r x"}, ""),
    ],
)
def test_usr1_puts_the_job_back_into_the_queue_once(
    signals, scontrol, monkeypatch, environment, calls
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped), signals.answered():
        send(signal.SIGUSR1)
    assert (scontrol / "calls").read_text() == calls


def test_other_signals_leave_the_queue_alone(signals, scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(Stopped), signals.answered():
        send(signal.SIGTERM)
    assert (scontrol / "calls").read_text() == ""


@pytest.mark.parametrize("how", ["refused", "absent"])
def test_a_queue_that_does_not_take_the_job_back_is_told(scontrol, monkeypatch, caplog, how):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    if how == "refused":
        (scontrol / "status").write_text("1")
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    stopping.requeue()
    assert "Submit the job again; it goes on." in caplog.text


def test_a_reading_process_ends_by_sigterm_and_by_no_other_signal(tmp_path):
    """SLURM sends its signal to every process of a job, workers of a loader too."""
    code = """
        import os, signal, sys, time
        from neuro.stopping import STOP_SIGNALS
        with STOP_SIGNALS.answered():
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(3)
            for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
                os.kill(child, signum)
            time.sleep(0.2)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended"
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGTERM, status
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
