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
import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from neuro import arguments, kinds, launchers, memory, redaction, run_folder  # noqa: F401, run_folder names the folder in conf/
from neuro.arguments import CONF
from neuro.errors import FailedRun, InputError, legible
from neuro.stopping import STOP_SIGNALS, TOLD, Stopped

log = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT = 0, 1, 2
# Less is left on a disk that is full: 16 MiB.
FULL_BYTES = 1 << 24
# What a folder that cannot be made, or written to, is refused with.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
# What groups of Hydra's own are filled by.
EXTRAS = {"hydra/launcher": "slurm", "hydra/sweeper": "sweep"}
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
    sweep = launchers.offer_launchers()

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def job(cfg: DictConfig) -> None:
        # Caught here too, because Hydra prints a line of its own about what leaves a job.
        try:
            sweep.check(arguments.given())
            function(cfg)
        except (KeyboardInterrupt, SystemExit) as error:
            _report_stop(error, how_to_go_on(cfg))
            told.append(error)
            raise  # a sweep stops too
        except Exception as error:
            statuses.append(_report(error, config_name, cfg))

    try:
        with STOP_SIGNALS.answered():  # while the config is composed too
            redaction.check_words(arguments.given())
            job()
    except (KeyboardInterrupt, SystemExit) as error:
        is_stop = told or isinstance(error, KeyboardInterrupt | Stopped)
        if not is_stop:  # --help has its own status
            raise
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as it was when the stop was told
        if not told:
            _report_stop(error, sweep.how_to_go_on() if sweep.jobs else AGAIN)
        statuses.append(FAILED)
    except Exception as error:
        statuses.append(_report(error, config_name))
    sweep.tell()
    statuses.append(sweep.status())
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

    plain = check_set(cfg)
    OmegaConf.resolve(cfg)
    resolved: Any = OmegaConf.to_container(cfg)
    typed.check(plain, resolved, parts, arguments.given())


def check_set(cfg: DictConfig) -> Any:
    """Return a config as plain containers, interpolations not replaced.

    Raises:
        InputError: Keys without a default are not set; all of them are named.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    redaction.check_config(plain)
    missing = list(_missing(plain))
    if missing:
        cure = " ".join(f"{key}=..." for key in missing)
        raise InputError(f"{', '.join(missing)}: not set, and there is no default. Add {cure}")
    return plain


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
    asked = [one.signum for one in _chain(error) if isinstance(one, Stopped)]
    by_hand = any(isinstance(one, KeyboardInterrupt) for one in _chain(error))
    who = "Ctrl-C" if by_hand or signal.SIGINT in asked else asked[0].name if asked else "a signal"
    log.error("error: %s %s. %s", TOLD, who, how_to_go_on)


def _report(error: Exception, config_name: str, cfg: DictConfig | None = None) -> int:
    """Print what went wrong, to the screen and to the log file, and return the exit status."""
    message = (
        _full_disk(error, cfg)
        or _refused(error, config_name, cfg)
        or memory.explained(list(_chain(error)), cfg)
        or explain(error, config_name)
    )
    if message is None:
        log.error("%s", "".join(traceback.format_exception(error)))
        return FAILED
    log.error("error: %s", message)
    return exit_status(error)


def exit_status(error: BaseException) -> int:
    """Return 1 where a run failed, or too many scans for a tolerance that the user set; else 2."""
    chain = list(_chain(error))
    has_failed = any(
        isinstance(one, FailedRun) or getattr(one, "max_failed", 0.0) > 0 for one in chain
    )
    has_failed = has_failed or memory.explained(chain, None) is not None
    return FAILED if has_failed or has_lost_a_rank(chain) else WRONG_INPUT


def has_lost_a_rank(chain: Sequence[BaseException]) -> bool:
    """Return whether an error says that another process of this run is gone."""
    signs = ("Connection reset by peer", "Connection closed by peer")
    return any(
        type(one).__name__ == "DistBackendError"
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in signs))
        for one in chain
    )


def explain(error: BaseException, config_name: str = "train") -> str | None:
    """Return what a user can mend, in one line for each thing; None for a fault of the program."""
    for one in _chain(error):
        if isinstance(one, InputError | FailedRun):
            return str(one)
    for one in _chain(error):
        if isinstance(one, OSError) and one.filename is not None:
            return legible(f"{one.strerror}: {one.filename}. Check the paths of the config.")
        if isinstance(one, yaml.YAMLError):
            return _yaml_message(one)
        if isinstance(one, UnicodeDecodeError) and (path := _config_being_read(one)):
            return f"{path} is not UTF-8. Save it as plain text in UTF-8."
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return arguments.no_name_of_an_option(arguments.given())
    if has_lost_a_rank(list(_chain(error))):
        return "another process of this run has ended, see above. Go on with the same command."
    if isinstance(error, ValueError) and "No trials are completed yet" in str(error):
        return "every trial of the search failed, for the reasons above."
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
    if "paths" not in cfg:  # neuro.folds writes one small table
        return f"the disk is full: {found[0].filename or 'where runs are'}. Free some space."
    places = {
        "paths.output_dir": Path(cfg.paths.output_dir).absolute(),
        "paths.cache_dir": Path(cfg.paths.cache_dir).absolute(),
        "paths.data_dir": Path(cfg.paths.data_dir).absolute(),
    }
    # A move names its source first, and what is full is where it goes.
    given = [one.filename2 or one.filename for one in found]
    names = [Path(os.fsdecode(one)).absolute() for one in given if one]
    keys = [key for key, place in places.items() if any(map(place.__eq__, _with_parents(names)))]
    # A write that fails says no name: then those whose disk is full, if it can be told.
    keys = keys or [key for key, place in places.items() if not names and _is_full(place)]
    where = names[0] if names else ", ".join(str(places[key]) for key in keys)
    cure = f"set {' or '.join(keys)} to a folder on another disk" if keys else "use another disk"
    return f"the disk is full: {where or 'it could not be told which'}. Free some space, or {cure}."


def _refused(error: BaseException, config_name: str, cfg: DictConfig | None) -> str | None:
    """Return what may not be opened or made, and which key moves it; None for other errors."""
    found = [one for one in _chain(error) if isinstance(one, OSError) and one.errno in REFUSED]
    if not found or not found[0].filename or any(isinstance(e, InputError) for e in _chain(error)):
        return None
    # Hydra makes the run folder before the command begins.
    words = [word for word in arguments.given() if word.startswith("paths.")]
    known = arguments.composed(words, config_name) if cfg is None else cfg
    keys = ("paths.output_dir", "paths.cache_dir", "paths.data_dir")
    given = {key: OmegaConf.select(known, key) for key in (*keys, "paths.root")}
    places = {key: Path(str(one)).absolute() for key, one in given.items() if one is not None}
    path = Path(os.fsdecode(found[0].filename)).absolute()
    holding = [key for key in keys if key in places and places[key] in _with_parents([path])]
    # A folder above them, which could not be made.
    within = [key for key, place in places.items() if path in _with_parents([place])]
    moved = holding or ["paths.root"] * ("paths.root" in within) or within
    if not moved:
        return None
    cure = f"et {' or '.join(moved)} to another folder"
    is_forbidden = found[0].errno not in (errno.ENOTDIR, errno.EEXIST)
    cure = f"Give yourself access to it, or s{cure}" if is_forbidden else f"S{cure}"
    return f"{found[0].strerror}: {path}. {cure}."


def _with_parents(paths: list[Path]) -> list[Path]:
    return [one for path in paths for one in (path, *path.parents)]


def _is_full(folder: Path) -> bool:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free < FULL_BYTES


def _instantiation_message(error: InstantiationException) -> str | None:
    """Return what a constructor has against its arguments, which come from the config."""
    cause = list(_chain(error))[-1]
    surplus = re.search(r"got an unexpected keyword argument '(\w+)'", str(cause))
    modality = re.search(r"recipes\.(\w+)$", _where(error))
    word = arguments.recipe_of(modality[1], surplus[1]) if surplus and modality else None
    if surplus and modality and word:
        return (
            f"the recipe of data.recipes.{modality[1]} takes no {surplus[1]}; a cube does, as the "
            f"phantom has them. Write {word}, or take experiment=jepa_phantom or "
            f"experiment=mil_phantom."
        )
    if isinstance(cause, ImportError | AttributeError):
        return f"{_line(str(cause))} (config: {_where(error)}). Correct its _target_."
    if isinstance(cause, TypeError | ValueError) or "Misconfiguration" in type(cause).__name__:
        return (
            f"{_line(str(cause))} (config: {_where(error)}). "
            f"Compare with `python train.py --cfg job`."
        )
    return None


def _yaml_message(error: yaml.YAMLError) -> str:
    """Return where a file is not YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a sign that no text has
        return f"{_line(str(error))}. Correct the file."
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    what = _line(" ".join(part for part in parts if part))
    tab = " Indent with spaces." if "\\t" in what else ""
    return f"{mark.name}, line {mark.line + 1}: {what}. Correct the file.{tab}"


def _config_being_read(error: BaseException) -> str | None:
    """Return the file that Hydra was reading; the error itself does not say."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names["full_path"] for names in frames if "full_path" in names), None)


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
    if isinstance(error, InterpolationKeyError | UnsupportedInterpolationType):
        return _interpolation_message(error, words)
    null = re.search(r"Incompatible value 'None'.* interpolation '\$\{(paths\.\w+)\}'", text)
    if null:  # in the name of the folder that Hydra makes
        return kinds.sentence(null[1], f"{null[1]}=%s", None, (Path,))
    number = re.search(r"'\$\{(cluster\.\w+)\}': Value '(.*?)' .* converted to Integer", text)
    if number:
        return f"{number[1]} must be a whole number; got {number[2]}. Add {number[1]}=N"
    twice = re.search(r"Multiple values for (\S+)\.|(\S+) appears more than once", text)
    if twice:
        return arguments.added_twice(twice[1] or twice[2], words) or text
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    if unknown:
        return arguments.unknown(unknown[1], words, config_name)
    if "Ambiguous value" in text:
        return arguments.ambiguous(words) or text
    option = re.search(r"Could not find '(.+)/([^/']+)' Available options in '[^']+': (.*)", text)
    if option and (extra := EXTRAS.get(option[1])):
        return f"{option[2]} is not installed. Run pip install 'neuro[{extra}]'"
    if option:
        options = option[3].partition(" Config ")[0].split()
        return arguments.no_option(option[1], option[2], options, words)
    return arguments.unreadable(words) or text.partition(" Config search path:")[0]


def _interpolation_message(error: Exception, words: Sequence[str]) -> str:
    """Return which ${...} points nowhere; in a path it may be meant as it stands."""
    what = str(error).splitlines()[0]
    word = next((word for word in words if "${" in word), "")
    key = word.partition("=")[0] or getattr(error, "full_key", None) or "the config"
    return (
        f"{key}: {what}. ${{...}} stands for the value of another key: correct it. A path that has "
        f"these signs in its name cannot be given: rename it, or make a link to it."
    )


def _where(error: BaseException) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    return match[1] if match else "see the traceback"


def _line(text: str) -> str:
    return " ".join(text.split())
