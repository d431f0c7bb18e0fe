"""The page of a cache: what is known of each prepared scan, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from neuro.data.cache import Cache
from neuro.data.lock import locked
from neuro.data.manifest import Manifest, Series
from neuro.data.threads import Threads
from neuro.errors import ScanError
from neuro.report.mosaic import mosaic
from neuro.report.qc import Scan, by_suspicion, write_qc


def readable_rows(
    manifest: Manifest, cache: Cache, min_foreground: float, max_pictures: int
) -> tuple[dict[Scan, Series], list[ScanError]]:
    """Return what the page shows of each scan; entries that are damaged are prepared anew.

    Looked at is what the page needs: how many tokens are kept, where that is not known yet, and
    what pictures are drawn of.

    Returns:
        The scans in words, and those whose entry was damaged and cannot be prepared any more.
    """
    damaged: dict[Series, ScanError] = {}
    cache.num_kept(cache.facts(manifest.scans()), min_foreground, damaged)
    failures = cache.mend(damaged)
    rows = _rows(manifest, cache, min_foreground)
    scans = list(rows)
    drawn = [rows[scans[place]] for place in by_suspicion(scans)[:max_pictures]]
    damaged = _damaged(cache, drawn)
    if not damaged:
        return rows, failures
    failures += cache.mend(damaged)
    return _rows(manifest, cache, min_foreground), failures


def _damaged(cache: Cache, scans: Sequence[Series]) -> dict[Series, ScanError]:
    """Return an error for each scan of which no picture can be drawn, because its entry is bad."""

    def look(series: Series) -> ScanError | None:
        try:
            _voxels(cache, series)
        except ScanError as error:
            return error
        return None

    with Threads(4) as pool:  # few, because each holds a scan
        errors = dict(zip(scans, pool.map(look, scans), strict=True))
    return {series: error for series, error in errors.items() if error is not None}


def _rows(manifest: Manifest, cache: Cache, min_foreground: float) -> dict[Scan, Series]:
    """Return what the page says of each prepared scan."""
    owners = {}
    for row, place in enumerate(manifest.scan_of_row.tolist()):
        owners.setdefault(place, int(manifest.owners[row]))
    ids, scans = manifest.ids, manifest.scans()
    places = {scan: place for place, scan in enumerate(scans)}
    facts = cache.facts(scans)
    kept = cache.num_kept(facts, min_foreground)
    return {
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


def write_page(
    cache: Cache,
    rows: Mapping[Scan, Series],
    failures: Sequence[ScanError],
    *,
    title: str,
    source: str,
    min_foreground: float,
    max_pictures: int,
) -> None:
    """Write ``qc.html`` into a cache.

    Args:
        cache: The prepared scans.
        rows: What the page says of each.
        failures: What could not be prepared, and what never was a scan.
        title: Its heading.
        source: What kind of cohort it is.
        min_foreground: The share of head from which a token is kept, in [0, 1].
        max_pictures: How many scans are shown; the others become rows of a table.

    Raises:
        NotWritable: The disk is full or not writable; the page that was there is as it was.
    """
    path = cache.root / "qc.html"
    modalities = sorted({series.modality for series in rows.values()})
    with locked(cache.root, path.name):
        write_qc(
            path,
            list(rows),
            failures,
            picture=lambda scan: draw(cache, rows[scan], min_foreground),
            title=title,
            facts=[("data", source), *((name, cache.folders[name].name) for name in modalities)],
            max_pictures=max_pictures,
        )


def draw(cache: Cache, series: Series, min_foreground: float) -> Image.Image:
    """Return a mosaic of a prepared scan, the kept tokens outlined."""
    voxels, shares, affine = _voxels(cache, series)
    outline = shares >= min_foreground * 255
    return mosaic(voxels, affine=affine, outline=outline, slice_pixels=176)


def _voxels(cache: Cache, series: Series) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a picture is drawn of: an image, the share of head in its tokens, its affine."""
    recipe = cache.recipes[series.modality]
    view = next(iter(recipe.views))
    if recipe.shape is not None and len(recipe.shape) == 4:
        voxels, shares = cache.read_window(series, 0, 1, view)
        voxels, shares = voxels.float().mean(dim=-1), shares[..., 0]
    else:
        voxels, shares = cache.read(series, view)
    return voxels, shares, cache.affine(series)
