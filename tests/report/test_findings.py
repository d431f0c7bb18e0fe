"""The page tells what was measured, whatever was learned, and nothing from outside."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import neuro.report
from neuro.data.predictions import Predictions
from neuro.metrics.evaluate import evaluate
from neuro.metrics.resamples import draw_counts, interval, macro
from neuro.report.figures_table import figures_table
from neuro.report.findings import CaseCard, Split, write_findings

NAN = math.nan
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Text and attributes of a page whose tags must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.links, self.open, self.rows = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "link", "iframe"}
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += f" {data.strip()}"

    def cells(self, name):
        """Return the rows of the tables that begin with a name."""
        stripped = [[cell.strip() for cell in row] for row in self.rows]
        return [row[1:] for row in stripped if row and row[0] == name]


def told(task, outputs, truth, names=("x",), classes=()):
    ids = tuple(f"s{row}" for row in range(len(outputs)))
    return Predictions(
        studies=ids,
        subjects=ids,
        outputs=torch.as_tensor(outputs, dtype=torch.float32),
        truth=torch.as_tensor(truth, dtype=torch.float32),
        names=names,
        task=task,
        classes=classes,
    )


def figures(said):
    """Return what the system would."""
    counts = draw_counts(said.subjects, 20)
    drawn = evaluate(said.task, said.outputs, said.truth, counts)
    rows = []
    for name, values in evaluate(said.task, said.outputs, said.truth).items():
        low, high = interval(macro(drawn[name]).unsqueeze(1))
        rows.append(("macro", name, float(macro(values)), float(low), float(high)))
        if len(values) > 1:
            low, high = interval(drawn[name])
            each = zip(said.columns, values.tolist(), low.tolist(), high.tolist(), strict=True)
            rows += [(column, name, *three) for column, *three in each]
    return rows


def card(picture="data:image/webp;base64,AAAA", study="s<1>"):
    return CaseCard(
        study=study, series="T1", share=0.7, num_series=2, truth="no", said="0.9", picture=picture
    )


@pytest.fixture
def page_of(tmp_path):
    """Return a function that writes the page and reads it back, as text and parsed."""

    def write(said, *, wrong=(), right=(), metrics=None):
        split = {"num_studies": 9, "num_subjects": 8, "num_series": 7}
        if metrics is not None:
            (tmp_path / "metrics.csv").write_text(metrics)
        write_findings(
            tmp_path / "report.html",
            run="<run>",
            facts=[("encoder", "<b>small</b>")],
            command="python train.py a=<b>",
            splits=[Split(name=name, truth=said.truth.numpy(), **split) for name in SPLITS],
            said=said,
            figures=figures(said),
            specificity=0.9,
            num_resamples=20,
            wrong=wrong,
            right=right,
            metrics_csv=tmp_path / "metrics.csv",
        )
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
            ElementTree.fromstring(svg)
        assert not re.search(r"https?:|url\(|@import|[^a-z]nan[^a-z]", text)
        assert "For research only; not a medical device" in text
        return text, Page(text)

    return write


SPLITS = ("train", "val", "test")
GENERATOR = torch.Generator().manual_seed(0)


def many(studies=200, labels=82):
    """Labels from rare to common, a fifth of each unknown, one never present, one never known."""
    truth = torch.rand(studies, labels, generator=GENERATOR) < torch.linspace(0.02, 0.5, labels)
    truth = truth.float()
    truth[:, 3] = 0
    truth[torch.rand(studies, labels, generator=GENERATOR) < 0.2] = NAN
    truth[:, 4] = NAN
    noise = torch.randn(studies, labels, generator=GENERATOR)
    outputs = (2 * truth.nan_to_num() - 1 + noise).sigmoid()
    return told("multilabel", outputs, truth, tuple(f"finding {i}" for i in range(labels)))


def test_the_figures_of_a_lone_label_are_those_that_were_measured(page_of):
    outputs = [[0.9], [0.8], [0.3], [0.6], [0.2], [0.1]]
    truth = [[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]]
    said = told("binary", outputs, truth, ("lesion",), ("no", "yes"))
    text, page = page_of(said)
    (row,) = page.cells("lesion")
    assert row[:2] == ["3 / 6", "3 / 6"]
    assert row[3].split()[0] == "0.889"  # eight of nine pairs
    assert "probability of yes" in text
    assert ("no 3 · yes 3") in page.texts


def test_many_findings_are_sorted_and_what_is_not_defined_says_so(page_of):
    text, page = page_of(many())
    names = [row[0].strip() for row in page.rows if row and row[0].strip().startswith("finding ")]
    assert len(names) == 82
    areas = [float(page.cells(name)[0][3].split()[0]) for name in names[:-2]]
    assert areas == sorted(areas, reverse=True)
    assert set(names[-2:]) == {"finding 3", "finding 4"}
    assert page.cells("finding 3")[0][3] == "not defined"
    assert page.cells("finding 4")[0][1] == "0 / 0"
    assert "2 of 82 findings have only one class among the test studies:" in page.texts
    assert len(text) < 300_000


def test_a_mean_of_years_and_points_is_not_told(page_of):
    truth = torch.randn(30, 2, generator=GENERATOR)
    said = told("regression", truth + 0.1, truth, ("age", "score"))
    text, page = page_of(said)
    (mean,) = page.cells("mean")
    assert mean[2:4] == ["", ""]
    assert mean[4].startswith("0.98") or mean[4].startswith("0.99")
    assert "mean MAE" not in page.texts
    assert text.count('class="plot"') == 2


def test_classes_have_a_matrix_and_one_balanced_accuracy(page_of):
    outputs = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.1, 0.3]]
    said = told("multiclass", outputs, [[0.0], [1.0], [2.0], [2.0]], ("side",), ("a", "b", "c"))
    text, page = page_of(said)
    assert "1 of c: a (50% of the row)" in text
    assert page.cells("mean")[0][6].split()[0] == "0.833"
    assert "left" not in page.cells("c")
    assert [page.cells(name)[0][1] for name in "abc"] == ["1 / 4", "1 / 4", "2 / 4"]


@pytest.mark.parametrize("truth", [1.0, NAN])
@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass", "regression"])
def test_one_study_makes_a_page_too(page_of, task, truth):
    width = {"multilabel": 5, "multiclass": 2}.get(task, 1)
    names = tuple(f"x{place}" for place in range(1 if task == "multiclass" else width))
    classes = ("a", "b") if task in ("binary", "multiclass") else ()
    said = told(task, [[0.5] * width], [[truth] * len(names)], names, classes)
    text, _ = page_of(said, right=[card()])
    assert "not defined" in text


def test_curves_of_training_are_drawn(page_of):
    said = told("binary", [[0.9], [0.1]], [[1.0], [0.0]])
    rows = "step,train/loss,val/loss,val/auroc_macro\n9,0.7,,\n9,,0.6,1.0\n19,0.5,,\n19,,0.4,1.0\n"
    text, _ = page_of(said, metrics=rows)
    assert "min 0.4 at 19" in text
    assert "max 1 at 9" in text
    assert ">1.2<" not in text  # an area has no room above 1


def test_studies_are_shown_and_what_they_are_called_is_no_markup(page_of):
    said = told("binary", [[0.9], [0.1]], [[1.0], [0.0]], ("<i>x</i>",))
    text, page = page_of(said, wrong=[card()], right=[card(study="other")])
    assert page.links == ["data:image/webp;base64,AAAA"] * 2
    assert "70% of the weight of 2 series" in text
    for name in ("s<1>", "<run>", "<i>x</i>", "<b>small</b>", "a=<b>"):
        assert name not in text
    assert "s<1>" in page.texts


def test_pictures_that_are_too_large_are_left_out_and_the_page_says_so(page_of):
    large = "data:image/webp;base64," + "A" * 900_000
    said = told("binary", [[0.9], [0.1]], [[1.0], [0.0]])
    text, page = page_of(said, wrong=[card(large)] * 5, right=[card(large)] * 5)
    assert len(text) < 5_000_000
    assert len(page.links) == 4
    assert "6 more studies would have made this page too large." in text


def test_a_study_says_how_many_are_positive_of_how_many():
    said = many(50, 6)
    table = figures_table(said, figures(said), {"test": said.truth.numpy()}, 0.9)
    assert table.lowest is not None
    assert table.lowest <= 0.4
    assert [row.is_mean for row in table.rows] == [True] + [False] * 6
    for row in table.rows[1:]:
        own = said.truth[:, said.names.index(row.name)]
        assert row.counts == [f"{int((own == 1).sum())} / {int(own.isfinite().sum())}"]


def test_no_interval_leaves_the_plot():
    said = many(60, 20)
    table = figures_table(said, figures(said), {"test": said.truth.numpy()}, 0.9)
    for row in table.rows:
        for number in re.findall(r'(?:d="M|H|cx=")([\d.-]+)', table.forest(row)):
            assert 0 <= float(number) <= 120


def test_pages_look_alike():
    """Colours and tables are said once."""
    folder = Path(neuro.report.__path__[0])
    for name in ("page", "findings"):
        text = (folder / f"{name}.html.jinja").read_text()
        assert text.startswith('{% extends "base.html.jinja" %}')
        assert ":root" not in text


def test_hundreds_of_classes_make_a_small_page_too(page_of):
    classes = tuple(f"class {place}" for place in range(500))
    truth = torch.randint(500, (5000, 1), generator=GENERATOR).float()
    said = told("multiclass", torch.full((5000, 500), 1 / 500), truth, ("site",), classes)
    text, _ = page_of(said)
    assert len(text) < 1_000_000
    assert "The other 101 rows are in predictions/figures.csv." in text
