"""Sweeps: every job is the command itself, with words and a run folder of its own."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neuro.arguments import split_places, written
from neuro.errors import InputError
from neuro.redaction import redacted
from neuro.resume import AUTO, comparable, has_begun
from neuro.run_folder import METRICS
from neuro.sweep_table import (
    DONE,
    FAILED,
    SKIPPED,
    Job,
    best_figure,
    table,
    write_summary,
)

log = logging.getLogger(__name__)

SUMMARY = "summary.tsv"
# Where jobs run, and what a search optimizes, is no part of a run.
OF_THE_SWEEP = ("cluster", "hparams_search", "optimized_metric")
OF_HYDRA = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")


class Sweep:
    """What came of the jobs so far.

    Attributes:
        folder: The folder of the sweep; None until there is one.
        jobs: All jobs that are known: a search finds them one after the other.
        is_largest: Whether a search looks for the largest value of its figure.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.jobs: list[Job] = []
        self.is_largest = False

    def check(self, words: Sequence[str]) -> None:
        """Refuse words that one run alone would not heed.

        Raises:
            InputError: A sweep is described, and there is none.
        """
        for word in words:
            if word.startswith(("cluster=", "hparams_search=")) and not word.endswith(
                ("=local", "=null")
            ):
                raise InputError(
                    f"{word} is for sweeps. Add -m; or submit this run alone: "
                    f"sbatch slurm/train.sbatch KEY=VALUE ..."
                )

    def close(self, job: Job, status: str, error: str = "") -> None:
        """Note what became of a job, and tell it if it is no good."""
        job.status, job.error = status, error
        if status == FAILED:
            log.error("job %d failed (%s): %s", job.number, job.own, error)
        elif status == SKIPPED:
            log.info("job %d is done already (%s): %s", job.number, job.own, job.folder)
        self.write()

    def write(self) -> None:
        """Write ``summary.tsv``."""
        assert self.folder is not None
        write_summary(self.folder / SUMMARY, self.jobs)

    def tell(self) -> None:
        """Print the table of all jobs, if there was a sweep."""
        if self.folder is None or not self.jobs:
            return
        self.write()
        log.info("%s", table(self.jobs))
        judged = sorted(
            (next(iter(job.optimized.values())), job.number, job)
            for job in self.jobs
            if job.optimized
        )
        if judged:
            value, _, best = judged[-1 if self.is_largest else 0]
            log.info("the best is job %d (%s): %.4f", best.number, best.own, value)
        log.info("the table is in %s", self.folder / SUMMARY)

    def status(self) -> int:
        """Return the exit status: 1 if a job failed, 2 if the input of all of them is wrong."""
        codes = [job.code for job in self.jobs if job.status == FAILED]
        return 0 if not codes else 2 if codes == [2] * len(self.jobs) else 1

    def how_to_go_on(self) -> str:
        """Return how to do the rest of a sweep that was stopped."""
        # A folder that is named after the time is not found by the same words.
        name = f" with run.name={self.folder.name}" if self.folder is not None else ""
        return f"Run the same command again{name}: what is done is kept."


class Jobs(Launcher):
    """Gives each job its words and its folder; a subclass runs them.

    A job finds the folder of the same sweep that holds the same run, whatever its place was then.
    A job that is new gets the folder of its number; where that holds another run, a free one.

    Attributes:
        sweep: What it reports to. Hydra builds launchers from words, and there is one of these.
    """

    sweep: Sweep

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra has to give; the jobs are commands, so the function is not called."""
        self.context, self.config = hydra_context, config
        logging.getLogger("optuna").setLevel(logging.WARNING)  # the table tells more

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run some jobs; a search asks for some more when it has seen these."""
        from neuro.console import set_up_logging

        setup_globals()
        folder = self.sweep.folder = Path(self.config.hydra.sweep.dir).absolute()
        set_up_logging(folder / "sweep.log")
        jobs = self._planned(folder, job_overrides, initial_job_idx)
        self.sweep.jobs += jobs
        for job in jobs:
            if job.is_done:
                self._close(job, 0, status=SKIPPED)
        self.run([job for job in jobs if not job.is_done])
        return [_answer(job) for job in jobs]

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs and ``_close`` each, whatever becomes of it.

        Raises:
            Stopped: A signal asked the sweep to stop.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run(jobs).")

    def command_words(self, job: Job) -> list[str]:
        """Return what follows the program's name on the command line of a job."""
        given = [*job.words, *self.config.hydra.overrides.hydra]
        dropped = (*OF_THE_SWEEP, *OF_HYDRA)
        kept = [word for word in given if not word.lstrip("+").startswith(dropped)]
        return [
            *split_places(sys.argv[1:])[0],
            *kept,
            f"hydra.run.dir={written(str(job.folder))}",
            "hydra.mode=RUN",
        ]

    def _close(self, job: Job, code: int | None, *, status: str = DONE, error: str = "") -> None:
        """Note what became of a job, and what a search is told about it."""
        job.code = code
        name = self.config.get("optimized_metric")
        if status in (DONE, SKIPPED) and name is not None:
            direction = OmegaConf.select(self.config, "hydra.sweeper.direction")
            self.sweep.is_largest = "maximize" in str(direction)
            try:
                best = best_figure(job.folder, name, is_largest=self.sweep.is_largest)
                job.optimized = {f"best {name}": best}
            except (KeyError, OSError):
                status = FAILED
                error = (
                    f"optimized_metric={name} is no figure that this run logged. Take one of the "
                    f"columns of {job.folder / 'metrics.csv'}"
                )
        self.sweep.close(job, status, error)

    def _planned(
        self, folder: Path, job_overrides: Sequence[Sequence[str]], first: int
    ) -> list[Job]:
        """Return the jobs in their folders."""
        swept = self._swept_keys()
        known: dict[str | None, list[Path]] = {}
        for path in sorted(folder.glob("*/config.yaml")):
            if (identity := _identity_of_file(path)) is not None:
                known.setdefault(identity, []).append(path.parent)
        taken = {one.folder for one in self.sweep.jobs}
        free_numbers = itertools.count(first + len(job_overrides))
        # To compose a config takes a while, so not where there is nothing to compare with.
        same = [known.get(self._identity(words)) if known else None for words in job_overrides]
        found = [one.pop(0) if one else None for one in same]
        taken |= {one for one in found if one is not None}
        jobs = []
        for number, (words, own_folder) in enumerate(zip(job_overrides, found, strict=True), first):
            places = (folder / str(one) for one in itertools.chain([number], free_numbers))
            place = own_folder or next(
                one for one in places if one not in taken and not _holds_a_run(one)
            )
            taken.add(place)
            own = [word for word in words if word.partition("=")[0] in swept] or list(words)
            is_done = own_folder is not None and (place / METRICS).is_file()
            jobs.append(Job(number, tuple(words), " ".join(own), place, is_done))
        return jobs

    def _swept_keys(self) -> set[str]:
        """Return the keys that have several values in this sweep."""
        words = OverridesParser.create().parse_overrides(list(self.config.hydra.overrides.task))
        swept = {word.get_key_element() for word in words if word.is_sweep_override()}
        return swept | set(OmegaConf.select(self.config, "hydra.sweeper.params") or {})

    def _identity(self, words: Sequence[str]) -> str | None:
        """Return the config of a job, wherever its folder will be; None if it has none."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(words))
        before = HydraConfig.instance().cfg
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "/the/run"
        HydraConfig.instance().set_config(cfg)
        try:
            with open_dict(cfg):
                del cfg["hydra"]
            return _identity(redacted(OmegaConf.to_container(cfg, resolve=True)))
        except OmegaConfBaseException:  # the job itself will say what is wrong
            return None
        finally:
            HydraConfig.instance().cfg = before


def _answer(job: Job) -> JobReturn:
    """Return what a sweeper is told: the figure that it optimizes, or nothing."""
    value = next(iter(job.optimized.values()), None)
    return JobReturn(overrides=job.words, status=JobStatus.COMPLETED, _return_value=value)


def _holds_a_run(folder: Path) -> bool:
    return (folder / METRICS).exists() or has_begun(folder)


def _identity_of_file(path: Path) -> str | None:
    try:
        return _identity(OmegaConf.to_container(OmegaConf.load(path)))
    except (yaml.YAMLError, OmegaConfBaseException, OSError):  # of a run that was killed early
        return None


def _identity(plain: Any) -> str:
    """Return a config as text, without what may differ between two attempts at one run."""
    flat = comparable(plain)
    kept = {key: one for key, one in flat.items() if not key.startswith(OF_THE_SWEEP)}
    begins_at = plain.get("ckpt_path")
    if begins_at not in (None, AUTO, "last", "best"):  # of another run
        kept["ckpt_path"] = begins_at
    return json.dumps(kept, sort_keys=True, default=str)
