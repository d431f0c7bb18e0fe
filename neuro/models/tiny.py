"""A LLaVA small enough for two cores.

Built from a config; its language model is taught by text alone, then frozen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)
from transformers.models.llama.modeling_llama import LlamaModel

from neuro.console import meter

log = logging.getLogger(__name__)

MURMUR = 0.5  # noise on what is read in lessons, of the size of a word; no eye says a word exactly
LESSONS = 2  # counted up where the cached models would be others now


@runtime_checkable
class TextBatches(Protocol):
    """Token ids to read, and what of them is learned."""

    def fingerprint(self) -> str:
        """Return a name for exactly this text."""
        ...

    def batch(
        self, step: int
    ) -> tuple[
        Int[Tensor, "studies length"],
        Int[Tensor, "studies length"],
        Int[Tensor, "studies length"],
        Float[Tensor, "studies length"],
    ]:
        """Return ids, targets, positions and copies, padded on the right.

        Targets are -100 where nothing is learned. A token stands for so many copies of itself.
        """
        ...


def tiny_llava(
    *,
    tokenizer: PreTrainedTokenizerBase,
    image_token: str,
    text: TextBatches,
    cache_dir: Path | str,
    dim: int,
    num_layers: int,
    num_heads: int,
    steps: int,
    lr: float,
    seed: int,
) -> LlavaForConditionalGeneration:
    """Return a small LLaVA whose language model can read; trained once, then kept in the cache.

    Args:
        tokenizer: What the text is written in.
        image_token: Its token for images.
        text: What the language model reads.
        cache_dir: Where its weights are kept.
        dim: Width of tower and language model.
        num_layers: Layers of each.
        num_heads: Attention heads of each.
        steps: Steps of text training.
        lr: Peak learning rate of one cycle.
        seed: Seeds the weights.
    """
    vocab_size, image_id = len(tokenizer), tokenizer.convert_tokens_to_ids(image_token)
    assert isinstance(image_id, int)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava = LlavaForConditionalGeneration(
            _config(vocab_size, image_id, dim, num_layers, num_heads)
        )
        _speak_as_loud_as_words(llava, dim)
        settings = [
            LESSONS,
            vocab_size,
            image_id,
            dim,
            num_layers,
            num_heads,
            steps,
            lr,
            seed,
            text.fingerprint(),
        ]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        path = Path(cache_dir) / f"tiny-llava-{key}.safetensors"
        if path.is_file():
            llava.load_state_dict(load_file(path))
        else:
            _teach(llava, text, steps=steps, lr=lr)
            _save(llava, path)
    return llava


def _config(
    vocab_size: int, image_id: int, dim: int, num_layers: int, num_heads: int
) -> LlavaConfig:
    # Keeps the size of features from layer to layer, where 0.02 would let them fade.
    scale = dim**-0.5
    sizes: dict[str, Any] = {
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
    }
    return LlavaConfig(
        vision_config=SiglipVisionConfig(
            **sizes, image_size=32, patch_size=16, vision_use_head=False
        ),
        text_config=LlamaConfig(
            **sizes, vocab_size=vocab_size, max_position_embeddings=4096, initializer_range=scale
        ),
        image_token_index=image_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        initializer_range=scale,  # pyright: ignore[reportCallIssue], a config takes any field
    )


def _speak_as_loud_as_words(llava: LlavaForConditionalGeneration, dim: int) -> None:
    """Let features of size 1 leave the projector as large as words are.

    A projector as it is drawn would make them seven times as large, and what the language model
    notes beside an image, that it is the second, would be lost in the sum.
    """
    word = dim**-0.5  # as ``_config`` has them drawn
    loudness = 0.65  # of the GELU of a standard normal variable, root of the mean square
    with torch.no_grad():
        llava.model.multi_modal_projector.linear_2.weight *= word / loudness


def _teach(
    llava: LlavaForConditionalGeneration, text: TextBatches, *, steps: int, lr: float
) -> None:
    """Train language model and head on text; the image ids never occur in it."""
    model, head = llava.model.language_model, llava.lm_head
    assert isinstance(model, LlamaModel)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1
    )
    loss = torch.tensor(float("nan"))
    with meter("steps of reading lessons", steps) as advance:
        for step in range(steps):
            ids, targets, positions, copies = text.batch(step)
            words = model.embed_tokens(ids)
            words = words + MURMUR * words.detach().std() * torch.randn_like(words)
            # Padding is on the right, so causality hides it.
            hidden = model(
                inputs_embeds=words, position_ids=positions, attention_mask=_causal(copies)
            ).last_hidden_state
            spoken = targets[:, 1:] != -100
            loss = F.cross_entropy(head(hidden[:, :-1][spoken]), targets[:, 1:][spoken])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            advance()
    log.info("the tiny language model answers with a loss of %.3f", loss.item())


def _causal(copies: Float[Tensor, "studies length"]) -> Float[Tensor, "studies 1 length length"]:
    """Return what is added to attention scores.

    Softmax takes a token with the logarithm of its copies added for so many equal tokens.
    """
    length = copies.shape[1]
    ahead = torch.full((length, length), -torch.inf).triu(1)
    return ahead + copies.log()[:, None, None, :]


def _save(llava: LlavaForConditionalGeneration, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    weights = {name: tensor.contiguous() for name, tensor in llava.state_dict().items()}
    temporary.write_bytes(save(weights))  # save_file would let nobody else read it
    os.replace(temporary, path)
