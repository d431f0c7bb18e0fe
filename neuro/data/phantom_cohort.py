"""The synthetic cohort as a source of studies, read like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from neuro.console import meter
from neuro.data.bids import BidsFolder
from neuro.data.bids_cohort import BidsCohort, question_names
from neuro.data.cohort import ConversationCohort
from neuro.data.conversation import Conversation, Image, read_conversations, write_conversations
from neuro.data.ids import Given
from neuro.data.labels import LabelRules
from neuro.data.manifest import Manifest
from neuro.data.phantom import MODALITIES
from neuro.data.phantom_files import write_phantoms
from neuro.data.question import QuestionBook, conversation_about
from neuro.data.splits import Splits
from neuro.errors import InputError


class PhantomCohort:
    """The synthetic cohort, read like any other.

    It is written once, as BIDS with a conversations file.

    Args:
        root: The folder that cohorts are written below.
        num_subjects: Heads to draw.
        seed: Another seed gives other heads.
        questions: Which factors are asked about. Empty: a study per head, without a conversation.
        question_book: The templates.
        joint: Whether each subject also has a study that shows two modalities and asks about one of
            them.
        splits: Read only where it deals folds; the heads bring splits of their own.
        labels: Which factors are labels.
        modalities: Which images a head has, where nothing is asked; None gives it all.
    """

    def __init__(
        self,
        root: Path | str,
        num_subjects: int,
        seed: int,
        questions: Sequence[Given] | None,
        question_book: QuestionBook,
        joint: bool,
        splits: Splits,
        labels: LabelRules | None = None,
        modalities: Sequence[Given] | None = None,
    ) -> None:
        if not str(root):  # would be the folder that the command is started in
            raise InputError("data.root is empty. Give a folder for the heads, or leave it out.")
        drawn = [*modalities] if modalities is not None and not questions else MODALITIES
        self.drawn = tuple(name for name in MODALITIES if name in drawn)
        names = "" if self.drawn == MODALITIES else "-" + "-".join(self.drawn)
        self.root = Path(root) / f"heads{num_subjects}-seed{seed}{names}"
        self.num_subjects = num_subjects
        self.seed = seed
        self.questions = question_names(questions) if questions else []
        self.question_book = question_book
        self.joint = joint
        self.splits = splits
        self.labels = labels
        self.modalities = modalities

    def manifest(self) -> Manifest:
        """Write what is missing, then read it.

        Raises:
            InputError: A question is about no factor or no image of the phantom, or the folder
                holds something else.
        """
        if self.root.is_dir():
            self._write()  # checks it
        else:
            with meter("phantom heads drawn", self.num_subjects) as advance:
                self._write(on_progress=lambda _: advance())
        if not self.questions:
            return BidsCohort(
                self.root,
                [],
                self.question_book,
                self.splits,
                labels=self.labels,
                modalities=self.modalities,
            ).manifest()
        names = "-".join(self.questions) + ("-joint" if self.joint else "")
        path = self.root / f"conversations-{names}.json"
        conversations = tuple(self._conversations())
        # A template may have changed since.
        if not path.is_file() or read_conversations(path) != conversations:
            write_conversations(path, conversations)
        return ConversationCohort(self.root, path, self.splits, self._rules()).manifest()

    def _rules(self) -> LabelRules | None:
        """Return the rules of labels, read from the table of the heads unless a file is named."""
        rules = self.labels
        if rules is None or not rules.names or rules.file is not None:
            return rules
        table = self.root / "participants.tsv"
        return replace(rules, file=table, key=rules.key or "participant_id")

    def _write(self, on_progress: Callable[[int], None] | None = None) -> None:
        write_phantoms(
            self.root,
            num_subjects=self.num_subjects,
            seed=self.seed,
            modalities=self.drawn,
            on_progress=on_progress,
        )

    def _conversations(self) -> Iterator[Conversation]:
        for name in self.questions:
            modality = self.question_book[name].modality
            if modality not in MODALITIES:
                raise InputError(
                    f"data.questions names {name!r}, which asks about {modality}; the phantom has "
                    f"{', '.join(MODALITIES)}. Set data.question_book.templates.{name}.modality."
                )
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
                f"got {', '.join(row)}. Take one of these."
            )
        return conversation_about(
            study_id=f"sub-{subject}.{kind}.{name}",
            name=name,
            ask=question.ask,
            answer=question.answer(row[name], where=f"phantom sub-{subject}"),
            images=images,
            split=row["split"],
        )
