"""What the CSV logger wrote, as lines over steps."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

STAGES = ("train", "val")
Curve = dict[str, list[tuple[int, float]]]  # stage to (step, value)


def read_curves(metrics_csv: Path) -> dict[str, Curve]:
    """Return every figure of training by its name, then by stage; empty where there is no file."""
    curves: dict[str, Curve] = defaultdict(lambda: defaultdict(list))
    if not metrics_csv.is_file():
        return {}
    with metrics_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                stage, _, name = key.partition("/")
                if value and stage in STAGES:
                    curves[name][stage].append((int(row["step"]), float(value)))
    return dict(sorted(curves.items()))
