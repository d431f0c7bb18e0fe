"""What the flagship reaches on the phantom, for several seeds.

python benchmarks/first_light.py [key=value ...] [--seeds 1 2 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIGURES = ("exact_match", "exact_match_shuffled", "balanced_accuracy", "balanced_accuracy_shuffled")


def run(root, seed, overrides):
    """Train in a process of its own and return its metrics."""
    command = [sys.executable, "-m", "neuro.train", f"paths.root={root}", f"seed={seed}"]
    start = time.monotonic()
    subprocess.run(
        [*command, f"run.name=seed{seed}", *overrides], check=True, stdout=subprocess.DEVNULL
    )
    metrics = json.loads((Path(root) / f"outputs/llava_mri/seed{seed}/metrics.json").read_text())
    return {**metrics, "minutes": (time.monotonic() - start) / 60}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments, overrides = parser.parse_known_args()
    figures = {}
    print(f"{'seed':>6}", *(f"{name:>28}" for name in (*FIGURES, "minutes")))
    with tempfile.TemporaryDirectory() as root:
        for seed in arguments.seeds:
            metrics = run(root, seed, overrides)
            print(
                f"{seed:>6}",
                *(f"{metrics[f'test/{name}']:>28.3f}" for name in FIGURES),
                f"{metrics['minutes']:>28.1f}",
                flush=True,
            )
            figures |= {f"seed{seed}/{name}": value for name, value in metrics.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
