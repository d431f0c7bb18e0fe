"""The main command: read the config, build the parts that it names, train, test."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from neuro import cluster, command, resume
from neuro.errors import InputError
from neuro.redaction import redacted

if TYPE_CHECKING:
    import lightning as L

    from neuro.data.datamodule import StudyDataModule
    from neuro.systems.base import System

log = logging.getLogger("neuro.train")  # not __name__, which is __main__ under -m


def train(cfg: DictConfig) -> dict[str, float]:
    """Build the parts that the config names, fit, then test; return the metrics.

    Raises:
        InputError: The config or the data is wrong.
    """
    # Imported here, so that --help answers at once.
    from lightning.pytorch.utilities import rank_zero_only

    from neuro.console import set_up_logging
    from neuro.run_folder import held, read_metrics

    cluster.check(cfg, os.environ)
    run_dir = Path(cfg.paths.run_dir)
    _check_run(cfg)
    rank = getattr(rank_zero_only, "rank", 0)  # known before there is a trainer
    set_up_logging(run_dir / "train.log", rank)
    if cfg.ckpt_path == resume.AUTO and not cfg.plan and resume.is_done(run_dir, cfg):
        log.info("%s is done: its figures are in metrics.json", run_dir)
        return read_metrics(run_dir)
    with held(run_dir) if rank == 0 and not cfg.plan else nullcontext():
        return _train(cfg, run_dir, rank)


def _train(cfg: DictConfig, run_dir: Path, rank: int) -> dict[str, float]:
    """Train in a run folder that is this process's alone."""
    import lightning as L
    from hydra.utils import instantiate

    from neuro.callbacks.last_checkpoint import LastCheckpoint
    from neuro.console import on_terminal
    from neuro.restore import going_on
    from neuro.run_folder import write_metrics, write_parameters, write_start

    ckpt_path = None if cfg.plan else resume.checkpoint_to_go_on_from(cfg.ckpt_path, run_dir)
    has_begun = resume.has_begun(run_dir)
    if rank == 0 and not has_begun:
        write_start(run_dir, cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule: StudyDataModule = instantiate(cfg.data.datamodule, _convert_="all")
    callbacks = list(instantiate(cfg.callbacks, _convert_="all").values())
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=list(instantiate(cfg.logger, _convert_="all").values()),
        enable_progress_bar=on_terminal(),
        **_strategy(cfg),
        _convert_="all",
    )
    _check_contracts(cfg, ckpt_path, datamodule)
    # Before the model, so that a bad scan is told in seconds; ranks share the work.
    datamodule.prepare_data()
    system: System = instantiate(cfg.system, _convert_="all")
    system.parts = _parts(cfg)
    system.prepare(datamodule)
    if cfg.init_from is not None and not has_begun:
        system.init_from(Path(cfg.init_from))
    if trainer.is_global_zero:
        if not (cfg.plan and has_begun):
            write_parameters(run_dir, system.parameter_table())
        log.info("%s", plan_text(datamodule, system, trainer))
        log.info("run folder  %s", run_dir)
    if cfg.plan:
        return {}
    if ckpt_path is not None and trainer.is_global_zero:
        _tell_of_going_on(cfg, run_dir, ckpt_path)
    with going_on(ckpt_path):
        trainer.fit(system, datamodule=datamodule, ckpt_path=ckpt_path)
    if has_begun and trainer.is_global_zero:
        write_start(run_dir, cfg)  # not before it was seen that this config can go on
    before = [one.figures for one in callbacks if isinstance(one, LastCheckpoint)]
    metrics = {name: one for own in before for name, one in own.items()} | trainer.callback_metrics
    trainer.test(system, datamodule=datamodule, ckpt_path=_best(trainer), verbose=False)
    metrics |= trainer.callback_metrics
    if trainer.is_global_zero:
        shown = write_metrics(run_dir, metrics)
        log.info(
            "%s",
            "\n".join(
                f"{name:40} {value:.4f}"
                for name, value in shown.items()
                if name.startswith("test/") and _is_told(name)
            ),
        )
        log.info("metrics and samples are in %s", run_dir)
    return {name: float(value) for name, value in metrics.items()}


def _strategy(cfg: DictConfig) -> dict[str, str]:
    """Return how several devices work together, unless the config says it.

    A batch need not show every modality: a part that no rank has seen has no gradient, and stays.
    """
    several = str(cfg.trainer.devices) != "1" or cfg.trainer.get("num_nodes", 1) != 1
    if "strategy" in cfg.trainer or not several:
        return {}
    return {"strategy": "ddp_find_unused_parameters_true"}


def _is_told(name: str) -> bool:
    """Return whether a figure is for the screen; the file has the intervals and the parts too."""
    return name.count("/") == 1 and not name.endswith(("_low", "_high"))


def plan_text(datamodule: StudyDataModule, system: System, trainer: L.Trainer) -> str:
    """Return what will be trained on, for how long, and how much of the model is trained."""
    from neuro.data.sampler import plan_text as epoch_text

    lines = [f"{'':<6} {'studies':>9} {'subjects':>9} {'series':>9} {'image tokens':>13}"]
    for split, studies in datamodule.studies.items():
        tokens = datamodule.planned(datamodule.dataset(split)).num_tokens.sum()
        subjects = len(studies.series["subject"].unique())
        lines.append(
            f"{split:<6} {len(studies):>9,} {subjects:>9,} {len(studies.series):>9,} {tokens:>13,}"
        )
    planned = datamodule.planned(datamodule.dataset("train"))
    plan = planned.plan(seed=datamodule.seed, epoch=0, world_size=trainer.world_size, shuffle=True)
    lines += ["first epoch", epoch_text(plan, planned.num_tokens, planned.budget)]
    per_epoch = max(1, len(plan) // trainer.accumulate_grad_batches)
    steps = trainer.max_steps if trainer.max_steps > 0 else per_epoch * (trainer.max_epochs or 0)
    lines.append(f"training  {steps:,} steps, {per_epoch:,} an epoch")
    rows = system.parameter_table()
    lines += [
        f"{part:<16} {total:>13,} parameters  {trained:>13,} trainable"
        for part, total, trained in rows
    ]
    totals = [sum(row[1] for row in rows), sum(row[2] for row in rows)]
    lines.append(f"{'all':<16} {totals[0]:>13,} parameters  {totals[1]:>13,} trainable")
    return "\n".join(lines)


def _check_run(cfg: DictConfig) -> None:
    """Refuse what trains nothing or for ever, and two beginnings at once."""
    if cfg.seed < 0:
        raise InputError(f"seed must be a whole number from 0; got {cfg.seed}.")
    steps, epochs = cfg.trainer.get("max_steps", -1), cfg.trainer.get("max_epochs")
    if steps == 0 or epochs == 0:
        raise InputError(
            f"trainer.max_{'steps' if steps == 0 else 'epochs'}=0 trains nothing. Take at least 1."
        )
    if steps == -1 and epochs == -1 and cfg.trainer.get("max_time") is None:
        raise InputError(
            "trainer.max_steps=-1 and trainer.max_epochs=-1 train for ever. Set one of them."
        )
    if cfg.init_from is not None and cfg.ckpt_path not in (None, resume.AUTO):
        raise InputError(
            "init_from takes weights only and ckpt_path goes on in every respect; set one of them."
        )


def _tell_of_going_on(cfg: DictConfig, run_dir: Path, ckpt_path: Path) -> None:
    """Say where a run goes on, and what of its config is not as it was when it began."""
    config = run_dir / "config.yaml"
    if config.is_file() and (changes := resume.differences(config, cfg)):
        log.warning("this run began with another config:\n%s", "\n".join(changes))
    resume.take_over_best(ckpt_path, run_dir)
    log.info("going on from %s", ckpt_path)


def _parts(cfg: DictConfig) -> dict[str, Any]:
    """Return the configs of the system's models and of its text, for its checkpoints."""
    system = OmegaConf.to_container(cfg.system, resolve=True)
    assert isinstance(system, dict)
    return {
        str(name): redacted(node)
        for name, node in system.items()
        if isinstance(node, dict)
        and str(node.get("_target_", "")).startswith(("neuro.models.", "neuro.data."))
    }


def _check_contracts(cfg: DictConfig, ckpt_path: Path | None, datamodule: StudyDataModule) -> None:
    """Hold the run to what its weights were trained on, before hours of preparing."""
    from neuro.data.contract import Contract
    from neuro.models.weights import read_checkpoint
    from neuro.systems.base import contract_of

    keys = ["system.encoder_from", "system.vision.init_from"]
    keys += ["init_from"] if ckpt_path is None else []
    named = {"ckpt_path": ckpt_path} | {key: OmegaConf.select(cfg, key) for key in keys}
    for key, path in named.items():
        said = read_checkpoint(path).get("contract") if path is not None else None
        if path is not None and said is None and key == "system.vision.init_from":
            log.warning("%s does not say how its images were prepared; check that yourself", path)
        if said is not None:
            before = Contract.of_plain(said, f"{key}={path}")
            before.check_images(contract_of(datamodule), f"{key}={path}")
            if key == "ckpt_path":
                before.check_labels(contract_of(datamodule), f"{key}={path}")


def _best(trainer: L.Trainer) -> str | None:
    """Return the best checkpoint; None tests the weights as they are."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return path or None


def _run(cfg: DictConfig) -> None:
    from neuro.console import set_up_logging

    start = time.monotonic()
    # What is wrong with the config is told in the run folder too.
    set_up_logging(Path(HydraConfig.get().runtime.output_dir) / "train.log")
    command.resolve(cfg)
    train(cfg)
    log.info("done in %.0f s", time.monotonic() - start)


def _how_to_go_on(cfg: DictConfig) -> str:
    """Return how an interrupted run is gone on with."""
    run_dir = Path(cfg.paths.run_dir)
    if not resume.has_begun(run_dir):
        return "There is no checkpoint yet; run the same command again, prepared scans are kept."
    # A folder that is named after the time is not found by the same words.
    name = "" if cfg.run.name or cfg.paths.job_id else f" and run.name={run_dir.name}"
    return f"Go on with the same command{name}"


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 2 when the user's input is wrong, 1 when the run failed.
    """
    sys.exit(command.run("train", _run, _how_to_go_on))


if __name__ == "__main__":
    main()
