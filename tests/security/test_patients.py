"""What a DICOM header says of a patient is in no output: not in a file, a name, a line or a log."""

from __future__ import annotations

import csv
import hashlib

import numpy as np
import pytest
from dicom_files import ROOT, write_series
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

NAME, DATE, NUMBER = "Mustermann", "19481207", "471147114711"
TEXT = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE"}
GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x2110, 0x4008)
NEEDED = {"SpecificCharacterSet", "Manufacturer"}  # dcm2niix reads by them


def plant(dataset: Dataset, *_: int) -> None:
    """Write the marker into every tag that takes text or a date, known or private."""
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if tag.group not in GROUPS or not keyword or keyword in NEEDED or tag in dataset:
            continue
        if vr in TEXT:
            dataset.add(
                DataElement(tag, vr, f"{NAME[:14]}" if vr in ("SH", "AE") else f"{NAME}^Erika")
            )
        elif vr in ("DA", "DT"):
            dataset.add(DataElement(tag, vr, DATE))
    dataset.ProtocolName = dataset.SeriesDescription = NAME
    dataset.PatientID = f"{NAME}-4711"
    dataset.StudyInstanceUID = f"{ROOT}{NUMBER}"
    for group in (0x0009, 0x0019, 0x0029, 0x0051):
        block = dataset.private_block(group, f"{NAME} PRIVATE", create=True)
        block.add_new(0x10, "LO", NAME)
        block.add_new(0x11, "OB", NAME.encode())
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID = NAME, NAME
    dataset.OtherPatientIDsSequence = [other]
    asked = Dataset()
    asked.RequestedProcedureDescription, asked.AccessionNumber = NAME, NAME
    dataset.RequestAttributesSequence = [asked]


def with_odd_numbers(dataset: Dataset, depth: int, time: int) -> None:
    """Write the marker where numbers belong too."""
    plant(dataset)
    for keyword in ("EchoTime", "SliceThickness", "RepetitionTime"):
        dataset[keyword] = DataElement(Tag(keyword), "LO", NAME)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Ten studies of a patient each, two of which cannot be used and one of which is odd."""
    root = tmp_path_factory.mktemp("export") / "studies"
    for number in range(10):
        numbers = np.random.default_rng(number)
        axes = np.meshgrid(*(np.linspace(-1.2, 1.2, size) for size in (24, 24, 8)), indexing="ij")
        inside = sum(axis**2 for axis in axes) < 1
        voxels = np.where(inside, 600 + 300 * axes[0] + numbers.normal(0, 40, inside.shape), 5)

        def edit(dataset, depth, time, number=number):
            (with_odd_numbers if number == 7 else plant)(dataset, depth, time)
            dataset.PatientID = f"{NAME}-{number}"

        files = write_series(
            root / f"s{number}" / "mr",
            voxels.astype(np.int16),
            np.diag([8.0, 8.0, 8.0, 1.0]),
            number=3,
            uid=f"{ROOT}{NUMBER}.{number}",
            edit=edit,
        )
        if number == 8:  # cut off in its pixels
            files[3].write_bytes(files[3].read_bytes()[:-300])
        if number == 9:  # a slice is missing
            files[4].unlink()
        if number == 6:  # cut off in its header, beside a sound series
            (root / "s6" / "more.dcm").write_bytes(files[0].read_bytes()[:700])
    return root


@pytest.mark.slow
def test_nothing_of_a_patient_is_in_any_output(studies, tmp_path, run_commands, places_of):
    with (tmp_path / "labels.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["study", "odd"])
        rows.writerows([f"s{number}", number % 2] for number in range(10))
    data = [
        *("data=studies", f"data.root={studies}", f"paths.root={tmp_path}", "data.max_failed=0.5"),
        *("data.recipes.mri.patch=[2,4,4]", "data.recipes.mri.slice_mm=8.0"),
        *("data.recipes.mri.in_plane_mm=8.0", "data.splits.val=0.3", "data.splits.test=0.3"),
    ]
    model = [
        *("encoder=custom", "system.encoder.dim=48", "system.encoder.num_layers=1"),
        *("data.patch_voxels=32", "trainer.accelerator=cpu", "trainer.max_steps=2"),
        *("trainer.val_check_interval=1", "data.max_studies=2", "optim.lr=1e-3"),
    ]
    labels = ["data.label=odd", f"data.labels.file={tmp_path}/labels.csv"]
    mil, jepa = tmp_path / "outputs/mil/a", tmp_path / "outputs/jepa/b"
    statuses, said = run_commands(
        tmp_path,
        [
            ["neuro.prepare", *data],
            ["neuro.train", "system=mil", *data, *model, *labels, f"hydra.run.dir={mil}"],
            ["neuro.train", "system=jepa", *data, *model, f"hydra.run.dir={jepa}"],
            [
                *(
                    "neuro.predict",
                    f"ckpt_path={mil}",
                    f"input={studies}/*",
                    f"paths.root={tmp_path}",
                ),
                *("explain=true", "device=cpu"),
            ],
        ],
    )
    assert statuses == [0, 0, 0, 1], said[-5000:]
    assert "s9" in (tmp_path / "cache/failures.tsv").read_text()
    assert "s9" in (mil / "train.log").read_text()
    patients = [
        hashlib.blake2b(
            f"{NAME}-{number}\0{DATE}".upper().encode(), digest_size=16, key=b"neuro.data.dicom"
        ).hexdigest()
        for number in range(10)
    ]
    wanted = [NAME, DATE, NUMBER, *patients]
    assert places_of(wanted, [tmp_path / "cache", tmp_path / "outputs"]) == []
    assert [one for one in wanted if one.lower() in said.lower()] == []
    written = [one for one in (tmp_path / "outputs").rglob("*") if one.is_file()]
    assert {".ckpt", ".log", ".json", ".gz", ".html", ".csv"} <= {one.suffix for one in written}


def test_the_search_would_find_it(studies, tmp_path, places_of):
    assert len(places_of([NAME, DATE, NUMBER], [studies])) > 100
    (tmp_path / f"{NAME}.txt").touch()
    assert places_of([NAME], [tmp_path]) == [f"mustermann in {tmp_path / 'Mustermann.txt'}"]
