"""Packed equals one by one; only the embedders move; real checkpoints load, broken ones do not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_llava import (
    batch_of,
    mixed_studies,
    num_features,
    small_llava,
    study_of,
    volume_llava,
)
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from neuro.data.conversation import ImagePart, Turn
from neuro.data.text import IGNORE
from neuro.errors import InputError
from neuro.models.llava import load_llava, load_tokenizer
from neuro.models.policy import Policy
from neuro.models.tower_llava import TowerLlava

STUDIES = mixed_studies()


def features_of(model, batch):
    return model.image_features(batch.volumes, batch.images)


def losses_of(model, batch):
    """Return the loss of each supervised token, by study."""
    losses, study = model.token_losses(
        batch.input_ids, batch.attention_mask, batch.labels, features_of(model, batch)
    )
    return {name: losses[study == row] for row, name in enumerate(batch.study_ids)}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    named = model.embeddings.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


def with_noise(batch, modality, place):
    """Return the batch with other voxels in one of its images."""
    packed = batch.volumes[modality]
    start, end = packed.bounds[place : place + 2].tolist()
    tokens = packed.tokens.clone()
    tokens[start:end] = tokens[start:end].flip(0).flip(1) + 1
    return replace(batch, volumes={**batch.volumes, modality: replace(packed, tokens=tokens)})


# ---------------------------------------------------------------- packed equals one by one


def test_a_mixed_batch_equals_its_studies_one_by_one(model, collate, recipes):  # D12-D15, D19
    together = losses_of(model, batch_of(STUDIES, recipes, collate))
    for study in STUDIES:
        (alone,) = losses_of(model, batch_of([study], recipes, collate)).values()
        torch.testing.assert_close(together[study.id], alone, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_mixed_batch_are_the_sum_of_its_studies(model, collate, recipes):
    together = losses_of(model, batch_of(STUDIES, recipes, collate))
    packed = gradients_of(model, torch.cat(list(together.values())).sum())
    sums = {name: torch.zeros_like(one) for name, one in packed.items()}
    for study in STUDIES:
        (alone,) = losses_of(model, batch_of([study], recipes, collate)).values()
        for name, gradient in gradients_of(model, alone.sum()).items():
            sums[name] += gradient
    assert len(packed) == 9  # all modalities are in the batch
    for name, gradient in packed.items():
        scale = float(gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(gradient, sums[name], rtol=1e-3, atol=1e-4 * scale)


def test_the_order_of_studies_changes_only_the_order_of_rows(model, collate, recipes):
    first = losses_of(model, batch_of(STUDIES, recipes, collate))
    turned = batch_of([STUDIES[index] for index in (5, 2, 0, 3, 1, 4)], recipes, collate)
    assert turned.study_ids == ("f", "c", "a", "d", "b", "e")
    for name, losses in losses_of(model, turned).items():
        torch.testing.assert_close(losses, first[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slot", range(9))
def test_another_image_changes_only_the_study_that_shows_it(model, collate, recipes, slot):  # D19
    batch = batch_of(STUDIES, recipes, collate)
    owner = [
        name
        for name, count in zip(batch.study_ids, batch.num_images_per_sample, strict=True)
        for _ in range(count)
    ][slot]
    before = losses_of(model, batch)
    after = losses_of(model, with_noise(batch, *batch.images[slot]))
    for name in batch.study_ids:
        change = (after[name] - before[name]).abs().max()
        assert change > 1e-2 if name == owner else change < 1e-4


def test_two_images_of_one_study_are_told_apart(model, collate, recipes):  # D19, D36
    batch = batch_of([study_of("d", "T1", "T1")], recipes, collate)
    features = features_of(model, batch)
    cut = slice(0, min(len(one) for one in features))
    assert not torch.allclose(features[0][cut], features[1][cut])
    turned = features_of(model, replace(batch, images=batch.images[::-1]))
    assert all(map(torch.equal, turned, features[::-1]))


def test_each_feature_has_exactly_one_image_id(model, collate, recipes):  # D12, D13
    batch = batch_of(STUDIES, recipes, collate)
    features = features_of(model, batch)
    assert len({len(one) for one in features}) > 3  # ragged
    assert sum(map(len, features)) == num_features(batch.volumes)
    assert int((batch.input_ids == model.image_id).sum()) == num_features(batch.volumes)
    first = 0
    for row, count in enumerate(batch.num_images_per_sample):
        own = sum(map(len, features[first : first + count]))
        assert int((batch.input_ids[row] == model.image_id).sum()) == own
        first += count


def test_every_feature_of_every_image_reaches_the_loss(model, collate, recipes):  # D12
    batch = batch_of(STUDIES, recipes, collate)
    features = [one.detach().requires_grad_() for one in features_of(model, batch)]
    losses, _ = model.token_losses(batch.input_ids, batch.attention_mask, batch.labels, features)
    losses.sum().backward()
    assert all((one.grad.abs().sum(dim=1) > 0).all() for one in features)


def test_the_first_token_is_not_taken_for_a_class_token(texts, recipes, collate):  # D12
    llava = small_llava("clip", len(texts["clip"].tokenizer), texts["clip"].image_id)
    assert llava.config.vision_feature_select_strategy == "default"
    model = TowerLlava(llava, recipes, Policy())
    batch = batch_of([study_of("a", "T1")], recipes, collate)
    (features,) = features_of(model, batch)
    assert len(features) == len(batch.volumes["T1"].tokens)
    packed = batch.volumes["T1"]
    tokens = torch.cat([255 - packed.tokens[:1], packed.tokens[1:]])
    changed = {"T1": replace(packed, tokens=tokens)}
    (other,) = model.image_features(changed, batch.images)
    assert not torch.allclose(other[0], features[0])


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_image_ids_than_features_is_an_error(
    model, collate, recipes, extra
):  # D13
    batch = batch_of(STUDIES[:2], recipes, collate)
    features = features_of(model, batch)
    features[0] = features[0][:-1] if extra < 0 else torch.cat([features[0], features[0][:1]])
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model.token_losses(batch.input_ids, batch.attention_mask, batch.labels, features)


def test_padding_does_not_matter(model, collate, recipes):  # D31
    batch = batch_of(STUDIES, recipes, collate)
    other = batch.input_ids.masked_fill(batch.attention_mask == 0, 7)
    before, after = losses_of(model, batch), losses_of(model, replace(batch, input_ids=other))
    for name in batch.study_ids:
        torch.testing.assert_close(before[name], after[name], rtol=1e-4, atol=1e-4)


def test_an_unknown_modality_is_an_error(model, collate, recipes):  # D16
    batch = batch_of([study_of("a", "T1")], recipes, collate)
    with pytest.raises(KeyError, match="CT"):
        model.image_features({"CT": batch.volumes["T1"]}, (("CT", 0),))


def test_t1_and_dmri_of_the_same_voxels_give_other_features(model, collate, recipes):  # D16
    packed = batch_of([study_of("a", "T1")], recipes, collate).volumes["T1"]
    (as_t1,) = model.image_features({"T1": packed}, (("T1", 0),))
    (as_fa,) = model.image_features({"dMRI": packed}, (("dMRI", 0),))
    assert not torch.allclose(as_t1, as_fa)


# ---------------------------------------------------------------- what is trained


def test_exactly_the_embedders_are_trainable(model):
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    prefix = "llava.model.vision_tower.embeddings."
    assert trained == {prefix + name for name, _ in model.embeddings.named_parameters()}
    assert len(trained) == 9


def test_frozen_parts_get_no_gradient(model, collate, recipes):
    losses = losses_of(model, batch_of(STUDIES, recipes, collate))
    torch.cat(list(losses.values())).sum().backward()
    for name, one in model.named_parameters():
        assert (one.grad is not None) == ("embedders" in name), name


@pytest.mark.parametrize(
    "unfrozen",
    [
        "llava.lm_head",
        "llava.model.multi_modal_projector",
        "llava.model.vision_tower.post_layernorm",
        "llava.model.language_model.norm",
    ],
)
def test_anything_else_that_is_trainable_is_an_error(model, unfrozen):
    model.get_submodule(unfrozen).requires_grad_(True)
    with pytest.raises(RuntimeError, match=rf"trainable by mistake: \['{unfrozen}"):
        model.check_trainable()


def test_a_frozen_embedder_is_an_error(model):
    model.embeddings.embedders["dMRI"].projection.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"frozen by mistake: .*dMRI\.projection\.bias.*1 and 0"):
        model.check_trainable()


def test_a_model_without_embedders_is_an_error(encoder, kind):
    llava = small_llava(kind, len(encoder.tokenizer), encoder.image_id)
    with pytest.raises(RuntimeError, match="exactly those of the eye"):
        TowerLlava(llava, {}, Policy())


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_counts_every_parameter_once(kind, encoder, recipes, tied):
    model = volume_llava(kind, encoder, recipes, tied=tied)
    table = {name: (total, trained) for name, total, trained in model.parameter_table()}
    assert sum(total for total, _ in table.values()) == sum(
        one.numel() for one in model.parameters()
    )
    assert sum(trained for _, trained in table.values()) == sum(
        one.numel() for one in model.embeddings.parameters()
    )
    tied_head = model.llava.lm_head.weight is model.llava.get_input_embeddings().weight
    assert tied_head == tied
    for modality, embedder in model.embeddings.embedders.items():
        count = sum(one.numel() for one in embedder.parameters())
        assert table[f"eye {modality}"] == (count, count)
    frozen = ("vision tower", "projector", "language model")
    assert all(table[name][1] == 0 for name in frozen)


def test_frozen_parts_stay_in_evaluation_mode_and_embedders_follow(model):  # D77
    for mode in (True, False, True):
        assert model.train(mode) is model
        trained = {one for part in model.eye.values() for one in part.modules()}
        assert all(one.training == mode for one in trained)
        assert not any(one.training for one in model.llava.modules() if one not in trained)
    outer = torch.nn.ModuleList([model]).eval()
    assert not any(one.training for one in model.modules())
    outer.train()
    assert model.eye["T1"].training
    assert not model.llava.model.language_model.training


def test_dropout_of_the_frozen_parts_is_off_in_training(kind, encoder, collate, recipes):  # D77
    model = volume_llava(kind, encoder, recipes)
    for one in model.modules():
        if hasattr(one, "attention_dropout"):
            one.attention_dropout = 0.5
        if hasattr(one, "dropout") and isinstance(one.dropout, float):
            one.dropout = 0.5
    model.train()
    batch = batch_of(STUDIES[:3], recipes, collate)
    first, second = losses_of(model, batch), losses_of(model, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_kind_of_tower_is_an_error(recipes):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
        text_config=LlamaConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
        ),
        image_token_index=3,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.config.model_type = "pixtral"
    with pytest.raises(InputError, match="'pixtral' is not supported; known are clip"):
        TowerLlava(llava, recipes, Policy())


# ---------------------------------------------------------------- answers


def prompts_and_features(model, batch):
    """Return each study's ids up to its answer, and its features."""
    features, first, shown = features_of(model, batch), 0, []
    prompts = []
    for row, count in enumerate(batch.num_images_per_sample):
        start = int((batch.labels[row] != IGNORE).nonzero()[0])
        prompts.append(batch.input_ids[row, :start])
        shown.append(features[first : first + count])
        first += count
    return prompts, shown


def test_answers_of_a_batch_equal_those_one_by_one(model, collate, recipes, encoder):  # D67: greedy
    batch = batch_of(STUDIES, recipes, collate)
    prompts, shown = prompts_and_features(model, batch)
    assert len({len(prompt) for prompt in prompts}) > 3  # so there is padding on the left
    limits = {"max_new_tokens": 8, "pad_id": encoder.pad_id, "end_ids": [encoder.end_id]}
    flat = [feature for own in shown for feature in own]
    together = model.generate(prompts, flat, **limits)
    alone = [
        model.generate([prompt], own, **limits)[0]
        for prompt, own in zip(prompts, shown, strict=True)
    ]
    assert together == alone
    assert len({tuple(ids) for ids in together}) > 1  # the images decide


def test_what_a_model_s_file_says_of_generation_changes_no_answer(model, collate, recipes, encoder):
    prompts, shown = prompts_and_features(model, batch_of(STUDIES, recipes, collate))
    flat = [feature for own in shown for feature in own]
    limits = {"max_new_tokens": 8, "pad_id": encoder.pad_id, "end_ids": [encoder.end_id]}
    plain, before = model.generate(prompts, flat, **limits), model.llava.generation_config
    own = GenerationConfig(do_sample=True, repetition_penalty=5.0, min_new_tokens=8, num_beams=2)
    model.llava.generation_config = own
    try:
        assert model.generate(prompts, flat, **limits) == plain
        assert model.llava.generation_config is own  # and is exported as it was
    finally:
        model.llava.generation_config = before


def test_short_answers_of_a_batch_end_while_long_ones_go_on(model, collate, recipes, encoder):
    prompts, shown = prompts_and_features(model, batch_of(STUDIES, recipes, collate))
    flat = [feature for own in shown for feature in own]
    limits = {"max_new_tokens": 8, "pad_id": encoder.pad_id}
    free = model.generate(prompts, flat, end_ids=[-1], **limits)
    numbers = set()
    for end in sorted({one for ids in free for one in ids})[:6]:
        ended = model.generate(prompts, flat, end_ids=[end], **limits)
        assert ended == [ids[: ids.index(end)] if end in ids else ids for ids in free]
        numbers.add(len({len(ids) for ids in ended}))
    assert max(numbers) > 1


def test_an_answer_is_what_the_model_finds_most_likely(model, collate, recipes, encoder):
    batch = batch_of(STUDIES[:1], recipes, collate)
    (prompt,), (own,) = prompts_and_features(model, batch)
    (ids,) = model.generate([prompt], own, max_new_tokens=3, pad_id=encoder.pad_id, end_ids=[-1])
    words = torch.arange(len(encoder.tokenizer))
    for count, said in enumerate(ids):
        so_far = torch.cat([prompt, torch.tensor(ids[:count], dtype=torch.long)])
        rows = torch.cat([so_far.expand(len(words), -1), words[:, None]], dim=1)
        rows[rows[:, -1] == model.image_id, -1] = 0  # an image id would want a feature
        targets = torch.full_like(rows, IGNORE)
        targets[:, -1] = words
        with torch.no_grad():
            losses, _ = model.token_losses(rows, torch.ones_like(rows), targets, own * len(words))
        assert int(losses.argmin()) == said


def test_an_answer_ends_before_its_end_token(model, collate, recipes, encoder):  # D32
    batch = batch_of(STUDIES[:1], recipes, collate)
    prompts, (own,) = prompts_and_features(model, batch)
    limits = {"max_new_tokens": 8, "pad_id": encoder.pad_id}
    (ids,) = model.generate(prompts, own, end_ids=[-1], **limits)
    for end in set(ids):
        (cut,) = model.generate(prompts, own, end_ids=[end], **limits)
        assert cut == ids[: ids.index(end)]


def test_a_question_after_an_answer_can_show_another_image(model, collate, recipes):
    turns = (
        Turn("user", (ImagePart(0), "What is it?")),
        Turn("assistant", ("a head",)),
        Turn("user", ("And ", ImagePart(1), " this?")),
        Turn("assistant", ("another",)),
    )
    study = study_of("g", "T1", "dMRI", turns=turns)
    batch = batch_of([study, *STUDIES[:2]], recipes, collate)
    before = losses_of(model, batch)["g"]
    assert batch.images[:2] == (("T1", 0), ("dMRI", 0))
    after = losses_of(model, with_noise(batch, "dMRI", 0))["g"]
    spoken = batch.labels[0] != IGNORE
    num_first = int(spoken[: int((batch.input_ids[0] == model.image_id).nonzero()[-1])].sum())
    torch.testing.assert_close(after[:num_first], before[:num_first])  # it was said before
    assert (after[num_first:] - before[num_first:]).abs().max() > 1e-2


# ---------------------------------------------------------------- checkpoints


HUB_NAMES = {  # how the checkpoints on the hub are called, from how transformers 5 saves them
    "clip": ("vision_tower.", "vision_tower.vision_model."),
    "siglip": ("vision_tower.", "vision_tower.vision_model."),
}


@pytest.fixture(params=["as saved", "as on the hub"])
def folder(request, kind, encoder, tmp_path):
    """A checkpoint with its tokenizer beside it."""
    llava = small_llava(kind, len(encoder.tokenizer), encoder.image_id, tied=kind == "siglip")
    llava.save_pretrained(tmp_path / "llava")
    encoder.tokenizer.save_pretrained(tmp_path / "llava")
    if request.param == "as on the hub":
        path = tmp_path / "llava/model.safetensors"
        old, new = HUB_NAMES[kind]
        weights = {
            name.replace(old, new) if new not in name else name: one
            for name, one in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
    return tmp_path / "llava"


def test_a_checkpoint_gives_back_the_model_that_was_saved(folder, kind, encoder, recipes, collate):
    loaded = load_llava(str(folder), "float32")
    llava = small_llava(kind, len(encoder.tokenizer), encoder.image_id, tied=kind == "siglip")
    expected = llava.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in loaded.state_dict().items())
    torch.manual_seed(0)
    model = TowerLlava(loaded, recipes, Policy())
    torch.manual_seed(0)
    other = TowerLlava(llava, recipes, Policy())
    batch = batch_of(STUDIES, recipes, collate)
    first, second = losses_of(model, batch), losses_of(other, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tokenizer_beside_it_writes_the_same_ids(folder, encoder):
    loaded = load_tokenizer(str(folder))
    said = "<image>On which side? left" + encoder.tokenizer.eos_token
    assert loaded(said)["input_ids"] == encoder.tokenizer(said)["input_ids"]
    assert loaded.convert_tokens_to_ids("<image>") == encoder.image_id
    assert loaded.pad_token_id == encoder.tokenizer.pad_token_id


@pytest.mark.parametrize("folder", ["as on the hub"], indirect=True)
def test_frozen_weights_in_bfloat16_leave_the_embedders_in_float32_and_training(
    folder, recipes, collate, encoder
):  # D75
    torch.manual_seed(0)
    model = TowerLlava(load_llava(str(folder), "bfloat16"), recipes, Policy())
    for name, one in model.named_parameters():
        assert one.dtype == (torch.float32 if "embedders" in name else torch.bfloat16), name
    batch = batch_of(STUDIES[:3], recipes, collate)
    assert set(batch.volumes) == set(recipes)
    before = {name: one.detach().clone() for name, one in model.embeddings.named_parameters()}
    optimizer = torch.optim.AdamW(model.embeddings.parameters(), lr=5e-5, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.cat(list(losses_of(model, batch).values())).mean()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
    for name, one in model.embeddings.named_parameters():
        assert one.grad.dtype == torch.float32
        moved = (one.detach() != before[name])[one.grad != 0]
        # In bfloat16 a weight of 0.02 would not move by 5e-5.
        assert moved.float().mean() > 0.99, name
    limits = {"max_new_tokens": 2, "pad_id": encoder.pad_id, "end_ids": [encoder.end_id]}
    prompts, shown = prompts_and_features(model, batch)
    flat = [feature for own in shown for feature in own]
    assert len(model.generate(prompts, flat, **limits)) == 3


def test_a_missing_folder_is_named_with_its_cure(tmp_path):
    name = str(tmp_path / "nowhere")
    for load in (lambda: load_llava(name, "float32"), lambda: load_tokenizer(name)):
        with pytest.raises(InputError, match=r"nowhere' cannot be loaded .*hf download"):
            load()


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_llava(str(folder), "float32")


def test_a_folder_without_a_tokenizer_is_named(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("part", ["vision_tower", "language_model.model.layers.1", "linear_2"])
def test_a_checkpoint_that_lacks_weights_is_refused(folder, part):  # D23
    path = folder / "model.safetensors"
    weights = {name: one for name, one in load_file(path).items() if part not in name}
    assert len(weights) < len(load_file(path))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks \d+ weights, for example .*Take a complete one"):
        load_llava(str(folder), "float32")


def test_a_checkpoint_of_another_width_is_refused(folder):  # D23
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["intermediate_size"] = 48
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks|cannot be loaded"):
        load_llava(str(folder), "float32")


def test_volumes_of_another_grid_do_not_pass(model, collate, recipes):  # D18
    packed = batch_of([study_of("a", "T1")], recipes, collate).volumes["T1"]
    short = replace(packed, tokens=packed.tokens[:, :-12])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.image_features({"T1": short}, (("T1", 0),))
