"""What plots are drawn of: axes, lines, dots and texts, as SVG text.

Text and lines take the colours of the page (``--ink``, ``--soft``, ``--line``) where it has them,
else that of its text, so that a plot is readable on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Num

WIDTH = 380
LEFT, RIGHT, TOP = 48.0, 364.0, 30.0  # of the area of data
HEIGHT = 170.0  # of it, where it is no square
ROW = 17.0  # from one line of a legend to the next
# Okabe and Ito (2008), the blue a little lighter: told apart by all eyes, on white and on black.
PALETTE = ("#2a8fd0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = (
    "<style>.plot{width:100%;height:auto;font:11px system-ui,sans-serif;"
    "font-variant-numeric:tabular-nums}"
    ".plot text{font:inherit;fill:var(--soft,currentColor)}"
    ".plot .ink{fill:var(--ink,currentColor)}.plot .end{text-anchor:end}"
    ".plot .mid{text-anchor:middle}"
    ".plot .grid{stroke:var(--line,#8884);fill:none}"
    ".plot .guide{stroke:var(--soft,currentColor);stroke-dasharray:3 3;fill:none}"
    ".plot .pale{stroke:#94a3b8;stroke-opacity:.35}"
    ".plot .line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}</style>"
)

Line = Float[np.ndarray, "_points 2"]


@dataclass(frozen=True)
class Axis:
    """A range of numbers and where it is drawn."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def places(self, numbers: Num[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Return where numbers are drawn; NaN for what has no place."""
        with np.errstate(divide="ignore", invalid="ignore"):
            numbers = np.log(numbers) if self.is_log else numbers
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        low, high = (math.log(one) if self.is_log else one for one in (self.low, self.high))
        return self.start + (self.end - self.start) * (numbers - low) / (high - low)

    def place(self, number: float) -> float:
        """Return where a number is drawn."""
        return float(self.places(np.array([number]))[0])

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Return round numbers in the range, with what is written at them."""
        if not self.is_log:
            ticks = nice_ticks(self.low, self.high, count)
            return list(zip(ticks, _labels(ticks), strict=True))
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        step = max(1, len(powers) // count)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            ticks = [factor * 10.0**power for power in powers[::step] for factor in factors]
            inside = [one for one in ticks if self.low <= one <= self.high]
            if len(inside) >= 3:
                break
        else:
            inside = nice_ticks(self.low, self.high, count)
        return [(tick, short(tick)) for tick in inside]


def axis_of(
    values: Float[np.ndarray, " points"],
    start: float,
    end: float,
    *,
    margin: float = 0.04,
    is_log: bool = False,
) -> Axis:
    """Return an axis that holds finite numbers, and a little more on either side."""
    low, high = float(values.min()), float(values.max())
    if is_log:
        factor = (high / low) ** margin if high > low else 2.0
        return Axis(low / factor, high * factor, start, end, is_log=True)
    room = margin * (high - low) if high > low else 0.5 * max(abs(low), 1.0)
    return Axis(low - room, high + room, start, end)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers in [low, high], about so many of them: steps of 1, 2 or 5 times 10^n."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(one for one in (1, 2, 5, 10) if rough <= one * size * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def draw_frame(
    x: Axis, y: Axis, title: str, x_name: str, y_name: str = "", *, is_numbered: bool = True
) -> list[str]:
    """Draw the title, the grid, and numbers and names of both axes; upwards if ``is_numbered``."""
    body = []
    for value, label in y.ticks() if is_numbered else ():
        up = y.place(value)
        body.append(f'<path class="grid" d="M{LEFT},{up:.1f}H{RIGHT}"/>')
        body.append(draw_text(LEFT - 6, up + 4, label, "end y"))
    for value, label in x.ticks():
        across = x.place(value)
        body.append(f'<path class="grid" d="M{across:.1f},{y.start:.1f}v4"/>')
        body.append(draw_text(across, y.start + 16, label, "mid x"))
    body.append(f'<path class="grid" d="M{LEFT},{y.start:.1f}H{RIGHT}"/>')
    body.append(draw_text(LEFT, TOP - 10, title, "ink"))
    body.append(draw_text(RIGHT, TOP - 10, y_name, "end"))
    body.append(draw_text(RIGHT, y.start + 29, x_name, "end"))
    return body


def draw_diagonal(x: Axis, y: Axis) -> str:
    """Draw the line on which both axes say the same, where they do."""
    return f'<path class="guide" d="M{x.start},{y.start}L{x.end},{y.end}"/>'


def draw_path(
    places: Line, name: str, color: str = "", opacity: float = 1.0, width: float = 1.6
) -> str:
    """Draw a line with gaps; a point between two gaps is a dot. Without a colour it is pale."""
    parts, is_open = [], False
    for x, y in places.tolist():
        is_known = math.isfinite(x) and math.isfinite(y)
        if is_known:
            parts.append(f"{'L' if is_open else 'M'}{x:.1f},{y:.1f}")
            parts += [] if is_open else ["h0"]
        is_open = is_known
    look = f'stroke="{color}" stroke-opacity="{opacity}" style="stroke-width:{width}"'
    kind, look = ("line", f" {look}") if color else ("line pale", "")
    title = f"<title>{escape(name)}</title>"
    return f'<path class="{kind}" d="{"".join(parts)}"{look}>{title}</path>'


def draw_dot(x: float, y: float, color: str, about: str, radius: float = 3.0) -> str:
    """Draw a dot that says what it is about under the pointer."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}">'
        f"<title>{escape(about)}</title></circle>"
    )


def draw_legend_row(y: float, color: str, name: str, columns: Sequence[str]) -> list[str]:
    """Draw a swatch, a name, and texts under each other at the right."""
    return [
        f'<path class="line" d="M{LEFT},{y - 4:.1f}h12" stroke="{color}" style="stroke-width:3"/>',
        draw_text(LEFT + 20, y, short_name(name, 17 if len(columns) > 1 else 28), "ink"),
        *(
            draw_text(RIGHT - 88 * (len(columns) - 1 - place), y, text, "end")
            for place, text in enumerate(columns)
        ),
    ]


def draw_text(x: float, y: float, text: str, kind: str = "") -> str:
    """Draw a text; ``kind`` names classes of ``STYLE``."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>' if text else ""


def as_svg(title: str, height: float, body: Sequence[str]) -> str:
    """Return what was drawn as a picture of its own."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{STYLE}{"".join(body)}</svg>'
    )


def without_data(title: str, height: float) -> str:
    """Return a picture that says that there is nothing to draw."""
    middle = draw_text((LEFT + RIGHT) / 2, height / 2, "no data", "mid")
    return as_svg(title, height, [draw_text(LEFT, TOP - 10, title, "ink"), middle])


def thinned(places: Line, num_points: int) -> Line:
    """Return what is seen of a line: the highest and the lowest place within each pixel or so.

    Gaps that are longer than that stay.
    """
    if len(places) <= num_points:
        return places
    x, y = places.T
    span = max(float(np.nanmax(x) - np.nanmin(x)), 1e-9)
    buckets = ((x - np.nanmin(x)) / span * (num_points / 2 - 2)).astype(int)
    known = np.flatnonzero(np.isfinite(y))
    order = known[np.lexsort((y[known], buckets[known]))]
    is_last = np.append(np.diff(buckets[order]) > 0, True)
    is_first = np.insert(is_last[:-1], 0, True)
    used, begins = np.unique(buckets, return_index=True)
    gaps = begins[~np.isin(used, buckets[known])]
    ends = known[[0, -1]] if len(known) else known
    return places[np.unique(np.concatenate([order[is_last], order[is_first], gaps, ends]))]


def along(places: Line, num_points: int) -> Line:
    """Return so many points of a line that goes up and to the right, evenly along its way."""
    if len(places) <= num_points:
        return places
    way = np.abs(np.diff(places, axis=0)).sum(axis=1).cumsum()
    steps = np.searchsorted(way, np.linspace(0, way[-1], num_points)[1:-1])
    return places[np.unique([0, *(steps + 1), len(places) - 1])]


def short(number: float) -> str:
    """Write a number in few letters."""
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(number) >= least:
            return f"{number / size:.3g}{letter}"
    if abs(number) < 1e-12:
        return "0"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}".replace("e-0", "e-")


def short_name(name: str, length: int) -> str:
    """Cut a name to so many letters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _labels(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as their distance needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    if step < 1e-3 or max(abs(tick) for tick in ticks) >= 1e4:
        return [short(tick) for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in ticks]
