"""The second command: build the cache that a config would train from, and show what is in it."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError, ScanError

if TYPE_CHECKING:
    from neuro.data.cache import Cache
    from neuro.data.manifest import Manifest

# What is built of a config here; the rest of it is not looked at, and not imported. The last three
# are only for training, which would find late what is wrong with them.
PARTS = (
    "data.recipes",
    "data.datamodule.cohort",
    "data.datamodule.collate.background",
    "data.datamodule.budget",
    "data.datamodule.augment",
    "data.datamodule.windows",
)

log = logging.getLogger("neuro.prepare")  # not __name__, which is __main__ under -m


def prepare(cfg: DictConfig) -> None:
    """Prepare every scan of ``cfg.data``, and write the index, the failures and the page.

    Raises:
        InputError: The config or the data is wrong, or the cache cannot be written to.
        TooManyFailedScans: More scans failed than ``data.max_failed`` allows; everything else was
            prepared, and the page is there.
        NoUsableScan: None is; the failures and the page are there.
    """
    # Imported here, so that --help answers at once.
    from hydra.utils import instantiate

    from neuro.data.cache import Cache
    from neuro.data.intake import in_cache_ledger
    from neuro.data.ledger import NoUsableScan, check_tolerance, failed
    from neuro.report.prepared import readable_rows, write_page

    shard, max_pictures = shard_of(cfg.shard), num_pictures(cfg.max_pictures)
    _check_data(cfg)
    root = Path(cfg.paths.cache_dir)
    _begin_log(root / "prepare.log")
    cache = Cache(root, instantiate(cfg.data.recipes, _convert_="all"))
    background = instantiate(cfg.data.datamodule.collate.background, _convert_="all")
    cohort = instantiate(cfg.data.datamodule.cohort, _convert_="all")
    about = {
        "title": Path(cfg.data.get("root") or cfg.data.get("manifest") or "scans").name,
        "source": type(cohort).__name__,
        "min_foreground": background.share,
        "max_pictures": max_pictures,
    }
    try:
        manifest = in_cache_ledger(cohort, cache, cfg.data.weights)
    except NoUsableScan as error:
        cache.ledger.update(error.failures, None)
        write_page(cache, {}, error.failures, **about)
        raise
    _describe(cache)
    scans, known = manifest.scans(), manifest.failures
    if shard != (1, 1):
        failures = cache.build(scans, max_failed=cfg.data.max_failed, shard=shard)
        _warn_of(failures)
        log.info(
            "shard %d of %d is done; after all of them, run once without shard for qc.html", *shard
        )
        return
    failures = cache.build(scans, max_failed=1.0, known_failures=known)
    rows, more = readable_rows(manifest, cache, background.share, max_pictures)
    if more:  # entries that were damaged, and whose scans are gone
        failures = sorted([*failures, *more], key=lambda failure: failure.path)
        cache.ledger.update(failures, None)
    write_page(cache, rows, failures, **about)
    _warn_of_training(manifest, cache)
    num_scans, num_bad = cache.num_scans(scans, known), len(failed(failures))
    log.info("%d of %d scans can be used; %s", num_scans - num_bad, num_scans, root / "qc.html")
    if num_bad < len(failures):
        log.info(
            "%d more were never meant to be scans, and are not counted", len(failures) - num_bad
        )
    check_tolerance(failures, num_scans=num_scans, max_failed=cfg.data.max_failed)
    _warn_of(failures)


def _check_data(cfg: DictConfig) -> None:
    """Check what training would, in the same words, without a trainer and a model."""
    from hydra.utils import instantiate

    from neuro.data.augment import check_window_probabilities
    from neuro.data.intake import check_max_failed, check_num_workers, check_weights

    check_max_failed(cfg.data.max_failed)
    check_num_workers(cfg.data.num_workers)
    check_weights(cfg.data.weights or {})
    if cfg.data.window_probabilities is not None:
        check_window_probabilities(cfg.data.window_probabilities)
    for part in ("budget", "augment", "windows"):
        instantiate(cfg.data.datamodule[part], _convert_="all")


def _begin_log(path: Path) -> None:
    from neuro.console import set_up_logging
    from neuro.data.whole_file import NotWritable

    try:
        set_up_logging(path)
    except OSError as error:
        raise NotWritable(path, error) from error


def _warn_of(failures: Sequence[ScanError]) -> None:
    for failure in failures:
        log.warning("left out: %s", failure)


def _warn_of_training(manifest: Manifest, cache: Cache) -> None:
    """Say what would stop a training on this cache; other splits need no other cache."""
    from neuro.data.intake import check_same_voxels, shown_studies
    from neuro.data.leaks import LeakError
    from neuro.data.manifest import SPLITS

    try:
        check_same_voxels(manifest, cache)
    except LeakError as error:
        log.warning("training would stop: %s", error)
    usable = cache.facts(manifest.scans())
    for name in SPLITS:
        listed = manifest.split(name)
        if listed is None:
            cure = manifest.cures.get(name, f"Set data.splits so that {name} gets some.")
            log.warning("training would stop: the %s split has no study. %s", name, cure)
        elif shown_studies(listed, usable) is None:
            log.warning(
                "training would stop: none of the %d studies of the %s split can be used. Mend "
                "their scans, or set data.splits so that others are in it.",
                len(listed),
                name,
            )


def shard_of(text: str | None) -> tuple[int, int]:
    """Return which part of how many, counted from 1.

    Raises:
        InputError: The text says neither.
    """
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", str(text))
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(
            f"shard={text} must be which part of how many, counted from 1, like shard=3/16."
        )
    return number, count


def num_pictures(given: object) -> int:
    """Return how many pictures the page may have.

    Raises:
        InputError: It is no number of pictures.
    """
    if type(given) is not int or given < 0:
        raise InputError(
            f"max_pictures={given} must be a whole number, 0 or more, like max_pictures=1000."
        )
    return given


def _describe(cache: Cache) -> None:
    """Say in BIDS terms what the folder is."""
    from neuro.data.fingerprint import describe
    from neuro.data.lock import locked
    from neuro.data.whole_file import write_whole

    description = {
        "Name": "Scans prepared for training",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neuro", "Version": version("neuro")}],
        "Recipes": {
            cache.folders[name].name: describe(recipe) for name, recipe in cache.recipes.items()
        },
    }
    text = json.dumps(description, indent=2) + "\n"
    path = cache.root / "dataset_description.json"
    with locked(cache.root, path.name):
        write_whole(path, text)


def _run(cfg: DictConfig) -> None:
    start = time.monotonic()
    command.resolve(cfg, PARTS)
    prepare(cfg)
    log.info("done in %.0f s", time.monotonic() - start)


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 1 when too many scans are bad, 2 when the input is wrong.
    """
    sys.exit(command.run("prepare", _run))


if __name__ == "__main__":
    main()
