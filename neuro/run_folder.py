"""What a run leaves behind besides weights: how it was started, on what, and what it reached."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from neuro.arguments import program
from neuro.errors import InputError
from neuro.redaction import redacted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS_TO_LEAVE = 10
METRICS = "metrics.json"  # where it is, the run is done


def run_id(name: str | int | None, job_id: str | int | None) -> str:
    """Return the name of the run folder: the given one, or the job's number, or the time.

    Raises:
        InputError: The given name is not a plain one.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
        raise InputError(
            f"run.name={name} must be a plain name: letters, digits, dots, dashes, underscores."
        )
    return str(name or job_id or time.strftime("%Y%m%d-%H%M%S"))


def job_id(job: int | str | None, array: int | str | None, task: int | str | None) -> str | None:
    """Return a job's name that stays when it is requeued: its number, or ``ARRAY_TASK``.

    Args:
        job: The scheduler's number of this job; each task of an array has another.
        array: The number of its array.
        task: Its place in the array.
    """
    if array is not None:
        return f"{array}_{task}"
    return None if job is None else str(job)


def claim(parent: str, name: str | int | None, job_id: str | int | None) -> str:
    """Return the run folder; where its name is the time, nobody else has it or will.

    A folder of a given name or of a job may exist: a job that is started again finds its own. One
    after the time is made here, and of two runs that begin in one second one gets ``-2``.

    Args:
        parent: The folder of run folders.
        name: ``run.name``.
        job_id: The scheduler's number of this job.

    Raises:
        InputError: The name is not a plain one, or several processes would each take a folder.
    """
    folder = Path(parent, run_id(name, job_id))
    if name or job_id:
        return str(folder)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torchrun; what Lightning starts is told by it
        raise InputError(
            "the processes of one run must agree on its folder, and each would name it after its "
            "own time. Add run.name=NAME"
        )
    for number in itertools.count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        return str(free)
    raise AssertionError("unreachable")


# Hydra asks more than once; the cache of a config gives the first answer each time.
OmegaConf.register_new_resolver("run_dir", claim, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_id", job_id, replace=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a place to write to; at the end it becomes ``path``, which is never half-written."""
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run folder while a process works in it; a process that is killed lets it go.

    Raises:
        InputError: Another process holds it, and does not end within a few seconds.
    """
    if fcntl is None:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        for seconds_left in range(SECONDS_TO_LEAVE, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # the readers of a killed process take a moment to see it
                if seconds_left == 0:
                    raise InputError(
                        f"a process works in the run folder {run_dir} already. Wait for its end, "
                        f"or set run.name to another name."
                    ) from None
                time.sleep(1.0)
            except OSError:  # a file system without locks
                yield
                return
        try:
            yield
        finally:  # for the processes that read too, which have the file open
            fcntl.flock(file, fcntl.LOCK_UN)


def write_start(run_dir: Path, cfg: DictConfig) -> None:
    """Write ``config.yaml``, ``command.sh`` and ``environment.json``.

    Secrets are taken out before a format can write them in signs of its own.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(_yaml(redacted(_plain(cfg))))
    command = shlex.join(redacted([Path(sys.executable).name, *program(), *sys.argv[1:]]))
    (run_dir / "command.sh").write_text(f"#!/bin/sh\n{command}\n")
    (run_dir / "environment.json").write_text(json.dumps(redacted(environment()), indent=2) + "\n")


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def _yaml(plain: Any) -> str:
    """Return plain containers as ``OmegaConf.to_yaml`` writes them; a text with ${ stays a text."""
    return yaml.dump(
        plain,
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
        Dumper=get_omega_conf_dumper(),
    )


def environment() -> dict[str, Any]:
    """Return interpreter, system, revision of the code, and every package with its version."""
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "revision": _revision(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def write_parameters(run_dir: Path, table: Sequence[tuple[str, int, int]]) -> None:
    """Write the parameters of each part to ``parameters.json``."""
    rows = [
        {"part": part, "parameters": total, "trainable": trained} for part, total, trained in table
    ]
    (run_dir / "parameters.json").write_text(json.dumps(rows, indent=2) + "\n")


def write_metrics(run_dir: Path, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Write the last value of each figure to ``metrics.json`` and return them."""
    plain = {name: float(value) for name, value in sorted(metrics.items())}
    path = run_dir / METRICS
    with beside(path) as part:
        part.write_text(json.dumps(plain, indent=2) + "\n")
    return plain


def read_metrics(run_dir: Path) -> dict[str, float]:
    """Return what ``write_metrics`` wrote."""
    return json.loads((run_dir / METRICS).read_text())


def _revision() -> str | None:
    """Return the commit of a checkout, with a plus if files differ; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
