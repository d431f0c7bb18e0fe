"""What came of the jobs of a sweep: the figures that a person compares, and why some failed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuro.run_folder import METRICS, beside

DONE, SKIPPED, FAILED, STOPPED, WAITING = "done", "skipped", "failed", "stopped", "not run"
# Where the figures are that say how good a run is, the most telling first.
ROOMS = ("probe", "test", "val", "health")
# Of the health of an encoder without labels only this is a measure; more is better.
RANK = "health/rank"
SHOWN = 4  # figures on the screen; the file has all
# How a log file begins a message.
MESSAGE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([A-Z]+) (.*)")


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        number: Its place in the sweep.
        words: All its key=value words.
        own: Those of them that make it another run than its neighbours.
        folder: Its run folder.
        is_done: Whether this very run was finished there before.
        status: What became of it.
        error: Why it failed, in one line.
        code: The exit status of its command.
        optimized: The figure that a search optimizes, by the name ``best NAME``.
    """

    number: int
    words: tuple[str, ...]
    own: str
    folder: Path
    is_done: bool = False
    status: str = WAITING
    error: str = ""
    code: int | None = None
    optimized: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Return what a person compares."""
        if self.status not in (DONE, SKIPPED) or not (self.folder / METRICS).is_file():
            return {}
        return self.optimized | headline(json.loads((self.folder / METRICS).read_text()))


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a whole run, without those of its parts and without intervals.

    Of ``test/auroc`` and ``test/auroc_low`` the first is one; so it is with ``test/auroc/T1``.
    """
    kept = {
        name: value
        for name, value in metrics.items()
        if (name == RANK or name.split("/")[0] in ROOMS[:-1])
        and name.count("/") == 1
        and not any(name.startswith(f"{other}_") for other in metrics)
    }
    return dict(sorted(kept.items(), key=lambda item: ROOMS.index(item[0].split("/")[0])))


def best_figure(folder: Path, name: str, *, is_largest: bool) -> float:
    """Return the best value of a figure over the validations of a run, from ``metrics.csv``.

    Raises:
        KeyError: The run never logged it.
    """
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        values = [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
    if not values:
        raise KeyError(name)
    return max(values) if is_largest else min(values)


def failure(log_file: Path, since: int) -> str:
    """Return the first mistake that a log file tells from a place on, in one line; "" if none.

    The first, because what another process has to say about the end of this one follows from it.

    Args:
        log_file: Of a run.
        since: How long it was, in bytes, before the run was started.
    """
    if not log_file.is_file():
        return ""
    with log_file.open("rb") as file:
        file.seek(since)
        lines = file.read().decode("utf-8", "replace").splitlines()
    told: list[str] = []
    for line in lines:
        message = MESSAGE.fullmatch(line)
        if message and told:
            break
        if message and message[1] == "ERROR" and message[2].startswith(("error: ", "Traceback")):
            told = [message[2]]
        elif told and not message and line.strip():
            told.append(line)
    if told and told[0].startswith("Traceback"):
        # What was raised, and its notes, stand behind the last line of the code.
        frames = [place for place, line in enumerate(told) if line.startswith(" ")]
        told = told[max(frames, default=0) + 1 :] or told[-1:]
    return " ".join(" ".join(told).split()).removeprefix("error: ")


def write_summary(path: Path, jobs: Sequence[Job]) -> None:
    """Write a row for each job; a reader finds the whole table or the one before."""
    figures = [job.figures() for job in jobs]
    names = list(dict.fromkeys(name for one in figures for name in one))
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["job", "overrides", "status", *names, "error", "folder"])
    for job, one in zip(jobs, figures, strict=True):
        values = [repr(one[name]) if name in one else "" for name in names]
        writer.writerow([job.number, job.own, job.status, *values, job.error, job.folder.name])
    with beside(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def table(jobs: Sequence[Job]) -> str:
    """Return the table for the screen: a line for each job, and one more for each failure."""
    figures = [job.figures() for job in jobs]
    names = list(dict.fromkeys(name for one in figures for name in one))[:SHOWN]
    rows = [["job", "status", *names, "overrides"]]
    for job, one in zip(jobs, figures, strict=True):
        values = [f"{one[name]:.4f}" if name in one else "" for name in names]
        rows.append([str(job.number), job.status, *values, job.own])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"job {job.number} failed: {job.error}" for job in jobs if job.status == FAILED]
    return "\n".join(lines)
