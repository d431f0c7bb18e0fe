"""Shares of both groups are as high as they are large, and a rare finding is seen."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from neuro.report.histogram import histogram_plot


def bars(svg):
    found = {}
    for one in ElementTree.fromstring(svg).iter("path"):
        if one.get("class") == "bar":
            height = float(one.get("d").split("v")[1].split("h")[0])
            found[one.find("title").text] = height
    return found


def test_what_is_present_goes_up_and_what_is_absent_down_each_as_shares():
    probabilities = np.array([0.97] + [0.02] * 500 + [0.52] * 500 + [0.5])
    truth = np.array([1.0] + [0.0] * 1000 + [np.nan])
    found = bars(histogram_plot(probabilities, truth, title="<p>", names=("no", "<yes>")))
    assert found.keys() == {"0.95 to 1.00: 1 <yes>", "0.00 to 0.05: 500 no", "0.50 to 0.55: 500 no"}
    present, low, high = (found[name] for name in sorted(found, reverse=True))
    assert present < 0 < low == high
    assert -present / low == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("truth", [np.zeros(0), np.full(1, np.nan), np.ones(1)])
def test_few_studies_make_a_plot_too(truth):
    svg = histogram_plot(np.full(len(truth), 1.0), truth)
    assert ("no data" in svg) == (not (truth == 1).any())
    assert len(bars(svg)) == int((truth == 1).sum())
