"""BLEU, chrF and ROUGE are what their papers say, also of short texts and other alphabets."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from neuro.metrics.texts import text_figures

REPORTS = [
    "There is a lesion of 3 mm on the left. White matter is normal.",
    "Keine Läsion; der Schädel ist schmäler.",
    "Очаг слева.",
    "no lesion",
    "a",
]


@pytest.mark.parametrize("texts", [REPORTS, *([one] for one in REPORTS)])
def test_the_same_words_reach_one_whatever_their_case(texts):
    for said in (texts, [one.upper() for one in texts]):
        assert text_figures(said, texts) == pytest.approx(
            dict.fromkeys(("bleu", "chrf", "rouge1", "rougeL"), 1.0)
        )


@pytest.mark.parametrize("said", ["xyz", "", "  "])
def test_nothing_in_common_is_zero(said):
    found = text_figures([said] * 2, ["on the left side", "a b c d"])
    assert found == dict.fromkeys(("bleu", "chrf", "rouge1", "rougeL"), 0.0)


def test_a_case_by_hand():
    found = text_figures(["the cat sat on the mat"], ["the cat is on the mat"])
    # n-grams in common: 5 of 6 words, 3 of 5 pairs, 1 of 4 threes, none of 3 fours.
    assert found["bleu"] == 0.0
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rougeL"] == pytest.approx(5 / 6)
    found = text_figures(["b a c"], ["a b c"])  # 3 of 3 words; in order, 2
    assert (found["rouge1"], found["rougeL"]) == pytest.approx((1.0, 2 / 3))
    found = text_figures(["a b c x"], ["a b c"])  # 3/4, 2/3, 1/2, and it is not too short
    assert found["bleu"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    found = text_figures(["ab"], ["abc"])  # precision 1 and 1; recall 2/3, 1/2, 0 of three letters
    f2 = [5 * p * r / (4 * p + r) for p, r in ((1, 2 / 3), (1, 1 / 2))]
    assert found["chrf"] == pytest.approx(sum(f2) / 3)


def test_bleu_is_of_the_corpus_and_punishes_what_is_too_short():
    found = text_figures(["a b", "c d"], ["a b x y", "c d x y"])
    assert found["bleu"] == 0.0  # no four in common
    targets = ["a b c d e f g h"]
    assert text_figures(["a b c d"], targets)["bleu"] == pytest.approx(math.exp(1 - 8 / 4))


def test_the_measures_are_not_imported_before_they_are_needed():
    code = "import sys, neuro.metrics.texts; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
