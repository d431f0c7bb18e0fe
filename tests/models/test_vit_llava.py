"""An encoder of ours as the eye: packed, of any grid, and of it only what is wanted is trained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from small_llava import batch_of, small_llava, study_of

from neuro.data.collate import Background, ConversationCollator
from neuro.data.conversation import ImagePart, Turn
from neuro.data.text import IGNORE
from neuro.errors import InputError
from neuro.models.connector import MlpConnector, PerceiverConnector
from neuro.models.normalize import normalize
from neuro.models.policy import Policy
from neuro.models.tuning import FineTuned, Frozen, Lora
from neuro.models.vit import VisionTransformer
from neuro.models.vit_llava import VitLlava
from neuro.optim.groups import layerwise_groups

NUM_QUERIES = 3
CONNECTORS = {
    "perceiver": partial(PerceiverConnector, num_queries=NUM_QUERIES, num_heads=3),
    "mlp": MlpConnector,
}


class Grid(NamedTuple):
    """What is asked of a recipe."""

    shape: tuple[int, ...]
    patch: tuple[int, ...] = (2, 4, 4)


GRIDS = {"T1": Grid((4, 8, 8)), "mri": Grid((8, 12, 4)), "ct": Grid((4, 16, 12))}
STUDIES = [
    study_of("a", "T1", answer="left"),
    study_of("b", "ct", "T1", answer="right side, low"),
    study_of("c", "mri", "mri", "ct", "mri", "T1", answer="none"),  # five series
    study_of("d", "mri", answer="left and right"),
]


def make(texts, connector="perceiver", tuning=None, policy=None, seed=0, **settings):
    text = texts["siglip"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VitLlava(
            small_llava("siglip", len(text.tokenizer), text.image_id),
            VisionTransformer(48, 2, 3, patch_voxels=32),
            CONNECTORS[connector],
            tuning or Frozen(),
            policy or Policy(),
            **settings,
        )


@pytest.fixture(params=CONNECTORS)
def connector(request):
    return request.param


@pytest.fixture
def model(texts, connector):
    return make(texts, connector)


@pytest.fixture
def collate(texts, connector):
    """A collator that drops half of the tokens."""
    slots = {"perceiver": NUM_QUERIES, "mlp": None}[connector]
    background = Background(min_foreground=0.5)
    return ConversationCollator(texts["siglip"], background, slots_per_image=slots, any_grid=True)


def losses_of(model, batch):
    """Return the loss of each supervised token, by study."""
    features = model.image_features(batch.volumes, batch.images)
    losses, study = model.token_losses(
        batch.input_ids, batch.attention_mask, batch.labels, features
    )
    return {name: losses[study == row] for row, name in enumerate(batch.study_ids)}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


# ---------------------------------------------------------------- packed equals one by one


def test_a_batch_equals_its_studies_one_by_one(model, collate):
    together = losses_of(model, batch_of(STUDIES, GRIDS, collate))
    for study in STUDIES:
        (alone,) = losses_of(model, batch_of([study], GRIDS, collate)).values()
        torch.testing.assert_close(together[study.id], alone, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_batch_are_the_sum_of_its_studies(texts, connector, collate):
    model = make(texts, connector, FineTuned())
    together = losses_of(model, batch_of(STUDIES, GRIDS, collate))
    packed = gradients_of(model, torch.cat(list(together.values())).sum())
    sums = {name: torch.zeros_like(one) for name, one in packed.items()}
    for study in STUDIES:
        (alone,) = losses_of(model, batch_of([study], GRIDS, collate)).values()
        for name, gradient in gradients_of(model, alone.sum()).items():
            sums[name] += gradient
    for name, gradient in packed.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(gradient, sums[name], rtol=1e-3, atol=1e-4 * scale)


def test_each_series_is_what_encoder_and_connector_make_of_it_alone(model, collate):
    """In textual order, however modalities lie in the pack."""
    batch = batch_of(STUDIES, GRIDS, collate)
    features = model.image_features(batch.volumes, batch.images)
    assert [modality for modality, _ in batch.images[3:8]] == ["mri", "mri", "ct", "mri", "T1"]
    assert list(batch.volumes) == ["T1", "ct", "mri"]  # another order than in the text
    for (modality, place), found in zip(batch.images, features, strict=True):
        packed = batch.volumes[modality]
        own = slice(*packed.bounds[place : place + 2].tolist())
        bounds = torch.tensor([0, own.stop - own.start])
        voxels = normalize(packed.tokens[own], bounds, [packed.kinds[place]])
        tokens = model.encoder(voxels, packed.coords[own], bounds)
        want = model.connector(tokens, bounds, [len(tokens)])
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_host_and_device_are_told_the_same_bounds_of_the_pack(model, collate):
    """On a CPU only the lengths are read, on CUDA only the bounds."""
    seen = []
    for part in (model.encoder, model.connector):
        part.register_forward_pre_hook(lambda _, args: seen.append(args[-2:]))
    batch = batch_of(STUDIES, GRIDS, collate)
    model.image_features(batch.volumes, batch.images)
    want = [one for packed in batch.volumes.values() for one in packed.bounds.diff().tolist()]
    assert len(seen) == 2
    for bounds, lengths in seen:
        assert (int(bounds[0]), bounds.diff().tolist(), list(lengths)) == (0, want, want)


@pytest.mark.parametrize("slot", range(9))
def test_another_series_changes_only_the_study_that_shows_it(model, collate, slot):
    batch = batch_of(STUDIES, GRIDS, collate)
    owners = [study.id for study in STUDIES for _ in study.series]
    modality, place = batch.images[slot]
    packed = batch.volumes[modality]
    own = slice(*packed.bounds[place : place + 2].tolist())
    tokens = packed.tokens.clone()
    tokens[own] = 255 - tokens[own]
    changed = {**batch.volumes, modality: replace(packed, tokens=tokens)}
    before = model.image_features(batch.volumes, batch.images)
    after = model.image_features(changed, batch.images)
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.allclose(one, other, atol=1e-5) == (place != slot)
    first, second = losses_of(model, batch), losses_of(model, replace(batch, volumes=changed))
    for name in batch.study_ids:
        assert torch.allclose(first[name], second[name], atol=1e-4) == (name != owners[slot])


def test_each_feature_has_exactly_one_image_id(model, connector, collate):
    batch = batch_of(STUDIES, GRIDS, collate)
    features = model.image_features(batch.volumes, batch.images)
    lengths = {name: packed.bounds.diff().tolist() for name, packed in batch.volumes.items()}
    for (modality, place), found in zip(batch.images, features, strict=True):
        said = NUM_QUERIES if connector == "perceiver" else lengths[modality][place]
        assert len(found) == said
    assert int((batch.input_ids == model.image_id).sum()) == sum(map(len, features))
    assert model.slots_per_image == collate.slots_per_image


def test_every_feature_reaches_the_loss(model, collate):
    batch = batch_of(STUDIES, GRIDS, collate)
    features = [
        one.detach().requires_grad_() for one in model.image_features(batch.volumes, batch.images)
    ]
    losses, _ = model.token_losses(batch.input_ids, batch.attention_mask, batch.labels, features)
    losses.sum().backward()
    assert all((one.grad.abs().sum(dim=1) > 0).all() for one in features)


def test_what_is_drawn_for_one_image_is_seen(model, collate):
    batch = batch_of(STUDIES, GRIDS, collate)
    drawn = torch.tensor([[1.4, 0.8, 0.1, 0.0], *[[1.0, 1.0, 0.0, 0.0]] * 2])
    ct = replace(batch.volumes["ct"], intensity=drawn[:2])
    before = model.image_features(batch.volumes, batch.images)
    after = model.image_features({**batch.volumes, "ct": ct}, batch.images)
    moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert [image for image, changed in zip(batch.images, moved, strict=True) if changed] == [
        ("ct", 0)
    ]


def test_a_second_question_can_show_two_more_series(model, collate):
    turns = (
        Turn("user", (ImagePart(0), "What is it?")),
        Turn("assistant", ("a head",)),
        Turn("user", ("And ", ImagePart(1), " and ", ImagePart(2), "?")),
        Turn("assistant", ("more",)),
    )
    study = study_of("g", "T1", "ct", "mri", turns=turns)
    batch = batch_of([study, *STUDIES[:1]], GRIDS, collate)
    together = losses_of(model, batch)["g"]
    (alone,) = losses_of(model, batch_of([study], GRIDS, collate)).values()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_answers_of_a_batch_equal_those_one_by_one(model, collate, texts):
    def answers(studies):
        batch = batch_of(studies, GRIDS, collate)
        prompts = [
            ids[: int((labels != IGNORE).nonzero()[0])]
            for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        ]
        return model.generate(
            prompts,
            model.image_features(batch.volumes, batch.images),
            max_new_tokens=6,
            pad_id=texts["siglip"].pad_id,
            end_ids=[texts["siglip"].end_id],
        )

    together = answers(STUDIES)
    assert together == [answers([study])[0] for study in STUDIES]
    assert len({tuple(ids) for ids in together}) > 1  # the images decide


# ---------------------------------------------------------------- what is trained


TUNINGS = {"frozen": Frozen(), "full": FineTuned(layer_decay=0.5)}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_gradients_reach_the_connector_and_a_tuned_encoder_and_nothing_else(
    texts, connector, collate, tuning
):
    model = make(texts, connector, TUNINGS[tuning])
    batch = batch_of(STUDIES, GRIDS, collate)
    found = gradients_of(model, torch.cat(list(losses_of(model, batch).values())).sum())
    parts = {"connector"} | ({"encoder"} if tuning == "full" else set())
    wanted = {name for name, _ in model.named_parameters() if name.split(".")[0] in parts}
    assert set(found) == wanted
    assert all(one.any() for name, one in found.items() if name.endswith("weight"))
    assert wanted == {name for name, one in model.named_parameters() if one.requires_grad}


def test_adapters_of_the_encoder_are_trained_and_the_rest_of_it_is_not(texts, collate, connector):
    pytest.importorskip("peft")
    model = make(texts, connector, Lora(rank=2))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"connector", "encoder"}
    assert all(".lora_" in name for name in trained if name.startswith("encoder"))
    batch = batch_of(STUDIES, GRIDS, collate)
    found = gradients_of(model, torch.cat(list(losses_of(model, batch).values())).sum())
    assert set(found) == trained


def test_a_policy_can_train_the_language_model_too(texts):
    model = make(texts, policy=Policy(language_model=True, projector=True, lr_scale=0.1))
    trained = {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"connector", "llava"}
    assert model.llava.model.language_model.training


@pytest.mark.parametrize("tuning", TUNINGS)
def test_only_what_is_trained_is_ever_in_training_mode(texts, tuning):
    model = make(texts, tuning=TUNINGS[tuning])
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert all(one.training == mode for one in model.connector.modules())
        tuned = mode and tuning == "full"
        assert all(one.training == tuned for one in model.encoder.modules())
        assert not any(one.training for one in model.llava.modules())


def test_an_encoder_that_was_unfrozen_by_mistake_is_found(texts):
    model = make(texts)
    model.encoder.norm.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"trainable by mistake: \['encoder.norm.weight'"):
        model.check_trainable()
    model = make(texts, tuning=FineTuned())
    model.encoder.norm.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"frozen by mistake: \['encoder.norm.weight'"):
        model.check_trainable()


def test_the_first_layers_of_a_tuned_encoder_learn_more_slowly(texts):
    model = make(texts, tuning=TUNINGS["full"])
    rates = {
        id(one): group["lr_scale"]
        for group in layerwise_groups(model.paces(), 0.1)
        for one in group["params"]
    }
    of = {name: rates.get(id(one)) for name, one in model.named_parameters()}
    assert {of[name] for name in of if name.startswith("connector")} == {1.0}
    assert of["encoder.token_embed.proj.weight"] == 0.5**4
    assert of["encoder.blocks.0.mixer.qkv.weight"] == 0.5**3
    assert of["encoder.norm.weight"] == 0.5
    assert len(rates) == sum(one.requires_grad for one in model.parameters())
    frozen = layerwise_groups(make(texts).paces(), 0.1)
    assert all(group["lr_scale"] == 1.0 for group in frozen)


def test_the_table_has_a_row_for_encoder_and_connector(texts, connector):
    model = make(texts, connector)
    table = {name: (total, trained) for name, total, trained in model.parameter_table()}
    size = sum(one.numel() for one in model.encoder.parameters())
    assert table["eye encoder"] == (size, 0)
    size = sum(one.numel() for one in model.connector.parameters())
    assert table["eye connector"] == (size, size)
    assert sum(total for total, _ in table.values()) == sum(p.numel() for p in model.parameters())


def test_the_tower_and_the_projector_are_gone(model):
    names = {name for name, _ in model.named_parameters()}
    assert not any("vision_tower" in name or "projector" in name for name in names)


# ---------------------------------------------------------------- weights


def test_a_checkpoint_holds_a_frozen_encoder_too(texts, connector):
    first, other = make(texts, connector, seed=1), make(texts, connector, seed=2)
    kept = {name: one for name, one in first.state_dict().items() if name in first.kept_names()}
    assert {name.split(".")[0] for name in kept} == {"encoder", "connector"}
    missing, unexpected = other.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(name.startswith("llava.") for name in missing)
    for name in ("encoder", "connector"):
        for one, two in zip(
            getattr(first, name).parameters(), getattr(other, name).parameters(), strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("prefix", ["teacher.", ""], ids=["a jepa run", "the public layout"])
@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_it_begins_with_the_weights_of_a_pretrained_encoder(
    texts, tmp_path, caplog, prefix, tuning
):
    if tuning == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(5)
    held = VisionTransformer(48, 2, 3, patch_voxels=32)
    weights = {f"{prefix}{name}": one for name, one in held.state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": weights}, tmp_path / "checkpoints/best.ckpt")
    with caplog.at_level("INFO"):
        model = make(texts, tuning={"frozen": Frozen(), "lora": Lora()}[tuning], init_from=tmp_path)
    assert "matched" in caplog.text
    tokens, coords = torch.randn(5, 32), torch.randint(3, (5, 3))
    bounds = torch.tensor([0, 5])  # adapters change nothing at first
    torch.testing.assert_close(model.encoder(tokens, coords, bounds), held(tokens, coords, bounds))


def test_an_encoder_of_another_size_is_refused(texts, tmp_path):
    torch.save(VisionTransformer(48, 3, 3, patch_voxels=32).state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x.pt: .* unexpected: blocks.2"):
        make(texts, init_from=tmp_path / "x.pt")


# ---------------------------------------------------------------- images


def test_a_four_dimensional_modality_is_refused(texts):
    with pytest.raises(InputError, match=r"rsfMRI have 4 axes; an encoder of system=jepa"):
        make(texts).check_grids({"rsfMRI": Grid((8, 8, 8, 8), (2, 4, 2, 2))})


def test_other_patches_are_refused_with_the_number_to_set(texts):
    with pytest.raises(
        InputError, match=r"a token of mri has 64 voxels .* Set data.patch_voxels=64"
    ):
        make(texts).check_grids({"T1": GRIDS["T1"], "mri": Grid((8, 8, 8), (4, 4, 4))})
    make(texts).check_grids(GRIDS)


def test_a_language_model_in_half_precision_gets_features_of_its_kind(texts, collate, connector):
    text = texts["siglip"]
    torch.manual_seed(0)
    model = VitLlava(
        small_llava("siglip", len(text.tokenizer), text.image_id).to(torch.bfloat16),
        VisionTransformer(48, 2, 3, patch_voxels=32),
        CONNECTORS[connector],
        Frozen(),
        Policy(),
    )
    batch = batch_of(STUDIES, GRIDS, collate)
    assert {one.dtype for one in model.image_features(batch.volumes, batch.images)} == {
        torch.bfloat16
    }
    found = gradients_of(model, torch.cat(list(losses_of(model, batch).values())).sum())
    assert {one.dtype for one in found.values()} == {torch.float32}
