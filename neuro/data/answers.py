"""What a model answered, and how well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The last answer of one study.

    Attributes:
        study_id: The study.
        task: The name of its question.
        modalities: What was shown.
        prompt: What was said before, images left out.
        target: What should be said.
        said: What was said.
    """

    study_id: str
    task: str
    modalities: tuple[str, ...]
    prompt: str
    target: str
    said: str

    @property
    def is_exact(self) -> bool:
        """Whether both are the same, but for case, outer spaces and a full stop."""
        return plain(self.said) == plain(self.target)


def plain(text: str) -> str:
    """Return a text without what does not matter to its meaning."""
    return " ".join(text.lower().split()).rstrip(".")


def unique(answers: Iterable[Answer]) -> list[Answer]:
    """Return each study's answer once, sorted."""
    return [answer for _, answer in sorted({answer.study_id: answer for answer in answers}.items())]


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Return ``exact_match`` and ``balanced_accuracy``, over all and by task.

    An answer that names no class is wrong; it stays in every denominator. Balanced accuracy is the
    mean over the classes of a task, and then over tasks, so a frequent class or task does not hide
    a rare one.
    """
    by_task: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_task[answer.task].append(answer)
    scores = {"exact_match": _mean([answer.is_exact for answer in answers])}
    balanced = []
    for task, members in sorted(by_task.items()):
        classes: dict[str, list[bool]] = defaultdict(list)
        for answer in members:
            classes[plain(answer.target)].append(answer.is_exact)
        balanced.append(_mean([_mean(hits) for hits in classes.values()]))
        scores[f"exact_match_{task}"] = _mean([answer.is_exact for answer in members])
        scores[f"balanced_accuracy_{task}"] = balanced[-1]
    scores["balanced_accuracy"] = _mean(balanced)
    return scores


def _mean(values: Sequence[bool] | Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
