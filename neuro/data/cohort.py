"""Where studies come from: a conversations file, a BIDS folder, or the phantom.

Each gives the same manifest.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from neuro.console import meter
from neuro.data.bids import MISSING, BidsFolder, read_sidecar, repetition_time
from neuro.data.conversation import Conversation, Image, read_conversations, write_conversations
from neuro.data.manifest import Manifest, Series, Study, SubjectSplits, inside
from neuro.data.phantom import write_phantoms
from neuro.data.question import QuestionBook, conversation_about
from neuro.errors import InputError

log = logging.getLogger(__name__)


@runtime_checkable
class Cohort(Protocol):
    """A source of studies."""

    def manifest(self) -> Manifest:
        """Return every study, with a split each."""
        ...


class ConversationCohort:
    """Conversations as JSON, whose image paths are relative to a root.

    Args:
        root: The folder that the paths start from.
        conversations: The file, or a folder of files.
        splits: Used where the conversations bring no split.
    """

    def __init__(self, root: Path | str, conversations: Path | str, splits: SubjectSplits) -> None:
        self.root = Path(root)
        self.conversations = Path(conversations)
        self.splits = splits

    def manifest(self) -> Manifest:
        """Read and check the conversations.

        Raises:
            InputError: The file is wrong, or a path leaves the root.
        """
        studies = (
            self._study(conversation) for conversation in read_conversations(self.conversations)
        )
        return Manifest(self.splits.assign(studies))

    def _study(self, conversation: Conversation) -> Study:
        images = conversation.images_in_text()
        return Study(
            id=conversation.id,
            series=tuple(self._series(image, conversation.id) for image in images),
            conversation=conversation,
            split=conversation.split or "",
        )

    def _series(self, image: Image, where: str) -> Series:
        path = inside(self.root, image.path, where=f"conversation {where!r}")
        return Series(
            subject=image.subject,
            modality=image.modality,
            path=path,
            repetition_time_s=_repetition_time_beside(path) if image.modality == "rsfMRI" else None,
        )


class BidsCohort:
    """Questions about the columns of ``participants.tsv``, one study per scan and question.

    Args:
        root: The BIDS folder.
        questions: Names of columns; each needs a template in the question book.
        question_book: The templates.
        splits: How subjects are divided.
    """

    def __init__(
        self,
        root: Path | str,
        questions: Sequence[str],
        question_book: QuestionBook,
        splits: SubjectSplits,
    ) -> None:
        self.folder = BidsFolder(Path(root))
        self.questions = _names(questions)
        self.question_book = question_book
        self.splits = splits

    def manifest(self) -> Manifest:
        """Ask each question about each scan of its modality.

        A subject without an answer is left out and counted.

        Raises:
            InputError: A column does not exist, has no template, or nothing remains.
        """
        columns = self.folder.columns()
        scanned = {scan.subject for scan in self.folder.scans}
        absent = [subject for subject in self.folder.participants if subject not in scanned]
        if absent:
            log.info("%d subjects of participants.tsv have no scan: %s", len(absent), absent[:5])
        studies: list[Study] = []
        for name in self.questions:
            if name not in columns:
                raise InputError(
                    f"data.questions names {name!r}, which is no column of "
                    f"{self.folder.root / 'participants.tsv'}; got {', '.join(columns)}. "
                    f"Take one of these."
                )
            studies += self._studies(name)
        return Manifest(self.splits.assign(studies))

    def _studies(self, name: str) -> Iterator[Study]:
        question = self.question_book[name]
        if not any(scan.modality == question.modality for scan in self.folder.scans):
            raise InputError(
                f"data.questions names {name!r}, which asks about {question.modality}; "
                f"{self.folder.root} has no such scan. Leave it out, or set "
                f"data.question_book.templates.{name}.modality."
            )
        num_unknown = 0
        for scan in self.folder.scans:
            if scan.modality != question.modality:
                continue
            value = self.folder.participants.get(scan.subject, {}).get(name, "n/a")
            if value in MISSING:
                num_unknown += 1
                continue
            answer = question.answer(
                value, where=f"participants.tsv, sub-{scan.subject}, column {name!r}"
            )
            relative = scan.path.relative_to(self.folder.root.absolute())
            conversation = conversation_about(
                study_id=f"{scan.path.name.split('.')[0]}.{name}",
                name=name,
                ask=question.ask,
                answer=answer,
                images=[Image(path=str(relative), modality=scan.modality, subject=scan.subject)],
            )
            yield Study(id=conversation.id, series=(scan,), conversation=conversation)
        if num_unknown:
            log.info(
                "question %s: %d scans left out, their subject has no answer in participants.tsv",
                name,
                num_unknown,
            )


class PhantomCohort:
    """The synthetic cohort, read like any other.

    It is written once, as BIDS with a conversations file.

    Args:
        root: The folder that cohorts are written below.
        num_subjects: Heads to draw.
        seed: Another seed gives other heads.
        questions: Which factors are asked about.
        question_book: The templates.
        joint: Whether each subject also has a study that shows two modalities and asks about one of
            them.
    """

    def __init__(
        self,
        root: Path | str,
        num_subjects: int,
        seed: int,
        questions: Sequence[str],
        question_book: QuestionBook,
        joint: bool,
    ) -> None:
        self.root = Path(root) / f"heads{num_subjects}-seed{seed}"
        self.num_subjects = num_subjects
        self.seed = seed
        self.questions = _names(questions)
        self.question_book = question_book
        self.joint = joint

    def manifest(self) -> Manifest:
        """Write what is missing, then read it."""
        if self.root.is_dir():
            write_phantoms(self.root, num_subjects=self.num_subjects, seed=self.seed)  # checks it
        else:
            with meter("phantom heads drawn", self.num_subjects) as advance:
                write_phantoms(
                    self.root,
                    num_subjects=self.num_subjects,
                    seed=self.seed,
                    on_progress=lambda _: advance(),
                )
        names = "-".join(self.questions) + ("-joint" if self.joint else "")
        path = self.root / f"conversations-{names}.json"
        conversations = tuple(self._conversations())
        # A template may have changed since.
        if not path.is_file() or read_conversations(path) != conversations:
            write_conversations(path, conversations)
        return ConversationCohort(self.root, path, SubjectSplits(val=0.1, test=0.1)).manifest()

    def _conversations(self) -> Iterator[Conversation]:
        folder = BidsFolder(self.root)
        images = {
            (scan.subject, scan.modality): Image(
                path=str(scan.path.relative_to(self.root.absolute())),
                modality=scan.modality,
                subject=scan.subject,
            )
            for scan in folder.scans
        }
        for subject, row in folder.participants.items():
            for name in self.questions:
                shown = [images[subject, self.question_book[name].modality]]
                yield self._conversation(subject, name, row, shown, kind="single")
            if self.joint:
                yield self._joint_conversation(subject, row, images)

    def _joint_conversation(
        self, subject: str, row: dict[str, str], images: dict[tuple[str, str], Image]
    ) -> Conversation:
        """Show two modalities, in either order, and ask about one of them.

        All of it is chosen by the subject's hash.
        """
        draw = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
        draw, index = divmod(draw, len(self.questions))
        name = self.questions[index]
        asked = self.question_book[name].modality
        others = sorted(
            {modality for owner, modality in images if owner == subject and modality != asked}
        )
        draw, index = divmod(draw, len(others))
        order = [asked, others[index]] if draw % 2 else [others[index], asked]
        return self._conversation(
            subject, name, row, [images[subject, modality] for modality in order], kind="joint"
        )

    def _conversation(
        self, subject: str, name: str, row: dict[str, str], images: Sequence[Image], kind: str
    ) -> Conversation:
        question = self.question_book[name]
        if name not in row:
            raise InputError(
                f"data.questions names {name!r}, which is no factor of the phantom; "
                f"got {', '.join(row)}."
            )
        return conversation_about(
            study_id=f"sub-{subject}.{kind}.{name}",
            name=name,
            ask=question.ask,
            answer=question.answer(row[name], where=f"phantom sub-{subject}"),
            images=images,
            split=row["split"],
        )


def _names(questions: Sequence[str]) -> list[str]:
    """Return the questions as a list; a lone word is a mistake of the command line."""
    if isinstance(questions, str) or not questions:
        raise InputError(
            f"data.questions takes a list of names, at least one; got {questions!r}. "
            f"Write 'data.questions=[sex]'."
        )
    return list(questions)


def _repetition_time_beside(path: Path) -> float | None:
    """Return what the JSON file of the same name says, if there is one."""
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.is_file():
        return None
    value = read_sidecar(sidecar).get("RepetitionTime")
    return repetition_time(value, path) if value is not None else None
