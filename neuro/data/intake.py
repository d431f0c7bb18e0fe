"""What is checked before scans are prepared and after, and which studies are then shown.

The two commands that prepare scans, ``train`` and ``prepare``, meet here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress

import numpy as np

from neuro.data.cache import Cache
from neuro.data.cohort import Cohort
from neuro.data.leaks import LeakError, check_voxels
from neuro.data.manifest import Manifest, Series
from neuro.data.whole_file import NotWritable, remove
from neuro.errors import InputError

log = logging.getLogger(__name__)


def check_max_failed(max_failed: float) -> None:
    """Check that a tolerance is a share.

    Raises:
        InputError: It is not.
    """
    if not 0 <= max_failed <= 1:
        raise InputError(f"data.max_failed must be a share in [0, 1]; got {max_failed}.")


def check_weights(weights: Mapping[str, float]) -> None:
    """Check how often studies of each cohort are shown.

    Raises:
        InputError: A number is negative or not finite.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(
                f"data.weights.{name}={weight} must say how often an epoch shows each study of "
                f"the cohort: 0 or more, and finite."
            )


def check_num_workers(num_workers: int) -> None:
    """Check how many processes read.

    Raises:
        InputError: It is no number of processes.
    """
    if num_workers < 0:
        raise InputError(
            f"data.num_workers={num_workers} must be 0 or more processes; 0 reads without any."
        )


def in_cache_ledger(
    cohort: Cohort, cache: Cache, weights: Mapping[str, float] | None = None
) -> Manifest:
    """Return a cohort's manifest, checked; what leaks is written beside the cache's failures.

    Args:
        cohort: Where the studies come from.
        cache: Where they will be cached.
        weights: How often an epoch shows each study of a cohort.

    Raises:
        InputError: A modality has no recipe, or a weight is of no cohort.
        LeakError: Something is in two splits.
    """
    try:
        manifest = cohort.manifest()
    except LeakError as error:
        raise _told(error, cache) from None
    _check_modalities(manifest, cache.recipes)
    _check_cohorts(weights or {}, manifest)
    return manifest


def check_same_voxels(manifest: Manifest, cache: Cache) -> None:
    """Check that no image is in two splits under two names, after it was prepared.

    Raises:
        LeakError: One is.
    """
    scans = manifest.scans()
    facts = cache.facts(scans)
    digests: dict[str, int] = {}
    codes = [
        digests.setdefault(f"{scan.modality}{facts[scan].voxels}", len(digests))
        if scan in facts
        else -1
        for scan in scans
    ]
    try:
        check_voxels(manifest, np.array(codes, dtype=np.int64)[manifest.scan_of_row])
    except LeakError as error:
        raise _told(error, cache) from None
    with suppress(NotWritable):  # a cache that others have filled
        remove(cache.root / "leaks.tsv")  # of an earlier run


def shown_studies(studies: Manifest, usable: Collection[Series]) -> Manifest | None:
    """Return the studies that can be shown; None if there is none.

    A study that is asked about needs each of its images. Any other is a bag of series: it is shown
    with those that can be used, if there is one.

    Args:
        studies: The studies.
        usable: The scans that could be prepared.
    """
    kept = np.array([scan in usable for scan in studies.scans()])[studies.scan_of_row]
    if studies.conversations is None:
        return studies.with_series(kept)
    rows = np.flatnonzero(np.logical_and.reduceat(kept, studies.bounds[:-1]))
    return studies.take(rows) if len(rows) else None


def log_shown(manifest: Manifest, shown: Mapping[str, Manifest]) -> None:
    """Log how many studies lost something.

    Args:
        manifest: What the source found.
        shown: What of it is shown, by split.
    """
    num_left_out = manifest.num_left_out + len(manifest) - sum(map(len, shown.values()))
    num_partly = sum(np.count_nonzero(one.failed) for one in shown.values())
    if num_left_out or num_partly:
        log.warning(
            "%d studies are left out and %d are shown without some of their series, "
            "see failures.tsv",
            num_left_out,
            num_partly,
        )


def _check_modalities(manifest: Manifest, recipes: Collection[str]) -> None:
    counts = manifest.series["modality"].value_counts().to_pylist()
    unknown = Counter(
        {one["values"]: one["counts"] for one in counts if one["values"] not in recipes}
    )
    if unknown:
        found = ", ".join(f"{name!r} ({count} series)" for name, count in unknown.most_common(20))
        raise InputError(
            f"no recipe is for the modality {found}; there are recipes for {', '.join(recipes)}. "
            f"Correct the column modality, data.mode_mapping or data.default_mode, where none "
            f"leaves a series out; or add data.recipes.NAME."
        )


def _check_cohorts(weights: Mapping[str, float], manifest: Manifest) -> None:
    known = [name for name in manifest.studies["cohort"].unique().to_pylist() if name]
    unknown = [name for name in weights if name not in known]
    if unknown:
        raise InputError(
            f"data.weights names {', '.join(map(str, unknown))}; the cohorts are "
            f"{', '.join(sorted(known)) or 'without a name'}. Correct the names; one that looks "
            f"like a number is typed +data.weights.2020_01=1.0."
        )
    train = manifest.split("train")
    shown = train.studies["cohort"].unique().to_pylist() if train is not None else []
    if shown and all(weights.get(name, 1.0) == 0 for name in shown):
        raise InputError("data.weights is 0 for each cohort of training. Give one a larger one.")


def _told(error: LeakError, cache: Cache) -> LeakError:
    error.write(cache.root / "leaks.tsv")
    error.args = (f"{error} All {len(error.pairs)} pairs are in {cache.root / 'leaks.tsv'}.",)
    return error
