"""Answers are as probable as the loss says, whatever they are compared and batched with."""

from __future__ import annotations

import pytest
import torch
from small_llava import batch_of, mixed_studies, study_of

from neuro.data.text import IGNORE
from neuro.models.likelihood import log_likelihoods

NEAR = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def asked(model, encoder, collate, recipes):
    """Return a function that gives the prompt and features of studies whose answers are given."""

    def build(studies):
        seen = batch_of(studies, recipes, collate).model_inputs()
        features = model.image_features(seen.volumes, seen.images)
        starts = (seen.labels != IGNORE).int().argmax(dim=1)
        prompts = [ids[:start] for ids, start in zip(seen.input_ids, starts, strict=True)]
        answers = [own[own != IGNORE] for own in seen.labels]
        return prompts, features, answers

    return build


def test_an_answer_is_as_probable_as_its_loss_says(model, encoder, collate, recipes, asked):
    studies = mixed_studies()
    words = ["left", "no", "right side, low and behind", "left and right"]
    _, _, spoken = asked([study_of(f"of {word}", "T1", answer=word) for word in words])
    prompts, features, _ = asked(studies)
    answers = [spoken[: 1 + row % len(words)] for row in range(len(studies))]  # 1 to 4 of them
    found = log_likelihoods(model, prompts, features, answers, pad_id=encoder.pad_id)
    for study, own in zip(studies, found, strict=True):
        for word, value in zip(words, own.tolist(), strict=False):
            seen = batch_of(
                [study_of(study.id, *study.modalities, answer=word)], recipes, collate
            ).model_inputs()
            shown = model.image_features(seen.volumes, seen.images)
            losses, _ = model.token_losses(seen.input_ids, seen.attention_mask, seen.labels, shown)
            assert value == pytest.approx(-float(losses.detach().sum()), rel=1e-4)
    assert [len(own) for own in found] == [len(own) for own in answers]


def test_what_else_is_asked_does_not_matter(model, encoder, asked):
    studies = mixed_studies()
    prompts, features, answers = asked(studies)
    options = [[one, answers[0], answers[1]] for one in answers]
    together = log_likelihoods(model, prompts, features, options, pad_id=encoder.pad_id)
    first = 0
    for row, study in enumerate(studies):
        shown = features[first : first + len(study.series)]
        first += len(study.series)
        (alone,) = log_likelihoods(
            model, [prompts[row]], shown, [options[row][::-1]], pad_id=encoder.pad_id
        )
        torch.testing.assert_close(alone.flip(0), together[row], **NEAR)
