"""Plots as SVG text that a page holds inline: no script, no network, sharp at any size.

What a mark stands for is shown under the pointer. Plots stay below 20 kB: what lies within a pixel
is drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from jaxtyping import Float, Int

from neuro.report.axes import (
    HEIGHT,
    LEFT,
    PALETTE,
    RIGHT,
    ROW,
    TOP,
    Axis,
    Line,
    along,
    as_svg,
    axis_of,
    draw_diagonal,
    draw_dot,
    draw_frame,
    draw_legend_row,
    draw_path,
    draw_text,
    short,
    short_name,
    thinned,
    without_data,
)

MAX_POINTS = 1000  # of all lines of a plot together
MAX_WRITTEN = 16  # classes whose counts are written into their cells
PALE = "#94a3b8"
CELL = "#0b66a8"  # of a confusion matrix: dark enough for white numbers
STAGES = {"train": PALE, "val": "#0d8f84", "test": "#d55e00"}
Points = Sequence[tuple[int | float, float]]


@dataclass(frozen=True, kw_only=True)
class Roc:
    """The ROC curve of one label.

    Attributes:
        name: Of the label.
        false_positive_rate: Rising from 0 to 1.
        true_positive_rate: Likewise; one for each of them.
        auroc: The area below; NaN where a label has one class only, and there is no curve.
        interval: Its 95 % interval.
    """

    name: str
    false_positive_rate: Float[np.ndarray, " thresholds"]
    true_positive_rate: Float[np.ndarray, " thresholds"]
    auroc: float
    interval: tuple[float, float] | None = None


def curve_plot(
    lines: Mapping[str, Points],
    *,
    title: str,
    is_log: bool = False,
    best: str = "min",
    highest: float = math.inf,
) -> str:
    """Return curves over steps; below, the best and the last number of each.

    Where a number is not finite, or is not positive on a logarithmic axis, a curve has a gap.

    Args:
        lines: For each curve (step, number) pairs, in any order; ``read_curves`` gives such.
        title: What the numbers are.
        is_log: Whether their axis is logarithmic.
        best: ``min`` for a loss, ``max`` for a score.
        highest: Where the axis ends at most: 1 for a share.
    """
    arrays = {
        name: np.array(sorted(points, key=lambda point: point[0]), np.float64).reshape(-1, 2)
        for name, points in lines.items()
    }
    steps, numbers = np.concatenate([np.empty((0, 2)), *arrays.values()]).T
    is_drawn = np.isfinite(steps) & np.isfinite(numbers) & ((numbers > 0) | (not is_log))
    bottom = TOP + HEIGHT
    height = bottom + 36 + ROW * len(arrays)
    if not is_drawn.any():
        return without_data(title, height)
    x = axis_of(steps[is_drawn], LEFT, RIGHT, margin=0.0)
    y = axis_of(numbers[is_drawn], bottom, TOP, is_log=is_log)
    y = replace(y, high=min(y.high, highest))
    body = draw_frame(x, y, title, "step")
    for row, (name, points) in enumerate(arrays.items()):
        color = STAGES.get(name, PALETTE[row % len(PALETTE)])
        places = np.stack([x.places(points[:, 0]), y.places(points[:, 1])], axis=1)
        body.append(draw_path(thinned(places, MAX_POINTS // len(arrays)), name, color))
        known = np.flatnonzero(np.isfinite(places).all(axis=1))
        text = ["no data"]
        if len(known):
            values = points[known, 1]
            top = known[values.argmin() if best == "min" else values.argmax()]
            at = f"{best} {short(points[top, 1])} at {points[top, 0]:,.0f}"
            body.append(draw_dot(float(places[top, 0]), float(places[top, 1]), color, at))
            text = [at, f"last {short(points[known[-1], 1])}"]
        body += draw_legend_row(bottom + 44 + ROW * row, color, name, text)
    return as_svg(title, height, body)


def roc_plot(
    rocs: Sequence[Roc],
    *,
    title: str = "ROC",
    macro: float | None = None,
    macro_interval: tuple[float, float] | None = None,
) -> str:
    """Return ROC curves, with the area below and its interval.

    Of many labels the best, the worst and the mean are drawn strong, and the others pale.

    Args:
        rocs: One for each label.
        title: Above the plot.
        macro: The mean area, as it was logged; by default that of the labels that have one.
        macro_interval: Its 95 % interval.
    """
    known = sorted((one for one in rocs if math.isfinite(one.auroc)), key=lambda one: -one.auroc)
    side = RIGHT - LEFT
    x, y = Axis(0.0, 1.0, LEFT, RIGHT), Axis(0.0, 1.0, TOP + side, TOP)
    strong, pale = (known, []) if len(known) <= 3 else ([known[0], known[-1]], known[1:-1])
    num_strong = MAX_POINTS // 8
    num_pale = max((MAX_POINTS - 3 * num_strong) // max(len(known), 1), 8)
    rows: list[tuple[str, str, list[str]]] = []
    body = [*draw_frame(x, y, title, "1 - specificity", "sensitivity"), draw_diagonal(x, y)]
    for one in pale:
        body.append(draw_path(along(_roc_line(one, x, y), num_pale), one.name))
    for one, color in zip(strong, PALETTE, strict=False):
        body.append(draw_path(along(_roc_line(one, x, y), num_strong), one.name, color))
        rows.append((color, one.name, [_with_interval(one.auroc, one.interval)]))
    if len(known) > 1:
        color = "currentColor"
        body.append(
            draw_path(along(_mean_roc(known, x, y), num_strong), "macro mean", color, width=2.0)
        )
        mean = float(np.mean([one.auroc for one in known])) if macro is None else macro
        rows.insert(0, (color, "macro mean", [_with_interval(mean, macro_interval)]))
    if pale:
        rows.append((PALE, f"{len(pale)} other labels", [""]))
    if unknown := len(rocs) - len(known):
        rows.append(("none", f"{unknown} label{'s' * (unknown > 1)} of one class only", [""]))
    for row, (color, name, text) in enumerate(rows):
        body += draw_legend_row(TOP + side + 46 + ROW * row, color, name, text)
    if not known:
        body.append(draw_text((LEFT + RIGHT) / 2, TOP + side / 2, "no data", "mid"))
    return as_svg(title, TOP + side + 34 + ROW * len(rows), body)


def calibration_plot(
    predicted: Float[np.ndarray, " bins"],
    observed: Float[np.ndarray, " bins"],
    counts: Int[np.ndarray, " bins"],
    *,
    title: str = "calibration",
    note: str = "",
) -> str:
    """Return a reliability diagram: how often what was predicted came true; below, how many.

    Whiskers are 95 % intervals of the observed share (Wilson, 1927).

    Args:
        predicted: Mean probability of the studies in each bin; anything where there are none.
        observed: Share of them that have the finding.
        counts: How many there are.
        title: Above the plot.
        note: For the line below, as ``ECE 0.042``.
    """
    side, tall = RIGHT - LEFT, 46
    x, y = Axis(0.0, 1.0, LEFT, RIGHT), Axis(0.0, 1.0, TOP + side, TOP)
    marks = []
    base = TOP + side + 24 + tall
    used = np.flatnonzero(counts > 0)
    most = int(counts.max(initial=1))
    for index in used.tolist():
        mean, share, count = float(predicted[index]), float(observed[index]), int(counts[index])
        across, up = x.place(mean), y.place(share)
        low, high = (y.place(one) for one in _wilson(share, count))
        about = f"predicted {mean:.3f}, observed {share:.3f}, {count:,} studies"
        bar = max(tall * count / most, 1.0)
        marks += [
            f'<path class="line" d="M{across:.1f},{low:.1f}V{high:.1f}" stroke="{PALETTE[0]}" '
            f'stroke-opacity=".45"/>',
            draw_dot(across, up, PALETTE[0], about, radius=3.5),
            f'<path class="bar" d="M{across - 4:.1f},{base}v-{bar:.1f}h8v{bar:.1f}z" '
            f'fill="{PALETTE[0]}"><title>{about}</title></path>',
        ]
    if not marks:
        marks.append(draw_text((LEFT + RIGHT) / 2, TOP + side / 2, "no data", "mid"))
    places = np.stack([x.places(predicted[used]), y.places(observed[used])], axis=1)
    order = places[:, 0].argsort(kind="stable")
    body = [
        *draw_frame(x, y, title, "", "observed share"),
        draw_diagonal(x, y),
        draw_path(places[order], "observed", PALETTE[0], 0.6),
        *marks,
        f'<path class="grid" d="M{LEFT},{base}H{RIGHT}"/>',
        draw_text(LEFT - 6, base - tall + 8, f"{most:,}" if len(used) else "", "end"),
        draw_text(LEFT - 6, base, "0", "end"),
        draw_text(RIGHT, base + 16, "predicted probability, and studies in each bin", "end"),
        draw_text(LEFT, base + 34, note, "ink"),
    ]
    return as_svg(title, base + (42 if note else 24), body)


def scatter_plot(
    truth: Float[np.ndarray, " studies"],
    predicted: Float[np.ndarray, " studies"],
    *,
    title: str,
    note: str = "",
) -> str:
    """Return predicted over true numbers, and the line on which they are equal.

    Args:
        truth: NaN where it is unknown.
        predicted: One for each.
        title: What the number is, with its unit.
        note: For the line below, as ``MAE 4.2 years``.
    """
    side = RIGHT - LEFT
    points = np.stack([truth, predicted], axis=1).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    height = TOP + side + (54 if note else 34)
    if not len(points):
        return without_data(title, height)
    x = axis_of(points.ravel(), LEFT, RIGHT)
    y = Axis(x.low, x.high, TOP + side, TOP)
    places = np.stack([x.places(points[:, 0]), y.places(points[:, 1])], axis=1)
    if len(places) > MAX_POINTS:
        places = np.unique(places.round(), axis=0)
        places = places[np.linspace(0, len(places) - 1, min(len(places), MAX_POINTS)).astype(int)]
    dots = "".join(f"M{across:.1f},{up:.1f}h0" for across, up in places.tolist())
    opacity = 0.85 if len(places) < 100 else 0.6
    body = [
        *draw_frame(x, y, title, "true", "predicted"),
        draw_diagonal(x, y),
        f'<path class="line" d="{dots}" stroke="{PALETTE[0]}" style="stroke-width:5" '
        f'stroke-opacity="{opacity}"><title>{len(points):,} studies</title></path>',
        draw_text(LEFT, TOP + side + 46, note, "ink"),
    ]
    return as_svg(title, height, body)


def confusion_plot(
    counts: Int[np.ndarray, "classes classes"], names: Sequence[str], *, title: str = "confusion"
) -> str:
    """Return how many studies of each true class (rows) were given each class (columns).

    The colour is the share of the row, so that rare classes are seen as well as common ones.

    Args:
        counts: Studies; rows are true classes.
        names: Of the classes.
        title: Above the plot.
    """
    left, side = LEFT + 48, RIGHT - LEFT - 48
    num = len(names)
    cell = side / max(num, 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    body = [
        draw_text(LEFT, TOP - 10, title, "ink"),
        draw_text(RIGHT, TOP - 10, "rows: true; columns: predicted", "end"),
    ]
    for row, column in np.argwhere(counts > 0).tolist():
        x, y, share = left + column * cell, TOP + row * cell, float(shares[row, column])
        count = int(counts[row, column])
        about = f"{count:,} of {names[row]}: {names[column]} ({share:.0%} of the row)"
        body.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
            f'fill="{CELL}" fill-opacity="{0.06 + 0.94 * share:.2f}">'
            f"<title>{escape(about)}</title></rect>"
        )
        if num <= MAX_WRITTEN:
            fill = ' style="fill:#fff"' if share > 0.6 else ""
            body.append(
                f'<text class="mid ink" x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"{fill} '
                f'pointer-events="none">{count:,}</text>'
            )
    edges = [TOP + index * cell for index in (range(num + 1) if num <= MAX_WRITTEN else (0, num))]
    body += [f'<path class="grid" d="M{left},{edge:.1f}h{side}"/>' for edge in edges]
    body += [
        f'<path class="grid" d="M{left + edge - TOP:.1f},{TOP}v{cell * num:.1f}"/>'
        for edge in edges
    ]
    for index, name in enumerate(names if cell >= 9 else ()):
        middle = (index + 0.5) * cell
        body.append(draw_text(left - 6, TOP + middle + 4, short_name(name, 14), "end"))
        place = f"translate({left + middle + 4:.1f},{TOP + cell * num + 6:.1f}) rotate(-90)"
        body.append(f'<text class="end" transform="{place}">{escape(short_name(name, 14))}</text>')
    return as_svg(title, TOP + cell * num + 100, body)


def _roc_line(roc: Roc, x: Axis, y: Axis) -> Line:
    return np.stack([x.places(roc.false_positive_rate), y.places(roc.true_positive_rate)], axis=1)


def _mean_roc(rocs: Sequence[Roc], x: Axis, y: Axis) -> Line:
    """Return the mean sensitivity of the labels at each specificity."""
    grid = np.linspace(0, 1, 201)
    lines = [np.interp(grid, one.false_positive_rate, one.true_positive_rate) for one in rocs]
    mean = np.mean(lines, axis=0)
    return np.stack([x.places(np.insert(grid, 0, 0.0)), y.places(np.insert(mean, 0, 0.0))], axis=1)


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _with_interval(number: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{number:.3f}"
    return f"{number:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
