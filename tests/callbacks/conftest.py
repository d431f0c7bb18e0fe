"""A small encoder that learns from small heads."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from neuro.data.augment import Augment
from neuro.data.bids_cohort import BidsCohort
from neuro.data.collate import Background
from neuro.data.datamodule import StudyDataModule
from neuro.data.fixed_grid import FixedGrid
from neuro.data.labels import LabelRules
from neuro.data.masked import MaskedCollator
from neuro.data.masking import BlockMask
from neuro.data.phantom_files import write_phantoms
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.windows import Windows
from neuro.models.predictor import Predictor
from neuro.models.vit import VisionTransformer
from neuro.optim.schedules import warmup_cosine
from neuro.systems.jepa import Jepa


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """Forty T1 images, as BIDS; 32 to train on, four to validate and four to test on."""
    root = tmp_path_factory.mktemp("heads") / "bids"
    grid = {"t1_shape": (24, 24, 24), "t1_spacing_mm": 8.0}
    write_phantoms(root, num_subjects=40, seed=1, modalities=["T1"], **grid)
    return root


@pytest.fixture(scope="session")
def make_heads(heads, question_book):
    """Return a function that builds a data module over the heads, with labels or without."""

    def build(label=(), *, max_studies=8, num_masks=1, flip=0.5, **rules):
        labels = LabelRules(file=rules.pop("file", None), names=label, **rules) if label else None
        recipe = FixedGrid(
            shape=(24, 24, 24), spacing_mm=8.0, patch=(4, 4, 4), percentiles=(0.5, 99.5)
        )
        return StudyDataModule(
            cohort=BidsCohort(heads, [], question_book, SubjectSplits(val=0.1, test=0.1), labels),
            recipes={"T1": recipe},
            cache_dir=heads.parent / "cache",
            collate=MaskedCollator(Background(min_foreground=0.2), [BlockMask()] * num_masks),
            budget=BatchBudget(max_studies=max_studies, max_tokens=10_000),
            augment=Augment(flip_left_right=flip),
            windows=Windows(),
            max_failed=0.0,
            num_workers=0,
            seed=3,
        )

    return build


@pytest.fixture
def make_jepa():
    """Return a function that builds a system; the same arguments give the same weights."""

    def build(kind=Jepa, *, lr=1e-3, momentum=(0.99, 1.0), seed=0):
        torch.manual_seed(seed)
        return kind(
            VisionTransformer(dim=48, num_layers=2, num_heads=4, patch_voxels=64, drop_path=0.2),
            partial(Predictor, dim=48, num_layers=1, num_heads=4),
            momentum=momentum,
            optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95)),
            schedule=partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
            weight_decay=0.05,
        )

    return build


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that builds a trainer which validates every other step."""

    def build(**changes):
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": 4,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "gradient_clip_val": 1.0,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**{**settings, **changes})

    return build
