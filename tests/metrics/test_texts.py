"""BLEU, chrF and ROUGE are what their papers say, also of short texts and other alphabets."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import unicodedata

import pytest
import torch
from torchmetrics.functional.text import chrf_score, rouge_score, sacre_bleu_score

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


def noisy(seed, num_texts=12):
    """Return targets, and what was said: some of their words, in part in another order."""
    dice = random.Random(seed)
    words = "the lesion is on left right side of head no signal lost in front 3 mm".split()  # noqa: SIM905
    targets = [" ".join(dice.choices(words, k=dice.randint(4, 12))) for _ in range(num_texts)]
    said = [
        " ".join(dice.choice((word, word, word, "x")) for word in target.split())
        for target in targets
    ]
    return said, targets


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_library(seed):
    said, targets = noisy(seed)
    found, references = text_figures(said, targets), [[one] for one in targets]
    expected = {
        "bleu": sacre_bleu_score(said, references, lowercase=True),
        "chrf": chrf_score(said, references, n_word_order=0, lowercase=True),
        "rouge1": rouge_score(said, targets, rouge_keys="rouge1")["rouge1_fmeasure"],
    }
    for name, value in expected.items():
        assert 0 < value < 1
        assert float(found[name]) == pytest.approx(float(value), abs=1e-5)


def test_drawn_texts_give_what_as_many_copies_give():
    said, targets = noisy(0)
    counts = torch.randint(3, (4, len(said)), generator=torch.Generator().manual_seed(0))
    drawn = text_figures(said, targets, counts.double())
    for row, numbers in enumerate(counts.tolist()):
        places = [place for place, number in enumerate(numbers) for _ in range(number)]
        copies = text_figures([said[one] for one in places], [targets[one] for one in places])
        assert {name: float(one[row]) for name, one in drawn.items()} == pytest.approx(
            {name: float(one) for name, one in copies.items()}
        )


def test_right_answers_of_other_lengths_are_right_in_every_resample():
    texts = ["left"] * 20 + ["on the left side"]
    counts = torch.ones(2, 21, dtype=torch.float64)
    counts[1, -1] = 0  # the long one is not drawn
    for values in text_figures(texts, texts, counts).values():
        assert values.tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("text", ["+", "-", "😀", "का", "é"])
def test_signs_are_words_too(text):
    assert text_figures([text], [text])["rouge1"] == 1.0
    assert text_figures([unicodedata.normalize("NFD", text)], [text])["chrf"] == 1.0
    assert text_figures(["की"], ["का"])["rouge1"] == 0.0


def test_a_resample_without_a_text_has_no_figure():
    drawn = text_figures(["a b"], ["a b"], torch.tensor([[0.0], [2.0]], dtype=torch.float64))
    for values in drawn.values():
        assert values.isnan().tolist() == [True, False]


def test_an_answer_that_says_nothing_counts():
    found = text_figures(["", "left side"], ["left side", "left side"])
    assert found["chrf"] == pytest.approx(5 * 0.5 / 4.5)  # all that was said is right, half of it
    assert found["rouge1"] == 0.5
    assert 0 < found["bleu"] < 0.5  # too short by half


def test_the_measures_are_not_imported_before_they_are_needed():
    code = "import sys, neuro.metrics.texts; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
