"""What system=jepa learns on the phantom, and what system=mil reads from it, for several seeds.

python benchmarks/pretraining.py [--seeds 1 2 3] [--json FILE]

For each seed: experiment=jepa_phantom, then experiment=mil_phantom_frozen with its encoder and with
one that nothing was learned by.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(root, system, name, *words):
    """Train in a process of its own; return its metrics and the minutes it took."""
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "neuro.train", f"paths.root={root}", f"run.name={name}", *words],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    metrics = json.loads((root / f"outputs/{system}/{name}/metrics.json").read_text())
    return metrics, (time.monotonic() - start) / 60


def figures_of(root, seed):
    given = f"seed={seed}"
    learned, minutes = run(root, "jepa", f"seed{seed}", "experiment=jepa_phantom", given)
    told = {}
    for name, source in (
        ("pretrained", root / f"outputs/jepa/seed{seed}"),
        ("untrained", "null"),
    ):
        words = ("experiment=mil_phantom_frozen", f"system.encoder_from={source}", given)
        told[name], _ = run(root, "mil", f"{name}{seed}", *words)
    return {
        "minutes": minutes,  # with drawing and preparing the heads, for the first seed
        "probe/auroc_init": learned["probe/auroc_init"],
        "probe/auroc": learned["probe/auroc"],
        "health/collapsed": learned["health/collapsed"],
        **{f"age_r2_{name}": metrics["test/r2_macro"] for name, metrics in told.items()},
        **{f"age_mae_{name}": metrics["test/mae_macro"] for name, metrics in told.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as root:
        for seed in arguments.seeds:
            found = figures_of(Path(root), seed)
            shown = "  ".join(f"{name} {one:.3f}" for name, one in found.items())
            print(f"seed {seed}  {shown}", flush=True)
            figures |= {f"seed{seed}/{name}": value for name, value in found.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
