"""Kill a command at random moments, start it again, until it is done; written for many deaths.

Everything is imported once, here; each life is a fork of this process. Called by
``test_chaos.py``: ``python chaos.py COMMAND SEED DEATHS FIRST WORD...`` prints what became of
each life as JSON. A word may hold ``{life}``: which of the results is being made, counted from 0.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import torch
from hydra.core.global_hydra import GlobalHydra

import neuro.prepare
import neuro.systems.jepa
import neuro.systems.llava_mri
import neuro.systems.mil
import neuro.train
from neuro import command

torch.set_num_threads(1)
COMMANDS = {
    "train": lambda: command.run("train", neuro.train._run, neuro.train._how_to_go_on),
    "prepare": lambda: command.run("prepare", neuro.prepare._run),
}


def born(name: str, words: list[str], log: str) -> int:
    """Run a command in a fork of this process; return its process id."""
    child = os.fork()
    if child:
        return child
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = [f"{name}.py", *words]
    GlobalHydra.instance().clear()
    status = 3
    try:
        status = COMMANDS[name]()
    finally:
        sys.stdout.flush()
        os._exit(status)


def lived(child: int, seconds: float) -> int | None:
    """Kill a process after some seconds; return its status, or None if it was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def main() -> None:
    name, seed, deaths, first, *words = sys.argv[1:]
    log = os.environ["CHAOS_LOG"]
    draw = random.Random(f"{name} {seed}")
    begin = time.monotonic()
    status = lived(born(name, [one.format(life=first) for one in words], log), 600)
    whole = time.monotonic() - begin
    assert status == 0, f"the unbroken one left with {status}, see {log}"
    died, results, killed_now, statuses = 0, 0, 0, []
    while died < int(deaths) or killed_now:
        # The last life is left to finish.
        seconds = draw.uniform(0.1, 0.9) * whole if died < int(deaths) else 600
        life = f"{first}-{results}"
        status = lived(born(name, [one.format(life=life) for one in words], log), seconds)
        if status is None:
            died, killed_now = died + 1, killed_now + 1
            continue
        statuses.append({"life": life, "status": status, "deaths": killed_now})
        results, killed_now = results + 1, 0
    print(json.dumps({"seconds": whole, "deaths": died, "results": statuses}))


if __name__ == "__main__":
    main()
