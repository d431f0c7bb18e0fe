"""The main command: read the config, build the parts that it names, train, test."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neuro import command
from neuro.errors import InputError

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
    import lightning as L
    from hydra.utils import instantiate
    from lightning.pytorch.utilities import rank_zero_only

    from neuro.console import on_terminal, set_up_logging
    from neuro.run_folder import write_metrics, write_parameters, write_start

    run_dir = Path(cfg.paths.run_dir)
    _check_run(cfg, run_dir)
    ckpt_path = _checkpoint(cfg.ckpt_path)
    _check_weights(cfg)
    rank = getattr(rank_zero_only, "rank", 0)  # known before there is a trainer
    set_up_logging(run_dir / "train.log", rank)
    if rank == 0:
        write_start(run_dir, cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule: StudyDataModule = instantiate(cfg.data.datamodule, _convert_="all")
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks, _convert_="all").values()),
        logger=list(instantiate(cfg.logger, _convert_="all").values()),
        enable_progress_bar=on_terminal(),
        **_strategy(cfg),
        _convert_="all",
    )
    _check_contracts(cfg, datamodule)
    # Before the model, so that a bad scan is told in seconds; ranks share the work.
    datamodule.prepare_data()
    system: System = instantiate(cfg.system, _convert_="all")
    system.parts = _parts(cfg)
    system.prepare(datamodule)
    if cfg.init_from is not None:
        system.init_from(Path(cfg.init_from))
    if trainer.is_global_zero:
        write_parameters(run_dir, system.parameter_table())
        log.info("%s", plan_text(datamodule, system, trainer))
        log.info("run folder  %s", run_dir)
    if cfg.plan:
        return {}
    trainer.fit(system, datamodule=datamodule, ckpt_path=ckpt_path)
    _save_last(trainer, last_checkpoint(run_dir))
    metrics = dict(trainer.callback_metrics)
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


def _check_run(cfg: DictConfig, run_dir: Path) -> None:
    """Refuse what would overwrite an earlier run, and what trains nothing or for ever."""
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
    last = last_checkpoint(run_dir)
    if last.exists() and cfg.ckpt_path is None and not cfg.plan:
        raise InputError(
            f"the run folder {run_dir} holds a run already. Set run.name to another name, or go on "
            f"with ckpt_path={last}"
        )


def last_checkpoint(run_dir: Path) -> Path:
    """Return where a run keeps what it goes on from."""
    return run_dir / "checkpoints" / "last.ckpt"


def _save_last(trainer: L.Trainer, path: Path) -> None:
    """Save the steps after the last validation too; they are no candidates for the best."""
    saver = trainer.checkpoint_callback
    done, saved = trainer.global_step, getattr(saver, "_last_global_step_saved", None)
    if saver is not None and saved != done:
        log.info("step %d is saved as last; it was not validated, the last one was %s", done, saved)
        trainer.save_checkpoint(path)


def _parts(cfg: DictConfig) -> dict[str, Any]:
    """Return the configs of the system's models and of its text, for its checkpoints."""
    system = OmegaConf.to_container(cfg.system, resolve=True)
    assert isinstance(system, dict)
    return {
        str(name): node
        for name, node in system.items()
        if isinstance(node, dict)
        and str(node.get("_target_", "")).startswith(("neuro.models.", "neuro.data."))
    }


def _checkpoint(path: str | None) -> str | None:
    from neuro.models.weights import read_checkpoint

    if path is not None and not Path(path).is_file():
        raise InputError(
            f"ckpt_path={path} is not a file. "
            f"Give a checkpoint, for example RUN/checkpoints/last.ckpt."
        )
    try:
        is_whole = path is None or bool(read_checkpoint(path))
    except InputError:
        is_whole = False
    if not is_whole:
        raise InputError(
            f"ckpt_path={path} is not a checkpoint of this project. Take a last.ckpt or best.ckpt."
        )
    return path


def _check_contracts(cfg: DictConfig, datamodule: StudyDataModule) -> None:
    """Hold the run to what its weights were trained on, before hours of preparing."""
    from neuro.data.contract import Contract
    from neuro.models.weights import read_checkpoint
    from neuro.systems.base import contract_of

    for key in ("ckpt_path", "init_from", "system.encoder_from", "system.vision.init_from"):
        path = OmegaConf.select(cfg, key)
        said = read_checkpoint(path).get("contract") if path is not None else None
        if path is not None and said is None and key == "system.vision.init_from":
            log.warning("%s does not say how its images were prepared; check that yourself", path)
        if said is not None:
            before = Contract.of_plain(said, f"{key}={path}")
            before.check_images(contract_of(datamodule), f"{key}={path}")
            if key == "ckpt_path":
                before.check_labels(contract_of(datamodule), f"{key}={path}")


def _check_weights(cfg: DictConfig) -> None:
    if cfg.init_from is not None and cfg.ckpt_path is not None:
        raise InputError(
            "init_from takes weights only and ckpt_path goes on in every respect; set one of them."
        )


def _best(trainer: L.Trainer) -> str | None:
    """Return the best checkpoint; None tests the weights as they are."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return path or None


def _run(cfg: DictConfig) -> None:
    start = time.monotonic()
    command.resolve(cfg)
    train(cfg)
    log.info("done in %.0f s", time.monotonic() - start)


def _how_to_go_on(cfg: DictConfig) -> str:
    """Return how an interrupted run is gone on with."""
    last = last_checkpoint(Path(cfg.paths.run_dir))
    if last.is_file():
        return f"Go on with ckpt_path={last}"
    return "There is no checkpoint yet; run the same command again, prepared scans are kept."


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 2 when the user's input is wrong, 1 when the run failed.
    """
    sys.exit(command.run("train", _run, _how_to_go_on))


if __name__ == "__main__":
    main()
