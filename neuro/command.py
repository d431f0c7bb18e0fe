"""What the commands share: composing a config, and one line and an exit status for each mistake."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuro import arguments, run_folder  # noqa: F401, run_folder names the folder in conf/
from neuro.arguments import CONF
from neuro.errors import InputError

log = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT = 0, 1, 2
# Less is left on a disk that is full: 16 MiB.
FULL_BYTES = 1 << 24
AGAIN = "Run the same command again: what is done is kept."


def run(
    config_name: str,
    function: Callable[[DictConfig], None],
    how_to_go_on: Callable[[DictConfig], str] = lambda cfg: AGAIN,
) -> int:
    """Compose a config from the command line, call a function with it and return the exit status.

    A mistake of the user becomes one line without a traceback, and so does Ctrl-C.

    Args:
        config_name: A file of ``conf/``.
        function: The command.
        how_to_go_on: Says what was kept, and how to go on, when the command was interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    statuses = [DONE]
    told: list[BaseException] = []

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def job(cfg: DictConfig) -> None:
        # Caught here too, because Hydra prints a line of its own about what leaves a job.
        try:
            function(cfg)
        except (KeyboardInterrupt, SystemExit) as error:
            _report_stop(error, how_to_go_on(cfg))
            told.append(error)
            raise  # a sweep stops too
        except Exception as error:
            statuses.append(_report(error, config_name, cfg))

    try:
        job()
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not told:  # --help has its own status
            raise
        if not told:
            _report_stop(error, AGAIN)
        statuses.append(FAILED)
    except Exception as error:
        statuses.append(_report(error, config_name))
    return min(status for status in statuses if status) if any(statuses) else DONE


def resolve(cfg: DictConfig, parts: Sequence[str] = ("",)) -> None:
    """Replace interpolations by what they point to, and check the types of what is there.

    Args:
        cfg: The config of a command.
        parts: Dotted keys of what the command will build; "" is everything.

    Raises:
        InputError: Keys without a default are not set, or values have a wrong type; all of them
            are named.
    """
    from neuro import typed  # not before --help

    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    missing = list(_missing(plain))
    if missing:
        cure = " ".join(f"{key}=..." for key in missing)
        raise InputError(f"{', '.join(missing)}: not set, and there is no default. Add {cure}")
    OmegaConf.resolve(cfg)
    resolved: Any = OmegaConf.to_container(cfg)
    typed.check(plain, resolved, parts)


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a plain config that hold ???."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def _report_stop(error: BaseException, how_to_go_on: str) -> None:
    """Say in one line that a command was stopped from outside, and how to go on.

    Lightning leaves with SystemExit after a Ctrl-C, and after SIGTERM with the status of success.
    """
    # From here on the system, not Python, answers a second Ctrl-C: at once, and without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    by_hand = any(isinstance(one, KeyboardInterrupt) for one in _chain(error))
    log.error("error: stopped by %s. %s", "Ctrl-C" if by_hand else "a signal", how_to_go_on)


def _report(error: Exception, config_name: str, cfg: DictConfig | None = None) -> int:
    """Print what went wrong, to the screen and to the log file, and return the exit status."""
    message = _full_disk(error, cfg) or explain(error, config_name)
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


def explain(error: BaseException, config_name: str = "train") -> str | None:
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
        return _config_message(error, config_name)
    return None


def _full_disk(error: BaseException, cfg: DictConfig | None) -> str | None:
    """Return which disk is full and which key moves what fills it; None for other errors."""
    full = (errno.ENOSPC, errno.EDQUOT)
    found = [one for one in _chain(error) if isinstance(one, OSError) and one.errno in full]
    if not found or cfg is None or any(isinstance(one, InputError) for one in _chain(error)):
        return None
    places = {
        "paths.output_dir": Path(cfg.paths.output_dir).absolute(),
        "paths.cache_dir": Path(cfg.paths.cache_dir).absolute(),
        "paths.data_dir": Path(cfg.paths.data_dir).absolute(),
    }
    names = [Path(os.fsdecode(one.filename)).absolute() for one in found if one.filename]
    keys = [key for key, place in places.items() if any(map(place.__eq__, _with_parents(names)))]
    # A write that fails says no name: then those whose disk is full, if it can be told.
    keys = keys or [key for key, place in places.items() if not names and _is_full(place)]
    where = names[0] if names else ", ".join(str(places[key]) for key in keys)
    cure = f"set {' or '.join(keys)} to a folder on another disk" if keys else "use another disk"
    return f"the disk is full: {where or 'it could not be told which'}. Free some space, or {cure}."


def _with_parents(paths: list[Path]) -> list[Path]:
    return [one for path in paths for one in (path, *path.parents)]


def _is_full(folder: Path) -> bool:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free < FULL_BYTES


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


def _config_message(error: Exception, config_name: str) -> str:
    """Return Hydra's or OmegaConf's complaint as one line that says what to type."""
    text = _line(" ".join(dict.fromkeys(str(one) for one in reversed(list(_chain(error))))))
    words = arguments.given()
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    if unknown:
        return arguments.unknown(unknown[1], words, config_name)
    if "Ambiguous value" in text:
        return arguments.ambiguous(words) or text
    option = re.search(r"Could not find '(.+)/([^/']+)' Available options in '[^']+': (.*)", text)
    if option:
        return arguments.no_option(option[1], option[2], option[3].partition(" Config ")[0].split())
    return arguments.unreadable(words) or text.partition(" Config search path:")[0]


def _where(error: BaseException) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    return match[1] if match else "see the traceback"


def _line(text: str) -> str:
    return " ".join(text.split())
