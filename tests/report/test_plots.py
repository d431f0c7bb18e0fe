"""Plots are valid, small and true: what is drawn is where its axis says it is."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from neuro.report.plots import (
    Roc,
    calibration_plot,
    confusion_plot,
    curve_plot,
    roc_plot,
    scatter_plot,
)

NONE = np.zeros(0)
NO_COUNTS = np.zeros(0, np.int64)


def parsed(svg):
    """Return the plot as a tree; it must be XML, and load nothing."""
    tree = ElementTree.fromstring(svg)
    assert tree.tag == "svg"
    assert not re.search(r"http|url\(|<script|nan|inf\b", svg)
    _, _, width, height = map(float, tree.get("viewBox").split())
    for one in tree.iter("text"):
        if "transform" not in one.attrib:
            assert 0 <= float(one.get("x")) <= width
            assert 0 <= float(one.get("y")) <= height - 3, one.text
    return tree


def texts(tree):
    return [one.text for one in tree.iter("text")]


def paths(tree, kind="line"):
    """Return the pieces of each named line, as arrays of places."""
    found = {}
    for one in tree.iter("path"):
        if one.get("class").split()[0] == kind and one.find("title") is not None:
            pieces = one.get("d").split("M")[1:]
            found[one.find("title").text] = [
                np.array([pair.split(",") for pair in re.split("L|h0L|h0", piece) if pair], float)
                for piece in pieces
            ]
    return found


def number(text):
    scale = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    return float(text.rstrip("kM").replace(",", "")) * scale


def read(tree, places, is_log=False):
    """Return what the axes say of places: an axis is a line through its written numbers."""
    columns = []
    for axis in "xy":
        ticks = [one for one in tree.iter("text") if axis in one.get("class").split()]
        at = [float(one.get(axis)) - (4 if axis == "y" else 0) for one in ticks]
        values = [number(one.text) for one in ticks]
        log = is_log and axis == "y"
        fit = np.polyfit(at, np.log(values) if log else values, 1)
        line = np.polyval(fit, places[:, 0 if axis == "x" else 1])
        columns.append(np.exp(line) if log else line)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("is_log", [False, True])
def test_a_curve_is_where_its_axes_say(is_log):
    points = [(0, 8.0), (250, 2.0), (500, 0.5), (1000, 0.9)]
    tree = parsed(curve_plot({"val": points}, title="loss", is_log=is_log))
    (line,) = paths(tree)["val"]
    found = read(tree, line, is_log)
    assert found[:, 0] == pytest.approx([0, 250, 500, 1000], abs=4)
    assert found[:, 1] == pytest.approx([8, 2, 0.5, 0.9], abs=0.06, rel=0.02)
    assert "min 0.5 at 500" in texts(tree)
    assert "last 0.9" in texts(tree)
    (dot,) = tree.iter("circle")
    assert [float(dot.get("cx")), float(dot.get("cy"))] == pytest.approx(line[2], abs=0.11)


def test_the_best_of_a_score_is_the_highest():
    svg = curve_plot({"auroc": [(1, 0.6), (2, 0.9), (3, 0.8)]}, title="auroc", best="max")
    assert "max 0.9 at 2" in texts(parsed(svg))


def test_a_long_curve_is_small_and_keeps_its_peaks():
    steps = np.arange(100_000)
    numbers = 1 + np.sin(steps / 9000) + np.random.default_rng(0).normal(0, 0.01, len(steps))
    numbers[77_777] = 9.0
    points = list(zip(steps.tolist(), numbers.tolist(), strict=True))
    svg = curve_plot({"train": points, "val": points[::2]}, title="loss")
    assert len(svg) < 20_000
    tree = parsed(svg)
    found = read(tree, np.concatenate(paths(tree)["train"]))
    assert found[:, 1].max() == pytest.approx(9, abs=0.05)
    assert found[found[:, 1].argmax(), 0] == pytest.approx(77_777, abs=300)
    assert found[:, 0].min() == pytest.approx(0, abs=300)
    assert found[:, 0].max() == pytest.approx(99_999, abs=300)


@pytest.mark.parametrize("length", [20, 50_000])
def test_what_is_no_number_is_a_gap(length):
    numbers = np.linspace(1, 2, length)
    numbers[length // 4 : length // 2] = math.nan
    numbers[length // 2] = math.inf
    points = list(zip(range(length), numbers.tolist(), strict=True))
    tree = parsed(curve_plot({"val": points}, title="loss"))
    before, after = paths(tree)["val"]
    assert read(tree, before)[:, 0].max() < 1.01 * length / 4
    assert read(tree, after)[:, 0].min() > length / 2 - 0.01 * length


def test_a_number_between_two_gaps_is_a_dot():
    points = [(0, 1.0), (1, math.nan), (2, 3.0), (3, math.nan), (4, 1.0)]
    tree = parsed(curve_plot({"val": points}, title="loss"))
    assert [len(piece) for piece in paths(tree)["val"]] == [1, 1, 1]


def test_what_a_logarithm_does_not_have_is_a_gap():
    points = [(0, 1.0), (1, 0.0), (2, -3.0), (3, 0.01), (4, 0.1)]
    tree = parsed(curve_plot({"val": points}, title="loss", is_log=True))
    assert [len(piece) for piece in paths(tree)["val"]] == [1, 2]
    assert "min 0.01 at 3" in texts(tree)


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "points", [[], [(3, 0.5)], [(3, math.nan)], [(0, 2.0), (9, 2.0)], [(0, 1e-9), (1, 3e5)]]
)
def test_few_or_equal_numbers_make_a_plot_too(points, is_log):
    parsed(curve_plot({"val": points, "train": []}, title="loss", is_log=is_log))
    parsed(curve_plot({}, title="loss", is_log=is_log))


def test_names_are_text_and_no_markup():
    svg = curve_plot({"<b>&": [(0, 1.0), (1, 2.0)]}, title='"loss" <1>')
    assert "<b>&" in texts(parsed(svg))
    names = ["<i>", "&amp;"]
    assert "<i>" in texts(parsed(confusion_plot(np.eye(2, dtype=np.int64), names)))


def roc(name, shift, size=400, interval=(0.1, 0.9)):
    rng = np.random.default_rng(size)
    positive, negative = np.sort(rng.normal(shift, 1, size)), np.sort(rng.normal(0, 1, size))
    limits = np.sort(np.concatenate([positive, negative, [-99, 99]]))[::-1]
    rates = [1 - np.searchsorted(one, limits) / size for one in (negative, positive)]
    return Roc(
        name=name,
        false_positive_rate=rates[0],
        true_positive_rate=rates[1],
        auroc=float(np.trapezoid(rates[1], rates[0])),
        interval=interval,
    )


def test_a_roc_curve_is_where_its_axes_say_and_has_its_area():
    one = roc("lesion", 1.5)
    tree = parsed(roc_plot([one]))
    (line,) = paths(tree)["lesion"]
    x, y = read(tree, line).T
    assert (x[0], y[0]) == pytest.approx((0, 0), abs=0.002)
    assert (x[-1], y[-1]) == pytest.approx((1, 1), abs=0.002)
    assert np.trapezoid(y, x) == pytest.approx(one.auroc, abs=0.01)
    assert f"{one.auroc:.3f} (0.100 to 0.900)" in texts(tree)


def test_of_many_labels_the_best_the_worst_and_the_mean_are_strong():
    rocs = [roc(f"label {index}", 0.1 + 0.03 * index, size=3000) for index in range(80)]
    nothing = Roc(name="?", false_positive_rate=NONE, true_positive_rate=NONE, auroc=math.nan)
    svg = roc_plot([*rocs, nothing], macro=0.75, macro_interval=(0.7, 0.8))
    assert len(svg) < 20_000
    tree = parsed(svg)
    strong = [
        one.find("title").text
        for one in tree.iter("path")
        if one.get("class") == "line" and one.find("title") is not None
    ]
    assert strong == ["label 79", "label 0", "macro mean"]
    written = texts(tree)
    assert "78 other labels" in written
    assert "1 label of one class only" in written
    assert "0.750 (0.700 to 0.800)" in written
    (mean,) = paths(tree)["macro mean"]
    x, y = read(tree, mean).T
    expected = np.mean([one.auroc for one in rocs])
    assert np.trapezoid(y, x) == pytest.approx(expected, abs=0.01)


def test_no_label_makes_a_plot_too():
    assert "no data" in texts(parsed(roc_plot([])))
    perfect = Roc(
        name="a",
        false_positive_rate=np.array([0.0, 0.0, 1.0]),
        true_positive_rate=np.array([0.0, 1.0, 1.0]),
        auroc=1.0,
    )
    tree = parsed(roc_plot([perfect, perfect]))
    x, y = read(tree, paths(tree)["macro mean"][0]).T
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)


def test_bins_of_a_calibration_are_where_its_axes_say():
    predicted = np.array([0.1, 0.35, math.nan, 0.9])
    observed = np.array([0.0, 0.5, math.nan, 0.8])
    counts = np.array([200, 50, 0, 100])
    tree = parsed(calibration_plot(predicted, observed, counts, note="ECE 0.042"))
    dots = np.array([[float(one.get("cx")), float(one.get("cy"))] for one in tree.iter("circle")])
    assert read(tree, dots) == pytest.approx(
        np.array([[0.1, 0], [0.35, 0.5], [0.9, 0.8]]), abs=0.003
    )
    bars = [one for one in tree.iter("path") if one.get("class") == "bar"]
    heights = [float(re.search(r"v-([\d.]+)", one.get("d"))[1]) for one in bars]
    assert np.array(heights) / heights[0] == pytest.approx([1, 0.25, 0.5], abs=0.01)
    assert {"200", "ECE 0.042"} <= set(texts(tree))


def test_whiskers_get_shorter_with_more_studies():
    def whisker(count):
        one = np.array([0.4])
        tree = parsed(calibration_plot(one, one, np.array([count])))
        (line,) = (x for x in tree.iter("path") if x.get("stroke-opacity") == ".45")
        low, high = map(float, re.search(r",([\d.]+)V([\d.]+)", line.get("d")).groups())
        return low - high

    assert whisker(10) > 2 * whisker(100) > 4 * whisker(1000) > 0


def test_no_bin_makes_a_plot_too():
    assert "no data" in texts(parsed(calibration_plot(NONE, NONE, NO_COUNTS)))


def test_points_are_where_their_axes_say():
    truth = np.array([20.0, 50.0, math.nan, 80.0])
    predicted = np.array([25.0, 40.0, 60.0, 90.0])
    tree = parsed(scatter_plot(truth, predicted, title="age in years", note="MAE 8.3"))
    found = read(tree, np.concatenate(paths(tree)["3 studies"]))
    assert found == pytest.approx(np.array([[20, 25], [50, 40], [80, 90]]), abs=0.3)
    (guide,) = (one for one in tree.iter("path") if one.get("class") == "guide")
    ends = np.array([pair.split(",") for pair in guide.get("d")[1:].split("L")], float)
    across, up = read(tree, ends).T
    assert across == pytest.approx(up, abs=0.2)


@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_few_and_many_studies_make_a_small_scatter(count):
    truth = np.random.default_rng(0).normal(0, 1, count)
    assert len(scatter_plot(truth, truth + 1, title="age")) < 20_000
    parsed(scatter_plot(truth, truth + 1, title="age"))


def test_a_confusion_matrix_has_true_classes_in_rows():
    counts = np.array([[8, 2, 0], [1, 30, 9], [0, 0, 5]])
    tree = parsed(confusion_plot(counts, ["none", "left", "right"]))
    cells = {one.find("title").text: one for one in tree.iter("rect")}
    assert len(cells) == 6
    missed = cells["9 of left: right (22% of the row)"]
    right = cells["5 of right: right (100% of the row)"]
    assert missed.get("x") == right.get("x")
    assert float(missed.get("y")) < float(right.get("y"))
    assert float(right.get("fill-opacity")) > float(missed.get("fill-opacity"))
    assert {"8", "30", "none", "right"} <= set(texts(tree))


@pytest.mark.parametrize("classes", [0, 1, 40])
def test_any_number_of_classes_makes_a_matrix(classes):
    counts = np.eye(classes, dtype=np.int64)
    parsed(confusion_plot(counts, [f"class {index}" for index in range(classes)]))
