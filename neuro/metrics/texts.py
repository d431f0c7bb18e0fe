"""How close free text is to what should be said: BLEU, chrF and ROUGE."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDS = 4  # of the longest n-gram of BLEU
LETTERS = 6  # of the longest n-gram of chrF


def text_figures(said: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return figures in [0, 1] of all texts together; case does not matter.

    ``bleu`` is that of the corpus, by the tokenizer 13a (Papineni et al., 2002; Post, 2018,
    arXiv:1804.08771); ``chrf`` is chrF2, without words (Popović, 2015); ``rouge1`` and ``rougeL``
    are means of F1 (Lin, 2004). Where every target is shorter than the longest n-gram, the longest
    is one that there is: a right answer of two words would score 0 otherwise.

    Args:
        said: What was said; at least one.
        targets: What should be said.
    """
    # Seconds to import, and only free text needs it.
    from torchmetrics.functional.text import chrf_score, rouge_score, sacre_bleu_score

    references = [[target] for target in targets]
    most_words = max(len(target.split()) for target in targets)
    most_letters = max(len("".join(target.split())) for target in targets)
    bleu = sacre_bleu_score(said, references, n_gram=max(1, min(WORDS, most_words)), lowercase=True)
    chrf = chrf_score(
        said,
        references,
        n_char_order=max(1, min(LETTERS, most_letters)),
        n_word_order=0,
        lowercase=True,
    )
    rouge = rouge_score(
        said,
        targets,
        rouge_keys=("rouge1", "rougeL"),  # the others need a download
        normalizer=_words,
        tokenizer=str.split,
    )
    return {
        "bleu": float(bleu),
        "chrf": float(chrf),  # pyright: ignore[reportArgumentType], one score, not one per text
        "rouge1": float(rouge["rouge1_fmeasure"]),
        "rougeL": float(rouge["rougeL_fmeasure"]),
    }


def _words(text: str) -> str:
    """Return the words of a text; the library's own rule knows no letters beyond a to z."""
    return " ".join(re.findall(r"\w+", text.lower()))
