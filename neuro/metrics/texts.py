"""How close free text is to what should be said: BLEU, chrF and ROUGE.

Each is a figure of counts that are sums over texts, so that texts can be drawn many times.
"""

from __future__ import annotations

import unicodedata
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
CACHED = 1 << 16  # texts whose counts are kept
ROUGE = ("rouge1", "rougeL")  # the others need a download


def text_figures(
    said: Sequence[str],
    targets: Sequence[str],
    counts: Float64[Tensor, "resamples texts"] | None = None,
) -> dict[str, Float64[Tensor, "*resamples"]]:
    """Return figures in [0, 1] of all texts together; case does not matter.

    ``bleu`` is that of the corpus, by the tokenizer 13a (Papineni et al., 2002; Post, 2018,
    arXiv:1804.08771); ``chrf`` is chrF2 of the corpus, without words (Popović, 2015), the mean of F
    over n-grams of each length; ``rouge1`` and ``rougeL`` are means of F1 (Lin, 2004). Where every
    target is shorter than the longest n-gram, the longest is one that there is: a right answer of
    two words would score 0 otherwise.

    Args:
        said: What was said; at least one.
        targets: What should be said.
        counts: How often each is drawn, of ``draw_counts``; None is once, and no axis of
            resamples.
    """
    pairs = [(_composed(one), _composed(two)) for one, two in zip(said, targets, strict=True)]
    rouge = torch.stack([_rouge(*pair) for pair in pairs])
    rouge = sums(rouge, counts) / sums(torch.ones_like(rouge), counts)
    return {
        "bleu": _bleu(sums(torch.stack([_bleu_counts(*pair) for pair in pairs]), counts)),
        "chrf": _chrf(sums(torch.stack([_chrf_counts(*pair) for pair in pairs]), counts)),
        **dict(zip(ROUGE, rouge.unbind(-1), strict=True)),
    }


def _bleu(counts: Float64[Tensor, "*resamples counts"]) -> Float64[Tensor, "*resamples"]:
    length, hits, said, target = counts.split([1, WORDS, WORDS, WORDS], dim=-1)
    shares = (hits / said.clamp(min=1)).log().where(target > 0, torch.nan)
    too_short = (1 - target[..., 0] / length[..., 0].clamp(min=1)).clamp(max=0)
    return torch.exp(too_short + shares.nanmean(dim=-1))  # a share of 0 makes 0 of it


def _chrf(counts: Float64[Tensor, "*resamples counts"]) -> Float64[Tensor, "*resamples"]:
    hits, said, target = counts.unflatten(-1, (3, LETTERS)).unbind(-2)
    # 5 p r / (4 p + r) with p = hits / said and r = hits / target
    scores = (1 + BETA**2) * hits / (BETA**2 * target + said)
    return scores.where(target > 0, torch.nan).nanmean(dim=-1)


@lru_cache(maxsize=CACHED)  # each text is in several groups of answers
def _bleu_counts(said: str, target: str) -> Float64[Tensor, " counts"]:
    """Return the words said, then the n-grams in common, those said and those to be said."""
    # Seconds to import, and only free text needs it.
    from torchmetrics.text import SacreBLEUScore

    bleu = SacreBLEUScore(n_gram=WORDS, lowercase=True)
    bleu.update([said], [[target]])
    length, wanted, hits, of = (
        torch.as_tensor(bleu.metric_state[name]).reshape(-1).double()
        for name in ("preds_len", "target_len", "numerator", "denominator")
    )
    return torch.cat([length, hits, of, (wanted - torch.arange(WORDS)).clamp(min=0)])


@lru_cache(maxsize=CACHED)
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


@lru_cache(maxsize=CACHED)
def _rouge(said: str, target: str) -> Float64[Tensor, " figures"]:
    from torchmetrics.functional.text import rouge_score

    found = rouge_score(said, target, rouge_keys=ROUGE, normalizer=_words, tokenizer=str.split)
    return torch.stack([found[f"{name}_fmeasure"] for name in ROUGE]).double()


def _composed(text: str) -> str:
    """Return a text in the one of its spellings in which a letter and its accent are one sign."""
    return unicodedata.normalize("NFC", text)


def _words(text: str) -> str:
    """Return the words of a text; the library's own rule knows no letters beyond a to z."""
    lower = text.lower()
    signs = (" " if unicodedata.category(sign)[0] == "P" else sign for sign in lower)
    return " ".join("".join(signs).split()) or lower.strip()  # an answer may be "-"
