"""The page shows what it is given, and nothing from outside."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from neuro.data.answers import Answer
from neuro.report.answers import rows
from neuro.report.mosaic import data_uri, mosaic
from neuro.report.page import Card, _num_studies, write_page


def answer(study_id, said):
    return Answer(
        study_id=study_id,
        subject=study_id,
        task="sex",
        task_type="single",
        modalities=("T1",),
        prompt="",
        target="male",
        said=said,
        likeliest="male",
    )


FIGURES = [
    ("all", "exact_match", 0.5, 0.25, 0.75),
    ("all", "exact_match_shuffled", 0.125, 0.0, 0.375),
    ("all", "balanced_accuracy", 0.5, 0.25, 0.75),
    ("sex", "exact_match", 0.5, 0.25, 0.75),
    ("sex", "exact_match_shuffled", 0.125, 0.0, 0.375),
    ("sex", "unparsed", 0.0625, 0.0, 0.375),
    ("sex", "mae", 3.25, 3.0, 3.5),
    ("sex", "mae_shuffled", 11.5, 9.0, 12.0),
    ("sex", "pearson", 0.75, 0.5, 0.875),
    ("sex", "pearson_shuffled", math.nan, math.nan, math.nan),  # of a constant
]


def test_a_mosaic_shows_left_on_the_left_and_the_front_at_the_top():
    head = torch.zeros(16, 16, 16)
    head[12, 12, 8] = 1  # right, in front, in the middle of the axial slice
    picture = mosaic(head, slice_pixels=32).convert("L")
    pixels = torch.tensor(list(picture.get_flattened_data())).reshape(32, 96)[:, :32]
    row, column = divmod(int(pixels.argmax()), 32)
    assert column > 16
    assert row < 16


def test_a_page_is_one_file_that_names_wrong_answers(tmp_path):
    csv = tmp_path / "metrics.csv"
    csv.write_text("epoch,step,train/loss,val/loss\n0,9,2.0,\n0,9,,1.5\n0,19,1.0,\n")
    cards = [
        Card(
            answer=answer("<b>a</b>", "female"),
            is_right=False,
            question="Which?",
            pictures=[data_uri(mosaic(torch.rand(8, 8, 8)))],
        )
    ]
    write_page(
        tmp_path / "report.html",
        title="run",
        subtitle="",
        answers=[answer("a", "female"), answer("b", "Male.")],
        figures=FIGURES,
        cards=cards,
        parameters=[("tower", 10, 0)],
        metrics_csv=csv,
    )
    page = (tmp_path / "report.html").read_text()
    assert "://" not in page
    assert "should be <b>male</b>" in page
    assert "most probable: male" in page
    for figure in ("0.500", "0.250 to 0.750", "0.125", "6.2%", "MAE 3.250 (11.5) · r 0.750</td>"):
        assert figure in page
    assert "another subject&#39;s images" in page
    assert "no images, no model" not in page  # it was not measured
    assert "<b>a</b>" not in page  # what a table says is no markup
    assert "min 1.5 at 9" in page  # of the curve


def test_a_task_that_is_called_all_has_its_own_row_and_not_the_headline():
    figures = [
        *FIGURES,
        ("task/all", "exact_match", 0.9, 0.8, 1.0),
        ("task/all", "unparsed", *3 * [0.0]),
    ]
    asked = [answer("a", "male"), replace(answer("b", "male"), task="all")]
    told = rows(figures, _num_studies(asked, figures))
    assert [(one.name, one.heading, one.exact_match[0]) for one in told] == [
        ("sex", "by question", "0.500"),
        ("all", "", "0.900"),
    ]


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 8, 8, 4)])
def test_a_run_is_shown_as_its_mean(shape):
    assert mosaic(torch.rand(shape), slice_pixels=16).size == (48, 16)
