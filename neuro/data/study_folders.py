"""A folder per study, as a PACS export or a colleague hands it over: NIfTI, DICOM, or both."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuro.console import meter
from neuro.data.cohort import finished
from neuro.data.dicom import is_dicom
from neuro.data.ids import Given
from neuro.data.labels import LabelRules
from neuro.data.links import rooted
from neuro.data.manifest import Manifest, Study
from neuro.data.modes import Modes
from neuro.data.scan_files import is_nifti, readable, root_folder
from neuro.data.splits import Splits
from neuro.data.study_folder import StudyFolder, studies_in
from neuro.data.table import read_table
from neuro.errors import InputError, NotAScan, ScanError

log = logging.getLogger(__name__)


class StudyFolders:
    """Every series below ``root/<study>`` or ``root/raw/<study>``.

    A folder whose DICOM files name several patients is no study; the folders in it are, and are
    called ``folder/subfolder``.

    Args:
        root: The folder that holds the studies.
        modes: Which recipe a series gets.
        splits: How subjects are divided.
        labels: Which columns are labels.
        subjects: A table with the columns ``study`` and ``subject``. Without it, studies whose
            DICOM files name the same patient belong to one subject, called after the first of
            these studies (so a patient may change the split when a study that sorts before the
            others comes); any other study is a subject of its own.
        linked_roots: Further folders that links below ``root`` may lead to.
    """

    def __init__(
        self,
        root: Path | str,
        modes: Modes,
        splits: Splits,
        labels: LabelRules | None = None,
        subjects: Path | str | None = None,
        linked_roots: Sequence[Given] | Given | None = (),
    ) -> None:
        self.root = root
        self.modes = modes
        self.splits = splits
        self.labels = labels
        self.subjects = Path(subjects) if subjects is not None else None
        self.linked_roots = linked_roots

    def manifest(self) -> Manifest:
        """Look into every folder.

        Raises:
            InputError: There is no study, or no image in any.
        """
        failures: list[ScanError] = []
        folders = _folders(root_folder(self.root, "a folder for each study"), failures)
        owners = self._owners([folder.name for folder in folders])
        studies: list[Study] = []
        patients: dict[str, str] = {}  # kept in memory only, to see which studies are one person's
        num_left_out, num_without, passed_over = 0, 0, Counter[str]()
        with meter("study folders read", len(folders)) as advance:
            for folder in folders:
                found = [*studies_in(folder, self.modes, folder.name)]
                for study in found:
                    failures += study.failures
                    num_left_out += study.num_left_out
                    passed_over += study.passed_over
                    num_failed = sum(not isinstance(one, NotAScan) for one in study.failures)
                    if study.series:
                        subject = self._subject(study, folder.name, patients, owners)
                        series = tuple(replace(one, subject=subject) for one in study.series)
                        studies.append(Study(id=study.name, series=series, num_failed=num_failed))
                    num_without += bool(num_failed and not study.series)
                if not any(one.series or one.failures or one.num_left_out for one in found):
                    reason, cure = "no image is in it.", "Fill or remove the folder."
                    failures.append(ScanError(folder, "find", reason, cure))
                advance()
        if num_left_out:
            log.info("%d series are left out, as data.mode_mapping says", num_left_out)
        if passed_over:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
            log.info("%d files are no images and are passed over: %s", passed_over.total(), kinds)
        self.modes.warn_of_unused(folders[0].name)
        if num_left_out and not studies and not failures:
            raise InputError(
                f"data.mode_mapping leaves out all {num_left_out} series of data.root={self.root}. "
                f"Give some of them a modality."
            )
        manifest = rooted(Manifest.of(studies, failures, num_without), self.root, self.linked_roots)
        return finished(manifest, splits=self.splits, labels=self.labels)

    def _subject(
        self, study: StudyFolder, folder: str, patients: dict[str, str], owners: dict[str, str]
    ) -> str:
        """Return whose study it is; warn where the table parts what DICOM says is one patient."""
        first = patients.setdefault(study.patient or study.name, study.name)
        if not owners:
            return first
        subject = owners.get(study.name, owners[folder])
        other = owners.get(first, subject)
        if other != subject:
            log.warning(
                "studies %r and %r name the same patient, and %s gives them two subjects, %r and "
                "%r: correct it, or the person may be in two splits",
                first,
                study.name,
                self.subjects,
                other,
                subject,
            )
        return subject

    def _owners(self, studies: Sequence[str]) -> dict[str, str]:
        """Return the subject of each study as the table of subjects says."""
        if self.subjects is None:
            return {}
        table = read_table(self.subjects)
        if not {"study", "subject"} <= set(table.column_names):
            raise InputError(
                f"{self.subjects} must have the columns study and subject; "
                f"got {', '.join(table.column_names)}. Rename them."
            )
        owners: dict[str, str] = {}
        for row in table.select(["study", "subject"]).to_pylist():
            study, subject = ((row[name] or "").strip() for name in ("study", "subject"))
            if subject and owners.setdefault(study, subject) != subject:
                raise InputError(
                    f"{self.subjects} gives study {study!r} to the subjects {owners[study]!r} and "
                    f"{subject!r}. Keep one."
                )
        without = [study for study in studies if study not in owners]
        if without:
            raise InputError(
                f"{self.subjects} gives no subject to {len(without)} studies, for example "
                f"{without[:5]}; it knows for example {list(owners)[:5]}. Add them."
            )
        return owners


def _folders(given: Path, failures: list[ScanError]) -> list[Path]:
    """Return the folders of studies; images that lie beside them belong to none."""
    root = given / "raw" if (given / "raw").is_dir() else given
    if root != given:
        log.info("studies are read from %s, not from the folders beside it", root)
    names = readable((path.name for path in root.iterdir()), root, failures)
    paths = [root / name for name in sorted(names)]
    failures += [
        ScanError(path, "find", "it lies in no study folder.", "Move it into one.")
        for path in paths
        if not path.is_dir() and (is_nifti(path.name) or is_dicom(path))
    ]
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        raise InputError(
            f"data.root={root} holds no folder. Put each study into a folder of its own."
        )
    return folders
