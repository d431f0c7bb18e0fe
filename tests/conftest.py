"""What tests share: small phantoms on disk, recipes that fit them, and the tiny tokenizer."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)  # small models: two threads would mostly wait for each other


@pytest.fixture(scope="session")
def question_book():
    return instantiate(OmegaConf.load(ROOT / "conf/question_book/default.yaml"), _convert_="all")


@pytest.fixture(scope="session")
def recipes():
    from neuro.data.bold_run import BoldRun
    from neuro.data.fixed_grid import FixedGrid

    cube = {"shape": (24, 24, 24), "spacing_mm": 8.0, "patch": (12, 12, 12)}
    return {
        "T1": FixedGrid(**cube, percentiles=(0.5, 99.5)),
        "dMRI": FixedGrid(**cube, window=(0.0, 1.0)),
        "rsfMRI": BoldRun(shape=(24, 24, 24, 8), patch=(12, 12, 12, 4), repetition_time_s=2.0),
    }


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """Twenty heads on small grids, as BIDS."""
    from neuro.data.phantom_files import write_phantoms

    root = tmp_path_factory.mktemp("phantom") / "heads"
    write_phantoms(
        root,
        num_subjects=20,
        seed=1,
        t1_shape=(24, 24, 24),
        t1_spacing_mm=8.0,
        bold_shape=(24, 24, 24),
        bold_spacing_mm=8.0,
        duration_s=24.0,
    )
    return root


@pytest.fixture(scope="session")
def text(question_book):
    """The tiny model's text encoder."""
    from neuro.data.spelled import IMAGE, spelled_tokenizer
    from neuro.data.text import TextEncoder

    return TextEncoder(
        spelled_tokenizer(question_book), chat_format="chatml", image_token=IMAGE, max_length=512
    )


@pytest.fixture(scope="session")
def texts():
    """The encoders of the two kinds of pretrained models."""
    from small_llava import qwen_tokenizer, vicuna_tokenizer

    from neuro.data.text import TextEncoder

    kinds = {"clip": (vicuna_tokenizer(), "vicuna"), "siglip": (qwen_tokenizer(), "chatml")}
    return {
        kind: TextEncoder(tokenizer, chat_format=chat_format, image_token="<image>", max_length=512)
        for kind, (tokenizer, chat_format) in kinds.items()
    }


@pytest.fixture(params=["clip", "siglip"])
def kind(request):
    return request.param


@pytest.fixture
def encoder(kind, texts):
    return texts[kind]


@pytest.fixture
def collate(encoder):
    """A collator that drops half of the tokens."""
    from neuro.data.collate import Background, ConversationCollator

    return ConversationCollator(encoder, Background(min_foreground=0.5))


@pytest.fixture
def said(caplog):
    """Return what the project logs, whether or not an earlier test set up its log."""
    logger = logging.getLogger("neuro")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="neuro")
    yield caplog
    logger.removeHandler(caplog.handler)
