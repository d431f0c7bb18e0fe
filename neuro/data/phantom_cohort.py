"""The synthetic cohort as a source of studies, read like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from neuro.console import meter
from neuro.data.bids import BidsFolder
from neuro.data.bids_cohort import MISSING, BidsCohort, question_names
from neuro.data.cohort import ConversationCohort
from neuro.data.conversation import Conversation, Image, read_conversations, write_conversations
from neuro.data.ids import Given
from neuro.data.labels import LabelRules
from neuro.data.manifest import Manifest
from neuro.data.phantom import MODALITIES
from neuro.data.phantom_files import phantom_grids, write_phantoms
from neuro.data.phantom_talk import PhantomTalk
from neuro.data.question import QuestionBook
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
        modalities: Which images a head has; None gives it all.
        comparisons: Whether each subject also has a study that compares it with another one of its
            split; one of training has two.
        report: Whether each subject also has a study that shows all its images and asks for a
            report.
        t1_spacing_mm: Edge of the cubic voxels of T1 and FA.
        bold_spacing_mm: Edge of the cubic voxels of a run.
        duration_s: Length of a run.
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
        comparisons: bool = False,
        report: bool = False,
        t1_spacing_mm: float | int = 4.0,
        bold_spacing_mm: float | int = 8.0,
        duration_s: float | int = 48.0,
    ) -> None:
        if not str(root):  # would be the folder that the command is started in
            raise InputError("data.root is empty. Give a folder for the heads, or leave it out.")
        drawn = [*modalities] if modalities is not None else MODALITIES
        self.drawn = tuple(name for name in MODALITIES if name in drawn)
        names = "" if self.drawn == MODALITIES else "-" + "-".join(self.drawn)
        self.grids = phantom_grids(t1_spacing_mm, bold_spacing_mm, duration_s)
        if self.grids != phantom_grids():
            names += f"-{t1_spacing_mm:g}mm-{bold_spacing_mm:g}mm-{duration_s:g}s"
        self.root = Path(root) / f"heads{num_subjects}-seed{seed}{names}"
        self.num_subjects = num_subjects
        self.seed = seed
        self.questions = question_names(questions) if questions else []
        self.question_book = question_book
        self.joint = joint
        self.comparisons = comparisons
        self.report = report
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
        asked = {"joint": self.joint, "comparisons": self.comparisons, "report": self.report}
        names = "-".join([*self.questions, *(name for name, wanted in asked.items() if wanted)])
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
            **self.grids,
            on_progress=on_progress,
        )

    def _conversations(self) -> Iterator[Conversation]:
        for name in self.questions:
            modality = self.question_book[name].modality
            if modality not in self.drawn:
                raise InputError(
                    f"data.questions names {name!r}, which asks about {modality}; the phantom has "
                    f"{', '.join(self.drawn)}. Set data.modalities, or "
                    f"data.question_book.templates.{name}.modality."
                )
        if self.joint and len(self.drawn) == 1:
            raise InputError(
                f"data.joint=true shows two modalities of a head, and data.modalities gives it "
                f"{self.drawn[0]} alone. Set data.joint=false."
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
        rows = folder.participants
        answers = {subject: self._answers(subject, row) for subject, row in rows.items()}
        talk = PhantomTalk(
            images,
            answers,
            {subject: row["split"] for subject, row in rows.items()},
            self.question_book,
        )
        for subject in (one for one in rows if answers[one]):
            yield from talk.singles(subject)
            if self.joint:
                yield talk.joint(subject)
            if self.comparisons:
                yield from talk.comparisons(subject)
            if self.report:
                yield talk.report(subject)

    def _answers(self, subject: str, row: dict[str, str]) -> dict[str, str]:
        """Return a subject's answers to the questions that have one, in their order."""
        answers = {}
        for name in self.questions:
            if name not in row:
                raise InputError(
                    f"data.questions names {name!r}, which is no factor of the phantom; "
                    f"got {', '.join(row)}. Take one of these."
                )
            where = f"phantom sub-{subject}"
            if row[name] not in MISSING:
                answers[name] = self.question_book[name].answer(row[name], where=where)
        return answers
