"""Mutated weights and checkpoints: of torch.save, old and new, and of safetensors."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from mutations import Verbatim, as_json, changed, damaged, odd
from safetensors.torch import save

from neuro.models.weights import load_weights, read_checkpoint, read_weights

Case = Callable[[], object]

SIZES = (0, 1, 3, 10**5, 2**31, 2**40, 2**62, -1)
CANARY = "canary"  # in the folder of a case: whoever unpickles a stranger's file writes it


class Stranger:
    """What a stranger's pickle would do to whoever loads it."""

    def __init__(self, rng: Random, folder: Path) -> None:
        path = str(folder / CANARY)
        self.does = rng.choice(
            (
                (os.system, (f"touch {path}",)),
                (exec, (f"open({path!r}, 'w').close()",)),
                (os.mkdir, (path,)),
                (open, (path, "w")),
            )
        )

    def __reduce__(self) -> Any:
        return self.does


class Lie:
    """A tensor whose size, strides or offset its storage does not bear out."""

    def __init__(self, rng: Random, tensor: torch.Tensor) -> None:
        self.storage = torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
        num_axes = rng.choice((1, 2, 3, 64))
        self.size = tuple(rng.choice(SIZES) for _ in range(num_axes))
        self.stride = tuple(rng.choice(SIZES) for _ in range(rng.choice((num_axes, num_axes, 1))))
        self.offset = rng.choice(SIZES)

    def __reduce__(self) -> Any:
        told = (self.storage, self.offset, self.size, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, told


def saved(value: Any, *, legacy: bool = False) -> bytes:
    """Return what torch.save writes."""
    sink = io.BytesIO()
    torch.save(value, sink, _use_new_zipfile_serialization=not legacy)
    return sink.getvalue()


def plain(node: Any) -> Any:
    """Return values without text that is meant for JSON alone."""
    if isinstance(node, Verbatim):
        return str(node)
    if isinstance(node, dict):
        return {key: plain(one) for key, one in node.items()}
    return [plain(one) for one in node] if isinstance(node, list) else node


def begin(folder: Path) -> dict[str, bytes]:
    """Return small files of weights."""
    torch.manual_seed(0)
    state = torch.nn.Linear(6, 5).state_dict()
    told = {"contract": {"recipes": {}}, "versions": {"torch": "2"}}
    return {
        "zip": saved(state),
        "checkpoint": saved({"state_dict": state, "epoch": 1, "loops": {"fit_loop": {}}}),
        "legacy": saved(state, legacy=True),
        "safetensors": save(dict(state), {"neuro": json.dumps(told)}),
    }


def case(rng: Random, seeds: dict[str, bytes], folder: Path) -> Case:
    """Write a file of weights and return what reads it in every way."""
    kind = rng.choice(list(seeds))
    data, suffix = seeds[kind], ".safetensors" if kind == "safetensors" else ".ckpt"
    what = rng.random()
    if what < 0.12:
        data = saved(stranger(rng, folder), legacy=rng.random() < 0.3)
    elif what < 0.15:
        data = pickle.dumps(stranger(rng, folder), protocol=rng.randrange(6))
    elif what < 0.4 and kind != "safetensors":
        value = {"weight": Lie(rng, torch.ones(4)), "bias": torch.ones(5)}
        data = saved(
            value if rng.random() < 0.5 else {"state_dict": value}, legacy=kind == "legacy"
        )
    elif what < 0.5 and kind != "safetensors":
        data = saved(rng.choice((plain(odd(rng)), {"state_dict": plain(odd(rng))}, torch.ones(2))))
    elif what < 0.75 and kind == "safetensors":
        data = safetensors_header(rng, data)
    elif what < 0.75 and kind != "legacy":
        data = rezipped(rng, data)
    else:
        data = damaged(rng, data)
    path = folder / f"a{suffix if rng.random() < 0.9 else '.bin'}"
    path.write_bytes(data)

    def read() -> object:
        try:
            read_checkpoint(path)
            read_weights(path)
            return load_weights(torch.nn.Linear(6, 5), path)
        finally:
            assert not (folder / CANARY).exists(), "a stranger's pickle was executed"

    return read


def stranger(rng: Random, folder: Path) -> Any:
    """Return something that does harm when it is unpickled, at some place of a checkpoint."""
    harm = Stranger(rng, folder)
    return rng.choice(
        (harm, {"state_dict": harm}, {"a": torch.ones(1), "b": harm}, {harm: 1} if 0 else [harm])
    )


def rezipped(rng: Random, data: bytes) -> bytes:
    """Return an archive some of whose members are packed, gone, renamed, there twice or damaged."""
    sink, what = io.BytesIO(), rng.randrange(6)
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(sink, "w") as made:
        names = given.namelist()
        picked = rng.choice(names)
        for name in names:
            content = given.read(name)
            kind = zipfile.ZIP_DEFLATED if what == 0 else zipfile.ZIP_STORED
            if name == picked:
                if what == 1:
                    continue
                if what == 2:
                    name = rng.choice(("../../x", "data.pkl", name.upper(), "archive/" * 50 + "x"))
                if what == 3:
                    content = damaged(rng, content) if content else b"x"
                if what == 4:  # unpacks to a gigabyte and more
                    content, kind = bytes(rng.choice((1 << 20, 1 << 28))), zipfile.ZIP_DEFLATED
                if what == 5:
                    made.writestr(name, content[::-1])
            made.writestr(name, content, compress_type=kind, compresslevel=1)
    return sink.getvalue()


def safetensors_header(rng: Random, data: bytes) -> bytes:
    """Return a file with another header, or one whose metadata is not what we write."""
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5:
        header["__metadata__"]["neuro"] = as_json(rng, plain(odd(rng))).decode(errors="replace")
    else:
        header = changed(rng, header)
    packed = as_json(rng, header)
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


def begin_whole(folder: Path) -> dict[str, Any]:
    """Return a checkpoint of system=mil as values."""
    return mil_checkpoint()


def mil_checkpoint() -> dict[str, Any]:
    """Return what a checkpoint of system=mil holds, of an untrained model."""
    import lightning
    import numpy as np
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from small_mil import config

    from neuro.data.contract import Contract
    from neuro.data.fixed_grid import FixedGrid
    from neuro.data.labels import Labels
    from neuro.models.normalize import STATISTICS

    cfg = config("/nowhere", "/nowhere")
    nodes: Any = OmegaConf.to_container(cfg.system, resolve=True)
    parts = {name: nodes[name] for name in ("encoder", "pool", "tuning")}
    contract = Contract(
        recipes={"T1": FixedGrid(**_without_target(cfg))},
        min_foreground=0.02,
        statistics=STATISTICS,
        labels=("has_lesion",),
        task="binary",
        classes=("no", "yes"),
    )
    system = instantiate(cfg.system, _convert_="all")
    values = np.zeros((1, 1), np.float32)
    system.build(Labels(names=contract.labels, task="binary", classes=("no", "yes"), values=values))
    system.tuning.apply(system.encoder)
    system.contract, system.parts = contract, parts
    return {
        "epoch": 1,
        "global_step": 6,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": dict(system.state_dict()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "contract": contract.plain(),
        "parts": parts,
    }


def _without_target(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain_recipe: Any = OmegaConf.to_container(cfg.data.recipes.T1, resolve=True)
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plain_recipe.items()
        if name != "_target_"
    }


def mutated_whole(rng: Random, seed: dict[str, Any], folder: Path) -> bytes:
    """Return a checkpoint with something else in it than there should be."""
    held = dict(seed)
    what = rng.random()
    if what < 0.35:
        held["parts"] = changed(rng, seed["parts"])
    elif what < 0.7:
        held["contract"] = changed(rng, seed["contract"])
    elif what < 0.8:
        state = dict(seed["state_dict"])
        name = rng.choice(list(state))
        state[name] = rng.choice(
            (
                torch.ones(3),
                "x",
                None,
                Lie(rng, torch.ones(4)),
                torch.ones(2, dtype=torch.complex64),
            )
        )
        if rng.random() < 0.3:
            state["more"] = torch.ones(2)
        if rng.random() < 0.3:
            del state[name]
        held["state_dict"] = state
    elif what < 0.87:
        held[rng.choice(list(held))] = odd(rng)
    elif what < 0.9:
        del held[rng.choice(list(held))]
    elif what < 0.93:
        held[rng.choice(("loops", "callbacks", "x"))] = Stranger(rng, folder)
    else:
        return damaged(rng, saved(held))
    return saved({key: plain(one) if key != "state_dict" else one for key, one in held.items()})


def whole_case(rng: Random, seed: dict[str, Any], folder: Path) -> Case:
    """Write a checkpoint and return what builds its model again."""
    from neuro.predict import restored

    path = folder / "best.ckpt"
    path.write_bytes(mutated_whole(rng, copy.copy(seed), folder))

    def read() -> object:
        try:
            return restored(path)
        finally:
            assert not (folder / CANARY).exists(), "a stranger's pickle was executed"

    return read
