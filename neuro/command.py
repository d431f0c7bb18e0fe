"""What the commands share: where conf/ is, run ids, and an exit status for each kind of mistake."""

from __future__ import annotations

import difflib
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuro.errors import InputError

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout has it beside.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def run_id(name: str | int | None, job_id: str | int | None) -> str:
    """Return the name of the run folder: the given one, or the job's number, or the time."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
        raise InputError(
            f"run.name={name} must be a plain name: letters, digits, dots, dashes, underscores."
        )
    return str(name or job_id or time.strftime("%Y%m%d-%H%M%S"))


OmegaConf.register_new_resolver("run_id", run_id, use_cache=True, replace=True)


def run(config_name: str, function: Callable[[DictConfig], None]) -> int:
    """Compose a config from the command line, call a function with it and return the exit status.

    A mistake of the user becomes one line without a traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    statuses = [DONE]

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def job(cfg: DictConfig) -> None:
        # Caught here too, because Hydra prints a line of its own about what leaves a job.
        try:
            function(cfg)
        except SystemExit as error:  # Lightning leaves so at SIGTERM, with the status of success
            log.error(
                "error: the run was stopped by a signal before its end (%s)", type(error).__name__
            )
            statuses.append(FAILED)
        except Exception as error:
            statuses.append(_report(error))

    try:
        job()
    except Exception as error:
        statuses.append(_report(error))
    return min(status for status in statuses if status) if any(statuses) else DONE


def resolve(cfg: DictConfig) -> None:
    """Replace interpolations by what they point to.

    Raises:
        InputError: Keys without a default are not set; all of them are named.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    missing = list(_missing(plain))
    if missing:
        cure = " ".join(f"{key}=..." for key in missing)
        raise InputError(f"{', '.join(missing)}: not set, and there is no default. Add {cure}")
    OmegaConf.resolve(cfg)


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a plain config that hold ???."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def _report(error: Exception) -> int:
    """Print what went wrong, to the screen and to the log file, and return the exit status."""
    message = explain(error)
    if message is None:
        log.error("%s", "".join(traceback.format_exception(error)))
        return FAILED
    log.error("error: %s", message)
    return exit_status(error)


def exit_status(error: BaseException) -> int:
    """Return 1 where a tolerance that the user set was exceeded, else 2."""
    return (
        FAILED if any(getattr(one, "max_failed", 0.0) > 0 for one in _chain(error)) else WRONG_INPUT
    )


def explain(error: BaseException) -> str | None:
    """Return what a user can mend, in one line for each thing; None for a fault of the program."""
    for one in _chain(error):
        if isinstance(one, InputError):
            return str(one)
    for one in _chain(error):
        if isinstance(one, OSError) and one.filename is not None:
            return f"{one.strerror}: {one.filename}. Check the paths of the config."
    if isinstance(error, InstantiationException):
        return _instantiation_message(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _config_message(error)
    return None


def _instantiation_message(error: InstantiationException) -> str | None:
    """Return what a constructor has against its arguments, which come from the config."""
    cause = list(_chain(error))[-1]
    if isinstance(cause, ImportError | AttributeError):
        return f"{_line(str(cause))} (config: {_where(error)}). Correct its _target_."
    if isinstance(cause, TypeError | ValueError) or "Misconfiguration" in type(cause).__name__:
        return (
            f"{_line(str(cause))} (config: {_where(error)}). "
            f"Compare with `python train.py --cfg job`."
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()  # an error may be raised again from itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _config_message(error: Exception) -> str:
    """Return Hydra's or OmegaConf's complaint as one line.

    Where a name is unknown, the nearest one is added.
    """
    text = _line(" ".join(dict.fromkeys(str(one) for one in reversed(list(_chain(error))))))
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    if unknown:
        known = [key for key in _known_keys() if key != unknown[1]]
        near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.75)
        hint = (
            f"Did you mean {near[0]!r}?"
            if near
            else "See `python train.py --cfg job` for the keys there are."
        )
        return f"there is no config key {unknown[1]!r}. {hint}"
    return text


def _known_keys() -> list[str]:
    """Return groups and keys, dotted, as far as the files show them."""
    keys = {path.name for path in CONF.iterdir() if path.is_dir()}
    for path in CONF.rglob("*.yaml"):
        relative = path.relative_to(CONF).parent.parts
        content = OmegaConf.load(path)
        prefix = ".".join(relative[:1])
        for name in content if OmegaConf.is_dict(content) else ():
            keys.add(f"{prefix}.{name}" if prefix else str(name))
    return sorted(keys)


def _where(error: BaseException) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    return match[1] if match else "see the traceback"


def _line(text: str) -> str:
    return " ".join(text.split())
