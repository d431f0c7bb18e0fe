"""The process that gives damaged files to the commands themselves, one after another.

``python tests/fuzz/commands.py GROUP FIRST LAST [FOLDER]`` runs some cases of a group; without a
folder of its own it prints what the commands say.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import importlib
import io
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "data"), str(TESTS), str(TESTS.parent)]

MAX_BYTES = 2 << 30
MAX_S = 60  # a whole command, with what is sound
FILES = 15  # damaged files that one preparation meets


def call(module: str, *words: str) -> tuple[int, str]:
    """Run a command in this process; return its status and all that it printed."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    sys.argv, said = [module, *words], io.StringIO()
    status: Any = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(module).main()
        except SystemExit as left:
            status = left.code
    return (status if isinstance(status, int) else int(bool(status))), said.getvalue()


class Prepare:
    """``neuro.prepare`` on what is damaged."""

    def __init__(self, target: str, folder: Path) -> None:
        from child import TARGETS

        module, begin, case = TARGETS[target]
        cases = importlib.import_module(module)
        (folder / "seeds").mkdir(parents=True)
        self.target, self.case = target, getattr(cases, case)
        self.seeds = getattr(cases, begin)(folder / "seeds")

    def words(self, number: int, folder: Path) -> tuple[str, list[str], int]:
        """Write files; return the command, its words, and how many files it meets."""
        root = folder / "studies"
        count = FILES if self.target in ("nifti", "dicom", "sidecars") else 1
        for one in range(count):
            place = root / f"{one:02d}" if count > 1 else root
            place.mkdir(parents=True)
            self.case(Random(f"prepare {self.target} {number * count + one}"), self.seeds, place)
        table = next((one for one in root.glob("table.*")), "")
        talk = next((one for one in root.glob("talk.*")), "")
        words = {
            "tables": ["data=manifest", f"data.manifest={table}", "data.label=[sex]"],
            "conversations": ["data=conversations", f"data.conversations={talk}"],
        }.get(self.target, ["data=studies", "data.default_mode=mri"])
        clinical = ["data.recipes.mri.patch=[2,4,4]", "data.recipes.mri.slice_mm=4.0"]
        words += [f"data.root={root}", "data.max_failed=1.0", "max_pictures=5", *clinical]
        return "neuro.prepare", words, count


class Index:
    """``neuro.prepare`` on a cache whose entries and index are damaged."""

    def __init__(self, folder: Path) -> None:
        import nibabel as nib
        import numpy as np

        self.root = folder / "studies"
        for name in ("a", "b", "c"):
            (self.root / name).mkdir(parents=True)
            voxels = np.random.default_rng(ord(name)).normal(500, 90, (12, 12, 12))
            nib.save(
                nib.Nifti1Image(voxels.astype(np.float32), np.eye(4) * 8),
                self.root / name / "t1.nii",
            )
        words = self._words()
        status, said = call("neuro.prepare", *words, f"paths.root={folder}")
        assert status == 0, said
        self.sound = folder / "cache"

    def _words(self) -> list[str]:
        return ["data=studies", f"data.root={self.root}", "data.default_mode=mri", "max_pictures=5"]

    def words(self, number: int, folder: Path) -> tuple[str, list[str], int]:
        """Damage one file of a copy of the cache."""
        from mutations import damaged

        rng = Random(f"cache {number}")
        shutil.copytree(self.sound, folder / "cache")
        files = sorted(
            one for one in (folder / "cache").rglob("*") if one.is_file() and one.suffix != ".log"
        )
        path = rng.choice(files)
        path.write_bytes(damaged(rng, path.read_bytes() or b"x"))
        return "neuro.prepare", self._words(), 1


class Trained:
    """What takes a checkpoint, given damaged ones of a run of two steps."""

    def __init__(self, folder: Path) -> None:
        import torch
        from small_mil import SMALL, write_heads

        heads = write_heads(folder / "heads", num_subjects=12)
        small = [one for one in SMALL if not one.startswith("trainer")]
        self.common = [
            *(*small, f"data.root={heads}", "trainer.accelerator=cpu", "data.splits.val=0.3"),
            *(
                "data.splits.test=0.3",
                "~callbacks.report",
                "tuning=full",
                "trainer.max_epochs=null",
            ),
        ]
        run = f"hydra.run.dir={folder}/run"
        words = [*self.common, f"paths.root={folder}", run, "trainer.max_steps=2", "ckpt_path=null"]
        status, said = call("neuro.train", *words)
        assert status == 0, said
        self.cache = f"paths.cache_dir={folder}/cache"
        self.scan = heads
        path = folder / "run" / "checkpoints" / "last.ckpt"
        self.held: Any = torch.load(path, weights_only=True)

    def words(self, number: int, folder: Path) -> tuple[str, list[str], int]:
        """Write a damaged checkpoint; return a command that takes it."""
        from checkpoint_cases import mutated_whole, plain, saved
        from mutations import changed

        rng = Random(f"checkpoint {number}")
        path = folder / "damaged.ckpt"
        what = rng.random()
        if what < 0.6:
            path.write_bytes(mutated_whole(rng, copy.copy(self.held), folder))
        else:  # what Lightning goes on from
            held = dict(self.held)
            key = rng.choice(
                ("loops", "callbacks", "lr_schedulers", "optimizer_states", "epoch", "global_step")
            )
            held[key] = plain(changed(rng, {"it": _without_tensors(held[key])}))
            held[key] = held[key].get("it") if isinstance(held[key], dict) else held[key]
            path.write_bytes(saved(held))
        if rng.random() < 0.4 and what < 0.6:
            (scan,) = (
                (self.scan / "sub-001").rglob("*_T1w.nii.gz")
                if (self.scan / "sub-001").is_dir()
                else [self.scan]
            )
            return "neuro.predict", [f"ckpt_path={path}", f"input={scan.parent}", "device=cpu"], 1
        key = "ckpt_path" if what >= 0.6 or rng.random() < 0.6 else "system.encoder_from"
        run = f"hydra.run.dir={folder}/run"
        words = [*self.common, self.cache, run, "trainer.max_steps=3", f"{key}={path}"]
        return "neuro.train", words, 1


def _without_tensors(node: Any) -> Any:
    """Return plain values that can be changed; a tensor stays as it is."""
    if isinstance(node, dict):
        return {key: _without_tensors(one) for key, one in node.items()}
    return [_without_tensors(one) for one in node] if isinstance(node, list) else node


GROUPS = {
    **{name: name for name in ("nifti", "dicom", "sidecars", "tables", "conversations")},
    "cache": Index,
    "checkpoints": Trained,
}


def run(
    group: str, first: int, last: int, folder: Path, *, is_told: bool = False
) -> Iterator[dict]:
    """Yield for each case its number, the words, the status and what is wrong with the output."""
    from checkpoint_cases import CANARY

    kind: Any = GROUPS[group]
    made = Prepare(kind, folder / "made") if isinstance(kind, str) else kind(folder / "made")
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, resource.RLIM_INFINITY))
    for number in range(first, last):
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        print(json.dumps({"target": group, "begin": number}), flush=True)
        module, words, count = made.words(number, place)
        faulthandler.dump_traceback_later(MAX_S, exit=True, file=sys.__stderr__)
        start = time.perf_counter()
        status, said = call(module, *words, f"paths.root={place}")
        seconds = round(time.perf_counter() - start, 2)
        faulthandler.cancel_dump_traceback_later()
        if is_told:
            print(module, *words, said, sep="\n")
        outcome = "read" if status == 0 else "clear"
        if status not in (0, 1, 2) or "Traceback" in said:
            outcome = f"status {status}: {said[-1500:]}"
        if (place / CANARY).exists():
            outcome = "a stranger's pickle was executed"
        yield {
            "target": group,
            "case": number,
            "outcome": outcome,
            "seconds": seconds,
            "files": count,
        }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given, begin, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with TemporaryDirectory() as temporary:
        own = Path(sys.argv[4]) if len(sys.argv) > 4 else Path(temporary)
        for group in given.split(","):
            for row in run(group, begin, end, own / group, is_told=len(sys.argv) == 4):
                print(json.dumps(row), flush=True)
