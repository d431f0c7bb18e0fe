"""The second command: build the cache that a config would train from, and show what is in it."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError, ScanError

if TYPE_CHECKING:
    from PIL import Image

    from neuro.data.cache import Cache
    from neuro.data.manifest import Manifest, Series

log = logging.getLogger("neuro.prepare")  # not __name__, which is __main__ under -m


def prepare(cfg: DictConfig) -> None:
    """Prepare every scan of ``cfg.data``, and write the index, the failures and the page.

    Raises:
        InputError: The config or the data is wrong.
        TooManyFailedScans: More scans failed than ``data.max_failed`` allows; everything else was
            prepared, and the page is there.
    """
    # Imported here, so that --help answers at once.
    from hydra.utils import instantiate

    from neuro.console import set_up_logging
    from neuro.data.cache import Cache, TooManyFailedScans
    from neuro.data.datamodule import check_max_failed, check_same_voxels, in_cache_ledger
    from neuro.data.leaks import LeakError

    check_max_failed(cfg.data.max_failed)
    shard = shard_of(cfg.shard)
    root = Path(cfg.paths.cache_dir)
    set_up_logging(root / "prepare.log")
    cache = Cache(root, instantiate(cfg.data.recipes, _convert_="all"))
    background = instantiate(cfg.data.datamodule.collate.background, _convert_="all")
    cohort = instantiate(cfg.data.datamodule.cohort, _convert_="all")
    manifest = in_cache_ledger(cohort, cache)
    too_many, failures = None, []
    try:
        failures = cache.build(
            manifest.scans(),
            max_failed=cfg.data.max_failed,
            known_failures=manifest.failures if shard == (1, 1) else (),
            shard=shard,
        )
    except TooManyFailedScans as error:
        too_many, failures = error, error.failures
    _describe(cache)
    num_scans = len(manifest.scans()) + len(manifest.failures)
    if shard == (1, 1):
        _page(cfg, manifest, cache, background.share, failures)
        try:
            check_same_voxels(manifest, cache)
        except LeakError as error:  # other splits need no other cache
            log.warning("training would stop: %s", error)
        num_good = num_scans - len(failures)
        log.info("%d of %d scans can be used; %s", num_good, num_scans, root / "qc.html")
    else:
        log.info(
            "shard %d of %d is done; after all of them, run once without shard for qc.html", *shard
        )
    if too_many is not None:
        raise too_many
    for failure in failures:
        log.warning("left out: %s", failure)


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


def _describe(cache: Cache) -> None:
    """Say in BIDS terms what the folder is."""
    from neuro.data.cache import describe

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
    (cache.root / "dataset_description.json").write_text(text)


def _page(
    cfg: DictConfig,
    manifest: Manifest,
    cache: Cache,
    min_foreground: float,
    failures: list[ScanError],
) -> None:
    from neuro.report.qc import Scan, write_qc

    owners = {}
    for row, place in enumerate(manifest.scan_of_row.tolist()):
        owners.setdefault(place, int(manifest.owners[row]))
    ids, scans = manifest.ids, manifest.scans()
    places = {scan: place for place, scan in enumerate(scans)}
    facts = cache.facts(scans)
    kept = cache.num_kept(facts, min_foreground)
    rows = {
        Scan(
            study=ids[owners[places[series]]],
            series=series.name or series.path.name,
            modality=series.modality,
            path=str(series.path),
            source_shape=one.source_shape,
            source_spacing_mm=one.source_spacing_mm,
            orientation=one.orientation,
            grid=one.grid,
            num_tokens=math.prod(one.grid),
            num_kept=kept[series],
            warnings=one.warnings,
        ): series
        for series, one in facts.items()
    }

    def picture(scan: Scan) -> Image.Image:
        return draw(cache, rows[scan], min_foreground)

    write_qc(
        cache.root / "qc.html",
        list(rows),
        failures,
        picture=picture,
        title=Path(cfg.data.get("root") or cfg.data.get("manifest") or "scans").name,
        facts=[("data", cfg.data.datamodule.cohort._target_.split(".")[-1])]
        + [(name, cache.folders[name].name) for name in sorted({one.modality for one in facts})],
        max_pictures=cfg.max_pictures,
    )


def draw(cache: Cache, series: Series, min_foreground: float) -> Image.Image:
    """Return a mosaic of a prepared scan, the kept tokens outlined."""
    from neuro.report.mosaic import mosaic

    recipe = cache.recipes[series.modality]
    view = next(iter(recipe.views))
    if recipe.shape is not None and len(recipe.shape) == 4:
        voxels, shares = cache.read_window(series, 0, 1, view)
        voxels, shares = voxels.float().mean(dim=-1), shares[..., 0]
    else:
        voxels, shares = cache.read(series, view)
    outline = shares >= min_foreground * 255
    return mosaic(voxels, affine=cache.affine(series), outline=outline, slice_pixels=176)


def _run(cfg: DictConfig) -> None:
    start = time.monotonic()
    command.resolve(cfg)
    prepare(cfg)
    log.info("done in %.0f s", time.monotonic() - start)


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 1 when too many scans are bad, 2 when the input is wrong.
    """
    sys.exit(command.run("prepare", _run))


if __name__ == "__main__":
    main()
