"""A BIDS folder as a source of studies: with questions, with labels, or just its images."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neuro.data.bids import BidsFolder, entities_of, modality_of, session_of
from neuro.data.cohort import finished
from neuro.data.conversation import Image
from neuro.data.ids import Given, texts
from neuro.data.labels import LabelRules
from neuro.data.links import rooted
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.question import Question, QuestionBook, conversation_about
from neuro.data.scan_files import root_folder
from neuro.data.splits import Splits
from neuro.errors import InputError

log = logging.getLogger(__name__)

MISSING = ("n/a", "")  # not more: "none" is an answer


class BidsCohort:
    """A study per scan and question, or, where nothing is asked, a study per session.

    Args:
        root: The BIDS folder.
        questions: Columns of ``participants.tsv``; each needs a template in the question book.
            Empty: no conversations.
        question_book: The templates.
        splits: How subjects are divided, unless ``participants.tsv`` has a column ``split``.
        labels: Which columns are labels; read from ``participants.tsv`` unless a file is named.
        task: Only runs whose task has this in its name are read; None reads every task.
        modalities: Which images a session shows, where nothing is asked; None shows all.
        linked_roots: Further folders that links below ``root`` may lead to.

    Raises:
        InputError: The folder is no BIDS folder, or questions are no list of names.
    """

    def __init__(
        self,
        root: Path | str,
        questions: Sequence[Given] | None,
        question_book: QuestionBook,
        splits: Splits,
        labels: LabelRules | None = None,
        task: str | None = "rest",
        modalities: Sequence[Given] | None = None,
        linked_roots: Sequence[Given] | Given | None = (),
    ) -> None:
        self.folder = BidsFolder(root_folder(root, "sub-01, sub-02 and so on"), task)
        self.questions = question_names(questions) if questions else []
        self.question_book = question_book
        self.splits = splits
        self.labels = labels
        self.modalities = texts(modalities, "data.modalities") or None
        self.linked_roots = linked_roots

    def manifest(self) -> Manifest:
        """Read the folder.

        A subject without an answer is left out and counted.

        Raises:
            InputError: A column does not exist, has no template, or nothing remains.
        """
        self._log_what_is_left_out()
        asked = [study for name in self.questions for study in self._about(name)]
        lost = Counter() if self.questions else self._lost()
        studies = asked if self.questions else [*self._sessions(lost)]
        if not studies and not self.questions and self.folder.scans:
            found = ", ".join(sorted({scan.modality for scan in self.folder.scans}))
            raise InputError(
                f"data.modalities={self.modalities} leaves every scan out; {self.folder.root} has "
                f"{found}. Take one of these."
            )
        num_left_out = len(lost.keys() - {one.id for one in studies})
        rules = self.labels
        if rules is not None and rules.names and rules.file is None:
            # Another column may be called study.
            rules = replace(rules, key=rules.key or "participant_id")
        manifest = Manifest.of(studies, self.folder.found.failures, num_left_out)
        return finished(
            rooted(manifest, self.folder.root, self.linked_roots),
            splits=self.splits,
            labels=rules,
            table=self.folder.table,
            where=str(self.folder.root / "participants.tsv"),
        )

    def _log_what_is_left_out(self) -> None:
        others = self.folder.found.others
        if others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
            log.info("%d images of other kinds are not read: %s", sum(others.values()), kinds)
        scanned = {scan.subject for scan in self.folder.scans}
        absent = [subject for subject in self._participants if subject not in scanned]
        if absent:
            log.info("%d subjects of participants.tsv have no scan: %s", len(absent), absent[:5])

    @property
    def _participants(self) -> dict[str, dict[str, str]]:
        """The table; empty where there is none and nothing is asked of it."""
        if self.questions or self.folder.table is not None:
            return self.folder.participants
        return {}

    def _sessions(self, lost: Mapping[str, int]) -> Iterator[Study]:
        """Yield a study for each session.

        Args:
            lost: How many images of each session cannot be used.
        """
        sessions: dict[str, list[Series]] = defaultdict(list)
        for scan in self.folder.scans:
            if self._is_shown(scan.modality):
                sessions[session_of(scan)].append(scan)
        for name, scans in sessions.items():
            yield Study(
                id=name,
                series=tuple(scans),
                split=self._split(scans[0].subject),
                num_failed=lost.get(name, 0),
            )

    def _lost(self) -> Counter[str]:
        """Count the images of each session that cannot be used."""
        lost = Counter[str]()
        for failure in self.folder.found.failures:
            modality = modality_of(failure.path, self.folder.task)
            if modality is not None and self._is_shown(modality):
                subject = entities_of(failure.path.name)["sub"]
                lost[session_of(Series(subject=subject, modality="", path=failure.path))] += 1
        return lost

    def _is_shown(self, modality: str) -> bool:
        return self.modalities is None or modality in self.modalities

    def _split(self, subject: str) -> str:
        """Return what the column ``split`` of participants.tsv says."""
        return self._participants.get(subject, {}).get("split", "")

    def _about(self, name: str) -> Iterator[Study]:
        """Yield a study for each scan that the question is about and whose answer is known."""
        question = self._question(name)
        scans = [scan for scan in self.folder.scans if scan.modality == question.modality]
        values = [self._participants.get(scan.subject, {}).get(name, "") for scan in scans]
        for scan, value in zip(scans, values, strict=True):
            if value.lower() not in MISSING:
                yield self._study(scan, name, question, value)
        num_unknown = sum(value.lower() in MISSING for value in values)
        if num_unknown:
            log.info(
                "question %s: %d scans left out, their subject has no answer in participants.tsv",
                name,
                num_unknown,
            )

    def _study(self, scan: Series, name: str, question: Question, value: str) -> Study:
        where = f"participants.tsv, sub-{scan.subject}, column {name!r}"
        path = scan.path.relative_to(self.folder.root.absolute())
        conversation = conversation_about(
            study_id=f"{scan.name}.{name}",
            name=name,
            ask=question.ask,
            answer=question.answer(value, where=where),
            images=[Image(path=str(path), modality=scan.modality, subject=scan.subject)],
        )
        return Study(
            id=conversation.id,
            series=(scan,),
            conversation=conversation,
            split=self._split(scan.subject),
        )

    def _question(self, name: str) -> Question:
        columns = self.folder.columns()
        if self.folder.table is not None and name not in columns:
            raise InputError(
                f"data.questions names {name!r}, which is no column of "
                f"{self.folder.root / 'participants.tsv'}; got {', '.join(columns)}. "
                f"Take one of these."
            )
        question = self.question_book[name]
        found = self.folder.found
        if not found.failures and all(one.modality != question.modality for one in found.scans):
            raise InputError(
                f"data.questions names {name!r}, which asks about {question.modality}; "
                f"{self.folder.root} has no such scan. Leave it out, or set "
                f"data.question_book.templates.{name}.modality."
            )
        return question


def question_names(questions: Sequence[Given]) -> list[str]:
    """Return the questions as a list; a lone word is a mistake of the command line."""
    if isinstance(questions, str) or not questions:
        raise InputError(
            f"data.questions takes a list of names, at least one; got {questions!r}. "
            f"Write 'data.questions=[sex]'."
        )
    return texts(questions, "data.questions")
