"""Mutated cache entries, and the index beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from isal import isal_zlib
from mutations import as_json, changed, damaged

from neuro.data.entry import Entry, Facts, write_entry
from neuro.data.index import Index

Case = Callable[[], object]

FACTS = Facts(
    source="1|100|5",
    source_shape=(9, 9, 9),
    source_spacing_mm=(1.0, 1.0, 1.0),
    orientation="RAS",
    grid=(2, 2, 2),
    num_frames=6,
    voxels="0a",
    warnings=("odd",),
)


def begin(folder: Path) -> dict[str, bytes]:
    """Return an entry and an index."""
    path = folder / "T1-0" / "p-1.safetensors"
    path.parent.mkdir(parents=True)
    tensors = {
        "voxels": torch.arange(6 * 64, dtype=torch.int32).to(torch.uint8).reshape(6, 4, 4, 4),
        "foreground": torch.arange(8, dtype=torch.uint8),
        "affine": torch.eye(4, dtype=torch.float64),
    }
    write_entry(path, tensors, FACTS)
    Index(folder).refresh({path: Path("scan.nii")})
    return {"entry": path.read_bytes(), "index": (folder / "index.jsonl").read_bytes()}


def header_changed(rng: Random, data: bytes) -> bytes:
    """Return an entry with another header, whose own checksums may hold."""
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    about = header["__metadata__"]
    if rng.random() < 0.5:
        what = rng.choice(("about", "crc"))
        content = as_json(rng, changed(rng, json.loads(about[what])))
        about[what] = content.decode(errors="replace")
        about["about_crc"] = f"{isal_zlib.crc32(about['about'].encode()):x}"
    else:
        header = changed(rng, header)
    packed = as_json(rng, header)
    claimed = rng.choice((len(packed),) * 6 + (0, 2**63, 2**40, len(packed) + 9, 100_000_001))
    return struct.pack("<Q", claimed) + packed + data[8 + length :]


def case(rng: Random, seeds: dict[str, bytes], folder: Path) -> Case:
    """Write an entry and return what reads all that is in it."""
    data = seeds["entry"]
    data = header_changed(rng, data) if rng.random() < 0.5 else damaged(rng, data)
    path = folder / "p-1.safetensors"
    path.write_bytes(data)

    def read() -> object:
        with Entry(path, Path("scan.nii")) as entry:
            return (
                [entry.read(name) for name in ("foreground", "affine", "voxels")],
                entry.read_frames("voxels", 1, 2, 2),
                entry.facts(),
            )

    return read


def index_case(rng: Random, seeds: dict[str, bytes], folder: Path) -> Case:
    """Write an index, and what it is of, and return what asks it."""
    path = folder / "T1-0" / "p-1.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    entry, index = seeds["entry"], seeds["index"]
    if rng.random() < 0.3:
        entry = damaged(rng, entry)
    path.write_bytes(entry)
    if rng.random() < 0.5:
        index = damaged(rng, index)
    else:  # with a checksum that holds
        from neuro.data.index import LAYOUT

        row = json.loads(index)
        row.pop("crc")
        body = as_json(rng, changed(rng, row)).replace(b"\n", b" ")
        crc = isal_zlib.crc32(body, LAYOUT)
        index = f'{{"crc": "{crc:08x}", '.encode() + body[1:] + b"\n"
    (folder / "index.jsonl").write_bytes(index)

    def ask() -> object:
        asked = Index(folder)
        return asked.facts({path: Path("scan.nii")}), asked.num_kept({path: Path("scan.nii")}, 0.5)

    return ask
