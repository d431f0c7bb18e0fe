"""The third command: what a trained model finds in new studies, and where it looked."""

from __future__ import annotations

import glob
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError, ScanError

if TYPE_CHECKING:
    from neuro.data.batch import StudyBatch
    from neuro.data.cache import Cache
    from neuro.data.contract import Contract
    from neuro.data.manifest import Manifest, Study
    from neuro.data.modes import Modes
    from neuro.models.pooling import Explanation
    from neuro.systems.mil import Mil

log = logging.getLogger("neuro.predict")  # not __name__, which is __main__ under -m

TABLES = (".csv", ".tsv", ".json", ".parquet")


def predict(cfg: DictConfig) -> int:
    """Tell the findings of each study; return how many could not be told.

    Raises:
        InputError: The checkpoint or the input is wrong.
    """
    # Imported here, so that --help answers at once.
    import torch

    from neuro.console import set_up_logging
    from neuro.data.cache import Cache
    from neuro.models.pooling import MeanPool

    folder = Path(cfg.paths.run_dir)
    if (folder / "predictions.csv").exists():
        raise InputError(
            f"{folder} holds what a model told before. Set run.name to another name, or take the "
            f"folder away."
        )
    set_up_logging(folder / "predict.log")
    system, contract = restored(Path(cfg.ckpt_path))
    if cfg.explain and isinstance(system.pool, MeanPool):
        log.warning("the model takes the mean of all tokens: its maps are even, and show nothing")
    device = _device(cfg.device)
    system.to(device).eval()
    manifest, failures, num_studies = _manifest(cfg, contract)
    writer = _Writer(folder, system, contract, Path(cfg.ckpt_path).name)
    with tempfile.TemporaryDirectory(prefix=".prepared-", dir=folder) as prepared:
        cache = Cache(prepared, contract.recipes)
        if manifest is not None:
            failures += cache.build(manifest.scans(), max_failed=1.0)
            for study, batch in _batches(manifest, cache, contract):
                with torch.no_grad():
                    told = system.explain(batch.to(device))
                writer.study(study, batch, told, cache)
                if cfg.explain:
                    writer.maps(study, batch, told, cache)
    writer.failures(failures)
    log.info("%d of %d studies told; %s", writer.num_told, num_studies, folder)
    return num_studies - writer.num_told


def restored(path: Path) -> tuple[Mil, Contract]:
    """Return a trained model from its checkpoint, which is all that it needs, and its contract.

    Raises:
        InputError: The file is no checkpoint of system=mil.
    """
    import numpy as np
    import torch
    from hydra.utils import instantiate

    from neuro.data.labels import Labels
    from neuro.optim.schedules import warmup_cosine
    from neuro.restore import building, check_sizes, checkpoint_of
    from neuro.systems.mil import Mil

    held, contract = checkpoint_of(path, "mil", needs=("encoder", "pool", "tuning"))
    parts = held["parts"]
    check_sizes(held, path)
    with building(path):
        built = {name: instantiate(parts[name], _convert_="all") for name in parts}
        system = Mil(
            **built, optimizer=torch.optim.AdamW, schedule=partial(warmup_cosine), weight_decay=0.0
        )
        system.build(
            Labels(
                names=tuple(contract.labels),
                task=contract.task,
                classes=tuple(contract.classes),
                values=np.zeros((1, len(contract.labels)), np.float32),
            )
        )
        system.tuning.apply(system.encoder)
        system.load_state_dict(held["state_dict"], strict=True)
    return system, contract


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device={name} is not there. Set device=auto or device=cpu.")
    return name


def _manifest(cfg: DictConfig, contract: Contract) -> tuple[Manifest | None, list[ScanError], int]:
    """Return the studies that the model can see, what is wrong with others, and how many in all."""
    from omegaconf import OmegaConf

    from neuro.data.manifest import Manifest
    from neuro.data.modes import Modes

    mapping = cfg.mode_mapping
    mapping = OmegaConf.to_container(mapping) if mapping is not None else None
    known = list(contract.recipes)
    default = cfg.default_mode or (known[0] if len(known) == 1 else None)
    modes = Modes(mapping=mapping, default=default)
    given, linked = Path(str(cfg.input)), cfg.linked_roots
    try:
        if given.suffix.lower() in TABLES and given.is_file():
            root = Path(cfg.root or given.parent)
            studies, failures, num_studies = _from_table(given, root, modes, linked)
        else:
            studies, failures, num_studies = _from_folders(str(cfg.input), modes, linked)
    except InputError as error:
        raise InputError(_as_typed_here(str(error))) from error
    failures = [
        type(one)(one.path, one.step, _as_typed_here(one.reason), _as_typed_here(one.cure))
        for one in failures
    ]
    kept = []
    for study in studies:
        series = [replace(one, modality=_seen_as(one.modality, known)) for one in study.series]
        seen = tuple(one for one in series if one.modality in known)
        failures += [
            ScanError(
                one.path,
                "find",
                f"it is {one.modality}, and the model was trained on {', '.join(known)}.",
                "Leave it out, or set mode_mapping.",
            )
            for one in series
            if one.modality not in known
        ]
        if seen:
            kept.append(replace(study, series=seen))
    if not kept and not failures:
        raise InputError(
            f"input={cfg.input} holds no image that is not left out. Give a folder with NIfTI or "
            f"DICOM, and look at mode_mapping."
        )
    return (Manifest.of(kept) if kept else None), failures, num_studies


def _as_typed_here(message: str) -> str:
    """Return a message of the data road with the keys that this command has."""
    return re.sub(r"\bdata\.(root|mode_mapping|default_mode|linked_roots)\b", r"\1", message)


def _seen_as(modality: str, known: Sequence[str]) -> str:
    """Return what the model calls a modality: the one kind of MR that it knows, for example."""
    own_names = [name for name in known if name not in ("mri", "ct")]
    return own_names[0] if modality == "mri" and len(own_names) == len(known) == 1 else modality


def _from_table(
    path: Path, root: Path, modes: Modes, linked_roots: Sequence[str]
) -> tuple[list[Study], list[ScanError], int]:
    from neuro.data.splits import OneSplit
    from neuro.data.table_cohort import TableCohort

    manifest = TableCohort(path, root, modes, OneSplit(), linked_roots=linked_roots).manifest()
    return list(manifest), list(manifest.failures), len(manifest) + manifest.num_left_out


def _from_folders(
    given: str, modes: Modes, linked_roots: Sequence[str]
) -> tuple[list[Study], list[ScanError], int]:
    from neuro.data.links import rooted
    from neuro.data.manifest import Manifest, Series, Study
    from neuro.data.scan_files import is_nifti, stem
    from neuro.data.study_folder import studies_in

    paths = [Path(one).absolute() for one in sorted(glob.glob(given))]
    if not paths:
        raise InputError(
            f"input={given} is neither a folder, a scan nor a table, and no pattern that fits any. "
            f"Correct the path."
        )
    studies, failures, num_without = [], [], 0
    for path in paths:
        if path.is_dir():
            for found in studies_in(path, modes, path.name):
                failures += found.failures
                num_without += bool(found.failures) and not found.series
                if found.series:
                    series = tuple(replace(one, subject=found.name) for one in found.series)
                    num_failed = len(found.failures)
                    study = Study(id=found.name, series=series, num_failed=num_failed)
                    studies += rooted(Manifest.of([study]), path, linked_roots)
        elif is_nifti(path.name):
            name = stem(path.name)
            modality = modes.of(name, name, "") or ""
            series = Series(subject=name, modality=modality, path=path, name=name)
            studies.append(Study(id=name, series=(series,)))
    return studies, failures, len(studies) + num_without


def _batches(
    manifest: Manifest, cache: Cache, contract: Contract
) -> Iterator[tuple[Study, StudyBatch]]:
    """Yield each study that can be read, alone in a batch."""
    from neuro.data.collate import Background, StudyCollator
    from neuro.data.dataset import SeriesDataset
    from neuro.data.intake import shown_studies
    from neuro.data.windows import Windows

    shown = shown_studies(manifest, cache.facts(manifest.scans()))
    if shown is None:
        return
    collate = StudyCollator(Background(min_foreground=contract.min_foreground))
    dataset = SeriesDataset(shown, cache, augment=None, seed=0, windows=Windows())
    for place, study in enumerate(shown):
        try:
            yield study, collate([dataset[row, 0] for row in dataset.rows_of(place)])
        except InputError as error:  # nothing but background
            log.warning("%s", error)


class _Writer:
    """Writes what is told.

    Args:
        folder: Where to.
        system: The model.
        contract: What it tells.
        model: What files call it.
    """

    def __init__(self, folder: Path, system: Mil, contract: Contract, model: str) -> None:
        self.folder = folder
        self.system = system
        self.contract = contract
        self.model = model
        self.num_told = 0
        self.columns = contract.classes if contract.task == "multiclass" else contract.labels
        self._table = folder / "predictions.csv"
        self._table.write_text(",".join(["study", *map(_cell, self.columns)]) + "\n")

    def study(self, study: Study, batch: StudyBatch, told: Explanation, cache: Cache) -> None:
        """Write the JSON and the row of a study."""
        values = self.system.told(told.logits)[0].tolist()
        found = dict(zip(self.columns, (round(value, 6) for value in values), strict=True))
        content = {
            "study": study.id,
            "task": self.contract.task,
            "findings": found,
            "series": list(batch.series_names),
            "series_left_out": study.num_failed,
            "warnings": [
                f"{series.name}: {warning}"
                for series, facts in cache.facts(study.series).items()
                for warning in facts.warnings
            ],
            "model": self.model,
            "note": "Research use only, not a medical device.",
        }
        path = self.folder / f"{_plain(study.id)}.json"
        path.write_text(json.dumps(content, indent=2) + "\n")
        with self._table.open("a", encoding="utf-8") as file:
            file.write(",".join([_cell(study.id), *(f"{value:.6g}" for value in values)]) + "\n")
        self.num_told += 1
        shown = "  ".join(f"{name} {value:.3f}" for name, value in list(found.items())[:5])
        log.info("%s  %s", study.id, shown)

    def maps(self, study: Study, batch: StudyBatch, told: Explanation, cache: Cache) -> None:
        """Write a map and a picture for each finding and series."""
        from neuro.report.attention import seen_scans, source_grid, write_map
        from neuro.report.attention_picture import attention_picture

        folder = self.folder / _plain(study.id)
        folder.mkdir(exist_ok=True)
        values = self.system.told(told.logits)[0].tolist()
        for scan in seen_scans(study, cache, batch, told.weights):
            source = source_grid(scan.series)
            for column, finding in enumerate(self.columns):
                attention = scan.attention(column)
                voxels, _ = cache.read(scan.series, scan.main_view(column))
                stem = folder / f"{_plain(scan.series.name)}_{_plain(finding)}"
                write_map(Path(f"{stem}.nii.gz"), attention, source)
                caption = f"{study.id}: {finding} {values[column]:.2f}"
                attention_picture(voxels, attention, caption=caption).save(f"{stem}.png")

    def failures(self, failures: Sequence[ScanError]) -> None:
        """Name what could not be read."""
        from neuro.data.ledger import Ledger

        for failure in failures:
            log.warning("left out: %s", failure)
        Ledger(self.folder).update(failures, None)


def _plain(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n]', text) else text


def _run(cfg: DictConfig) -> None:
    start = time.monotonic()
    command.resolve(cfg)
    num_failed = predict(cfg)
    log.info("done in %.0f s", time.monotonic() - start)
    if num_failed:
        raise UntoldStudies(num_failed)


class UntoldStudies(InputError):
    """Studies of which nothing could be told; the others were."""

    max_failed = 1.0  # the exit status is 1

    def __init__(self, count: int) -> None:
        studies = "1 study" if count == 1 else f"{count} studies"
        super().__init__(f"{studies} could not be told; failures.tsv says why, and the cure.")


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 1 when a study could not be told, 2 when the input is wrong.
    """
    sys.exit(command.run("predict", _run))


if __name__ == "__main__":
    main()
