"""Where a run goes on: its own checkpoint if it has one, whole and the newest, or a named one."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neuro.errors import InputError
from neuro.redaction import redacted
from neuro.run_folder import METRICS, beside

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
BAD_STEP = "bad_step.ckpt"  # before a step that went wrong
AUTO = "auto"
# What may be another one when a run goes on: how it is told to, its name if that was the time, and
# the job that it is in.
MAY_DIFFER = ("ckpt_path", "run.name", "paths.job_id")


def checkpoint_to_go_on_from(asked: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint that a run goes on from; None to begin.

    A run that has checkpoints of its own goes on from them, wherever it once began: a job that is
    put back into the queue says the same words again. Only a step that went wrong is shown again
    each time.

    Args:
        asked: ``auto``: this run's own, if there is one; ``last`` or ``best`` of this run; a file;
            another run's folder; None to begin.
        run_dir: This run's folder.

    Raises:
        InputError: There is no such checkpoint, or it is damaged and so is the one before; or the
            run is to begin in a folder that holds one.
    """
    own = [path for path in _kept(run_dir) if path.is_file()]
    if asked is None:
        if own:
            raise InputError(
                f"the run folder {run_dir} holds a run already, which ckpt_path=null would write "
                f"over. Go on with it (ckpt_path=auto), or set run.name to another name."
            )
        return None
    if asked in ("last", "best"):
        # Once it has gone back to the best, the same words mean to go on from there.
        to_best = asked == "best" and not (own and _went_back(own[0]))
        found = [path for path in own if path.name == BEST] if to_best else own
        if not found:
            raise InputError(
                f"ckpt_path={asked}: the run folder {run_dir} has no such checkpoint. Set run.name "
                f"to the run that is meant, or give its file, like RUN/checkpoints/{asked}.ckpt."
            )
        return _whole(found)
    if own and Path(asked).name != BAD_STEP:
        return _whole(own)
    return None if asked == AUTO else _other(Path(asked))


def has_begun(run_dir: Path) -> bool:
    """Return whether a run has something to go on from."""
    return any(path.is_file() for path in _kept(run_dir))


def _went_back(path: Path) -> bool:
    """Return whether a checkpoint is of a run that went on from its best one."""
    from neuro.models.weights import read_checkpoint

    if damage(path) is not None:
        return False
    callbacks = read_checkpoint(path).get("callbacks", {})
    return bool(callbacks.get("LastCheckpoint", {}).get("went_back"))


def _kept(run_dir: Path) -> list[Path]:
    """Return where a run keeps what it may go on from, the newest first."""
    return [run_dir / "checkpoints" / name for name in (LAST, PREVIOUS, BEST)]


def _other(path: Path) -> Path:
    """Return a checkpoint that the user names, or the newest of a run folder."""
    if path.is_dir():
        found = [one for one in _kept(path) if one.is_file()]
        if not found:
            raise InputError(
                f"ckpt_path={path} has no checkpoints/{LAST}. Give a run folder or a checkpoint."
            )
        return _whole(found)
    if not path.is_file():
        raise InputError(
            f"ckpt_path={path} is neither a file nor a run folder. Give auto, last, best, a run "
            f"folder or a checkpoint, for example RUN/checkpoints/{LAST}."
        )
    return _whole([path])


def _whole(paths: list[Path]) -> Path:
    """Return the first one that is not damaged."""
    for path in paths:
        fault = damage(path)
        if fault is None:
            return path
        log.warning("%s is damaged (%s)%s", path, fault, "" if path == paths[-1] else ": not taken")
    raise InputError(
        f"ckpt_path={paths[0]} is not a checkpoint of this project, or is damaged"
        f"{', and so are those before it' if len(paths) > 1 else ''}. Take a last.ckpt or "
        f"best.ckpt, or begin anew under another run.name."
    )


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if it is whole.

    Each of its parts carries a CRC-32 of its bytes, which are read once.
    """
    from neuro.models.weights import read_checkpoint

    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return " ".join(str(error).split()) or "it ends too early"
    except OSError as error:
        if error.errno != errno.EIO:  # a sector that cannot be read
            raise
        return str(error.strerror)
    if bad is not None:
        return f"{bad} is not as it was written"
    try:
        return None if read_checkpoint(path) else "it holds no state"
    except InputError:
        return "it holds more than tensors and plain values"


def take_over_best(path: Path, run_dir: Path) -> None:
    """Copy the best checkpoint of another run, so that this one still knows it."""
    best, own = path.parent / BEST, run_dir / "checkpoints" / BEST
    if best.is_file() and best.parent != own.parent and not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        with beside(own) as part:
            shutil.copyfile(best, part)


def move_best(checkpoint: dict[str, Any], run_dir: Path) -> None:
    """Let the state of a ``ModelCheckpoint`` point to this run's folder, wherever it was saved."""
    folder = os.path.realpath(run_dir / "checkpoints")
    best = os.path.join(folder, BEST)
    for key, state in checkpoint.get("callbacks", {}).items():
        if not key.startswith("ModelCheckpoint") or state["dirpath"] == folder:
            continue
        score = state["best_model_score"] if os.path.isfile(best) else None
        path = best if score is not None else ""  # not another run's: it would be tested
        state |= {
            "dirpath": folder,
            "best_model_path": path,
            "best_model_score": score,
            "kth_best_model_path": path,
            "best_k_models": {path: score} if path else {},
        }


def is_done(run_dir: Path, cfg: DictConfig) -> bool:
    """Return whether this very run is finished: its figures are there, and its config is this.

    Raises:
        InputError: Another run is finished there.
    """
    config = run_dir / "config.yaml"
    if not (run_dir / METRICS).is_file() or not config.is_file():
        return False
    if changes := differences(config, cfg):
        raise InputError(
            f"the run folder {run_dir} holds a finished run of another config ("
            f"{'; '.join(changes[:5])}). Set run.name to another name, or go on with it in this "
            f"way by ckpt_path=last."
        )
    return True


def differences(config: Path, cfg: DictConfig) -> list[str]:
    """Return the keys whose values differ from those of a saved config, with both."""
    before = comparable(OmegaConf.to_container(OmegaConf.load(config)))
    now = comparable(redacted(OmegaConf.to_container(cfg, resolve=True)))  # as it was saved
    return [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, ...) != now.get(key, ...)
    ]


def comparable(plain: Any) -> dict[str, Any]:
    """Return a config by dotted keys, without what may differ and wherever its run folder is."""
    run_dir = str((plain.get("paths") or {}).get("run_dir", ""))
    return {
        key: one.replace(run_dir, "RUN") if run_dir and isinstance(one, str) else one
        for key, one in _flat(plain).items()
        if key not in MAY_DIFFER
    }


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, one in node.items()
        for key, value in _flat(one, f"{prefix}.{name}" if prefix else str(name)).items()
    }
