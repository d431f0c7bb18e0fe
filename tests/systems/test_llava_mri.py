"""Learning to talk about brain images: what a batch costs, what is answered, what is learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from small_llava import (
    batch_of,
    mixed_studies,
    qwen_tokenizer,
    series_of,
    small_llava,
    study_of,
    vicuna_tokenizer,
    volume_llava,
)
from torch.utils.data import DataLoader

from neuro.command import explain
from neuro.data.answers import Answer, score
from neuro.data.augment import Draw
from neuro.data.collate import Background, ConversationCollator
from neuro.data.conversation import ImagePart, Turn
from neuro.data.spelled import SpelledFacts
from neuro.data.text import IGNORE
from neuro.errors import InputError
from neuro.models.llava import VolumeLlava
from neuro.models.tiny import tiny_llava
from neuro.systems.llava_mri import LlavaMRI, last_turn

CONF = Path(__file__).parents[2] / "conf"
STUDIES = mixed_studies()


def gradients_of(system, loss):
    system.zero_grad()
    loss.backward()
    return {
        name: one.grad.clone() for name, one in system.named_parameters() if one.grad is not None
    }


# ---------------------------------------------------------------- the loss


def test_the_loss_of_a_mixed_batch_is_the_token_mean_of_its_studies(
    system, collate, recipes
):  # D12-D15, D19
    mixed = system.losses(batch_of(STUDIES, recipes, collate))
    total, count = 0.0, 0.0
    for study in STUDIES:
        alone = system.losses(batch_of([study], recipes, collate))
        total += float(alone["loss"].detach() * alone["supervised_tokens"])
        count += float(alone["supervised_tokens"])
    assert float(mixed["supervised_tokens"]) == count
    assert float(mixed["loss"].detach()) == pytest.approx(total / count, rel=1e-5)


def test_the_gradient_of_a_mixed_batch_is_the_token_mean_of_its_studies(system, collate, recipes):
    mixed = system.losses(batch_of(STUDIES, recipes, collate))
    packed = gradients_of(system, mixed["loss"])
    sums = {name: torch.zeros_like(one) for name, one in packed.items()}
    for study in STUDIES:
        alone = system.losses(batch_of([study], recipes, collate))
        share = alone["supervised_tokens"] / mixed["supervised_tokens"]
        for name, gradient in gradients_of(system, alone["loss"] * share).items():
            sums[name] += gradient
    for name, gradient in packed.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, sums[name], rtol=1e-3, atol=1e-4 * scale)


def test_the_order_of_studies_does_not_change_the_loss(system, collate, recipes):
    first = system.losses(batch_of(STUDIES, recipes, collate))
    other = system.losses(batch_of(STUDIES[::-1], recipes, collate))
    assert first.keys() == other.keys()
    for name, one in first.items():
        torch.testing.assert_close(one, other[name], rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_modality_is_that_of_the_studies_that_show_it(system, collate, recipes):
    named = system.losses(batch_of(STUDIES, recipes, collate))
    for modality in recipes:
        own = [study for study in STUDIES if modality in study.modalities]
        alone = system.losses(batch_of(own, recipes, collate))["loss"]
        torch.testing.assert_close(named[f"loss_{modality}"], alone.detach())
        assert not named[f"loss_{modality}"].requires_grad
    only = system.losses(batch_of([study_of("a", "T1")], recipes, collate))
    assert set(only) == {"loss", "loss_T1", "supervised_tokens"}


def test_the_loss_is_that_of_the_language_model_itself(system, collate, recipes):
    """transformers computes it too, from all logits at once."""
    batch = batch_of(STUDIES, recipes, collate)
    features = system.llava.image_features(batch.volumes, batch.images)
    embeddings = system.llava.llava.get_input_embeddings()(batch.input_ids)
    embeddings[batch.input_ids == system.text.image_id] = torch.cat(features)
    expected = system.llava.llava(
        inputs_embeds=embeddings, attention_mask=batch.attention_mask, labels=batch.targets
    ).loss
    torch.testing.assert_close(system.losses(batch)["loss"], expected)


def test_a_tokenizer_of_another_model_is_an_error(make_system, texts, recipes):
    llava = VolumeLlava(small_llava("siglip", len(texts["siglip"].tokenizer), 77), recipes)
    with pytest.raises(InputError, match="'<image>' has id 3, the model's has 77"):
        make_system(llava=llava)


# ---------------------------------------------------------------- training


def test_an_inactive_modality_stays_bit_identical(
    make_system, make_datamodule, make_trainer, weights_of
):  # D58
    system = make_system(weight_decay=0.5)
    before = weights_of(system)
    trainer = make_trainer(max_steps=100)
    trainer.fit(system, make_datamodule(modalities=["T1"], pairs=[]))
    assert trainer.global_step == 100
    for name, one in weights_of(system).items():
        assert torch.equal(one, before[name]) == ("T1" not in name), name


def test_a_modality_that_comes_and_goes_moves_only_when_it_is_there(
    make_system, collate, recipes, kind, weights_of
):  # D58: Adam's moments must not move what is not shown
    system = make_system(kind)
    optimizer = torch.optim.AdamW(
        [one for one in system.parameters() if one.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for shown in ("T1", "dMRI", "T1"):
        before = weights_of(system)
        optimizer.zero_grad()
        system.losses(batch_of([study_of("a", shown)], recipes, collate))["loss"].backward()
        optimizer.step()
        for name, one in weights_of(system).items():
            assert torch.equal(one, before[name]) == (f".{shown}." not in name), name


def test_dmri_trains_validates_and_is_answered_about(
    make_system, make_datamodule, make_trainer, kind, weights_of
):  # D59
    system, data = make_system(kind), make_datamodule(kind, modalities=["dMRI"], pairs=[])
    before = weights_of(system)
    trainer = make_trainer(max_steps=2, limit_val_batches=1.0, val_check_interval=1)
    trainer.fit(system, data)
    moved = {name for name, one in weights_of(system).items() if not torch.equal(one, before[name])}
    assert moved == {name for name in before if "dMRI" in name}
    assert math.isfinite(trainer.callback_metrics["val/loss_dMRI"])
    trainer.test(system, data, verbose=False)
    assert {answer.modalities for answer in system.answers[""]} == {("dMRI",)}
    assert "test/exact_match_tract" in trainer.callback_metrics


def test_a_part_that_was_unfrozen_stops_the_run(make_system, make_datamodule, make_trainer):
    system = make_system()
    system.llava.llava.lm_head.requires_grad_(True)
    with pytest.raises(RuntimeError, match="trainable by mistake"):
        make_trainer().fit(system, make_datamodule())


def test_an_embedder_that_was_frozen_stops_the_run(make_system, make_datamodule, make_trainer):
    system = make_system()
    system.llava.embeddings.embedders["T1"].requires_grad_(False)
    with pytest.raises(RuntimeError, match="frozen by mistake"):
        make_trainer().fit(system, make_datamodule())


def test_an_image_that_no_embedder_takes_stops_the_run(make_system, make_datamodule, recipes):
    """A grid that follows the scan has no table of positions, so no embedder either."""
    data = make_datamodule()
    few = {name: one for name, one in recipes.items() if name != "dMRI"}
    text = make_system().text
    system = make_system(llava=volume_llava("siglip", text, few), text=text)
    data.prepare_data()
    with pytest.raises(InputError, match=r"modality dMRI; llava_mri has embedders for T1, rsfMRI"):
        system.prepare(data)


def test_what_is_drawn_for_an_image_changes_the_loss(system, collate, recipes):
    items = series_of(study_of("a", "T1", "dMRI"), recipes)
    plain = system.losses(collate(items))
    drawn = [replace(one, draw=Draw(intensity=(1.4, 0.8, 0.1, 0.3), seed=5)) for one in items]
    changed = system.losses(collate(drawn))
    assert float(changed["loss"].detach()) != pytest.approx(float(plain["loss"].detach()), rel=1e-3)
    again = system.losses(collate(drawn))
    assert torch.equal(changed["loss"], again["loss"])  # the noise too is what was drawn


def test_frozen_parts_stay_in_evaluation_mode_through_a_run(
    make_system, make_datamodule, make_trainer, watch
):  # D77
    class Modes(watch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            llava = pl_module.llava
            modes.append((llava.embeddings.training, llava.llava.model.language_model.training))

    modes = []
    trainer = make_trainer(
        max_steps=3, callbacks=[Modes()], limit_val_batches=1.0, val_check_interval=1
    )
    trainer.fit(make_system(), make_datamodule())
    assert modes == [(True, False)] * 3


# ---------------------------------------------------------------- validation


def test_the_validation_loss_is_the_mean_over_all_tokens_of_the_split(
    make_system, make_datamodule, make_trainer, kind
):  # D66
    system, data = make_system(kind), make_datamodule(kind, max_studies=3)
    (found,) = make_trainer(limit_val_batches=1.0).validate(system, data, verbose=False)
    batches = list(data.val_dataloader())
    assert len({batch.num_studies for batch in batches}) > 1  # the last one is smaller
    with torch.no_grad():
        each = [system.losses(batch) for batch in batches]
    total = sum(float(one["loss"] * one["supervised_tokens"]) for one in each)
    count = sum(float(one["supervised_tokens"]) for one in each)
    assert found["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert set(found) == {"val/loss", "val/loss_T1", "val/loss_dMRI", "val/loss_rsfMRI"}
    assert all(math.isfinite(value) for value in found.values())


def test_the_validation_loss_does_not_depend_on_the_size_of_a_batch(
    make_system, make_datamodule, make_trainer
):
    system = make_system()
    found = [
        make_trainer(limit_val_batches=1.0).validate(
            system, make_datamodule(max_studies=size), verbose=False
        )[0]
        for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_validating_twice_gives_the_same(make_system, make_datamodule, make_trainer):
    system, data = make_system(), make_datamodule()
    trainer = make_trainer(limit_val_batches=1.0)
    first = trainer.validate(system, data, verbose=False)
    assert trainer.validate(system, data, verbose=False) == first


def test_the_split_shows_every_modality_in_singles_and_pairs(make_datamodule):
    data = make_datamodule()
    data.prepare_data()
    shown = {study.modalities for study in data.studies["val"]}
    assert len(shown) == 5


# ---------------------------------------------------------------- answers


def test_answers_do_not_depend_on_the_batch(system, collate, recipes):
    together = system.answer(batch_of(STUDIES, recipes, collate))
    alone = [system.answer(batch_of([study], recipes, collate))[0] for study in STUDIES]
    assert together == alone
    turned = system.answer(batch_of(STUDIES[::-1], recipes, collate))
    assert turned == together[::-1]
    assert len({answer.said for answer in together}) > 1


def test_the_target_is_what_should_be_said_and_the_prompt_never_holds_it(
    system, collate, recipes
):  # D37
    studies = [
        study_of(name, "T1", "dMRI", answer=word) for name, word in (("a", "zebra"), ("b", "yak"))
    ]
    batch = batch_of(studies, recipes, collate)
    for row, (study, answer) in enumerate(zip(studies, system.answer(batch), strict=True)):
        said = study.conversation.turns[-1].text
        assert answer.target == said
        assert said not in answer.prompt
        assert study.conversation.turns[0].text.strip() in answer.prompt
        assert answer.study_id == study.id
        assert answer.modalities == ("T1", "dMRI")
        start = last_turn(batch.targets[row])
        assert (batch.targets[row, :start] == IGNORE).all()
        assert batch.targets[row, start] == batch.input_ids[row, start]


def test_the_prompt_ends_where_the_assistant_begins(system, collate, recipes, kind):
    (answer,) = system.answer(batch_of([study_of("a", "T1")], recipes, collate))
    assert answer.prompt.endswith({"clip": "ASSISTANT:", "siglip": "assistant"}[kind])


def test_the_image_decides_what_is_said(make_system, collate, recipes, kind):
    system = make_system(kind)
    one, other = study_of("a", "T1"), study_of("z", "T1")  # the same words, other voxels
    (first,), (second,) = (
        system.answer(batch_of([study], recipes, collate)) for study in (one, other)
    )
    assert first.prompt == second.prompt
    assert first.said != second.said


def test_only_the_last_answer_is_asked_for_and_the_earlier_ones_are_given(
    system, collate, recipes
):  # D66
    turns = (
        Turn("user", (ImagePart(0), "First?")),
        Turn("assistant", ("zebra",)),
        Turn("user", (ImagePart(1), "Second?")),
        Turn("assistant", ("yak",)),
    )
    study = study_of("g", "rsfMRI", "T1", turns=turns)
    batch = batch_of([study, STUDIES[0]], recipes, collate)
    answer, other = system.answer(batch)
    assert "zebra" in answer.prompt
    assert "Second?" in answer.prompt
    assert "yak" not in answer.prompt
    assert answer.target == "yak"
    assert [other] == system.answer(batch_of(STUDIES[:1], recipes, collate))
    # The same batch gives a loss, and both answers are in it.
    assert bool(system.losses(batch)["loss"].isfinite())
    spoken = batch.targets[0][batch.targets[0] != IGNORE]
    decoded = system.text.tokenizer.decode(spoken)
    assert "zebra" in decoded
    assert "yak" in decoded


@pytest.mark.parametrize(
    ("targets", "start"),
    [([-100, 5, 6], 1), ([4, -100, 5], 2), ([4, 5, 6], 0), ([-100, 4, -100, 5, 5, -100], 3)],
)
def test_the_last_turn_begins_where_speech_begins_for_the_last_time(targets, start):
    assert last_turn(torch.tensor(targets)) == start


def test_gold_answers_score_exactly_one(make_system, make_datamodule, kind, texts):  # D63
    data = make_datamodule(kind)
    data.prepare_data()
    system = make_system(kind, max_new_tokens=1)
    answers = [one for batch in data.train_dataloader() for one in system.answer(batch)]
    gold = {study.id: study.conversation.turns[-1].text for study in data.studies["train"]}
    assert {one.study_id: one.target for one in answers} == gold
    right = [replace(one, said=one.target) for one in answers]
    scores = score(right)
    assert {"exact_match_sex", "balanced_accuracy_tract", "exact_match"} < set(scores)
    assert set(scores.values()) == {1.0}


def test_an_answer_that_names_no_class_is_wrong_in_every_figure(
    make_system, make_datamodule
):  # D63
    data = make_datamodule()
    data.prepare_data()
    system = make_system(max_new_tokens=1)
    answers = [one for batch in data.train_dataloader() for one in system.answer(batch)]
    for said in ("", "I cannot tell.", "male or female", "left and right"):
        silent = score([replace(one, said=said) for one in answers])
        assert set(silent.values()) == {0.0}


def test_balanced_accuracy_is_the_mean_over_classes_and_then_over_tasks():
    def answers(task, target, said):
        return [
            Answer(
                study_id=f"{task}{target}{index}",
                task=task,
                modalities=("T1",),
                prompt="",
                target=target,
                said=word,
            )
            for index, word in enumerate(said)
        ]

    given = [
        *answers("sex", "male", ["male", "Male.", "female", "??"]),  # 2 of 4
        *answers("sex", "female", ["female"]),  # 1 of 1
        *answers("side", "left", ["right", "right", ""]),  # 0 of 3
        *answers("side", "right", ["right", "left"]),  # 1 of 2
    ]
    scores = score(given)
    assert scores["balanced_accuracy_sex"] == pytest.approx((0.5 + 1.0) / 2)
    assert scores["balanced_accuracy_side"] == pytest.approx((0.0 + 0.5) / 2)
    assert scores["balanced_accuracy"] == pytest.approx((0.75 + 0.25) / 2)
    assert scores["exact_match"] == pytest.approx(4 / 10)
    assert scores["exact_match_sex"] == pytest.approx(3 / 5)


def test_the_test_answers_every_study_once_with_its_own_images_and_with_others(
    make_system, make_datamodule, make_trainer, kind
):
    system, data = make_system(kind), make_datamodule(kind)
    trainer = make_trainer()
    trainer.test(system, data, verbose=False)
    ids = sorted(study.id for study in data.studies["test"])
    assert [answer.study_id for answer in system.answers[""]] == ids
    assert [answer.study_id for answer in system.answers["_shuffled"]] == ids
    for own, other in zip(system.answers[""], system.answers["_shuffled"], strict=True):
        assert (own.prompt, own.target) == (other.prompt, other.target)
        assert own.modalities == other.modalities
    assert any(
        own.said != other.said
        for own, other in zip(system.answers[""], system.answers["_shuffled"], strict=True)
    )
    expected = score(system.answers[""])
    for name, value in expected.items():
        assert trainer.callback_metrics[f"test/{name}"] == pytest.approx(value)
        assert f"test/{name}_shuffled" in trainer.callback_metrics


# ---------------------------------------------------------------- pretrained models


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Checkpoints as the two that the configs name, but small, with their tokenizers."""
    kinds = {
        "llava_15_7b": ("clip", vicuna_tokenizer()),
        "llava_interleave_05b": ("siglip", qwen_tokenizer()),
    }
    folders = {}
    for name, (kind, tokenizer) in kinds.items():
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        llava = small_llava(
            kind,
            len(tokenizer) + 59,  # vocabularies are padded
            tokenizer.convert_tokens_to_ids("<image>"),
            tied=kind == "siglip",
        )
        llava.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def composed(phantom_root, tmp_path):
    """Return a function that composes the real configs, on the phantom as a BIDS folder."""

    def build(*overrides):
        grid = "{shape: [24, 24, 24], spacing_mm: 8.0, patch: [12, 12, 12]}"
        run = "{shape: [24, 24, 24, 8], patch: [12, 12, 12, 4]}"
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(
                "train",
                [
                    "data=bids",
                    f"data.root={phantom_root}",
                    "data.questions=[sex,tract,dropout]",
                    f"paths.cache_dir={tmp_path}",
                    f"data.recipes.T1={grid}",
                    f"data.recipes.dMRI={grid}",
                    f"data.recipes.rsfMRI={run}",
                    "data.max_studies=4",
                    *overrides,
                ],
            )

    return build


@pytest.mark.parametrize("name", ["llava_15_7b", "llava_interleave_05b"])
def test_a_pretrained_model_is_loaded_trained_and_asked_through_the_configs(
    name, pretrained, composed, make_trainer, weights_of
):
    cfg = composed(f"model={name}", f"system.text.tokenizer.name={pretrained[name]}")
    data = instantiate(cfg.data.datamodule, _convert_="all")
    system = instantiate(cfg.system, _convert_="all")
    assert isinstance(system, LlavaMRI)
    dtypes = {one.dtype for one in system.parameters() if not one.requires_grad}
    assert dtypes == {torch.bfloat16 if name == "llava_15_7b" else torch.float32}
    before = weights_of(system)
    assert {one.dtype for one in before.values()} == {torch.float32}  # D75
    trainer = make_trainer(max_steps=1, limit_val_batches=1, val_check_interval=1)
    trainer.fit(system, data)
    batch = next(iter(data.train_dataloader()))
    for key, one in weights_of(system).items():
        shown = any(f".{modality}." in key for modality in batch.volumes)
        assert torch.equal(one, before[key]) == (not shown), key
    assert math.isfinite(trainer.callback_metrics["val/loss"])
    trainer.test(system, data, verbose=False)
    assert len(system.answers[""]) == len(data.studies["test"])
    assert 0.0 <= trainer.callback_metrics["test/exact_match"] <= 1.0


@pytest.mark.parametrize("name", ["llava_15_7b", "llava_interleave_05b"])
def test_a_model_that_is_not_there_is_one_line_for_the_user(name, composed, tmp_path):
    cfg = composed(f"model={name}", f"system.text.tokenizer.name={tmp_path / 'nowhere'}")
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.system, _convert_="all")
    message = explain(caught.value)
    assert message is not None
    assert "nowhere' cannot be loaded" in message
    assert "\n" not in message


# ---------------------------------------------------------------- a tiny run learns


def test_four_heads_are_learned_by_heart(
    question_book, recipes, make_datamodule, make_trainer, make_system, text, tmp_path
):  # vlm-facts 6.5, 16
    lessons = SpelledFacts(
        question_book, ["sex", "tract"], text, seed=1, batch_size=16, max_slots=8
    )
    llava = tiny_llava(
        tokenizer=text.tokenizer,
        image_token=text.image_token,
        text=lessons,
        cache_dir=tmp_path,
        dim=32,
        num_layers=2,
        num_heads=2,
        steps=60,
        lr=4e-3,
        seed=1,
    )
    torch.manual_seed(0)
    system = make_system(llava=VolumeLlava(llava, recipes), text=text, lr=1e-2, weight_decay=0.0)
    data = make_datamodule(modalities=["T1", "dMRI"], pairs=[], flip=0.0)
    data.prepare_data()
    by_answer = {
        study.conversation.turns[-1].text: index
        for index, study in enumerate(data.studies["train"])
    }
    assert sorted(by_answer) == ["female", "left", "male", "right"]
    dataset = data.dataset("train")
    batch = ConversationCollator(text, Background(min_foreground=0.05))(
        [dataset[index, 0] for index in by_answer.values()]
    )
    assert score(system.answer(batch))["exact_match"] < 1.0
    make_trainer(max_steps=120).fit(system, DataLoader([batch], batch_size=None))
    answers = system.answer(batch)
    assert [answer.said for answer in answers] == list(by_answer)
    assert set(score(answers).values()) == {1.0}
