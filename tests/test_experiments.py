"""Each recipe under conf/experiment is built and run for a step, on data of its own kind."""

from __future__ import annotations

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from neuro import command
from neuro.data.phantom_files import write_phantoms
from neuro.models.vit import VisionTransformer
from neuro.train import train

EXPERIMENTS = sorted(path.stem for path in (command.CONF / "experiment").glob("*.yaml"))


def heads(root):
    """Write T1 images of a few heads as BIDS."""
    write_phantoms(root / "bids", num_subjects=20, seed=1, modalities=["T1"])
    return [f"data.root={root / 'bids'}"]


def head_ct(root):
    """Write small CT studies of two series, and a table of their findings."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        study = root / "studies" / f"{number:03d}"
        study.mkdir(parents=True)
        for series in ("thin", "thick"):
            voxels = rng.normal(40, 30, (48, 48, 12)).astype(np.int16)
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
            nib.save(image, study / f"{series}.nii.gz")
        rows.append([study.name, number % 2, "" if number % 5 == 0 else number % 3 % 2])
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["study", "bleeding", "fracture"], *rows])
    return [f"data.root={root / 'studies'}", "data.default_mode=ct", "data.splits.salt=b"]


def pretrained(root):
    """Write weights of the public layout."""
    torch.save(VisionTransformer.preset("base").state_dict(), root / "base.pt")
    return [
        "data.label=[bleeding,fracture]",
        f"data.labels.file={root / 'labels.csv'}",
        f"system.encoder_from={root / 'base.pt'}",
    ]


def few_heads(root):
    """Draw few and coarse heads, with as many tokens as UMBRELLA has; let the words be untaught."""
    return [
        "data.num_subjects=20",
        "data.t1_spacing_mm=8",
        "data.bold_spacing_mm=8",
        "data.recipes.rsfMRI.shape=[24,24,24,24]",
        "data.recipes.rsfMRI.patch=[4,4,4,3]",
        "data.max_studies=2",
        *UNTAUGHT,
    ]


UNTAUGHT = [
    "system.llava.dim=32",
    "system.llava.num_layers=2",
    "system.llava.num_heads=2",
    "system.llava.steps=2",
    "system.max_new_tokens=4",
]


def small_eye(root):
    """Write the weights of an encoder as a run of jepa_phantom has them."""
    encoder = VisionTransformer(128, 4, 4, patch_voxels=216)
    torch.save(encoder.state_dict(), root / "eye.pt")
    return root / "eye.pt"


NEEDED = {
    "jepa_bids_t1": lambda root: [*heads(root), "data.label=sex"],
    "jepa_phantom": lambda root: ["data.num_subjects=40"],
    "jepa_vitb_clinical": head_ct,
    "llava_mri_ds002748": lambda root: [*heads(root), "data.questions=[sex]", *UNTAUGHT],
    "llava_mri_jepa_eye": lambda root: [
        "data.num_subjects=40",
        f"system.vision.init_from={small_eye(root)}",
        "system.llava.steps=2",
    ],
    "llava_mri_reports": lambda root: [
        "data.num_subjects=20",
        "system.llava.steps=2",
    ],
    "mil_bids_t1": lambda root: [*heads(root), "data.label=sex"],
    "mil_ct_multilabel": lambda root: [*head_ct(root), *pretrained(root)],
    "mil_phantom": lambda root: ["data.num_subjects=40"],
    "mil_phantom_frozen": lambda root: ["data.num_subjects=40", "system.encoder_from=null"],
    "umbrella_fmri": few_heads,
    "umbrella_joint": few_heads,
    "umbrella_t1": few_heads,
}


def test_every_experiment_is_run():
    assert sorted(NEEDED) == EXPERIMENTS


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_for_a_step(
    name, tmp_path
):  # D2, D3, D6, D9: what a config names is built and run
    overrides = [
        f"experiment={name}",
        f"paths.root={tmp_path}",
        f"paths.run_dir={tmp_path / 'run'}",
        "trainer.accelerator=cpu",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
        "data.num_workers=0",
        *NEEDED[name](tmp_path),
    ]
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    command.resolve(cfg)
    train(cfg)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert np.isfinite([value for key, value in metrics.items() if key.endswith("/loss")]).all()
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("data", ["phantom", "bids", "studies", "conversations", "manifest"])
@pytest.mark.parametrize("connector", ["perceiver", "perceiver_small", "mlp"])
def test_an_eye_composes_with_every_source_and_connector(data, connector):
    """And what it says of the data stands: every window of a CT, clinical tokens of a T1."""
    words = ["system/vision=neuro_vit", f"connector={connector}", f"data={data}"]
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=words)
    assert cfg.data.window_probabilities is None
    assert cfg.data.recipes.T1._target_.endswith("ClinicalTokens")
    assert cfg.data.datamodule.collate.any_grid
    slots = {"perceiver": 64, "perceiver_small": 16, "mlp": None}
    assert cfg.data.datamodule.collate.slots_per_image == slots[connector]


@pytest.mark.parametrize("name", [one for one in EXPERIMENTS if one.startswith("umbrella_")])
def test_the_experiments_of_umbrella_have_its_grids(name):
    """1728 tokens an image, before background is dropped; see vlm-facts 1.3."""
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={name}"])
    shown = cfg.data.get("modalities") or ["T1", "dMRI", "rsfMRI"]
    for modality in shown:
        recipe = cfg.data.recipes[modality]
        pairs = [*zip(recipe.shape, recipe.patch, strict=True)]
        assert math.prod(size // edge for size, edge in pairs) == 1728
        assert all(size % edge == 0 for size, edge in pairs)


def test_a_vision_language_run_watches_gradients_and_writes_samples():
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=["system=llava_mri"])
    assert cfg.callbacks.samples._target_ == "neuro.callbacks.answer_samples.AnswerSamples"
    assert cfg.callbacks.gradients._target_ == "neuro.callbacks.gradient_norms.GradientNorms"
    assert cfg.callbacks.samples.every_n_steps == 50


@pytest.mark.parametrize("drops", [True, False])
def test_whether_background_is_dropped_is_said_once(drops):
    words = ["system=llava_mri", f"system.drop_background={drops}"]
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=words)
    assert cfg.data.datamodule.collate.background.drop is drops


@pytest.mark.parametrize("policy", ["embeddings", "projector", "lora", "none"])
@pytest.mark.parametrize("vision", ["tower", "neuro_vit"])
def test_every_policy_composes_with_every_eye(policy, vision):
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"policy={policy}", f"system/vision={vision}"])
    assert cfg.system.policy._target_ == "neuro.models.policy.Policy"
    assert cfg.system.vision._partial_
