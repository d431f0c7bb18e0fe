"""Nothing that a stranger could have written is unpickled as code, whichever way it comes in."""

from __future__ import annotations

import ast
import itertools
import os
import pickle
from pathlib import Path

import pytest
import torch

from neuro.checkpoints import WholeCheckpoints
from neuro.data.entry import Entry
from neuro.errors import ScanError

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "neuro").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "train.py"]
UNPICKLERS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
CALLS = {"eval", "exec", "compile", "__import__"}
# The annotations of our own classes, which are text while types are checked.
OWN_TEXT = {("neuro/typed.py", "eval")}


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {one.arg: ast.unparse(one.value) for one in call.keywords}


def faults(path: Path) -> list[str]:
    """Return what of a source file could run what is in somebody's file."""
    found, where = [], str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
            )
            found += [
                f"{where}: import {name}" for name in names if name.split(".")[0] in UNPICKLERS
            ]
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), keywords(node)
        if name in CALLS and (where, name) not in OWN_TEXT:
            found.append(f"{where}: {name}()")
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(f"{where}: torch.load without weights_only=True")
        if (
            name.endswith(("load_checkpoint", ".load_from_checkpoint"))
            and given.get("weights_only") != "True"
        ):
            found.append(f"{where}: {name} without weights_only=True")
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"):
            found.append(f"{where}: {name}")
        if given.get("weights_only") == "False" or given.get("allow_pickle") == "True":
            found.append(f"{where}: {name} unpickles")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{where}: {name} runs code of a hub")
    return found


def test_no_source_unpickles_or_runs_what_a_file_holds():
    assert [fault for path in SOURCES for fault in faults(path)] == []


def test_the_search_finds_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle\ntorch.load(a)\neval(b)\nnp.load(c, allow_pickle=True)\nyaml.load(d)\n"
    )
    assert len(faults(bad)) == 5


class Harm:
    """What a stranger's pickle does to whoever loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def write(path: Path, kind: str, canary: Path) -> Path:
    """Write a checkpoint that does harm, as each way of saving does."""
    harm = Harm(canary)
    held = {"state_dict": {"a": torch.ones(1)}, "contract": {}, "parts": {}, "callbacks": harm}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=kind == "archive")
    return path


KINDS = ["archive", "legacy", "pickle"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_canary_sings_where_somebody_trusts(tmp_path, canary, kind):
    path = write(tmp_path / "a.ckpt", kind, canary)
    pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [None, False])
def test_lightning_reads_tensors_and_plain_values_whatever_it_is_told(
    tmp_path, canary, kind, asked, monkeypatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write(tmp_path / "a.ckpt", kind, canary)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        WholeCheckpoints().load_checkpoint(path, weights_only=asked)
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_entry_is_never_unpickled(tmp_path, canary, kind):
    path = write(tmp_path / "p-1.safetensors", kind, canary)
    with pytest.raises(ScanError, match="damaged"), Entry(path, Path("scan.nii")):
        pass
    assert not canary.exists()


@pytest.mark.slow
def test_no_command_unpickles_the_checkpoint_that_it_is_given(tmp_path, canary, run_commands):
    from small_mil import SMALL, write_heads

    heads = write_heads(tmp_path / "heads", num_subjects=12)
    small = [*SMALL, f"data.root={heads}", f"paths.root={tmp_path}", "trainer.max_steps=1"]
    vlm = ["data=phantom", "data.num_subjects=8", f"paths.root={tmp_path}", "trainer.max_steps=1"]
    jepa = [one for one in small if not one.startswith(("system", "data.label"))]
    own = f"hydra.run.dir={tmp_path}/own"
    given = {
        "ckpt_path=FILE": small,
        "ckpt_path=FOLDER": small,
        "hydra.run.dir=FOLDER": small,  # its own last.ckpt
        "system.encoder_from=FILE": small,
        "init_from=FILE": ["system=jepa", "encoder=custom", *jepa],
        "system.vision.init_from=FILE": [*vlm, "system/vision=neuro_vit"],
        "init_from=FOLDER/model.safetensors": vlm,
    }
    commands = [["neuro.train", own, *words, word] for word, words in given.items()]
    commands += [
        ["neuro.predict", f"input={heads}", own, "ckpt_path=FOLDER"],
        ["neuro.export", f"paths.root={tmp_path}", "ckpt_path=FILE"],
    ]
    for kind, command in zip(itertools.cycle(KINDS), commands, strict=False):
        folder = tmp_path / kind
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        path = write(folder / "checkpoints" / "last.ckpt", kind, canary)
        write(folder / "model.safetensors", kind, canary)
        command[-1] = command[-1].replace("FILE", str(path)).replace("FOLDER", str(folder))
        if command[-1].startswith("hydra.run.dir"):
            command.remove(own)
    statuses, said = run_commands(tmp_path, commands, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    assert not canary.exists()
    assert statuses == [2] * len(commands), said
    assert "Traceback" not in said
    assert said.count("error: ") == len(commands)
