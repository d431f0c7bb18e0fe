"""What a model answered, and how it is read: as a class, as a number, or as a text."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from neuro.data.conversation import Conversation

log = logging.getLogger(__name__)

CLASSES, NUMBER, TEXT = "classes", "number", "text"
MOST_CLASSES = 16
MOST_WORDS = 6  # of the name of a class: what is longer is told, not named
LABEL = "subject_label"  # where metadata name the class that an answer with its reasons gives
# What is read where an answer names several classes; the strictest that reads every gold answer.
RULES = ("only", "first", "last")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w|\.\d)")
_NEGATED = r"(?<!\bnot )(?<!\bno )(?<!\bnon-)"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The last answer of one study.

    Attributes:
        study_id: The study.
        subject: Whom it is about: of a comparison the last one shown, the target.
        task: The name of its question.
        task_type: ``single``, ``multimodal`` or ``comparison``.
        modalities: What was shown.
        prompt: What was said before, images left out.
        target: What should be said.
        said: What was said.
        label: The class of the target, where the conversation's metadata name it.
        likeliest: Of the answers that the task knows, the one that the model takes for the most
            probable; empty where none was compared.
    """

    study_id: str
    subject: str
    task: str
    task_type: str
    modalities: tuple[str, ...]
    prompt: str
    target: str
    said: str
    label: str = ""
    likeliest: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether both are the same, but for case, spaces and a full stop."""
        return plain(self.said) == plain(self.target)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """An answer as it is read, beside what is right.

    Attributes:
        task: The name of the question.
        kind: ``classes``, ``number`` or ``text``.
        is_right: Whether it is the right class, the right number, or the same text.
        is_parsed: Whether it names a class or a number; of a text, whether anything is said.
        label: The class; None where it names none, or of another kind.
        gold_label: The right one.
        number: The number; where it names none the mean of training, of another kind NaN.
        gold_number: The right one.
        said: What was said.
        target: What should be said.
    """

    task: str
    kind: str
    is_right: bool
    is_parsed: bool
    said: str
    target: str
    label: str | None = None
    gold_label: str = ""
    number: float = math.nan
    gold_number: float = math.nan


@dataclass(frozen=True, kw_only=True)
class TaskAnswers:
    """How the answers to one question are read.

    Attributes:
        kind: ``classes``, ``number`` or ``text``.
        majority: The most frequent answer of training.
        spellings: Each class and how it is written.
        rule: Of ``RULES``.
        is_labelled: Whether the classes are those that metadata name.
        mean: Of the numbers of training.
    """

    kind: str = TEXT
    majority: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)
    rule: str = RULES[0]
    is_labelled: bool = False
    mean: float = math.nan

    def grade(self, answer: Answer) -> Grade:
        """Read an answer; one with the very words of the target is right whatever they are."""
        as_text = Grade(
            task=answer.task,
            kind=self.kind,
            is_right=answer.is_exact,
            is_parsed=bool(plain(answer.said)),
            said=answer.said,
            target=answer.target,
        )
        if self.kind == CLASSES:
            label = label_in(answer.said, self.spellings, self.rule)
            gold = plain(answer.label) if self.is_labelled else ""
            gold = gold or label_in(answer.target, self.spellings, self.rule)
            gold = gold or plain(answer.target)
            label = gold if answer.is_exact else label
            is_parsed = label is not None
            return replace(
                as_text, is_right=label == gold, is_parsed=is_parsed, label=label, gold_label=gold
            )
        if self.kind == NUMBER:
            number, gold = number_in(answer.said), number_in(answer.target)
            return replace(
                as_text,
                is_right=answer.is_exact or (number is not None and number == gold),
                is_parsed=number is not None,
                number=self.mean if number is None else number,
                gold_number=math.nan if gold is None else gold,
            )
        return as_text


class AnswerBook:
    """How the answers to each question are read, as the gold answers of training suggest.

    A task has ``classes`` where its gold answers are few, short and come again, or where metadata
    name the class (``subject_label``) and each gold answer can be read as its own; a ``number``
    where they differ in nothing but one number; and is free ``text`` otherwise.

    Args:
        tasks: By the name of the question. One that is not among them is text.
    """

    def __init__(self, tasks: Mapping[str, TaskAnswers]) -> None:
        self.tasks = dict(tasks)

    @classmethod
    def of(cls, conversations: Iterable[Conversation]) -> AnswerBook:
        """Learn from conversations of the train split."""
        by_task: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for one in conversations:
            by_task[one.task].append((one.turns[-1].text.strip(), label_of(one.metadata)))
        return cls({task: _read(task, golds) for task, golds in sorted(by_task.items())})

    def __getitem__(self, task: str) -> TaskAnswers:
        return self.tasks.get(task, TaskAnswers())

    def grade(self, answers: Iterable[Answer]) -> list[Grade]:
        """Read answers, each by its own task."""
        return [self[answer.task].grade(answer) for answer in answers]


def plain(text: str) -> str:
    """Return a text without what does not matter to its meaning."""
    return " ".join(text.lower().split()).rstrip(".")


def label_of(metadata: Mapping[str, object]) -> str:
    """Return the class that metadata name; empty if they name none."""
    label = metadata.get(LABEL)
    return "" if label is None else str(label)


def label_in(said: str, labels: Iterable[str], rule: str) -> str | None:
    """Return the class that a text names in whole words, or None.

    Of two names at one place the longer counts, so 'no lesion' is not 'lesion', nor 'female'
    'male'. A class right behind 'not', 'no' or 'non-' is not named.

    Args:
        said: The last thing that is said, and nothing before it.
        labels: The classes, plain.
        rule: Which of several is meant: none if ``only`` one may be named, the ``first`` or the
            ``last``.
    """
    names = "|".join(re.escape(one) for one in sorted(labels, key=len, reverse=True))
    found = re.findall(rf"(?<!\w){_NEGATED}(?:{names})(?!\w)", plain(said))
    if not found or (rule == "only" and len({*found}) > 1):
        return None
    return found[-1 if rule == "last" else 0]


def number_in(said: str) -> float | None:
    """Return the one number that a text holds; None if there is none, or several."""
    found = {float(one) for one in _NUMBER.findall(plain(said))}
    return found.pop() if len(found) == 1 else None


def unique(answers: Iterable[Answer]) -> list[Answer]:
    """Return each study's answer once, sorted."""
    return [answer for _, answer in sorted({answer.study_id: answer for answer in answers}.items())]


def _read(task: str, golds: Sequence[tuple[str, str]]) -> TaskAnswers:
    """Return how the answers to a question are read, from gold answers and their labels."""
    texts = [text for text, _ in golds]
    majority = Counter(texts).most_common(1)[0][0]
    numbers = [number_in(text) for text in texts]
    around = {_NUMBER.sub("", plain(text)) for text in texts}
    if len(around) == 1 and all(one is not None for one in numbers):
        mean = sum(one for one in numbers if one is not None) / len(numbers)
        return TaskAnswers(kind=NUMBER, majority=majority, mean=mean)
    if all(label for _, label in golds):
        labelled = _by_label(task, golds, majority)
        if labelled is not None:
            return labelled
    plains = {plain(text) for text in texts}
    are_few = len(plains) <= MOST_CLASSES and 2 * len(plains) <= len(texts)
    if not are_few or max(len(one.split()) for one in plains) > MOST_WORDS:
        return TaskAnswers(kind=TEXT, majority=majority)
    return TaskAnswers(kind=CLASSES, majority=majority, spellings=_spellings(texts))


def _by_label(task: str, golds: Sequence[tuple[str, str]], majority: str) -> TaskAnswers | None:
    """Return how answers are read whose class the metadata name; None if they cannot be."""
    labels = {plain(label) for _, label in golds}
    if len(labels) > MOST_CLASSES:
        return None
    for rule in RULES:
        if all(label_in(text, labels, rule) == plain(label) for text, label in golds):
            # As the answers spell it where they say nothing else, or else as the metadata do.
            alone = [text for text, label in golds if plain(text) == plain(label)]
            spelled = _spellings([label for _, label in golds]) | _spellings(alone)
            return TaskAnswers(
                kind=CLASSES, majority=majority, spellings=spelled, rule=rule, is_labelled=True
            )
    if any(label_in(text, labels, "first") for text, _ in golds):
        log.warning(
            "task %r: %s of its answers cannot be read from their words, neither from the first "
            "class that is named nor from the last; answers are compared as whole texts",
            task,
            LABEL,
        )
    return None


def _spellings(texts: Sequence[str]) -> dict[str, str]:
    """Return each plain text and how it is written most often."""
    counts = Counter(texts).most_common()
    return {plain(text): text for text, _ in sorted(counts, key=lambda one: one[1])}
