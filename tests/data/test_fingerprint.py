"""A recipe's fingerprint covers every field of it, and how a config spells it changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

import pytest

from neuro.data.bold_run import BoldRun
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.fingerprint import describe, fingerprint, open_folder
from neuro.data.fixed_grid import FixedGrid
from neuro.data.recipes import freeze

GRID = FixedGrid(shape=(8, 8, 8), spacing_mm=2.0, patch=(4, 4, 4), percentiles=(0.5, 99.5))
RUN = BoldRun(shape=(8, 8, 8, 4), patch=(4, 4, 4, 2), repetition_time_s=2.0)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (
            GRID,
            {
                "shape": (12, 8, 8),
                "spacing_mm": 2.5,
                "patch": (8, 4, 4),
                "percentiles": (1.0, 99.5),
                "foreground_level": 0.2,
            },
        ),
        (
            dataclasses.replace(GRID, percentiles=None, window=(0.0, 1.0)),
            {"window": (0.0, 2.0)},
        ),
        (
            RUN,
            {
                "shape": (8, 8, 8, 6),
                "patch": (4, 4, 4, 1),
                "repetition_time_s": 1.0,
                "scaling": "minmax",
                "short_run": "repeat",
                "foreground_level": 0.2,
            },
        ),
    ],
)
def test_every_field_is_in_the_fingerprint(recipe, changes):
    prints = {fingerprint(recipe)}
    for name, value in changes.items():
        prints.add(fingerprint(dataclasses.replace(recipe, **{name: value})))
    assert len(prints) == 1 + len(changes)
    fields = {field.name for field in dataclasses.fields(recipe)}
    assert fields <= describe(recipe).keys()


def test_another_version_is_another_fingerprint(monkeypatch):
    before = fingerprint(GRID)
    monkeypatch.setattr(FixedGrid, "version", FixedGrid.version + 1)
    assert fingerprint(GRID) != before


def test_the_fingerprint_does_not_depend_on_how_a_config_spells_it():
    listed = FixedGrid(shape=[8, 8, 8], spacing_mm=2.0, patch=[4, 4, 4], percentiles=[0.5, 99.5])
    assert fingerprint(listed) == fingerprint(GRID)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typed:
    """A recipe whose fields hold what a config gives: tests refuse an int for a float."""

    version: ClassVar[int] = 1
    views = MappingProxyType({"voxels": "mri"})

    shape: Sequence[int] = (8, 8, 8)
    patch: Sequence[int] = (4, 4, 4)
    slice_mm: float = 4.0
    percentiles: Sequence[float] | None = (1.0, 99.0)
    name: str = "4"
    repeat: bool = True

    def __post_init__(self):
        freeze(self, "shape", "patch", "percentiles")

    def apply(self, volume):
        return {}

    def warnings(self, volume):
        return ()


def test_4_and_4_point_0_are_one_recipe():
    one, other = Typed(), Typed(slice_mm=4, percentiles=[1, 99])
    assert fingerprint(one) == fingerprint(other)
    assert (one, hash(one)) == (other, hash(other))
    assert describe(other)["slice_mm"] == 4.0
    assert isinstance(describe(other)["slice_mm"], float)
    assert describe(other)["shape"] == [8, 8, 8]
    assert all(isinstance(edge, int) for edge in other.shape)
    assert other.repeat is True
    assert fingerprint(Typed(percentiles=None)) != fingerprint(one)


@pytest.mark.parametrize(
    "recipe",
    [
        GRID,
        RUN,
        dataclasses.replace(GRID, percentiles=None, window=(0.0, 1.0)),
        ClinicalTokens(modality="mri"),
        ClinicalTokens(modality="ct", pad_hu=-1000.0),
    ],
)
def test_whole_numbers_are_floats_in_every_field_of_every_recipe(recipe):
    before = fingerprint(recipe)
    for field in dataclasses.fields(recipe):  # as a config gives them, past the check of types
        value = getattr(recipe, field.name)
        if "float" in field.type and isinstance(value, float) and value == int(value):
            object.__setattr__(recipe, field.name, int(value))
            assert fingerprint(recipe) != before
    freeze(recipe)
    assert fingerprint(recipe) == before


def test_fingerprints_of_floats_are_those_of_earlier_versions():
    assert fingerprint(ClinicalTokens(modality="mri")) == "4ff442a6fd89"
    assert fingerprint(GRID) == "6d00a03f51f3"
    assert fingerprint(RUN) == "93753af1a16b"


def test_a_damaged_recipe_file_is_named_and_written_anew(tmp_path, said):
    folder = tmp_path / f"T1-{fingerprint(GRID)}"
    open_folder(folder, "T1", GRID, 1)
    whole = (folder / "recipe.json").read_bytes()
    for damage in (b"", whole[:20], b"\xff\xfe", b"[1]", b"{}"):
        said.clear()
        (folder / "recipe.json").write_bytes(damage)
        open_folder(folder, "T1", GRID, 1)
        assert (folder / "recipe.json").read_bytes() == whole
        assert "changed" not in said.text
        assert damage == b"{}" or f"{folder / 'recipe.json'} is damaged" in said.text


def test_a_damaged_file_of_an_older_recipe_is_named_and_the_one_before_it_compared(tmp_path, said):
    recipes = [dataclasses.replace(GRID, spacing_mm=spacing) for spacing in (2.0, 2.5, 3.0)]
    folders = [tmp_path / f"T1-{fingerprint(recipe)}" for recipe in recipes]
    for folder, recipe in zip(folders[:2], recipes[:2], strict=True):
        open_folder(folder, "T1", recipe, 1)
    (folders[1] / "recipe.json").write_bytes(b"\xff half")
    said.clear()
    open_folder(folders[2], "T1", recipes[2], 7)
    assert f"{folders[1] / 'recipe.json'} is damaged" in said.text
    assert "spacing_mm: 2.0 -> 3.0" in said.text
    assert f"(7 to do; the old ones stay in {folders[0].name})" in said.text
