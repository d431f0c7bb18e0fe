"""Curves are read as they were logged."""

from __future__ import annotations

from neuro.report.curves import read_curves


def test_curves_are_read_by_stage(tmp_path):
    csv = tmp_path / "metrics.csv"
    csv.write_text(
        "epoch,step,test/loss,train/loss,val/auroc/a,val/loss\n"
        "0,9,,2.0,,\n0,9,,,0.5,1.5\n0,9,3,,,\n"
    )
    assert read_curves(csv) == {
        "auroc/a": {"val": [(9, 0.5)]},
        "loss": {"train": [(9, 2.0)], "val": [(9, 1.5)]},
    }
    assert read_curves(tmp_path / "absent.csv") == {}
