"""The small LLaVA is taught once, by text alone, and then kept."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from neuro.data.spelled import SpelledFacts
from neuro.data.text import IGNORE
from neuro.models.policy import Policy
from neuro.models.tiny import _causal, tiny_llava
from neuro.models.tower_llava import TowerLlava

QUESTIONS = ("sex", "tract", "dropout")


@pytest.fixture(scope="module")
def facts(question_book, text):
    return SpelledFacts(question_book, QUESTIONS, text, seed=1, batch_size=4, max_slots=8)


@pytest.fixture
def build(text, facts, tmp_path):
    def build(**changes):
        arguments = {
            "tokenizer": text.tokenizer,
            "image_token": text.image_token,
            "text": facts,
            "cache_dir": tmp_path / "cache",
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "steps": 4,
            "lr": 4e-3,
            "seed": 1,
        }
        return tiny_llava(**{**arguments, **changes})

    return build


def weights(llava):
    return {name: one.clone() for name, one in llava.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def files(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_it_is_taught_once_and_then_read_from_the_cache(build, tmp_path):
    first = build()
    (path,) = files(tmp_path)
    os.utime(path, ns=(0, 0))
    second = build()
    assert files(tmp_path) == [path]
    assert path.stat().st_mtime_ns == 0
    assert same(weights(first), weights(second))
    assert same(load_file(path), weights(first))


def test_colleagues_may_read_it_as_the_umask_lets_them(build, tmp_path):
    build()
    (tmp_path / "plain").touch()
    (path,) = files(tmp_path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_seed_gives_the_same_weights_in_another_place(build, tmp_path):
    assert same(weights(build()), weights(build(cache_dir=tmp_path / "elsewhere")))


@pytest.mark.parametrize("change", [{"seed": 2}, {"steps": 5}, {"lr": 1e-3}, {"dim": 16}])
def test_another_setting_is_another_model(build, tmp_path, change):
    first = weights(build())
    assert not same(first, weights(build(**change)))
    assert len(files(tmp_path)) == 2
    assert same(first, weights(build()))


def test_another_text_is_another_model(build, tmp_path, question_book, text):
    build()
    other = SpelledFacts(question_book, QUESTIONS[:2], text, seed=1, batch_size=4, max_slots=8)
    build(text=other)
    assert len(files(tmp_path)) == 2


def test_random_numbers_of_the_run_are_left_alone(build):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build()  # taught
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    build()  # from the cache
    assert torch.equal(torch.rand(3), expected)


def test_nothing_half_written_is_left_when_it_is_interrupted(build, tmp_path, facts):
    class Interrupted:
        fingerprint = facts.fingerprint

        def batch(self, step):
            if step == 2:
                raise KeyboardInterrupt
            return facts.batch(step)

    with pytest.raises(KeyboardInterrupt):
        build(text=Interrupted())
    assert not (tmp_path / "cache").exists()
    build()
    assert len(files(tmp_path)) == 1


def test_only_the_language_model_is_taught(build, tmp_path):
    short, long = weights(build(steps=2)), weights(build(steps=4))
    changed = {name for name in short if not torch.equal(short[name], long[name])}
    assert changed
    assert all("language_model" in name or "lm_head" in name for name in changed)
    frozen = [name for name in short if "vision_tower" in name or "projector" in name]
    assert not changed & set(frozen)


def test_what_it_sees_is_as_loud_as_what_it_reads(build):
    """Else what it notes beside an image, which of two it is, is lost in the sum."""
    model = build(dim=128).model
    with torch.no_grad():
        features = model.multi_modal_projector(torch.randn(1000, 128))
    words = model.language_model.embed_tokens.weight.detach()
    assert 0.7 < float(features.std() / words.std()) < 1.4


def test_it_reads_better_than_before(build, facts):
    """Batches that were not among the lessons."""

    @torch.no_grad()
    def loss(llava):
        losses = []
        for step in range(1000, 1004):
            ids, targets, *_ = facts.batch(step)
            logits = llava.lm_head(llava.model.language_model(input_ids=ids).last_hidden_state)
            spoken = targets[:, 1:] != IGNORE
            losses.append(F.cross_entropy(logits[:, :-1][spoken], targets[:, 1:][spoken]))
        return float(torch.stack(losses).mean())

    assert loss(build(steps=60)) < 0.5 * loss(build(steps=1))


def test_copies_count_like_so_many_equal_tokens(build):
    model = build().model.language_model
    one, many = torch.tensor([[5, 7, 9]]), torch.tensor([[5, 7, 7, 7, 9]])
    with torch.no_grad():
        short = model(
            input_ids=one,
            position_ids=torch.zeros_like(one),
            attention_mask=_causal(torch.tensor([[1.0, 3.0, 1.0]])),
        ).last_hidden_state
        # Equal tokens see each other: then each is what one of them is.
        ahead = torch.full((5, 5), -torch.inf).triu(1)
        ahead[1:4, 1:4] = 0.0
        long = model(
            input_ids=many,
            position_ids=torch.zeros_like(many),
            attention_mask=ahead[None, None],
        ).last_hidden_state
    torch.testing.assert_close(short[0], long[0, [0, 1, 4]])


def test_the_future_is_hidden_while_it_is_taught(build):
    model = build().model.language_model
    ids = torch.tensor([[5, 7, 9, 11]])
    with torch.no_grad():
        plain = model(input_ids=ids).last_hidden_state
        masked = model(input_ids=ids, attention_mask=_causal(torch.ones(1, 4))).last_hidden_state
    torch.testing.assert_close(plain, masked)


def test_it_takes_volumes_like_any_other(build, recipes):
    model = TowerLlava(build(), recipes, Policy())
    assert sum(trained for _, _, trained in model.parameter_table()) == sum(
        one.numel() for one in model.embeddings.parameters()
    )
