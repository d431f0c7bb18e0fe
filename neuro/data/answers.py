"""What a model answered, and how it is read: as a class, as a number, or as a text."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from neuro.data.conversation import Conversation
from neuro.data.dataset import CONTROLS

log = logging.getLogger(__name__)

CLASSES, NUMBER, TEXT = "classes", "number", "text"
MOST_CLASSES = 16
# Numbers are codes or stages where they are few and each comes so often; else quantities.
MOST_CODES, TIMES_OF_A_CODE = 10, 5
MOST_WORDS = 6  # of the name of a class: what is longer is told, not named
LABEL = "subject_label"  # where metadata name the class that an answer with its reasons gives
# What is read where an answer names several classes; the strictest that reads every gold answer.
RULES = ("only", "first", "last")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w|\.\d)")
# What stands right before a class that is not named: 'no', 'not a', 'no evidence of', 'non-'.
_NEGATION = re.compile(r"(?<!\w)(?:non-|(?:not|no) (?:(?:an?|the|any|evidence of|signs? of) )*)$")
# Names of tasks that figures would share with all answers together, with a control or an interval.
_TAKEN = re.compile(
    rf"all|low|high|(?:.*_)?(?:{'|'.join(CONTROLS)}|majority)(?:_low|_high)?|.*/.*", re.DOTALL
)


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

    @property
    def findings(self) -> tuple[str, str, str]:
        """The parts of a test that it counts in, each by a name that no other part has.

        These are its task, its type of task (``type/single``) and what was shown
        (``images/T1-rsfMRI``). A task is ``task/NAME`` where its bare name would be mistaken.
        """
        task = f"task/{self.task}" if _TAKEN.fullmatch(self.task) else self.task
        images = "-".join(sorted({*self.modalities}))
        return task, f"type/{self.task_type}", f"images/{images}"


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
        majority: What a guess says that only knows training: the most frequent class as it is
            spelled, the mean of the numbers, or the most frequent text.
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
            gold = plain(answer.target)  # whole: a class that is new may hold the name of another
            if self.is_labelled:
                named = label_in(answer.target, self.spellings, self.rule)
                gold = plain(answer.label) or named or gold
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
    where they differ in nothing but one number, unless these are few and come often, as codes and
    stages do; and is free ``text`` otherwise.

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
    'male', and 'stage 1.5' is not 'stage 1'. A class is not named right behind 'not', 'no' or
    'non-', nor behind 'not a', 'no evidence of' or 'no signs of'.

    Args:
        said: The last thing that is said, and nothing before it.
        labels: The classes, plain.
        rule: Which of several is meant: none if ``only`` one may be named, the ``first`` or the
            ``last``.
    """
    text = plain(said)
    names = "|".join(re.escape(one) for one in sorted(labels, key=len, reverse=True))
    found = [
        one[0]
        for one in re.finditer(rf"(?<!\w)(?:{names})(?!\w|\.\d)", text)
        if not _NEGATION.search(text, 0, one.start())
    ]
    if not found or (rule == "only" and len({*found}) > 1):
        return None
    return found[-1 if rule == "last" else 0]


def number_in(said: str) -> float | None:
    """Return the one number that a text holds; None if there is none, or several."""
    found = {float(one) for one in _NUMBER.findall(plain(said))}
    number = found.pop() if len(found) == 1 else math.inf
    return number if math.isfinite(number) else None  # 1e999 is none


def unique(answers: Iterable[Answer]) -> list[Answer]:
    """Return each study's answer once, sorted."""
    return [answer for _, answer in sorted({answer.study_id: answer for answer in answers}.items())]


def _read(task: str, golds: Sequence[tuple[str, str]]) -> TaskAnswers:
    """Return how the answers to a question are read, from gold answers and their labels."""
    texts = [text for text, _ in golds]
    plains = {plain(text) for text in texts}
    are_codes = len(plains) <= MOST_CODES and TIMES_OF_A_CODE * len(plains) <= len(texts)
    numbers = [number_in(text) for text in texts]
    around = {_NUMBER.sub("", one) for one in plains}
    is_number = len(around) == 1 and all(one is not None for one in numbers)
    if is_number and not are_codes:
        mean = sum(one for one in numbers if one is not None) / len(numbers)
        # In full, as people write it; then this guess is that of an answer without a number.
        written = np.format_float_positional(mean, trim="-")
        return TaskAnswers(kind=NUMBER, majority=written, mean=mean)
    if all(label for _, label in golds):
        labelled = _by_label(task, golds)
        if labelled is not None:
            return labelled
    are_few = len(plains) <= MOST_CLASSES and 2 * len(plains) <= len(texts)
    if not are_few or max(len(one.split()) for one in plains) > MOST_WORDS:
        return TaskAnswers(kind=TEXT, majority=_most_frequent(texts))
    spelled = _spellings(texts)
    majority = spelled[_most_frequent([plain(text) for text in texts])]
    return TaskAnswers(kind=CLASSES, majority=majority, spellings=spelled)


def _by_label(task: str, golds: Sequence[tuple[str, str]]) -> TaskAnswers | None:
    """Return how answers are read whose class the metadata name; None if they cannot be."""
    labels = {plain(label) for _, label in golds}
    if len(labels) > MOST_CLASSES:
        return None
    for rule in RULES:
        if all(label_in(text, labels, rule) == plain(label) for text, label in golds):
            # As the answers spell it where they say nothing else, or else as the metadata do.
            alone = [text for text, label in golds if plain(text) == plain(label)]
            spelled = _spellings([label for _, label in golds]) | _spellings(alone)
            majority = spelled[_most_frequent([plain(label) for _, label in golds])]
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


def _most_frequent(texts: Sequence[str]) -> str:
    return Counter(texts).most_common(1)[0][0]


def _spellings(texts: Sequence[str]) -> dict[str, str]:
    """Return each plain text and how it is written most often."""
    counts = Counter(texts).most_common()
    return {plain(text): text for text, _ in sorted(counts, key=lambda one: one[1])}
