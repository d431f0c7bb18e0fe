"""A model begins with what another learned to see with, and every tensor is accounted for."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from small_llava import volume_llava

from neuro.errors import InputError
from neuro.models.eye import begin_with, eye_of, modality_of
from neuro.models.policy import Policy
from neuro.models.tuning import Lora

PROJECTOR = Policy(projector=True)
ADAPTERS = Policy(lora={"language_model": Lora(rank=2, layers=["q_proj"])})
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="the extra lora is not installed"
)


@pytest.fixture
def make(texts, recipes):
    """Return a function that builds a model for some modalities."""

    def build(*modalities, seed=0, **settings):
        grids = {name: recipes[name] for name in modalities or recipes}
        return volume_llava("siglip", texts["siglip"], grids, seed=seed, **settings)

    return build


def trained(model):
    """Draw all that is trained anew, and return it."""
    generator = torch.Generator().manual_seed(9)
    for one in model.parameters():
        if one.requires_grad:
            one.data = torch.randn(one.shape, generator=generator)
    return model


def checkpoint(model, path):
    """Write what a run would keep of a model."""
    state = model.state_dict()
    torch.save({"state_dict": {f"llava.{n}": state[n] for n in model.kept_names()}}, path)
    return path


def same(model, other, names):
    own, theirs = model.state_dict(), other.state_dict()
    return [torch.equal(own[name], theirs[name]) for name in names]


def test_a_model_begins_with_what_a_run_learned_and_with_nothing_else(make, tmp_path, caplog):
    source, model = trained(make(seed=1)), make(seed=2)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        report = begin_with(model, checkpoint(source, tmp_path / "x.ckpt"))
    assert report.complete
    assert all(same(model, source, source.kept_names()))
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]) == (name not in source.kept_names())
    assert "matched" in caplog.text


def test_a_modality_that_only_one_knows_is_told_and_left_alone(make, tmp_path, caplog):  # D23
    source, model = trained(make("T1", "dMRI", seed=1)), make("T1", "rsfMRI", seed=2)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        report = begin_with(model, checkpoint(source, tmp_path / "x.ckpt"))
    assert {modality_of(name) for name in report.matched} == {"T1"}
    assert {modality_of(name) for name in report.missing} == {"rsfMRI"}
    assert {modality_of(name) for name in report.unexpected} == {"dMRI"}
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    assert "missing: embedders.rsfMRI" in caplog.text
    assert "unexpected: embedders.dMRI" in caplog.text
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]) == ("embedders.T1" not in name)


@pytest.mark.parametrize("change", ["lacks one", "holds one more", "another shape"])
def test_half_an_embedder_is_refused_and_changes_nothing(make, tmp_path, change):  # D23
    path, model = checkpoint(trained(make(seed=1)), tmp_path / "x.ckpt"), make(seed=2)
    held = torch.load(path)
    name = next(name for name in held["state_dict"] if name.endswith("T1.positions.0"))
    table = held["state_dict"].pop(name)
    if change == "another shape":
        held["state_dict"][name] = table[:-1]
    elif change == "holds one more":
        held["state_dict"] |= {name: table, name.replace(".0", ".1"): table}
    torch.save(held, path)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(InputError, match=r"x\.ckpt.*embedders\.T1\.positions\..*system\.vision"):
        begin_with(model, path)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_weights_of_something_else_are_an_error(make, tmp_path):  # D23
    torch.save({"state_dict": {"student.norm.weight": torch.zeros(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(
        InputError, match=r"none of its 1 tensors matches.*student\.norm.*vision\.init_from"
    ):
        begin_with(make(), tmp_path / "x.ckpt")
    checkpoint(trained(make("dMRI")), tmp_path / "y.ckpt")
    with pytest.raises(InputError, match="none of its 3 tensors matches"):
        begin_with(make("T1"), tmp_path / "y.ckpt")


def test_what_the_policy_trains_besides_begins_with_what_there_is(make, tmp_path):
    path = checkpoint(trained(make(seed=1)), tmp_path / "x.ckpt")
    report = begin_with(make(policy=PROJECTOR), path)
    assert {name.split(".")[1] for name in report.missing} == {"model"}
    assert all("projector" in name for name in report.missing)
    assert not report.unexpected


def test_what_was_trained_besides_is_taken_though_it_is_frozen_now(make, tmp_path):
    source, model = trained(make(seed=1, policy=PROJECTOR)), make(seed=2)
    assert begin_with(model, checkpoint(source, tmp_path / "x.ckpt")).complete
    assert all(same(model, source, source.kept_names()))
    assert not model.llava.model.multi_modal_projector.linear_1.weight.requires_grad


@needs_peft
def test_adapters_are_not_dropped(make, tmp_path):
    source = trained(make(seed=1, policy=ADAPTERS))
    path, model = checkpoint(source, tmp_path / "x.ckpt"), make(policy=ADAPTERS)
    assert begin_with(model, path).complete
    assert all(same(model, source, source.kept_names()))
    with pytest.raises(InputError, match=r"unexpected: .*lora_A.*policy"):
        begin_with(make(), path)


@needs_peft
def test_whole_weights_go_below_adapters(make, tmp_path):
    everything = Policy(projector=True, vision_tower=True, language_model=True)
    source, model = trained(make(seed=1, policy=everything)), make(seed=2, policy=ADAPTERS)
    report = begin_with(model, checkpoint(source, tmp_path / "x.ckpt"))
    assert not report.unexpected
    assert all(".lora_" in name for name in report.missing)
    found = model.llava.model.language_model.layers[0].self_attn.q_proj.base_layer.weight
    held = source.llava.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(found, held)


def test_what_sees_has_short_names(make):
    model = make("T1")
    state = {f"llava.{name}": one for name, one in model.state_dict().items()}
    found = eye_of(state)
    embedder = model.embeddings.embedders["T1"].state_dict()
    assert {f"embedders.T1.{name}" for name in embedder} == found.keys()
    assert modality_of("embedders.T1.projection.weight") == "T1"
    assert modality_of("connector.norm.weight") is None
