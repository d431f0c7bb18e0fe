"""A trained model tells of raw files what it told of them in its test, and where it looked."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import logging
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from small_mil import config, write_heads

from neuro import command
from neuro.data.cache import Cache
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.collate import Background, StudyCollator
from neuro.data.contract import Contract
from neuro.data.dataset import SeriesDataset
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.predictions import Predictions
from neuro.data.windows import Windows
from neuro.errors import InputError
from neuro.models.pooling import AttentionPool
from neuro.models.vit import VisionTransformer
from neuro.predict import main, predict, restored
from neuro.report.attention import Attention
from neuro.train import train

sys.path.insert(0, str(Path(__file__).parent / "data"))
from dicom_files import write_series

SECRET = "Mustermann"  # whoever reads this in an output has read a header


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads") / "bids")


@pytest.fixture(scope="module")
def trained(heads, tmp_path_factory):
    """A run folder: three steps on three findings, then the test."""
    root = tmp_path_factory.mktemp("root")
    cfg = config(
        heads,
        root,
        "tuning=full",
        "data.label=lesion",
        "data.splits.folds=4",
        "data.fold=0",
        "optim.lr=1e-2",
        "trainer.max_steps=6",
        "trainer.val_check_interval=6",
        "~callbacks.report",  # tests/callbacks/test_findings_report.py
    )
    train(cfg)
    return root / "run"


@pytest.fixture(scope="module")
def tested(trained):
    return Predictions.read(trained / "predictions/test.csv")


@pytest.fixture
def tell(trained, tmp_path):
    """Return a function that predicts; it returns the folder, the table and how many failed."""

    numbers = itertools.count()

    def call(given, *overrides, checkpoint=None, folder=None):
        folder = folder or tmp_path / f"told{next(numbers)}"
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(command.CONF), version_base="1.3"):
            arguments = [
                f"ckpt_path={checkpoint or trained / 'checkpoints/best.ckpt'}",
                f"input='{given}'",
                f"paths.run_dir={folder}",
                "device=cpu",
            ]
            cfg = compose("predict", overrides=[*arguments, *overrides])
        command.resolve(cfg)
        num_untold = predict(cfg)
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = {row.pop("study"): row for row in csv.DictReader(file)}
        return folder, rows, num_untold

    return call


def said_of(tested, study):
    row = tested.studies.index(study)
    return dict(zip(tested.columns, tested.outputs[row].tolist(), strict=True))


def numbers(row):
    return {name: float(value) for name, value in row.items()}


def dicom_of(path, folder, **settings):
    """Write a head's NIfTI file as DICOM of a patient with a name."""

    def edit(dataset, *_):
        dataset.PatientName = f"{SECRET}^Erika"
        dataset.PatientID = f"{SECRET}-4711"
        dataset.PatientBirthDate = "19700101"
        dataset.ReferringPhysicianName = SECRET
        dataset.InstitutionName = SECRET
        dataset.StudyDescription = SECRET

    image = nib.as_closest_canonical(nib.load(path))
    voxels = np.asarray(image.dataobj).astype(np.int16)
    write_series(folder, voxels, image.affine, edit=edit, **settings)
    return folder


def head_of(heads, study):
    return heads / study / "anat" / f"{study}_T1w.nii.gz"


# ---------------------------------------------------------------- the same as in the test


def test_what_is_told_of_raw_files_is_what_the_test_told(tell, tested, heads):  # S73, S90
    folder, rows, num_untold = tell(heads / "sub-*")
    assert num_untold == 0
    assert len(rows) == 40
    for study in tested.studies:
        assert numbers(rows[study]) == pytest.approx(said_of(tested, study), abs=1e-5)
        told = json.loads((folder / f"{study}.json").read_text())
        assert told["findings"] == pytest.approx(said_of(tested, study), abs=1e-5)
        assert (told["study"], told["task"]) == (study, "multiclass")
        assert [*told["findings"]] == ["left", "none", "right"]  # S74: as the checkpoint has it
    assert not list(folder.glob(".prepared*"))


def test_a_run_folder_does_for_its_checkpoint(tell, trained, tested, heads):
    study = tested.studies[0]
    _, rows, _ = tell(heads / study, checkpoint=trained)
    assert numbers(rows[study]) == pytest.approx(said_of(tested, study), abs=1e-5)


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_dicom_is_told_as_nifti_and_nothing_of_the_patient_is_written(
    tell, tested, heads, tmp_path, plane, capfd
):
    study = tested.studies[0]
    dicom_of(head_of(heads, study), tmp_path / "scans/001/series", plane=plane)
    folder, rows, num_untold = tell(tmp_path / "scans/001", "explain=true")
    assert num_untold == 0
    assert numbers(rows["001"]) == pytest.approx(said_of(tested, study), abs=1e-4)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 8
    for path in written:
        assert SECRET not in str(path)
        assert SECRET.encode() not in path.read_bytes()
        if path.suffix == ".gz":
            assert SECRET.encode() not in nib.load(path).header.binaryblock
    assert SECRET not in "".join(capfd.readouterr())


def test_a_lone_scan_and_a_table_of_scans_are_studies_too(tell, tested, heads, tmp_path):
    study = tested.studies[1]
    path = head_of(heads, study)
    _, rows, _ = tell(path)
    assert numbers(rows[f"{study}_T1w"]) == pytest.approx(said_of(tested, study), abs=1e-5)
    table = tmp_path / "scans.csv"
    table.write_text(f"study,path\n007,{path.relative_to(heads)}\n")
    _, rows, num_untold = tell(table, f"root={heads}")
    assert num_untold == 0
    assert numbers(rows["007"]) == pytest.approx(said_of(tested, study), abs=1e-5)


def test_a_study_of_two_series_is_seen_whole(tell, tested, trained, heads, tmp_path):
    """Names with a dot are no windows of the name before it."""
    first, second = tested.studies[:2]
    study = tmp_path / "studies/two"
    study.mkdir(parents=True)
    shutil.copy(head_of(heads, first), study / "ax.nii.gz")
    shutil.copy(head_of(heads, second), study / "ax.late.nii.gz")
    folder, rows, _ = tell(study, "explain=true")
    told = json.loads((folder / "two.json").read_text())
    assert told["series"] == ["ax", "ax.late"]
    alone = [said_of(tested, one) for one in (first, second)]
    between = numbers(rows["two"])
    assert between != pytest.approx(alone[0], abs=1e-6)
    assert between != pytest.approx(alone[1], abs=1e-6)
    maps = {path.name: nib.load(path).get_fdata() for path in folder.glob("two/*.nii.gz")}
    assert len(maps) == 2 * 3
    assert not np.array_equal(maps["ax_left.nii.gz"], maps["ax.late_left.nii.gz"])


# ---------------------------------------------------------------- where it looked


@pytest.mark.parametrize("study", ["sub-0004", "sub-0005"])  # LAS as every fourth, and RAS
def test_a_map_is_on_the_grid_of_the_scan_and_peaks_where_the_peak_token_is(
    tell, trained, heads, study
):
    folder, _, _ = tell(heads / study, "explain=true")
    scan = nib.load(head_of(heads, study))
    system, contract = restored(trained)
    series = Series(subject="x", modality="T1", path=head_of(heads, study), name="x")
    affine, batch = one_batch(series, contract, folder)
    told = system.eval().explain(batch)
    for column, finding in enumerate(["left", "none", "right"]):
        stem = folder / study / f"anat_{study}_T1w_{finding}"
        found = nib.load(f"{stem}.nii.gz")
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
        attention = Attention(
            weights=told.weights[:, column],
            coords=batch.volumes.coords,
            num_tokens=len(told.weights),
            grid=batch.volumes.sizes[0].tolist(),
            patch=contract.recipes["T1"].patch,
            affine=affine,
        )
        density = np.asarray(found.dataobj)
        peak = np.unravel_index(density.argmax(), density.shape)
        peak_mm = (found.affine @ [*peak, 1])[:3]
        assert np.abs(peak_mm - attention.peak_mm).max() <= 4 / 2 * 8 + 1e-3  # half a patch
        assert density.max() == pytest.approx(attention.density.max(), rel=1e-2)
        with Image.open(f"{stem}.png") as picture:
            assert min(picture.size) > 50


def one_batch(series, contract, folder):
    """Prepare a scan as training would; return where it is and its batch."""
    cache = Cache(folder / "cache", contract.recipes)
    assert cache.build([series], max_failed=0.0) == []
    manifest = Manifest.of([Study(id="x", series=(series,))])
    dataset = SeriesDataset(manifest, cache, augment=None, seed=0, windows=Windows())
    collate = StudyCollator(Background(min_foreground=contract.min_foreground))
    return cache.affine(series), collate([dataset[row, 0] for row in range(len(dataset))])


@pytest.fixture
def ct_model(tmp_path):
    """A checkpoint with drawn weights that tells two findings of CT, and its contract."""
    encoder = {"dim": 48, "num_layers": 1, "num_heads": 2, "patch_voxels": 32}
    pool = {"_target_": "neuro.models.pooling.AttentionPool", "_partial_": True, "hidden_dim": 8}
    recipe = ClinicalTokens(modality="ct", patch=(2, 4, 4), slice_mm=4.0, in_plane_mm=4.0)
    contract = Contract(
        recipes={"ct": recipe},
        min_foreground=0.5,
        statistics={"brain": (0.4, 0.4)},
        labels=("bleed/old", "läsion"),
        task="multilabel",
    )
    models = {
        "encoder": VisionTransformer(**encoder),
        "pool": AttentionPool(dim=48, hidden_dim=8, num_outputs=2),
    }
    torch.nn.init.normal_(models["pool"].attention.score.weight, std=5.0)
    weights = {
        f"{part}.{name}": one
        for part, model in models.items()
        for name, one in model.state_dict().items()
    }
    parts = {
        "encoder": {"_target_": "neuro.models.vit.VisionTransformer", **encoder},
        "pool": pool,
        "tuning": {"_target_": "neuro.models.tuning.Frozen"},
    }
    held = {"state_dict": weights, "parts": parts, "contract": contract.plain()}
    torch.save(held, tmp_path / "ct.ckpt")
    return tmp_path / "ct.ckpt", contract


def test_a_ct_is_seen_in_all_its_windows_and_its_map_is_of_them_together(tell, ct_model, tmp_path):
    path, contract = ct_model
    x, y, z = np.indices((20, 24, 9)) - np.array([10, 12, 4]).reshape(3, 1, 1, 1)
    head = (x / 9) ** 2 + (y / 11) ** 2 + (z / 4) ** 2 < 1
    drawn = np.random.default_rng(0).normal(40, 30, head.shape)
    voxels = np.where(head, drawn, -1000).astype(np.float32)
    scan = nib.Nifti1Image(voxels, np.diag([-4.0, 4.0, 5.0, 1.0]))
    nib.save(scan, tmp_path / "head.nii.gz")
    folder, rows, num_untold = tell(tmp_path / "head.nii.gz", "explain=true", checkpoint=path)
    assert num_untold == 0
    assert [*rows["head"]] == ["bleed/old", "läsion"]
    told = json.loads((folder / "head.json").read_text())
    assert told["series"] == ["head.brain", "head.blood", "head.bone"]
    system, _ = restored(path)
    series = Series(subject="x", modality="ct", path=tmp_path / "head.nii.gz", name="head")
    affine, batch = one_batch(series, contract, tmp_path)
    said = system.eval().explain(batch)
    expected = dict(zip(contract.labels, said.logits.sigmoid()[0].tolist(), strict=True))
    assert numbers(rows["head"]) == pytest.approx(expected, abs=1e-5)
    for column, finding in enumerate(["bleed_old", "läsion"]):
        found = nib.load(folder / "head" / f"head_{finding}.nii.gz")
        assert found.shape == scan.shape
        attention = Attention(
            weights=said.weights[:, column],
            coords=batch.volumes.coords,
            num_tokens=len(said.weights),
            grid=batch.volumes.sizes[0].tolist(),
            patch=contract.recipes["ct"].patch,
            affine=affine,
        )
        density = np.asarray(found.dataobj)
        assert density.max() == pytest.approx(attention.density.max(), rel=1e-2)
        peak = np.unravel_index(density.argmax(), density.shape)
        off = np.abs((found.affine @ [*peak, 1])[:3] - attention.peak_mm)
        assert (off <= np.array([8, 8, 4]) + 1e-3).all()  # half a patch


# ---------------------------------------------------------------- what cannot be told


def failures(folder):
    return (folder / "failures.tsv").read_text().splitlines()[1:]


def test_a_ct_is_not_shown_to_a_model_of_mr_and_is_named(tell, tested, heads, tmp_path):
    study = tested.studies[0]
    dicom_of(head_of(heads, study), tmp_path / "scans/mr/series")
    dicom_of(head_of(heads, study), tmp_path / "scans/ct/series", modality="CT", number=2)
    folder, rows, num_untold = tell(tmp_path / "scans/*")
    assert [*rows] == ["mr"]
    assert num_untold == 1
    assert not (folder / "ct.json").exists()
    (row,) = failures(folder)
    assert str(tmp_path / "scans/ct") in row
    assert "ct" in row
    assert "the model was trained on T1" in row
    folder, rows, num_untold = tell(tmp_path / "scans/ct")
    assert (rows, num_untold) == ({}, 1)


def test_a_damaged_scan_is_named_and_the_others_are_told(tell, tested, heads, tmp_path):
    good, bad = tested.studies[:2]
    for study in (good, bad):
        shutil.copytree(heads / study, tmp_path / "scans" / study)
    path = head_of(tmp_path / "scans", bad)
    path.write_bytes(path.read_bytes()[:1000])
    folder, rows, num_untold = tell(tmp_path / "scans/*")
    assert [*rows] == [good]
    assert num_untold == 1
    (row,) = failures(folder)
    assert row.startswith(str(path))


def test_a_study_in_which_nothing_is_found_is_told_too(tell, tested, heads, tmp_path):
    good = tested.studies[0]
    shutil.copytree(heads / good, tmp_path / "scans" / good)
    (tmp_path / "scans/bad").mkdir()
    (tmp_path / "scans/bad/00001.dcm").write_text("no DICOM")
    folder, rows, num_untold = tell(tmp_path / "scans/*")
    assert [*rows] == [good]
    assert num_untold == 1
    (row,) = failures(folder)
    assert row.startswith(str(tmp_path / "scans/bad/00001.dcm"))


def test_the_json_says_what_was_left_out_and_what_was_made_of_it(tell, tested, heads, tmp_path):
    study = tested.studies[0]
    shutil.copytree(heads / study, tmp_path / "scans" / study)
    bad = tmp_path / "scans" / study / "anat" / "late.nii.gz"
    bad.write_bytes(head_of(heads, study).read_bytes()[:1000])
    folder, _, num_untold = tell(tmp_path / "scans/*")
    assert num_untold == 0
    told = json.loads((folder / f"{study}.json").read_text())
    assert told["series_left_out"] == 1
    assert told["series"] == [f"anat/{study}_T1w"]
    assert told["warnings"] == []


def test_what_one_model_told_is_not_mixed_with_what_another_tells(tell, tested, heads):
    folder, *_ = tell(heads / tested.studies[0])
    with pytest.raises(InputError, match=r"holds what a model told before\. Set run\.name"):
        tell(heads / tested.studies[1], folder=folder)


def test_messages_name_the_keys_of_this_command(tell, heads, tmp_path):
    table = tmp_path / "scans.csv"
    table.write_text(f"study,path\na,{head_of(heads, 'sub-0001')}\n")
    with pytest.raises(InputError, match=r"must lie below root, without"):
        tell(table)


def test_what_holds_no_image_or_is_not_there_is_an_error(tell, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no image"):
        tell(tmp_path / "empty")
    with pytest.raises(InputError, match=r"absent is neither a folder, a scan nor a table"):
        tell(tmp_path / "absent")


# ---------------------------------------------------------------- checkpoints that are none


@pytest.fixture
def changed(trained, tmp_path):
    """Return a function that writes the checkpoint with something else in it."""

    def write(change):
        held = copy.deepcopy(torch.load(trained / "checkpoints/best.ckpt", weights_only=True))
        change(held)
        torch.save(held, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "neuro.train.train",
        "neuro.models.weights.pickle.loads",  # a model's file imports it
        "neuro.models.vit.torch.load",
        "neuro.models.weights.Path",
        "neuro.models.weights.load_file",
        "neuro.models.absent.Thing",
        "neuro.models.vit",
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_nothing_but_models_of_this_project_is_built(changed, tmp_path, target, deep):
    marker = tmp_path / "marker"
    evil = {"_target_": target, "_args_": [f"touch {marker}"]}

    def put(held):
        held["parts"]["tuning"] = {**held["parts"]["tuning"], "layers": [evil]} if deep else evil

    with pytest.raises(InputError, match=rf"changed\.ckpt asks for {target}, which is no model"):
        restored(changed(put))
    assert not marker.exists()


def test_nothing_of_a_checkpoint_is_looked_up(changed, monkeypatch):
    monkeypatch.setenv("SECRET", "neuro.models.tuning.Frozen")

    def put(held):
        held["parts"]["tuning"]["_target_"] = "neuro.models.tuning.${oc.env:SECRET}"

    with pytest.raises(InputError, match="is no model of this project"):
        restored(changed(put))

    def ask(held):
        held["parts"]["encoder"]["dim"] = "${oc.env:SECRET}"

    with pytest.raises(InputError, match="is no model of this project"):
        restored(changed(ask))


@pytest.mark.parametrize("key", ["contract", "parts"])
def test_a_checkpoint_of_something_else_is_told(changed, key):
    with pytest.raises(InputError, match=r"is no checkpoint of system=mil"):
        restored(changed(lambda held: held.pop(key)))


def test_labels_are_those_of_the_checkpoint_whatever_its_path_says(trained, tmp_path):  # S74
    folder = tmp_path / "proj_mri" / "victor-ct"
    folder.mkdir(parents=True)
    shutil.copy(trained / "checkpoints/best.ckpt", folder / "dx.ckpt")
    _, contract = restored(folder / "dx.ckpt")
    assert (*contract.labels, *contract.classes) == ("lesion", "left", "none", "right")


def test_every_tensor_of_a_checkpoint_is_needed(changed):  # S72
    with pytest.raises(InputError, match=r"pool\.bias"):
        restored(changed(lambda held: held["state_dict"].pop("pool.bias")))


# ---------------------------------------------------------------- the command


@pytest.fixture
def command_line(monkeypatch, capfd):
    """Run the command in this process; return its exit status and what it printed."""
    screen, logger = logging.StreamHandler(), logging.getLogger("neuro")
    if not logger.handlers:
        logger.addHandler(screen)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, "".join(capfd.readouterr())

    yield call
    logger.removeHandler(screen)


def test_the_command_leaves_as_it_says(command_line, trained, heads, tmp_path):
    given = (f"ckpt_path={trained}", f"paths.root={tmp_path}", "run.name=x")
    status, printed = command_line(*given, f"input={heads}/sub-0001")
    assert status == 0, printed
    assert "1 of 1 studies told" in printed
    assert (tmp_path / "outputs/predict/x/sub-0001.json").is_file()
    shutil.copytree(heads / "sub-0001", tmp_path / "bad")
    head = next((tmp_path / "bad").rglob("*.nii.gz"))
    head.write_bytes(b"no image")
    status, printed = command_line(*given, f"input={tmp_path}/bad", "run.name=y")
    assert status == 1
    assert "1 study could not be told" in printed
    path = tmp_path / "cut.ckpt"
    whole = (trained / "checkpoints/best.ckpt").read_bytes()
    for share in (0.1, 0.4, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        status, printed = command_line(
            f"ckpt_path={path}", *given[1:], f"input={heads}", "run.name=z"
        )
        assert status == 2
        errors = [line for line in printed.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "cut.ckpt is no file of weights" in errors[0]
        assert "Traceback" not in printed


def test_a_link_out_of_the_folder_is_not_followed_unless_it_is_named(tell, heads, tmp_path):
    (tmp_path / "study").mkdir()
    scan = next(heads.rglob("*_T1w.nii.gz"))
    (tmp_path / "study" / "t1.nii.gz").symlink_to(scan)
    with pytest.raises(InputError, match=r"t1.nii.gz is really .*outside of root=.*'linked_roots="):
        tell(tmp_path / "study")
    assert tell(tmp_path / "study", f"linked_roots=['{scan.parent}']")[2] == 0
