"""How close free text is to what should be said: BLEU, chrF and ROUGE.

Each is a figure of counts that are sums over texts, so that texts can be drawn many times.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from neuro.metrics.resamples import sums

WORDS = 4  # of the longest n-gram of BLEU
LETTERS = 6  # of the longest n-gram of chrF
BETA = 2  # of chrF: what is missing weighs more than what is too much
ROUGE = ("rouge1", "rougeL")  # the others need a download


def text_figures(
    said: Sequence[str],
    targets: Sequence[str],
    counts: Float64[Tensor, "resamples texts"] | None = None,
) -> dict[str, Float64[Tensor, "*resamples"]]:
    """Return figures in [0, 1] of all texts together; case does not matter.

    ``bleu`` is that of the corpus, by the tokenizer 13a (Papineni et al., 2002; Post, 2018,
    arXiv:1804.08771); ``chrf`` is chrF2 of the corpus, without words (Popović, 2015); ``rouge1``
    and ``rougeL`` are means of F1 (Lin, 2004). Where every target is shorter than the longest
    n-gram, the longest is one that there is: a right answer of two words would score 0 otherwise.

    Args:
        said: What was said; at least one.
        targets: What should be said.
        counts: How often each is drawn, of ``draw_counts``; None is once, and no axis of
            resamples.
    """
    pairs = list(zip(said, targets, strict=True))
    words = min(WORDS, max(len(target.split()) for target in targets))
    letters = min(LETTERS, max(len("".join(target.split())) for target in targets))
    rouge = torch.stack([_rouge(*pair) for pair in pairs])
    rouge = sums(rouge, counts) / sums(torch.ones_like(rouge), counts)
    return {
        "bleu": _bleu(sums(torch.stack([_bleu_counts(*pair) for pair in pairs]), counts), words),
        "chrf": _chrf(sums(torch.stack([_chrf_counts(*pair) for pair in pairs]), counts), letters),
        **dict(zip(ROUGE, rouge.unbind(-1), strict=True)),
    }


def _bleu(
    counts: Float64[Tensor, "*resamples counts"], words: int
) -> Float64[Tensor, "*resamples"]:
    lengths, hits, of = counts.split([2, WORDS, WORDS], dim=-1)
    said, target = lengths.unbind(-1)
    shares = (hits / of.clamp(min=1))[..., : max(1, words)]
    too_short = (1 - target / said.clamp(min=1)).clamp(max=0)
    score = torch.exp(too_short + shares.log().mean(dim=-1))  # a share of 0 makes 0 of it
    return score.where(target > 0, torch.nan)  # none was drawn


def _chrf(
    counts: Float64[Tensor, "*resamples counts"], letters: int
) -> Float64[Tensor, "*resamples"]:
    hits, said, target = counts.unflatten(-1, (3, LETTERS))[..., : max(1, letters)].unbind(-2)
    # 5 p r / (4 p + r) with p = hits / said and r = hits / target
    scores = (1 + BETA**2) * hits / (BETA**2 * target + said).clamp(min=1)
    return scores.mean(dim=-1).where(target[..., 0] > 0, torch.nan)


@lru_cache(maxsize=4096)  # each text is in several groups of answers
def _bleu_counts(said: str, target: str) -> Float64[Tensor, " counts"]:
    """Return the lengths in words, the n-grams in common and those that were said."""
    # Seconds to import, and only free text needs it.
    from torchmetrics.text import SacreBLEUScore

    bleu = SacreBLEUScore(n_gram=WORDS, lowercase=True)
    bleu.update([said], [[target]])
    names = ("preds_len", "target_len", "numerator", "denominator")
    counts = [torch.as_tensor(bleu.metric_state[name]).reshape(-1) for name in names]
    return torch.cat(counts).double()


@lru_cache(maxsize=4096)
def _chrf_counts(said: str, target: str) -> Float64[Tensor, " counts"]:
    """Return the n-grams of letters in common, those that were said and those that should be.

    Not by torchmetrics: there a text that has nothing in common with its target does not count.
    """
    one, other = ("".join(text.lower().split()) for text in (said, target))
    sizes = range(1, LETTERS + 1)
    grams = [(_letters(one, size), _letters(other, size)) for size in sizes]
    counts = [((a & b).total(), a.total(), b.total()) for a, b in grams]
    return torch.tensor(counts, dtype=torch.float64).T.flatten()


def _letters(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


@lru_cache(maxsize=4096)
def _rouge(said: str, target: str) -> Float64[Tensor, " figures"]:
    from torchmetrics.functional.text import rouge_score

    found = rouge_score(said, target, rouge_keys=ROUGE, normalizer=_words, tokenizer=str.split)
    return torch.stack([found[f"{name}_fmeasure"] for name in ROUGE]).double()


def _words(text: str) -> str:
    """Return the words of a text; the library's own rule knows no letters beyond a to z."""
    return " ".join(re.findall(r"\w+", text.lower()))
