"""What the tests of the data room share: files, a cohort of phantoms and its cache."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def save_nifti():
    """Write an array as NIfTI and return its path."""

    def save(path, voxels, *, affine=None, spacing_mm=1.0, tr_s=None, unit="sec"):
        if affine is None:
            affine = np.diag([spacing_mm] * 3 + [1.0])
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm", unit)
        if tr_s is not None:
            image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return save


@pytest.fixture(scope="session")
def round_head():
    """Return a head of three layers, unlike in each direction, in a grid with little air."""

    def make(shape=(28, 32, 26), shift=(0, 0, 0)):
        centre = (np.array(shape) - 1) / 2 + np.array(shift)
        x, y, z = (np.indices(shape).T - centre).T
        radius = np.sqrt((x / 10) ** 2 + (y / 12) ** 2 + (z / 9) ** 2)
        head = np.zeros(shape, np.float32)
        head[radius < 1] = 300
        head[radius < 0.85] = 600 + 8 * x[radius < 0.85] + 4 * y[radius < 0.85]
        head[(radius < 0.5) & (x > 2)] = 1000 + 20 * z[(radius < 0.5) & (x > 2)]
        return head

    return make


@pytest.fixture(scope="session")
def written_heads(tmp_path_factory):
    """Eight heads of the full size, with the folder that they are in."""
    from neuro.data.phantom_files import write_phantoms

    root = tmp_path_factory.mktemp("heads") / "cohort"
    return root, write_phantoms(root, num_subjects=8, seed=3)


@pytest.fixture(scope="session")
def cohort(phantom_root, question_book):
    """Twenty heads with three questions, one of each modality."""
    from neuro.data.bids_cohort import BidsCohort
    from neuro.data.splits import SubjectSplits

    return BidsCohort(
        phantom_root, ["sex", "tract", "network"], question_book, SubjectSplits(val=0.2, test=0.2)
    )


@pytest.fixture(scope="session")
def studies(cohort):
    return cohort.manifest()


@pytest.fixture(scope="session")
def built_cache(cohort, recipes, tmp_path_factory):
    from neuro.data.cache import Cache

    cache = Cache(tmp_path_factory.mktemp("cache"), recipes)
    assert cache.build(cohort.manifest().scans(), max_failed=0.0) == []
    return cache


@pytest.fixture(scope="session")
def clinical():
    """Recipes of clinical scans, on coarse grids."""
    from neuro.data.clinical_tokens import ClinicalTokens

    coarse = {"patch": (2, 4, 4), "slice_mm": 4.0, "in_plane_mm": 4.0}
    return {
        "mri": ClinicalTokens(modality="mri", **coarse),
        "ct": ClinicalTokens(modality="ct", **coarse),
    }


@pytest.fixture(scope="session")
def clinical_studies(save_nifti, round_head, tmp_path_factory):
    """Six studies of a head CT and an MRI each, of sizes of their own; every second has two MRI."""
    from neuro.data.manifest import Series, Study

    root = tmp_path_factory.mktemp("clinical")
    studies = []
    for number in range(6):
        head = round_head(shape=(28 + 2 * number, 32, 26))
        texture = np.random.default_rng(number).normal(1, 0.05, head.shape)
        head = (head * texture).astype(np.float32)  # no two heads are the same
        scans = {"ct": ("ct", np.where(head > 0, head / 8 - 40, -1000.0)), "t2": ("mri", head)}
        if number % 2:
            scans["flair"] = ("mri", head.max() - head)
        series = tuple(
            Series(
                subject=f"p{number}",
                modality=modality,
                path=save_nifti(root / f"{number}-{name}.nii.gz", voxels, spacing_mm=4.0),
                name=name,
            )
            for name, (modality, voxels) in scans.items()
        )
        studies.append(Study(id=f"s{number}", series=series, split="train"))
    return studies


@pytest.fixture(scope="session")
def clinical_cache(clinical, clinical_studies, tmp_path_factory):
    from neuro.data.cache import Cache

    cache = Cache(tmp_path_factory.mktemp("clinical-cache"), clinical)
    scans = [series for study in clinical_studies for series in study.series]
    assert cache.build(scans, max_failed=0.0) == []
    return cache


@pytest.fixture(scope="session")
def real_data():
    """The folder of public scans."""
    folder = Path(os.environ.get("NEURO_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public scans: {folder} is absent; set NEURO_TEST_DATA")
    return folder
