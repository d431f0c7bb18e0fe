"""Prepared scans as one page that opens anywhere: what looks odd comes first, and says why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from numpy import ndarray
from PIL import Image

from neuro.data.whole_file import whole
from neuro.errors import NotAScan, ScanError
from neuro.report.mosaic import data_uri

FAR = 3.5  # robust z from which a number is far from the others (Iglewicz and Hoaglin, 1993)
LOW_SHARE = 0.05
FEW_TOKENS = 4
WEBP_QUALITY = 75
SHOWN_FAILURES = 12  # the others are behind a fold
MAX_ROWS = 10_000  # a browser is slow with longer tables
NUM_BINS = 20  # of a histogram

Remark = tuple[float, str]  # how odd, and why


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the page knows of one prepared series.

    Attributes:
        study: Its study.
        series: Its name within the study.
        modality: As in the manifest.
        path: Where it was read from, as the page shows it.
        source_shape: Voxels along each axis of the file; a fourth number counts volumes in time.
        source_spacing_mm: Edges of a voxel of the file.
        orientation: Where the axes of the file point to, as ``LAS``.
        grid: Tokens along each axis.
        num_tokens: How many there are, 1 or more.
        num_kept: How many of them hold enough of the head to be used.
        warnings: What was noted on its way.
    """

    study: str
    series: str
    modality: str
    path: str
    source_shape: tuple[int, ...]
    source_spacing_mm: tuple[float, float, float]
    orientation: str
    grid: tuple[int, ...]
    num_tokens: int
    num_kept: int
    warnings: tuple[str, ...]

    @property
    def kept_share(self) -> float:
        """Share of its tokens that are kept, in [0, 1]."""
        return self.num_kept / self.num_tokens

    @property
    def field_of_view_mm(self) -> tuple[float, float, float]:
        """Extent from left to right, from back to front and from bottom to top."""
        axes = sorted(range(3), key=lambda axis: "LRPAIS".find(self.orientation[axis : axis + 1]))
        x, y, z = (self.source_shape[axis] * self.source_spacing_mm[axis] for axis in axes)
        return x, y, z


@dataclass(frozen=True)
class _Measure:
    """A number of a scan that is compared with the others of its modality.

    Attributes:
        name: In words.
        form: How the number is written.
        slack: The smallest spread that scans are taken to have, so that scans which hardly differ
            are not called odd.
        is_ratio: Whether half as much is as far away as twice as much; then ``slack`` is relative.
        of: The number.
    """

    name: str
    form: str
    slack: float
    is_ratio: bool
    of: Callable[[Scan], float]


_MEASURES = (
    _Measure("share of kept tokens", "{:.1%}", 0.03, False, lambda scan: scan.kept_share),
    _Measure("finest spacing", "{:.3g} mm", 0.05, True, lambda scan: min(scan.source_spacing_mm)),
    _Measure("coarsest spacing", "{:.3g} mm", 0.05, True, lambda scan: max(scan.source_spacing_mm)),
    _Measure(
        "field of view left to right",
        "{:.0f} mm",
        0.05,
        True,
        lambda scan: scan.field_of_view_mm[0],
    ),
    _Measure(
        "field of view back to front",
        "{:.0f} mm",
        0.05,
        True,
        lambda scan: scan.field_of_view_mm[1],
    ),
    _Measure(
        "field of view bottom to top",
        "{:.0f} mm",
        0.05,
        True,
        lambda scan: scan.field_of_view_mm[2],
    ),
    _Measure("number of tokens", "{:,.0f}", 0.1, True, lambda scan: scan.num_tokens),
)


def suspicion(scans: Sequence[Scan]) -> list[tuple[float, tuple[str, ...]]]:
    """Return a score of each scan, 0 where nothing is odd, and the reasons in words.

    A scan is odd by its own warnings, if next to nothing of it is kept, if all of it is kept where
    most scans of its modality lose something, or if its share of kept tokens, its spacing, its
    field of view or its number of tokens is far from the others of its modality.
    """
    remarks = [_own_remarks(scan) for scan in scans]
    for indices in _by_modality(scans).values():
        for place, remark in _remarks_among([scans[index] for index in indices]):
            remarks[indices[place]].append(remark)
    return [
        (sum((weight for weight, _ in found), 0.0), tuple(text for _, text in found))
        for found in remarks
    ]


def by_suspicion(scans: Sequence[Scan]) -> list[int]:
    """Return the places of the scans in the order in which the page shows them."""
    return _order(scans, suspicion(scans))


def write_qc(
    path: Path,
    scans: Sequence[Scan],
    failures: Sequence[ScanError],
    *,
    picture: Callable[[Scan], Image.Image],
    title: str,
    facts: Sequence[tuple[str, str]],
    max_pictures: int,
) -> None:
    """Write the page; it appears in one move when it is complete. The caller holds its lock.

    Args:
        path: Where to.
        scans: The prepared series; the most suspicious are shown first.
        failures: The series that could not be prepared, and what never was a scan.
        picture: Called for one scan after the other, in the order of the page, while it is written.
        title: Its heading.
        facts: (name, value) of what a reader must know about how the scans were prepared.
        max_pictures: How many scans are shown; the others become rows of a table.

    Raises:
        NotWritable: The disk is full or not writable; the page that was there is as it was.
    """
    found = suspicion(scans)
    order = _order(scans, found)
    groups = _by_modality(scans)
    medians = {name: _median_kept([scans[i] for i in group]) for name, group in groups.items()}

    def views(indices: Sequence[int]) -> Iterator[dict[str, object]]:
        return (_view(scans[i], found[i][1], medians[scans[i].modality]) for i in indices)

    def cards(indices: Sequence[int]) -> Iterator[dict[str, object]]:
        for index, view in zip(indices, views(indices), strict=True):
            yield {**view, "picture": data_uri(picture(scans[index]), webp_quality=WEBP_QUALITY)}

    num_odd = sum(bool(reasons) for _, reasons in found)
    shown, listed = order[:max_pictures], order[max_pictures:]
    environment = Environment(
        loader=PackageLoader("neuro", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("qc.html.jinja").stream(
        title=title,
        facts=facts,
        num_series=len(scans),
        num_studies=len({scan.study for scan in scans}),
        num_odd=num_odd,
        failures=[one for one in failures if not isinstance(one, NotAScan)],
        no_scans=[one for one in failures if isinstance(one, NotAScan)],
        num_shown_failures=SHOWN_FAILURES,
        histograms=[
            _histogram(name, [scans[i] for i in group], [bool(found[i][1]) for i in group])
            for name, group in groups.items()
        ],
        sections=[
            ("Look at these first", len(shown[:num_odd]), cards(shown[:num_odd])),
            ("Nothing odd", len(shown[num_odd:]), cards(shown[num_odd:])),
        ],
        rows=views(listed[:MAX_ROWS]),
        num_shown=len(shown),
        num_listed=len(listed),
        num_left_out=len(listed[MAX_ROWS:]),
    )
    # A file name may hold bytes that are no text; they are shown as \udc.. and not refused.
    with (
        whole(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(page)


def _order(scans: Sequence[Scan], found: Sequence[tuple[float, tuple[str, ...]]]) -> list[int]:
    return sorted(
        range(len(scans)), key=lambda i: (-found[i][0], scans[i].study, scans[i].series, i)
    )


def _own_remarks(scan: Scan) -> list[Remark]:
    """Return what is odd about a scan whatever the others are."""
    remarks = [(2.0, warning) for warning in scan.warnings]
    if scan.kept_share < LOW_SHARE:
        text = f"only {scan.kept_share:.1%} of its tokens are kept, less than {LOW_SHARE:.0%}"
        remarks.append((8.0, text))
    if scan.num_kept < FEW_TOKENS:
        text = (
            f"{scan.num_kept} of its {scan.num_tokens:,} tokens are kept, fewer than {FEW_TOKENS}"
        )
        remarks.append((8.0, text))
    return remarks


def _remarks_among(scans: Sequence[Scan]) -> Iterator[tuple[int, Remark]]:
    """Yield what is odd about a scan among others of its modality, with its place in ``scans``."""
    whole = [place for place, scan in enumerate(scans) if scan.num_kept == scan.num_tokens]
    modality = scans[0].modality
    if len(whole) <= len(scans) / 2:  # otherwise nothing is filtered here, or all heads are cut out
        for place in whole:
            text = f"all of its {scans[place].num_tokens:,} tokens are kept: no background found"
            yield place, (4.0, text)
    values = np.array([[measure.of(scan) for measure in _MEASURES] for scan in scans], np.float64)
    medians, far = np.median(values, axis=0), _robust_z(values)
    for place, column in np.argwhere(np.abs(far) > FAR).tolist():
        measure, z = _MEASURES[column], float(far[place, column])
        value, median = (measure.form.format(x[column]) for x in (values[place], medians))
        text = (
            f"{measure.name} {value}; the median of the {len(scans):,} {modality} scans "
            f"is {median} (robust z {z:+.1f})"
        )
        yield place, (min(abs(z) / FAR, 4.0), text)


def _robust_z(values: Float[ndarray, "scans measures"]) -> Float[ndarray, "scans measures"]:
    """Return how far each number is from the median, in robust standard deviations.

    The spread is that of the median absolute deviation or of the quartiles, the larger: where most
    scans are equal the former is 0, and a second protocol of every third scan would be called odd.
    """
    is_ratio = np.array([measure.is_ratio for measure in _MEASURES])
    scaled = np.where(is_ratio, np.log(np.where(is_ratio, values, 1.0)), values)
    away = scaled - np.median(scaled, axis=0)
    deviation = 1.4826 * np.median(np.abs(away), axis=0)
    low, high = np.quantile(scaled, (0.25, 0.75), axis=0)
    slack = np.array([measure.slack for measure in _MEASURES])
    return away / np.maximum(np.maximum(deviation, (high - low) / 1.349), slack)


def _by_modality(scans: Sequence[Scan]) -> Mapping[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, scan in enumerate(scans):
        groups[scan.modality].append(index)
    return dict(sorted(groups.items()))


def _median_kept(scans: Sequence[Scan]) -> float:
    return float(np.median([scan.kept_share for scan in scans]))


def _view(scan: Scan, reasons: Sequence[str], median_kept: float) -> dict[str, object]:
    """Return a scan in the words of the page."""
    spacing = [f"{edge:.3g}" for edge in scan.source_spacing_mm]
    return {
        "scan": scan,
        "reasons": reasons,
        "kept": f"{scan.kept_share:.1%}",
        "kept_percent": round(100 * scan.kept_share, 2),
        "median_percent": round(100 * median_kept, 2),
        "spacing": spacing if len(set(spacing)) > 1 else spacing[:1],
    }


def _histogram(modality: str, scans: Sequence[Scan], is_odd: Sequence[bool]) -> dict[str, object]:
    """Lay out the kept shares of a modality, 220 by 80 from (24, 18)."""
    shares = np.array([scan.kept_share for scan in scans])
    counts, num_odd = (
        np.histogram(each, bins=NUM_BINS, range=(0, 1))[0]
        for each in (shares, shares[np.array(is_odd)])
    )
    # a lone scan among thousands must be seen
    heights, odd_heights = (
        np.where(each > 0, np.maximum(80 * each / counts.max(), 1.5), 0).round(1).tolist()
        for each in (counts, num_odd)
    )
    lefts = [24 + place * 220 // NUM_BINS for place in range(NUM_BINS)]
    median_x = round(24 + 220 * float(np.median(shares)), 1)
    return {
        "modality": modality,
        "num_series": len(scans),
        "num_studies": len({scan.study for scan in scans}),
        "num_odd": sum(is_odd),
        "median": f"{np.median(shares):.0%}",
        "median_x": median_x,
        "label_x": min(max(median_x, 56), 220),
        "low": f"{shares.min():.0%}",
        "high": f"{shares.max():.0%}",
        "most": int(counts.max()),
        "bars": list(zip(lefts, heights, odd_heights, counts.tolist(), strict=True)),
    }
