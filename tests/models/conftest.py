"""A model of each kind, and a collator that drops half of the tokens."""

from __future__ import annotations

import pytest
import torch
from small_llava import qwen_tokenizer, vicuna_tokenizer, volume_llava

from neuro.data.collate import ConversationCollator
from neuro.data.text import TextEncoder


@pytest.fixture(autouse=True)
def one_thread():
    """Layers of width 32 are several times slower where threads have to wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts():
    """The encoders of the two kinds."""
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
    return ConversationCollator(encoder, min_foreground=0.5)


@pytest.fixture
def model(kind, encoder, recipes):
    return volume_llava(kind, encoder, recipes)
