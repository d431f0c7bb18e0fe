"""What a model was trained on survives a checkpoint, and what differs is named field by field."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from neuro.data.bold_run import BoldRun
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.contract import RECIPES, Contract
from neuro.data.fixed_grid import FixedGrid
from neuro.data.recipes import Recipe
from neuro.errors import InputError

CUBE = FixedGrid(shape=(24, 24, 24), spacing_mm=8.0, patch=(4, 4, 4), percentiles=(0.5, 99.5))
CT = ClinicalTokens(modality="ct", windows={"brain": {"level": 40, "width": 80}})
RUN = BoldRun(shape=(24, 24, 24, 8), patch=(12, 12, 12, 4), repetition_time_s=2.0)
STATISTICS = {"mri": (0.3, 0.25), "brain": (0.4, 0.4)}


def contract_of(**changes):
    fields = {
        "recipes": {"T1": CUBE, "ct": CT},
        "min_foreground": 0.02,
        "statistics": STATISTICS,
        "labels": ("bleed, old", "fracture"),
        "task": "multilabel",
    }
    return Contract(**{**fields, **changes})


@pytest.mark.parametrize("recipe", [CUBE, CT, RUN, ClinicalTokens(modality="mri")])
def test_a_recipe_comes_back_from_plain_values_as_it_was(recipe, tmp_path):
    contract = contract_of(recipes={"any": recipe}, classes=("no", "yes"))
    torch.save(contract.plain(), tmp_path / "contract.pt")
    for plain in (
        torch.load(tmp_path / "contract.pt", weights_only=True),
        json.loads(json.dumps(contract.plain())),
    ):
        again = Contract.of_plain(plain, "the checkpoint")
        assert again.recipes["any"] == recipe
        assert again.plain() == contract.plain()
        again.check_images(contract, "the checkpoint")
        again.check_labels(contract, "the checkpoint")


def test_every_recipe_of_the_project_can_come_back():
    assert all(isinstance(one, Recipe) for one in (CUBE, CT, RUN))
    assert {type(one) for one in (CUBE, CT, RUN)} == {*RECIPES.values()}


@pytest.mark.parametrize(
    ("name", "recipe", "field"),
    [
        ("T1", replace(CUBE, spacing_mm=4.0), r"data\.recipes\.T1\.spacing_mm: 8\.0 -> 4\.0"),
        ("T1", replace(CUBE, percentiles=(1.0, 99.0)), r"data\.recipes\.T1\.percentiles"),
        ("T1", replace(CUBE, patch=(8, 8, 8)), r"data\.recipes\.T1\.patch"),
        ("T1", ClinicalTokens(modality="mri"), r"data\.recipes\.T1\.recipe: FixedGrid -> Clinical"),
        (
            "ct",
            replace(CT, windows={"brain": {"level": 40, "width": 100}}),
            r"data\.recipes\.ct\.windows",
        ),
        ("ct", replace(CT, slice_mm=5.0), r"data\.recipes\.ct\.slice_mm: 4\.0 -> 5\.0"),
    ],
)
def test_another_preparation_is_refused_and_the_field_is_named(name, recipe, field):
    mine = contract_of()
    theirs = contract_of(recipes={**mine.recipes, name: recipe})
    with pytest.raises(InputError, match=rf"^RUN was trained on .*{field}") as caught:
        mine.check_images(theirs, "RUN")
    assert "\n" not in str(caught.value)


def test_other_statistics_are_refused_and_named():
    theirs = contract_of(statistics={**STATISTICS, "brain": (0.5, 0.4)})
    with pytest.raises(InputError, match=r"statistics of brain: \[0\.4, 0\.4\] -> \[0\.5, 0\.4\]"):
        contract_of().check_images(theirs, "RUN")


def test_every_difference_is_named_at_once():
    theirs = contract_of(
        recipes={"T1": replace(CUBE, spacing_mm=4.0), "ct": replace(CT, air_hu=-400.0)}
    )
    with pytest.raises(InputError, match=r"T1\.spacing_mm.*; data\.recipes\.ct\.air_hu"):
        contract_of().check_images(theirs, "RUN")


def test_a_modality_that_only_one_of_them_knows_is_no_difference():
    contract_of().check_images(contract_of(recipes={"T1": CUBE, "mri": CT}), "RUN")
    with pytest.raises(InputError, match=r"modalities: T1, ct -> mri"):
        contract_of().check_images(contract_of(recipes={"mri": CT}), "RUN")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": ("fracture", "bleed, old")}, "labels: "),
        ({"labels": ("bleed", "fracture")}, "labels: "),
        ({"task": "regression"}, "task: multilabel -> regression"),
        ({"classes": ("no", "yes")}, "classes: "),
    ],
)
def test_other_labels_are_refused_and_named(change, told):  # S74
    with pytest.raises(InputError, match=rf"RUN was trained to tell something else.*{told}"):
        contract_of().check_labels(contract_of(**change), "RUN")


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("recipes"),
        lambda plain: plain.update(recipes=["T1"]),
        lambda plain: plain.update(more=1),
        lambda plain: plain["recipes"]["T1"].update(version=99),
        lambda plain: plain["recipes"]["T1"].update(recipe="os.system"),
        lambda plain: plain["recipes"]["T1"].update(spacing_mm="x"),
        lambda plain: plain["recipes"]["T1"].update(unheard_of=1),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(damage):
    plain = contract_of().plain()
    damage(plain)
    with pytest.raises(InputError, match=r"^RUN: what it says of its images.*version") as caught:
        Contract.of_plain(plain, "RUN")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *({"min_foreground": one} for one in ("0.1", None, [])),
        *({"labels": one} for one in ("bleed", [1], {"a": 1})),
        {"task": 1},
        {"classes": [None]},
        {"statistics": {"mri": ["a", "b"]}},
        {"recipes": []},
    ],
)
def test_values_of_another_kind_are_no_contract(change):
    with pytest.raises(InputError, match="cannot be read by this version"):
        Contract.of_plain({**contract_of().plain(), **change}, "the checkpoint")


@pytest.mark.parametrize(
    "change", [{"spacing_mm": "8"}, {"shape": "abc"}, {"percentiles": [None, 1]}]
)
def test_fields_of_another_kind_are_no_recipe(change):
    plain = contract_of().plain()
    plain["recipes"]["T1"] |= change
    with pytest.raises(InputError, match="cannot be read by this version"):
        Contract.of_plain(plain, "the checkpoint")
