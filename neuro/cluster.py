"""What a SLURM job is given, and settings that contradict it: told before the job waits, and in it.

``slurm/submit`` runs this file: it looks at the config and at sbatch's options, and then submits.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from neuro import arguments, command
from neuro.errors import InputError

log = logging.getLogger("neuro.cluster")  # not __name__, which is __main__ under -m

# Each says that a job has GPUs, if it is not 0.
COUNTED_GPUS = (
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "SLURM_GPUS",
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPUS_PER_SOCKET",
)
# And so do numbers or names of GPUs in these, which a user sets where SLURM does not count GPUs.
SEEN_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# Jobs of these names are a shell that somebody types into; Lightning starts its ranks itself there.
INTERACTIVE = ("bash", "interactive")
# sbatch's options that are read, with their short forms.
OPTIONS = {
    "nodes": "-N",
    "ntasks": "-n",
    "ntasks-per-node": None,
    "cpus-per-task": "-c",
    "time": "-t",
    "gpus": "-G",
    "gpus-per-node": None,
    "gpus-per-task": None,
    "gpus-per-socket": None,
    "gres": None,
}
# sbatch's long options that take no value as a word of its own.
FLAGS = (
    "--consolidate-segments",
    "--contiguous",
    "--exclusive",
    "--get-user-env",
    "--help",
    "--hold",
    "--ignore-pbs",
    "--nice",
    "--no-kill",
    "--no-requeue",
    "--overcommit",
    "--oversubscribe",
    "--parsable",
    "--propagate",
    "--quiet",
    "--reboot",
    "--requeue",
    "--resv-ports",
    "--share",
    "--spread-job",
    "--stepmgr",
    "--test-only",
    "--usage",
    "--use-min-nodes",
    "--verbose",
    "--version",
    "--wait",
    "--x11",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What SLURM gives a job, or is asked for; None where it is not said.

    Attributes:
        num_nodes: Nodes.
        tasks_per_node: Processes that SLURM starts on each.
        cpus_per_task: CPUs of each of them.
        has_gpus: Whether there is any GPU.
        minutes: Its time limit.
        is_srun: Whether srun started this process, or will.
    """

    num_nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    has_gpus: bool = False
    minutes: float | int | None = None
    is_srun: bool = True


def job_of(environ: Mapping[str, str]) -> Job | None:
    """Return the job that this process is part of; None outside SLURM."""
    if "SLURM_JOB_ID" not in environ:
        return None
    num_nodes, tasks = (_whole(environ.get(f"SLURM_{one}")) for one in ("NNODES", "NTASKS"))
    per_node = _whole(environ.get("SLURM_NTASKS_PER_NODE"))
    if per_node is None and tasks is not None:  # as with --ntasks alone
        per_node = -(-tasks // (num_nodes or 1))
    # Where something else starts the ranks, what SLURM starts says nothing about them.
    by_slurm = environ.get("SLURM_JOB_NAME") not in INTERACTIVE
    by_slurm = by_slurm and "TORCHELASTIC_RUN_ID" not in environ
    start, end = (environ.get(f"SLURM_JOB_{one}_TIME") for one in ("START", "END"))
    return Job(
        num_nodes=num_nodes if by_slurm else None,
        tasks_per_node=per_node if by_slurm else None,
        cpus_per_task=_whole(environ.get("SLURM_CPUS_PER_TASK")),
        has_gpus=any(environ.get(name) not in (None, "", "0") for name in COUNTED_GPUS)
        or _sees_gpus(environ),
        minutes=(int(end) - int(start)) / 60 if start and end else None,
        is_srun="SLURM_STEP_ID" in environ,
    )


def job_asked_for(script: str, options: Sequence[str], environ: Mapping[str, str]) -> Job:
    """Return the job that sbatch would ask for.

    Args:
        script: The text of the job script, with its ``#SBATCH`` lines.
        options: The words that sbatch gets.
        environ: Its variables, which stand above the script's lines and below the words.

    Raises:
        InputError: An option lacks its value, or asks for tasks in a way that says not where.
    """
    parser = _Options(add_help=False, allow_abbrev=False)
    for name, short in OPTIONS.items():
        parser.add_argument(f"--{name}", *([short] if short else []))
    variables = {name: f"SBATCH_{name.upper().replace('-', '_')}" for name in OPTIONS}
    variables["time"] = "SBATCH_TIMELIMIT"
    above = [f"--{name}={environ[one]}" for name, one in variables.items() if one in environ]
    asked = parser.parse_known_args([*_script_options(script), *above, *options])[0]
    if asked.ntasks is not None:
        raise InputError(
            f"--ntasks={asked.ntasks}: a training has one task for each device of each node. Ask "
            f"for them with --nodes and --ntasks-per-node."
        )
    gpus = (asked.gpus, asked.gpus_per_node, asked.gpus_per_task, asked.gpus_per_socket)
    return Job(
        num_nodes=_whole(asked.nodes),
        tasks_per_node=_whole(asked.ntasks_per_node),
        cpus_per_task=_whole(asked.cpus_per_task),
        has_gpus=any(one not in (None, "0") for one in gpus)
        or "gpu" in (asked.gres or "")
        or _sees_gpus(environ),  # sbatch hands them on
        minutes=minutes_of(asked.time),
    )


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. sbatch's options are in its manual: man sbatch")


def _script_options(script: str) -> Iterator[str]:
    """Yield the options of a job script, which end where its commands begin."""
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            yield from shlex.split(line.removeprefix("#SBATCH"), comments=True)
        elif line.strip() and not line.startswith("#"):
            return


def _sees_gpus(environ: Mapping[str, str]) -> bool:
    return any(re.match(r"\d|GPU-|MIG-", environ.get(name, "")) for name in SEEN_GPUS)


def _whole(text: str | None) -> int | None:
    """Return a number; None for a range like 2-4, of which SLURM takes what it has."""
    return int(text) if text is not None and text.isdecimal() else None


def minutes_of(limit: str | None) -> float | int | None:
    """Return a time limit of SLURM; None for no limit.

    Args:
        limit: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``,
            ``days-hours:minutes`` or ``days-hours:minutes:seconds``.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit or "")
    if match is None:
        return None
    days, *parts = (None if one is None else int(one) for one in match.groups())
    given = [one for one in parts if one is not None]
    if days is None and len(given) < 3:  # minutes come first
        given = [0, *given]
    hours, minutes, seconds = (*given, 0, 0)[:3]
    return (days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def check(cfg: DictConfig, environ: Mapping[str, str]) -> None:
    """Hold the config to the SLURM job that this process is part of, if it is.

    Args:
        cfg: The config of a training.
        environ: The variables of this process.

    Raises:
        InputError: Settings contradict what the job was given; all of them are named.
    """
    job = job_of(environ)
    if job is not None:
        _refuse(cfg, job)


def _refuse(cfg: DictConfig, job: Job) -> None:
    limit = max_minutes(cfg.trainer.get("max_time"))
    if limit is not None and job.minutes is not None and limit > job.minutes:
        log.warning(
            "trainer.max_time=%s is longer than the job's %g minutes; SLURM stops the job before. "
            "Ask for more with --time, or leave max_time out: a requeued job goes on by itself.",
            cfg.trainer.max_time,
            job.minutes,
        )
    lines = list(contradictions(cfg, job))
    if len(lines) > 1:
        raise InputError("\n  ".join([f"{len(lines)} settings contradict SLURM's:", *lines]))
    if lines:
        raise InputError(lines[0])


def contradictions(cfg: DictConfig, job: Job) -> Iterator[str]:
    """Yield a line for each setting that contradicts the job's, with what to write instead.

    Args:
        cfg: The config of a training.
        job: What SLURM gives it.
    """
    nodes, tasks, cpus = job.num_nodes, job.tasks_per_node, job.cpus_per_task
    asked_nodes, devices = cfg.trainer.get("num_nodes", 1), num_devices(cfg.trainer.devices)
    workers, accelerator = cfg.data.num_workers, cfg.trainer.accelerator
    num_tasks = (nodes or 1) * (tasks or 1)
    if num_tasks > 1 and not job.is_srun:
        yield (
            f"the job has {num_tasks} tasks, and this process was started without srun; it would "
            f"wait for the others. Start it with srun, as slurm/train.sbatch does"
        )
    if type(asked_nodes) is not int:
        yield (
            f"trainer.num_nodes must be a whole number; got {asked_nodes}. Set "
            f"trainer.num_nodes={nodes or 1}"
        )
    elif nodes is not None and asked_nodes != nodes:
        yield (
            f"trainer.num_nodes={asked_nodes} must be the number of the job's nodes, which is "
            f"{nodes}. Set trainer.num_nodes={nodes}, or submit with --nodes={asked_nodes}"
        )
    if tasks is not None and devices is not None and devices != tasks:
        yield (
            f"trainer.devices={cfg.trainer.devices} must be the number of tasks on each node, "
            f"which is {tasks}. Set trainer.devices={tasks}, or submit with "
            f"--ntasks-per-node={devices}"
        )
    if cpus is not None and type(workers) is int and workers > cpus:
        yield (
            f"data.num_workers={workers} must be at most the CPUs of a task, of which there "
            f"{'is' if cpus == 1 else 'are'} {cpus}. Set data.num_workers={cpus}, or submit with "
            f"--cpus-per-task={workers}"
        )
    if accelerator in ("gpu", "cuda") and not job.has_gpus:
        yield (
            f"trainer.accelerator={accelerator} needs a GPU, and the job has none. Submit with "
            f"--gpus-per-node={devices or 1}, or set trainer.accelerator=cpu"
        )


def num_devices(devices: Any) -> int | None:
    """Return how many devices a node uses; None for as many as it has.

    Args:
        devices: What ``trainer.devices`` may be: a number, numbers of devices, or ``auto``.
    """
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if "," in str(devices):  # as Lightning reads it: 0,1 are two, and 0, is one
        return len([one for one in str(devices).split(",") if one.strip()])
    return _whole(str(devices))


def max_minutes(max_time: Any) -> float | int | None:
    """Return ``trainer.max_time`` in minutes; None where there is none.

    Args:
        max_time: As Lightning takes it: days:hours:minutes:seconds, or a number for each name.
    """
    if isinstance(max_time, Mapping):
        each = {"weeks": 10080, "days": 1440, "hours": 60, "minutes": 1, "seconds": 1 / 60}
        return sum(each[name] * max_time.get(name, 0) for name in each)
    if isinstance(max_time, str) and re.fullmatch(r"\d+(:\d+){3}", max_time):
        days, hours, minutes, seconds = map(int, max_time.split(":"))
        return days * 1440 + hours * 60 + minutes + seconds / 60
    return None


def split_words(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words for sbatch and those for ``train.py``.

    What says where the config is, is train.py's, and stands first. What else begins with - is
    sbatch's, and so is a value behind it: behind a long option that takes one any word, behind a
    short one a word without an equals sign.

    Raises:
        InputError: A word asks for a sweep, or lacks its value.
    """
    if "-m" in given or "--multirun" in given:
        raise InputError(
            "a sweep submits its jobs itself. Type python train.py -m cluster=slurm key=value,value"
        )
    words, given = arguments.split_places(given)
    if empty := [one.removesuffix("=") for one in words if one.endswith("=")]:
        raise InputError(f"{empty[0]} must have a value. Write {empty[0]}=...")
    options: list[str] = []
    for before, word in zip(["", *given], given, strict=False):
        if before.startswith("--"):
            is_value = "=" not in before and before not in FLAGS
        else:
            is_value = before.startswith("-") and not re.search(r"=|^~", before[1:] + word)
        (options if word.startswith("-") or is_value else words).append(word)
    return options, words


def submit(script: Path, given: Sequence[str]) -> NoReturn:
    """Check what would be submitted, and become sbatch.

    Args:
        script: The job script.
        given: Words for sbatch and for ``train.py``.

    Raises:
        InputError: Settings contradict what SLURM is asked for, or a key is not set.
    """
    options, words = split_words(given)
    sys.argv[1:] = words  # what messages about words look at
    job = job_asked_for(script.read_text(encoding="utf-8"), options, os.environ)
    told = {"trainer.num_nodes": job.num_nodes, "trainer.devices": job.tasks_per_node}
    from_script = [f"{key}={number}" for key, number in told.items() if number is not None]
    cfg = arguments.composed_here([*from_script, *arguments.given()], "train")
    command.check_set(cfg)
    _refuse(cfg, job)
    os.execvp("sbatch", ["sbatch", *options, str(script), *words])


def main() -> None:
    """Submit a job script, if nothing is wrong; leave with 2 and without a traceback otherwise."""
    script, *given = sys.argv[1:]
    logging.basicConfig(format="%(message)s")
    try:
        submit(Path(script), given)
    except Exception as error:
        message = command.explain(error)
        if message is None:
            raise
        log.error("error: %s", message)
        sys.exit(command.WRONG_INPUT)


if __name__ == "__main__":
    main()
