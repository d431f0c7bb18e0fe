"""Where the jobs of a sweep run: here, one after the other, or on a SLURM cluster."""

from __future__ import annotations

import dataclasses
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from neuro.arguments import program
from neuro.errors import InputError
from neuro.stopping import SIGNALS, TOLD, Stopped
from neuro.sweep import Jobs, Sweep
from neuro.sweep_table import DONE, FAILED, STOPPED, Job, failure

log = logging.getLogger(__name__)

# Hydra takes launchers of this package only; conf/cluster names ours so.
PLUGINS = "hydra_plugins.neuro."
SECONDS_BETWEEN_LOOKS, LOOKS_BETWEEN_QUESTIONS = 1.0, 10
# How long a result may take to appear on a shared disk after its job has left the queue.
SECONDS_OF_GRACE = 30.0


def offer_launchers() -> Sweep:
    """Make the launchers of ``conf/cluster`` known to Hydra; return what they report to."""
    Jobs.sweep = Sweep()
    for launcher in (LocalJobs, SlurmJobs):
        Plugins.instance().class_name_to_class[f"{PLUGINS}{launcher.__name__}"] = launcher
    return Jobs.sweep


class LocalJobs(Jobs):
    """Runs one job after the other, each in a process of its own.

    So nothing of a job is left for the next one, and no end of a job is the end of the sweep:
    Lightning kills all processes of a run of which one has failed, and a GPU does not recover from
    some errors within a process.
    """

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs in their order."""
        running: list[subprocess.Popen[bytes]] = []
        with _noting_signals(running) as asked:
            for job in jobs:
                if asked:
                    raise Stopped(asked[0])
                log.info("job %d (%s): %s", job.number, job.own, job.folder)
                size = _size(_log_of(job))
                words = [sys.executable, *_program(), *self.command_words(job)]
                # A Ctrl-C reaches every process of a terminal; here it is handed on, once.
                running[:] = [subprocess.Popen(words, start_new_session=True)]
                code = running[0].wait()
                if asked:
                    self._close(job, code, status=STOPPED if code else DONE)
                    raise Stopped(asked[0])
                if code:
                    error = failure(_log_of(job), size) or _end(code)
                    self._close(job, code, status=FAILED, error=error)
                else:
                    self._close(job, code)


class SlurmJobs(Jobs):
    """Submits the jobs as one array and waits for them.

    Whether a job is over is seen from its result, and that it will have none from the queue, so
    this needs no accounting. A job that is requeued goes on in its own folder.

    Args:
        parameters: What hydra-submitit-launcher takes.
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters: dict[str, Any] = {
            name: OmegaConf.to_container(one) if OmegaConf.is_config(one) else one
            for name, one in parameters.items()
        }

    def run(self, jobs: Sequence[Job]) -> None:
        """Run as many jobs at a time as the cluster lets."""
        sizes = [_size(_log_of(job)) for job in jobs]
        remotes = self._submitted(jobs)
        waiting = list(zip(jobs, sizes, remotes, strict=True))
        left: dict[int, float] = {}  # when a job was first seen to have left the queue
        look = 0
        with _noting_signals([]) as asked:
            while waiting and not asked:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                look += 1
                if look % LOOKS_BETWEEN_QUESTIONS == 0:
                    queue = _queue(remotes[0].job_id.partition("_")[0])
                    for job, _, remote in waiting:
                        if queue is not None and remote.job_id not in queue:
                            left.setdefault(job.number, time.monotonic())
                        else:
                            left.pop(job.number, None)
                waiting = [one for one in waiting if not self._is_over(*one, left)]
        for job, _, remote in waiting:
            remote.cancel(check=False)
            self._close(job, None, status=STOPPED)
        if asked:
            raise Stopped(asked[0])

    def _submitted(self, jobs: Sequence[Job]) -> list[Any]:
        """Return submitit's handles of the jobs."""
        if not jobs:
            return []
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise InputError(
                "cluster=slurm: there is no sbatch here. Start the sweep where jobs are submitted, "
                "or leave cluster=slurm out."
            )
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        parameters = dict(self.parameters)
        executor = submitit.AutoExecutor(
            folder=parameters.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=parameters.pop("max_num_timeout"),
        )
        common = {one.name for one in dataclasses.fields(BaseQueueConf)}
        executor.update_parameters(
            **{
                name if name in common else f"slurm_{name}": value
                for name, value in parameters.items()
            }
        )
        with executor.batch():
            remotes = [
                executor.submit(Command(_program(), self.command_words(job), _log_of(job)))
                for job in jobs
            ]
        for job, remote in zip(jobs, remotes, strict=True):
            log.info("job %d (%s) is %s: %s", job.number, job.own, remote.job_id, job.folder)
        return remotes

    def _is_over(self, job: Job, size: int, remote: Any, left: dict[int, float]) -> bool:
        """Close a job that is over."""
        _look_anew(remote.paths.folder)
        if remote.paths.result_pickle.exists():
            code, error = _result(remote)
        elif time.monotonic() - left.get(job.number, float("inf")) > SECONDS_OF_GRACE:
            code, error = None, f"it left SLURM's queue without a result; see {remote.paths.stderr}"
        else:
            return False
        if code == 0:
            self._close(job, code)
        else:
            error = failure(_log_of(job), size) or error
            self._close(job, code, status=FAILED, error=error)
        return True


class Command:
    """A job's own command, within the process that submitit has on a node.

    Not in a process below that one, so that the signals of SLURM find the training, and what it
    keeps and how it requeues is as without a sweep.

    Args:
        program: What Python is told to run.
        words: What follows on the command line.
        log_file: Of the run.
    """

    def __init__(self, program: Sequence[str], words: Sequence[str], log_file: Path) -> None:
        self.program, self.words, self.log_file = program, words, log_file

    def __call__(self) -> int:
        """Return the exit status; a job that was asked to stop has none, it may come again."""
        size = _size(self.log_file)
        sys.argv = [self.program[-1], *self.words]
        code: Any = 0
        try:
            if self.program[0] == "-m":
                runpy.run_module(self.program[-1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(self.program[-1], run_name="__main__")
        except SystemExit as error:
            code = error.code
        if code and failure(self.log_file, size).startswith(TOLD):
            raise SystemExit(code)
        return int(code or 0)

    def checkpoint(self) -> Any:
        """Return what submitit runs when the job comes again: the same, which then goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _queue(array: str) -> set[str] | None:
    """Return the jobs of an array that SLURM has in its queue; None if it cannot be asked."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return set(done.stdout.split())
    # A while after its end SLURM does not know a job any more.
    return set() if "Invalid job id" in done.stderr else None


def _result(remote: Any) -> tuple[int | None, str]:
    """Return the exit status that a job left behind, or what submitit has to say."""
    try:
        code = remote.task(0).result()
    except Exception as error:  # whatever it was that ended the job
        return None, " ".join(str(error).split())
    return code, f"left with status {code}"


def _look_anew(folder: Path) -> None:
    """Let a shared disk forget what it told about a folder."""
    folder.touch()


def _log_of(job: Job) -> Path:
    return job.folder / "train.log"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _program() -> list[str]:
    """Return what Python was told to run, from whatever folder."""
    *option, what = program()
    return [*option, what if option else os.path.abspath(what)]


def _end(code: int) -> str:
    """Return in words how a process ended that did not say it itself."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
    return f"its process {how} and said nothing"


@contextmanager
def _noting_signals(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[signal.Signals]]:
    """Yield the signals that came and ask to stop; they are handed on to what is running."""
    asked: list[signal.Signals] = []

    def answer(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number))
        for process in running:
            process.send_signal(number)

    before = {one: signal.signal(one, answer) for one in SIGNALS}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
