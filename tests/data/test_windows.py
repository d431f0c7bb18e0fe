"""The windows of a run become studies of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from some_studies import study

from neuro.data.bold_run import BoldRun
from neuro.data.fixed_grid import FixedGrid
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.windows import Windows
from neuro.errors import InputError

RECIPES = {
    "rsfMRI": BoldRun(shape=(8, 8, 8, 24), patch=(8, 8, 8, 4), repetition_time_s=2.0),
    "T1": FixedGrid(shape=(8, 8, 8), spacing_mm=8.0, patch=(8, 8, 8), percentiles=(0.5, 99.5)),
}


def run(name, modality="rsfMRI"):
    return Series(subject="s", modality=modality, path=Path(f"/data/{name}.nii"), name=name)


def expanded(studies, frames, **settings):
    manifest = Manifest.of(studies)
    frames = {one: frames.get(one.name, 0) for one in manifest.scans()}
    return Windows(**settings).expand(manifest, RECIPES, frames)


@pytest.mark.parametrize(
    ("frames", "length", "within", "between", "starts"),
    [
        (362, 20, 1, 1.0, [20 * k for k in range(18)]),  # vlm-facts 1.2: 18 windows of 20
        (362, 24, 1, 1.0, [24 * k for k in range(15)]),  # and 15 of 24
        (100, 20, 1, 0.5, [10 * k for k in range(9)]),
        (100, 20, 2, 1.0, [0, 40]),
        (100, 20, 1, 0.01, list(range(81))),  # the hop is at least one frame
        (20, 20, 1, 1.0, [0]),
        (12, 20, 1, 1.0, [0]),
    ],
)
def test_windows_begin_where_the_formula_says(frames, length, within, between, starts):
    windows = Windows(stride_within_seq=within, stride_between_seq=between)
    assert windows.starts(frames, length).tolist() == starts


def test_each_window_is_a_study_with_the_same_words():
    talk = study("a").conversation
    (one,) = [Study(id="a", series=(run("r"),), conversation=talk, split="val", labels=())]
    manifest = expanded([one], {"r": 60})
    assert manifest.ids == ["a.window000", "a.window001"]
    assert [one.series[0].start for one in manifest] == [0, 24]
    assert all(one.conversation == talk and one.split == "val" for one in manifest)


def test_studies_without_a_run_stay_as_they_are():
    studies = [
        Study(id="t", series=(run("x", "T1"),)),
        Study(id="r", series=(run("r"),)),
        Study(id="u", series=(run("x", "T1"),)),
    ]
    manifest = expanded(studies, {"r": 50})
    assert manifest.ids == ["t", "r.window000", "r.window001", "u"]
    assert manifest[0] == studies[0]


def test_one_window_keeps_the_name():
    manifest = expanded([Study(id="r", series=(run("r"),))], {"r": 30})
    assert manifest.ids == ["r"]
    assert manifest[0].series[0].start == 0


def test_several_runs_of_a_study_move_together():
    both = Study(id="b", series=(run("long"), run("x", "T1"), run("short")))
    manifest = expanded([both], {"long": 100, "short": 49})
    assert [[s.start for s in one.series] for one in manifest] == [[0, None, 0], [24, None, 24]]


def test_drawn_windows_make_no_studies():
    one = Study(id="r", series=(run("r"),))
    assert list(expanded([one], {"r": 100}, stride_between_seq=None)) == [one]


def test_a_window_keeps_the_clock_of_its_run():  # D57
    clocked = replace(run("r"), repetition_time_s=0.8)
    manifest = expanded([Study(id="r", series=(clocked,))], {"r": 100})
    assert [one.series[0].start for one in manifest] == [0, 24, 48, 72]
    assert {one.series[0].repetition_time_s for one in manifest} == {0.8}  # not the first frame


def test_windows_of_a_run_are_one_scan_on_disk():
    manifest = expanded([Study(id="r", series=(run("r"),))], {"r": 100})
    assert manifest.scans() == (run("r"),)
    assert replace(manifest[3].series[0], start=None) == run("r")


@pytest.mark.parametrize(
    "wrong",
    [{"stride_within_seq": 0}, {"stride_between_seq": 0.0}, {"stride_between_seq": float("nan")}],
)
def test_strides_are_positive(wrong):
    with pytest.raises(InputError, match=r"stride_within_seq must be at least 1"):
        Windows(**wrong)
