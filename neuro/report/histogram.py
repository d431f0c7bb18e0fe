"""How probabilities are spread over studies that have a finding and over those that have not."""

from __future__ import annotations

from html import escape

import numpy as np
from jaxtyping import Float

from neuro.report.axes import (
    LEFT,
    PALETTE,
    RIGHT,
    ROW,
    TOP,
    Axis,
    as_svg,
    draw_frame,
    draw_legend_row,
    without_data,
)

NUM_BINS = 20


def histogram_plot(
    probabilities: Float[np.ndarray, " studies"],
    truth: Float[np.ndarray, " studies"],
    *,
    title: str = "probabilities",
    names: tuple[str, str] = ("absent", "present"),
) -> str:
    """Return two histograms: above what has the finding, below what has not, each as shares.

    Shares, because of a rare finding nothing would be seen beside the others.

    Args:
        probabilities: In [0, 1].
        truth: 0 or 1, NaN where it is not known.
        title: Above the plot.
        names: Of 0 and of 1.
    """
    side = RIGHT - LEFT
    middle, tall = TOP + side / 2, side / 2 - 6
    height = TOP + side + 46 + 2 * ROW
    groups = [probabilities[truth == value] for value in (1, 0)]
    if not sum(map(len, groups)):
        return without_data(title, height)
    counts = [np.histogram(one, bins=NUM_BINS, range=(0, 1))[0] for one in groups]
    shares = [one / max(int(one.sum()), 1) for one in counts]
    most = max(float(one.max()) for one in shares)
    x, y = Axis(0.0, 1.0, LEFT, RIGHT), Axis(-most, most, middle + tall, middle - tall)
    # No numbers upwards: it is the shape that is compared.
    body = draw_frame(x, y, title, "predicted probability", "share of studies", is_numbered=False)
    body.append(f'<path class="grid" d="M{LEFT},{middle}H{RIGHT}"/>')
    width = side / NUM_BINS
    looks = ((PALETTE[1], -1, names[1]), (PALETTE[0], 1, names[0]))
    for row, ((color, sign, name), count, share) in enumerate(
        zip(looks, counts, shares, strict=True)
    ):
        told = f"{int(count.sum()):,} studies"
        body += draw_legend_row(TOP + side + 46 + ROW * row, color, name, [told])
        for place in np.flatnonzero(count).tolist():
            tip = sign * max(tall * float(share[place]) / most, 1.5)
            low, high = place / NUM_BINS, (place + 1) / NUM_BINS
            about = f"{low:.2f} to {high:.2f}: {int(count[place]):,} {escape(name)}"
            body.append(
                f'<path class="bar" d="M{LEFT + place * width + 1:.1f},{middle + sign:.1f}'
                f'v{tip:.1f}h{width - 2:.1f}v{-tip:.1f}z" fill="{color}">'
                f"<title>{about}</title></path>"
            )
    return as_svg(title, height, body)
