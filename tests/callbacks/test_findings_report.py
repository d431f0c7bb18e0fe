"""After the test there is a page with the studies that were told wrongest and best."""

from __future__ import annotations

import re
import shutil

import lightning as L
import nibabel as nib
import pytest
import torch
from small_mil import build, write_heads

from neuro.callbacks.findings_report import FindingsReport
from neuro.errors import InputError


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Forty heads, of which four are to test on."""
    return write_heads(tmp_path_factory.mktemp("heads") / "bids")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the cache is shared by the runs."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def reported(heads, root, tmp_path):
    """Return a function that tests an untrained system and gives back the page."""

    def run(*overrides, num_cases=2, heads=heads, trainer=L.Trainer):
        datamodule, system = build(heads, root, *overrides)
        trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            callbacks=[FindingsReport(tmp_path, num_cases)],
        ).test(system, datamodule=datamodule, verbose=False)
        path = tmp_path / "report.html"
        return (path.read_text() if path.exists() else None), datamodule, system

    return run


def shown(page):
    """Return the studies that are shown."""
    return re.findall(r'alt="attention in ([^"]*)"', page)


@pytest.mark.parametrize(
    ("label", "word"),
    [("has_lesion", "probability of yes"), ("lesion", "probability"), ("age", "age")],
)
def test_each_task_leaves_a_page_with_test_studies_only(reported, label, word):
    page, datamodule, _ = reported(f"data.label={label}")
    assert 1 <= len(shown(page)) <= 4
    assert set(shown(page)) <= set(datamodule.studies["test"].ids)
    assert word in page
    assert not re.search(r"https?:|<script", page)
    assert len(page) < 5_000_000


def test_the_page_says_what_was_trained_and_on_what(reported, tmp_path):
    (tmp_path / "command.sh").write_text("#!/bin/sh\npython train.py a=1 && true\n")
    (tmp_path / "environment.json").write_text('{"revision": "0123456789abcdef+"}')
    page, _, system = reported("tuning=frozen")
    assert "python train.py a=1 &amp;&amp; true" in page
    assert "revision 0123456789, with changes" in page
    assert "begins from random weights; frozen" in page
    assert "attention pool" in page
    assert "2 layers of 48;" in page
    assert system.tuning.is_frozen


def test_of_several_scans_the_one_that_weighs_most_is_shown(heads, reported, tmp_path):
    own = tmp_path / "two"
    shutil.copytree(heads, own)
    for scan in sorted(own.glob("sub-*/anat/*_T1w.nii.gz")):
        image = nib.load(scan)
        second = scan.with_name(scan.name.replace("_T1w", "_run-2_T1w"))
        nib.save(nib.Nifti1Image(image.get_fdata()[::-1].copy(), image.affine), second)
    page, datamodule, _ = reported(heads=own)
    counts = {len(study.series) for study in datamodule.studies["test"]}
    assert counts == {2}
    shares = re.findall(r"(\d+)% of the weight of 2 series", page)
    assert len(shares) == len(shown(page)) > 0
    assert all(int(share) >= 50 for share in shares)


def test_one_test_study_and_a_label_of_one_class_make_a_page_too(heads, reported, tmp_path):
    own = tmp_path / "one"
    shutil.copytree(heads, own)
    table = own / "participants.tsv"
    lines = table.read_text().splitlines()
    tests = [line for line in lines if line.endswith("test")]
    table.write_text("\n".join(line for line in lines if line not in tests[1:]) + "\n")
    for line in tests[1:]:
        shutil.rmtree(own / line.split("\t")[0])
    page, datamodule, _ = reported(heads=own)
    assert len(datamodule.studies["test"]) == 1
    assert "not defined" in page
    assert len(shown(page)) == 1


def test_the_model_is_left_as_it_was(reported):
    """Asking it once more moves no weight, no mode and no number of the test."""
    _, _, system = reported(num_cases=0)
    before, figures = system.predictions.outputs, system.figures
    _, _, again = reported(num_cases=4)
    assert torch.equal(before, again.predictions.outputs)
    assert str(figures) == str(again.figures)


def test_only_the_first_rank_writes_and_it_asks_no_other(reported, monkeypatch):
    class SecondRank(L.Trainer):
        is_global_zero = False

    assert reported(trainer=SecondRank)[0] is None

    def collective(*_, **__):
        raise AssertionError("the others are not here")

    class Checked(FindingsReport):
        def on_test_end(self, trainer, pl_module):
            for name in ("all_reduce", "all_gather_object", "barrier", "broadcast"):
                monkeypatch.setattr(torch.distributed, name, collective)
            monkeypatch.setattr(trainer.strategy, "barrier", collective)
            monkeypatch.setattr(trainer.strategy, "reduce", collective)
            super().on_test_end(trainer, pl_module)
            monkeypatch.undo()

    monkeypatch.setitem(globals(), "FindingsReport", Checked)
    page, _, _ = reported()
    assert shown(page)


def test_more_studies_than_a_page_holds_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"callbacks\.report\.num_cases must be in \[0, 50\]"):
        FindingsReport(tmp_path, 51)
