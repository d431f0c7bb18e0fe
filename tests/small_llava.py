"""Random models of width 32 and made-up studies, for the tests of models and systems."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from neuro.data.augment import IDENTITY
from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Series, Study
from neuro.data.tokens import grid_coords, grid_of
from neuro.models.normalize import PackedVolumes
from neuro.models.policy import Policy
from neuro.models.tower_llava import TowerLlava

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
ASK = "On which side is it?"

# The command's words for a run of seconds.
SMALL = (
    "data.num_subjects=20",
    "data.t1_spacing_mm=8",
    "data.bold_spacing_mm=8",
    "trainer.accelerator=cpu",
    "system.max_new_tokens=2",
    "system.llava.dim=32",
    "system.llava.num_layers=2",
    "system.llava.num_heads=2",
    "system.llava.steps=2",
)


def small_llava(
    kind: str, vocab_size: int, image_id: int, *, tied: bool = False, seed: int = 0
) -> LlavaForConditionalGeneration:
    """Return ``clip`` (like LLaVA-1.5: layer -2, strategy default, Llama) or ``siglip`` (like
    LLaVA-interleave: layer -1, strategy full, Qwen2)."""
    text = {**SIZES, "vocab_size": vocab_size, "tie_word_embeddings": tied}
    if kind == "clip":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**SIZES, image_size=32, patch_size=16),
            text_config=LlamaConfig(**text),
            image_token_index=image_id,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=tied,
        )
    else:
        config = LlavaConfig(
            vision_config=SiglipVisionConfig(
                **SIZES, image_size=32, patch_size=16, vision_use_head=False
            ),
            text_config=Qwen2Config(**text, num_key_value_heads=2),
            image_token_index=image_id,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=tied,
        )
    config.initializer_range = SIZES["initializer_range"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


def volume_llava(
    kind: str, text, grids, *, seed: int = 0, tied: bool = False, **settings
) -> TowerLlava:
    """Return such a model with embedders; their positions are about as large as their features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava = small_llava(kind, len(text.tokenizer), text.image_id, tied=tied, seed=seed)
        model = TowerLlava(llava, grids, settings.pop("policy", Policy()), **settings)
        for embedder in model.embeddings.embedders.values():
            for table in embedder.positions:
                torch.nn.init.normal_(table, std=0.5)
    return model


def letters_tokenizer(*special: str, **roles: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and some special tokens."""
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles
    )


def vicuna_tokenizer() -> PreTrainedTokenizerFast:
    """Return one with the special tokens of LLaVA-1.5."""
    return letters_tokenizer(
        "<unk>",
        "<s>",
        "</s>",
        "<image>",
        "<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Return one with the special tokens of LLaVA-interleave: nothing begins a text."""
    return letters_tokenizer(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def study_of(name: str, *modalities: str, answer: str = "left", turns=None) -> Study:
    """Return a study that asks one question below its images, or says given turns."""
    images = tuple(Image(path=one, modality=one, subject=name) for one in modalities)
    parts = tuple(ImagePart(index) for index in range(len(images)))
    turns = turns or (Turn("user", (*parts, f"\n{ASK}")), Turn("assistant", (answer,)))
    return Study(
        id=name,
        series=tuple(Series(subject=name, modality=one, path=Path(one)) for one in modalities),
        conversation=Conversation(id=name, task="side", turns=turns, images=images),
        split="train",
    )


def series_of(study: Study, recipes) -> list[SeriesTokens]:
    """Return the study's images: noise, of which the collator drops a random part at 0.5."""
    items = []
    for index, one in enumerate(study.series):
        digest = hashlib.sha256(f"{study.id}|{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        recipe = recipes[one.modality]
        size = grid_of(recipe.shape, recipe.patch)
        coords = grid_coords(size)
        shape = (len(coords), int(torch.tensor(recipe.patch).prod()))
        if len(recipe.shape) == 4:
            tokens = torch.randn(shape, generator=generator).half()
        else:
            tokens = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        foreground = torch.randint(256, shape[:1], generator=generator, dtype=torch.uint8)
        foreground[index] = 255  # something is always left
        items.append(
            SeriesTokens(
                study=study,
                name=f"image{index}",
                modality=one.modality,
                kind="run" if len(recipe.shape) == 4 else "mri",
                tokens=tokens,
                coords=coords,
                foreground=foreground,
                size=size,
                draw=IDENTITY,
                seed=0,
                in_training=False,
            )
        )
    return items


def mixed_studies() -> list[Study]:
    """Return studies of one and two images, of all modalities, in no order."""
    return [
        study_of("a", "T1", answer="left"),
        study_of("b", "rsfMRI", "T1", answer="right side, low"),
        study_of("c", "dMRI", answer="none"),
        study_of("d", "T1", "T1", answer="right"),
        study_of("e", "rsfMRI", answer="left and right"),
        study_of("f", "T1", "dMRI", answer="no"),
    ]


def batch_of(studies, recipes, collate):
    """Return the studies as one batch."""
    return collate([item for study in studies for item in series_of(study, recipes)])


def num_features(volumes: dict[str, PackedVolumes]) -> int:
    """Return how many tokens the volumes have in all."""
    return sum(len(packed.tokens) for packed in volumes.values())
