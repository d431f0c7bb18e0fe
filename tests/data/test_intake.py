"""What both commands ask before scans are prepared, and which studies are shown after that."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from some_studies import manifest_of, study

from neuro.data.cache import Cache
from neuro.data.intake import (
    check_num_workers,
    check_weights,
    in_cache_ledger,
    log_shown,
    shown_studies,
)
from neuro.data.manifest import Manifest, Series, Study
from neuro.errors import InputError


class Source:
    """A cohort that is a given manifest."""

    def __init__(self, manifest):
        self.given = manifest

    def manifest(self):
        return self.given


def bag(name, *modalities, split="train", **more):
    series = tuple(
        Series(subject=name, modality=one, path=Path(f"/{name}/{index}"), name=f"x{index}")
        for index, one in enumerate(modalities)
    )
    return Study(id=name, series=series, split=split, **more)


@pytest.fixture
def take(recipes, tmp_path):
    def take(*studies, **options):
        return in_cache_ledger(Source(Manifest.of(studies)), Cache(tmp_path, recipes), **options)

    return take


# -- which studies are shown ---------------------------------------------------------------------


def test_a_study_that_is_asked_about_needs_each_of_its_images():  # D50
    studies = manifest_of(study("a", "s", "t"), study("b", "t", "u"), study("c", "u"))
    usable = [one for one in studies.scans() if one.subject != "s"]
    assert shown_studies(studies, usable).ids == ["b", "c"]
    assert shown_studies(studies, [one for one in usable if one.subject == "s"]) is None


def test_a_bag_of_series_is_shown_with_what_is_left_of_it():  # S33
    studies = Manifest.of([bag("a", "T1", "dMRI", "T1"), bag("b", "T1"), bag("c", "dMRI", "T1")])
    usable = [one for one in studies.scans() if one.modality == "dMRI"]
    shown = shown_studies(studies, usable)
    assert {one.id: [series.name for series in one.series] for one in shown} == {
        "a": ["x1"],
        "c": ["x0"],
    }
    assert shown.failed.tolist() == [2, 1]
    assert shown_studies(studies, []) is None


def test_what_is_dropped_at_random_is_what_is_dropped():
    rng = np.random.default_rng(0)
    studies = Manifest.of([bag(f"s{i}", *["T1"] * rng.integers(1, 5)) for i in range(40)])
    for _ in range(10):
        usable = {one for one in studies.scans() if rng.random() < 0.5}
        shown = shown_studies(studies, usable)
        expected = {
            one.id: kept
            for one in studies
            if (kept := tuple(series for series in one.series if series in usable))
        }
        assert {one.id: one.series for one in shown} == expected
        assert [one.num_failed + len(one.series) for one in shown] == [
            len(one.series) for one in studies if one.id in expected
        ]


def test_how_many_studies_lost_something_is_said(said):
    found = Manifest.of([bag("a", "T1", num_failed=1), bag("b", "T1"), bag("c", "T1", "T1")])
    usable = [one for one in found.scans() if one.path != Path("/c/1") and one.subject != "b"]
    shown = shown_studies(found, usable)
    log_shown(replace(found, num_left_out=3), {"train": shown})
    assert "4 studies are left out and 2 are shown without some of their series" in said.text
    said.clear()
    whole = Manifest.of([bag("a", "T1")])
    log_shown(whole, {"train": whole})
    assert not said.text


# -- before anything is prepared -----------------------------------------------------------------


def test_modalities_without_a_recipe_are_named_all_at_once_with_their_counts(take):
    studies = [bag("a", "T1", "T2w"), bag("b", "T2w", "flair"), bag("c", "T1")]
    with pytest.raises(InputError, match=r"'T2w' \(2 series\), 'flair' \(1 series\); .*T1, dMRI"):
        take(*studies)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_is_a_number_of_times(weight):
    with pytest.raises(InputError, match=r"data\.weights\.a=.* 0 or more, and finite"):
        check_weights({"b": 1.0, "a": weight})


def test_a_number_of_workers_is_not_negative():
    check_num_workers(0)
    with pytest.raises(InputError, match=r"data\.num_workers=-1 must be 0 or more"):
        check_num_workers(-1)


def test_a_weight_of_no_cohort_is_told_by_whoever_reads_the_cohort(take):
    studies = [bag("a", "T1", cohort="oslo"), bag("b", "T1", cohort="2020_01", split="test")]
    take(*studies, weights={"oslo": 2.0, "2020_01": 1.0})
    with pytest.raises(InputError, match=r"names olso; the cohorts are 2020_01, oslo\. Correct"):
        take(*studies, weights={"olso": 2.0})
    with pytest.raises(InputError, match="is 0 for each cohort of training"):
        take(*studies, weights={"oslo": 0.0})
    with pytest.raises(InputError, match="the cohorts are without a name"):
        take(bag("a", "T1"), weights={"oslo": 2.0})
