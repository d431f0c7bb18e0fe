"""What system=mil reaches on the phantom, and how often its attention peaks in the planted lesion.

python benchmarks/lesions.py [key=value ...] [--seeds 1 2 3] [--json FILE]

It trains experiment=mil_phantom, then runs neuro.predict with explain=true on the raw scans of the
test heads that have a lesion, and looks where each map is highest: whether the middle of the patch
lies in the lesion, and whether the patch touches it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from neuro.data.phantom_files import lesion_mask


def command(name, *words):
    subprocess.run(
        [sys.executable, "-m", f"neuro.{name}", *map(str, words)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def lesioned_heads(cohort):
    """Return the test heads that have a lesion."""
    with (cohort / "participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [
        row["participant_id"]
        for row in rows
        if row["split"] == "test" and row["has_lesion"] == "yes"
    ]


def peak(path, mask):
    """Return whether the middle of a map's highest patch is in a lesion, and whether any of it."""
    voxels = np.asarray(nib.load(path).dataobj)
    lesion = np.asarray(nib.load(mask).dataobj) > 0
    highest = np.argwhere(voxels == voxels.max())
    middle = tuple(np.rint(highest.mean(axis=0)).astype(int))
    return bool(lesion[middle]), bool(lesion[tuple(highest.T)].any())


def run(root, seed, overrides):
    start = time.monotonic()
    words = [f"paths.root={root}", f"seed={seed}", f"run.name=seed{seed}"]
    command("train", "experiment=mil_phantom", *words, *overrides)
    minutes = (time.monotonic() - start) / 60
    (cohort,) = (root / "data/phantom").iterdir()
    heads = lesioned_heads(cohort)
    table = root / "heads.csv"
    rows = [f"{head},{cohort.name}/{head}/anat/{head}_T1w.nii.gz" for head in heads]
    table.write_text("\n".join(["study,path", *rows]) + "\n")
    command(
        "predict",
        f"ckpt_path={root}/outputs/mil/seed{seed}",
        f"input={table}",
        f"root={cohort.parent}",
        "explain=true",
        "default_mode=T1",
        *words[::2],
    )
    told = root / f"outputs/predict/seed{seed}"
    found = [
        peak(next((told / head).glob("*.nii.gz")), cohort / lesion_mask(head)) for head in heads
    ]
    middles, touches = zip(*found, strict=True)
    metrics = json.loads((root / f"outputs/mil/seed{seed}/metrics.json").read_text())
    return {
        "auroc_macro": metrics["test/auroc_macro"],
        "heads_with_lesion": len(heads),
        "peak_middle_in_lesion": np.mean(middles),
        "peak_touches_lesion": np.mean(touches),
        "minutes": minutes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments, overrides = parser.parse_known_args()
    figures = {}
    with tempfile.TemporaryDirectory() as root:
        for seed in arguments.seeds:
            found = run(Path(root), seed, overrides)
            print(f"seed {seed}  " + "  ".join(f"{name} {one:.3f}" for name, one in found.items()))
            figures |= {f"seed{seed}/{name}": float(value) for name, value in found.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
