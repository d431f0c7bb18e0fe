"""Jobs on the two-node cluster that ``tests/slurm/cluster up`` starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = Path("/run/neuro-slurm/slurm.conf")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def called(*words, env=None):
    """Return what a command prints."""
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


def until(condition, seconds, what):
    """Wait for a condition and return what it says."""
    end = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return said


@dataclass(frozen=True)
class Job:
    """One job of a test.

    Attributes:
        number: SLURM's.
        log: What it prints.
    """

    number: str
    log: Path

    def shown(self):
        """Return what SLURM says of it, by name."""
        return dict(re.findall(r"(\w+)=(\S*)", called("scontrol", "show", "job", self.number)))

    def state(self):
        """Return what SLURM does with it: PENDING, RUNNING, COMPLETED ..."""
        return self.shown()["JobState"]

    def signal(self, name):
        """Send a signal to its tasks, as SLURM does before the time is up."""
        called("scancel", f"--signal={name}", self.number)

    def wait(self, seconds=600):
        """Wait for its end and return what it printed."""
        until(lambda: self.state() in ENDED, seconds, f"end of job {self.number}")
        printed = self.log.read_text()
        assert self.state() == "COMPLETED", printed
        return printed


class Cluster:
    """Submits job scripts of the project, to run with this interpreter.

    Args:
        folder: Where jobs write what they print.
    """

    def __init__(self, folder):
        self.folder = folder
        places = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
        self.env = {**os.environ, **places, "OMP_NUM_THREADS": "1"}

    def submit(self, *words, first=None):
        """Return the job that ``sbatch WORDS`` makes; programs come from ``first`` first."""
        option = f"--output={self.folder}/%j.log"
        env = self.env if first is None else {**self.env, "PATH": f"{first}:{self.env['PATH']}"}
        number = called("sbatch", "--parsable", option, *words, env=env)
        return Job(number, self.folder / f"{number}.log")
