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
from neuro.data.answers import AnswerBook
from neuro.data.augment import Draw
from neuro.data.collate import Background, ConversationCollator
from neuro.data.conversation import ImagePart, Turn
from neuro.data.spelled import SpelledFacts
from neuro.data.text import IGNORE
from neuro.errors import InputError
from neuro.models.policy import Policy
from neuro.models.tiny import tiny_llava
from neuro.models.tower_llava import TowerLlava
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
    assert float(mixed["supervised_tokens"]) == float(mixed["terms"]) == count
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


def test_no_module_sees_whose_images_they_are(system, collate, recipes):  # D11 D14 D36 D37
    batch = batch_of(STUDIES, recipes, collate)
    secret = replace(
        batch,
        study_ids=("SECRET",) * len(batch),
        subjects=(("SECRET",),) * len(batch),
        metadata=({"sex": "SECRET"},) * len(batch),
    )
    seen = []
    for module in system.llava.modules():
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(repr((args, kwargs))), with_kwargs=True
        )
    loss = system.losses(secret)["loss"]
    assert len(seen) > 20
    assert not any("SECRET" in one for one in seen)
    assert torch.equal(loss, system.losses(batch)["loss"])


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
    assert set(only) == {"loss", "loss_T1", "loss_task_side", "supervised_tokens", "terms"}


def test_the_loss_is_that_of_the_language_model_itself(system, collate, recipes):
    """transformers computes it too, from all logits at once."""
    batch = batch_of(STUDIES, recipes, collate)
    features = system.llava.image_features(batch.volumes, batch.images)
    embeddings = system.llava.llava.get_input_embeddings()(batch.input_ids)
    embeddings[batch.input_ids == system.text.image_id] = torch.cat(features)
    expected = system.llava.llava(
        inputs_embeds=embeddings, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    torch.testing.assert_close(system.losses(batch)["loss"], expected)


def test_a_tokenizer_of_another_model_is_an_error(make_system, texts, recipes):
    llava = TowerLlava(small_llava("siglip", len(texts["siglip"].tokenizer), 77), recipes, Policy())
    with pytest.raises(InputError, match="'<image>' has id 3, the model's has 77"):
        make_system(llava=llava)


@pytest.mark.parametrize("more", [-1, 0, 64])
def test_a_table_may_have_more_rows_than_there_are_tokens_and_never_fewer(
    make_system, texts, recipes, more
):  # D22
    text = texts["siglip"]
    rows = len(text.tokenizer) + more
    llava = TowerLlava(small_llava("siglip", rows, text.image_id), recipes, Policy())
    if more >= 0:
        model = make_system(llava=llava).llava.llava
        assert model.get_input_embeddings().weight.shape[0] == rows
        assert model.lm_head.weight.shape[0] == rows
        return
    with pytest.raises(InputError, match=rf"{rows + 1} tokens, the model's table {rows} rows"):
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


@pytest.mark.parametrize("kept", [True, False])
def test_background_is_dropped_or_not_by_model_and_collator_alike(
    make_system, make_datamodule, kept
):
    data = make_datamodule()
    data.collate.background = replace(data.collate.background, drop=kept)
    system = make_system()
    system.drop_background = kept
    data.prepare_data()
    system.prepare(data)
    system.drop_background = not kept
    with pytest.raises(
        InputError, match=rf"drop_background is {not kept}.*background\.drop is not"
    ):
        system.prepare(data)


@pytest.mark.parametrize("policy", [Policy(), Policy(projector=True)])
def test_gradients_are_watched_by_modality(make_system, policy):
    system = make_system(policy=policy)
    parts = system.gradient_parts()
    assert {*parts} == {"T1", "dMRI", "rsfMRI"} | ({"projector"} if policy.projector else set())
    for name, own in system.llava.eye.items():
        assert {id(one) for one in parts[name]} == {id(one) for one in own.parameters()}
    assert all(one.requires_grad for own in parts.values() for one in own)


def test_frozen_parts_stay_in_evaluation_mode_through_a_run(
    make_system, make_datamodule, make_trainer, watch
):  # D77
    class Modes(watch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            llava = pl_module.llava
            modes.append((llava.eye["T1"].training, llava.llava.model.language_model.training))

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
    modalities = {"val/loss_T1", "val/loss_dMRI", "val/loss_rsfMRI"}
    tasks = {"val/loss_task_sex", "val/loss_task_tract", "val/loss_task_dropout"}
    assert set(found) == {"val/loss"} | modalities | tasks
    assert all(math.isfinite(value) for value in found.values())


def test_the_validation_loss_does_not_depend_on_the_size_of_a_batch(
    make_system, make_datamodule, make_trainer
):  # D64
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
        start = last_turn(batch.labels[row])
        assert (batch.labels[row, :start] == IGNORE).all()
        assert batch.labels[row, start] == batch.input_ids[row, start]


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
    spoken = batch.labels[0][batch.labels[0] != IGNORE]
    decoded = system.text.tokenizer.decode(spoken)
    assert "zebra" in decoded
    assert "yak" in decoded


@pytest.mark.parametrize(
    ("targets", "start"),
    [([-100, 5, 6], 1), ([4, -100, 5], 2), ([4, 5, 6], 0), ([-100, 4, -100, 5, 5, -100], 3)],
)
def test_the_last_turn_begins_where_speech_begins_for_the_last_time(targets, start):
    assert last_turn(torch.tensor(targets)) == start


def test_gold_answers_score_exactly_one(make_system, make_datamodule, kind):  # D63
    data = make_datamodule(kind)
    data.prepare_data()
    system = make_system(kind, max_new_tokens=1)
    answers = [one for batch in data.train_dataloader() for one in system.answer(batch)]
    gold = {study.id: study.conversation.turns[-1].text for study in data.studies["train"]}
    assert {one.study_id: one.target for one in answers} == gold
    subjects = {study.id: study.subjects[-1] for study in data.studies["train"]}
    assert {one.study_id: one.subject for one in answers} == subjects
    assert {one.task_type for one in answers} == {"single", "multimodal"}
    book = AnswerBook.of(data.studies["train"].conversations)
    assert {book[one.task].kind for one in answers} == {"classes"}
    right = [replace(one, said=one.target) for one in answers]
    assert all(one.is_right and one.is_parsed for one in book.grade(right))
    for said in ("", "I cannot tell.", "male or female", "left and right"):
        grades = book.grade([replace(one, said=said) for one in answers])
        assert not any(one.is_right or one.is_parsed for one in grades)


def test_the_test_answers_every_study_once_with_its_own_images_and_with_those_of_each_control(
    make_system, make_datamodule, make_trainer, kind
):
    system, data = make_system(kind), make_datamodule(kind)
    trainer = make_trainer()
    trainer.test(system, data, verbose=False)
    ids = sorted(study.id for study in data.studies["test"])
    own = system.answers[""]
    assert [*system.answers] == ["", "_shuffled", "_zero", "_noise"]
    for control, answers in system.answers.items():
        assert [answer.study_id for answer in answers] == ids
        for one, other in zip(own, answers, strict=True):
            assert (one.prompt, one.target, one.modalities, one.subject) == (
                (other.prompt, other.target, other.modalities, other.subject)
            )
        if control:
            assert any(one.said != other.said for one, other in zip(own, answers, strict=True))
        assert all(one.likeliest for one in answers)
    logged = trainer.callback_metrics
    for figure in ("exact_match", "balanced_accuracy"):
        for control in (*system.answers, "_majority"):
            name = f"test/{figure}{control}"
            assert logged[f"{name}_low"] <= logged[name] <= logged[f"{name}_high"]
            assert f"test/{figure}_sex{control}" in logged
        for control in (*system.answers, "_majority"):
            assert f"test/likelihood_{figure}{control}_low" in logged
        assert {f"test/{figure}/type/single", f"test/{figure}/images/T1-dMRI"} <= {*logged}
    assert logged["test/exact_match_majority"] > 0.3  # of two classes each
    for finding, name, value, *_ in system.figures:
        if finding == "all" and ("exact" in name or "balanced" in name):
            assert logged[f"test/{name}"] == pytest.approx(value)


def test_an_answer_that_would_be_cut_short_stops_training_and_the_test_but_not_what_only_looks(
    make_system, make_datamodule, make_trainer
):
    data = make_datamodule()
    data.prepare_data()
    system = make_system(max_new_tokens=1)
    system.prepare(data)
    needed = {
        study.id: system.text.num_tokens(study.conversation.turns[-1].text) + 1
        for study in data.studies["test"]
    }
    most = max(needed.values())
    assert len({*needed.values()}) > 1
    for run in (make_trainer().fit, make_trainer().test):
        with pytest.raises(InputError, match=rf"Set it to {most}\.") as caught:
            run(system, datamodule=data)
        assert any(repr(name) in str(caught.value) for name in needed if needed[name] == most)
    system.max_new_tokens = most
    make_trainer(max_steps=1).fit(system, datamodule=data)


def test_a_test_leaves_the_model_in_the_mode_that_it_had(  # D60
    make_system, make_datamodule, make_trainer
):
    system = make_system().train()
    before = {name: one.training for name, one in system.named_modules()}
    make_trainer().test(system, make_datamodule(), verbose=False)
    assert {name: one.training for name, one in system.named_modules()} == before


# ---------------------------------------------------------------- the most probable answer


@pytest.fixture
def asked(system):
    """Return a system that knows what may be answered; long answers are improbable here."""
    words = (*"abcdefghijklmn", "left", "right side, low")
    system.book = AnswerBook.of(
        study_of(f"{word}{place}", "T1", answer=word).conversation
        for word in words
        for place in range(2)
    )
    return system


def test_the_most_probable_answer_has_the_least_loss_of_all(asked, collate, recipes):
    """As the loss itself says: each answer in the place of the right one, word for word."""
    answers = asked.answer(batch_of(STUDIES, recipes, collate), by_likelihood=True)
    names = sorted(asked.book["side"].spellings)
    assert len({answer.likeliest for answer in answers}) > 1
    for study, answer in zip(STUDIES, answers, strict=True):
        losses = []
        for name in names:
            told = study_of(study.id, *study.modalities, answer=name)
            named = asked.losses(batch_of([told], recipes, collate))
            losses.append(float(named["loss"].detach() * named["supervised_tokens"]))
        assert answer.likeliest == names[losses.index(min(losses))]


def test_the_most_probable_answer_does_not_depend_on_the_batch(asked, collate, recipes):
    together = asked.answer(batch_of(STUDIES, recipes, collate), by_likelihood=True)
    for study, answer in zip(STUDIES, together, strict=True):
        alone = asked.answer(batch_of([study], recipes, collate), by_likelihood=True)
        assert alone == [answer]


def test_only_questions_with_classes_have_a_most_probable_answer(system, collate, recipes):
    batch = batch_of(STUDIES, recipes, collate)
    assert {one.likeliest for one in system.answer(batch, by_likelihood=True)} == {""}


def test_images_are_looked_at_once_however_many_answers_are_compared(
    asked, collate, recipes, monkeypatch
):
    looked = []
    look = asked.llava.image_features
    monkeypatch.setattr(
        asked.llava, "image_features", lambda *args: looked.append(1) or look(*args)
    )
    asked.answer(batch_of(STUDIES, recipes, collate), by_likelihood=True)
    assert len(looked) == 1


def test_likelihood_can_be_left_out(make_system, make_datamodule, make_trainer):
    system = make_system()
    system.score_likelihood = False
    trainer = make_trainer()
    trainer.test(system, make_datamodule(), verbose=False)
    assert not [name for name in trainer.callback_metrics if "likelihood" in name]


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
    system = make_system(
        llava=TowerLlava(llava, recipes, Policy()), text=text, lr=1e-2, weight_decay=0.0
    )
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
    assert not all(answer.is_exact for answer in system.answer(batch))
    make_trainer(max_steps=120).fit(system, DataLoader([batch], batch_size=None))
    answers = system.answer(batch)
    assert [answer.said for answer in answers] == list(by_answer)
    assert all(answer.is_exact for answer in answers)
