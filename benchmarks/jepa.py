"""What pretraining costs: python benchmarks/jepa.py [--threads N] [--json FILE]

Each rate is told as a share of that of a large matrix product, measured just before and after on as
many threads. On CPU in float32; where there is a GPU, there too in bfloat16, as it is and compiled.
One thread is the default: several wait for each other wherever others take part of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from measure import matmul_rate, once, seconds, tell
from torch import nn
from torch.nn import functional as F

from neuro.data.augment import IDENTITY
from neuro.data.batch import MaskedBatch
from neuro.data.collate import Background
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Series, Study
from neuro.data.masked import MaskedCollator
from neuro.data.masking import BlockMask
from neuro.data.tokens import grid_coords
from neuro.models import attention
from neuro.models.predictor import Predictor
from neuro.models.vit import VisionTransformer
from neuro.optim.schedules import warmup_cosine
from neuro.systems.jepa import Jepa

GRIDS = [(11, 16, 16), (36, 14, 12), (16, 16, 11), (48, 14, 14)]  # of clinical volumes
LENGTHS = (350, 100, 250)  # tokens of volumes; clinical ones keep 350 to 950
ON_GPU = (350, 944, 437, 600, 848, 512, 700, 300) * 4
MEMORY_TOKENS = (500, 1000, 2000)
VOXELS = 4 * 16 * 16
MASK = MaskedCollator(Background(min_foreground=0.5), [BlockMask()])


def item(grid, seed):
    """Return a series of random voxels, of which a round part is not background."""
    coords = grid_coords(grid)
    middle = (torch.tensor(grid) - 1) / 2
    inside = ((coords - middle) / middle).norm(dim=1) < 0.95
    generator = torch.Generator().manual_seed(seed)
    series = Series(subject=str(seed), modality="mri", path=Path(f"{seed}.nii.gz"))
    return SeriesTokens(
        study=Study(id=str(seed), series=(series,)),
        name="s",
        modality="mri",
        kind="mri",
        tokens=torch.randint(
            0, 256, (len(coords), VOXELS), dtype=torch.uint8, generator=generator
        ),
        coords=coords,
        foreground=inside.to(torch.uint8) * 255,
        size=grid,
        draw=IDENTITY,
        seed=seed,
        in_training=True,
    )  # fmt: skip


def masks():
    """Mask and collate, per volume."""
    items = [item(grid, seed) for seed, grid in enumerate(GRIDS * 2)]
    kept = [MASK.background.kept(one) for one in items]
    coords = [one.coords[own] for one, own in zip(items, kept, strict=True)]
    generator = torch.Generator().manual_seed(0)

    def draw():
        for one, own in zip(items, coords, strict=True):
            MASK.masks[0].draw(own, one.size, is_ct=False, generator=generator)

    batch = MASK(items)
    return {
        "mask_ms": seconds(draw, 20) / len(items) * 1e3,
        "mask_collate_ms": seconds(lambda: MASK(items), 20) / len(items) * 1e3,
        "copy_of_tokens_ms": seconds(batch.volumes.tokens.clone, 20) / len(items) * 1e3,
        "tokens_per_masked_volume": len(batch.volumes.tokens) / len(items),
        "masked_volumes_left_out": batch.num_left_out,
    }


def pack(lengths, device="cpu"):
    """Return the arguments of an encoder, for volumes of so many tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(lengths), VOXELS, generator=generator)
    coords = torch.randint(0, 14, (sum(lengths), 3), generator=generator)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return tokens.to(device), coords.to(device), bounds.to(device), lengths


def operations(transformer, lengths, outside=0):
    """Return the least work of a forward pass through the blocks of a transformer.

    Two operations for each weight of a layer and token; in attention, for each pair of tokens of a
    volume, two for each channel of the score and two for each channel of the answer. Norms, GELU
    and softmax count nothing. A backward pass is twice as much; what is computed again in it, as
    scores of attention are, counts nothing.

    Args:
        transformer: Encoder or predictor.
        lengths: Tokens of each volume.
        outside: Operations of what is not in the blocks.
    """
    layers = [one for one in transformer.blocks.modules() if isinstance(one, nn.Linear)]
    weights = sum(one.weight.numel() for one in layers)
    pairs = sum(length**2 for length in lengths)
    scores = 4 * pairs * transformer.dim * len(transformer.blocks)
    return 2 * weights * sum(lengths) + scores + outside


def encoder_operations(encoder, lengths):
    """Return the work of a training step of an encoder alone; its input needs no gradient."""
    embedded = 2 * encoder.token_embed["proj"].weight.numel() * sum(lengths)
    return 3 * operations(encoder, lengths) + 2 * embedded


def step_operations(system, batch):
    """Return the work of a whole step: the teacher forward, student and predictor both ways."""
    embed = 2 * system.student.token_embed["proj"].weight.numel()
    work = operations(system.teacher, batch.lengths, embed * sum(batch.lengths))
    for view in batch.views:
        work += 3 * operations(system.student, view.context_lengths)
        work += 2 * embed * len(view.context)
        enter = 2 * system.predictor.from_encoder.weight.numel() * sum(view.lengths)
        leave = 2 * system.predictor.to_encoder.weight.numel() * len(view.target)
        work += 3 * operations(system.predictor, view.lengths, enter + leave)
    return work


def share(work, run, rate, repeats=3):
    """Return the time of a run, and its rate as a share of that of a matrix product."""
    run()
    times, shares, before = [], [], rate()
    for _ in range(repeats):
        times.append(once(run))
        after = rate()
        shares.append(work / times[-1] / ((before + after) / 2))
        before = after
    return statistics.median(times), statistics.median(shares)


def train_encoder(encoder, batch, precision=None):
    """Forward and backward."""
    encoder.zero_grad(set_to_none=True)
    with torch.autocast(batch[0].device.type, precision, enabled=precision is not None):
        encoder(*batch).sum().backward()


def train_step(system, batch, precision=None):
    """Forward and backward of a whole step."""
    system.zero_grad(set_to_none=True)
    with torch.autocast(batch.volumes.tokens.device.type, precision, enabled=precision is not None):
        loss = system.losses(batch)["loss"]
    loss.backward()


def make_system(name, **changes):
    torch.manual_seed(0)
    encoder = VisionTransformer.preset(name, **changes)
    heads = encoder.blocks[0].mixer.num_heads
    sizes = {"dim": encoder.dim, "num_layers": len(encoder.blocks), "num_heads": heads}
    return Jepa(
        encoder,
        partial(Predictor, **sizes, **changes),  # as large as the encoder, as published
        momentum=(0.994, 1.0),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
        weight_decay=0.05,
    ).train()


def make_batch(lengths):
    """Return a masked batch whose volumes have about so many tokens."""
    deep = [max(3, round(length / (0.45 * 8 * 8))) for length in lengths]
    batch = MASK([item((depth, 8, 8), seed) for seed, depth in enumerate(deep)])
    assert isinstance(batch, MaskedBatch)
    return batch


def speed(device="cpu", precision=None, *, name, lengths, **changes):
    """Rates of an encoder and of a whole step, and both as shares of the product's rate."""
    size = 1536 if device == "cpu" else 8192
    rate = partial(matmul_rate, size, device=device, dtype=precision or torch.float32, repeats=3)
    label = f"{name}_{device}" + ("_compiled" if changes.get("compile") else "")
    figures = {}
    system = make_system(name, **changes).to(device)
    run = partial(train_encoder, system.student, pack(lengths, device), precision)
    time, part = share(encoder_operations(system.student, lengths), run, rate)
    figures[f"tokens_per_s_{label}"] = sum(lengths) / time
    figures[f"rate_share_{label}"] = part
    batch = make_batch(lengths).to(device)
    run = partial(train_step, system, batch, precision)
    time, part = share(step_operations(system, batch), run, rate)
    figures[f"step_tokens_per_s_{label}"] = sum(batch.lengths) / time
    figures[f"step_rate_share_{label}"] = part
    if device != "cpu":
        figures[f"step_peak_mb_{label}"] = torch.cuda.max_memory_allocated() / 2**20
    figures[f"matmul_gflop_per_s_{device}"] = rate() / 1e9
    return figures


def padded(lengths, query, key, value, segments, key_segments=None):
    """What would be done without packs: attention over padding, with a mask."""
    num, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    three = (one.unflatten(0, (num, longest)).transpose(1, 2) for one in (query, key, value))
    found = F.scaled_dot_product_attention(*three, attn_mask=mask[:, None, None])
    return found.transpose(1, 2).flatten(0, 1)


def one_run(name, lengths, kind):
    """Return a function that trains on volumes: ``packed``, ``padded`` or ``checkpointed``."""
    torch.manual_seed(0)
    encoder = VisionTransformer.preset(name, checkpoint_activations=kind == "checkpointed")
    if kind == "padded":
        attention.packed_attention = partial(padded, lengths)
        lengths = (max(lengths),) * len(lengths)
    return partial(train_encoder, encoder, pack(lengths))


def peak_mb(name, lengths, kind):
    """Return what a step adds to the memory of a fresh process, gradients aside."""
    command = [sys.executable, __file__, "--peak", json.dumps([name, lengths, kind])]
    # Or malloc would keep what is freed, and checkpointing would seem to save nothing.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return float(done.stdout)


def told_peak(name, lengths, kind):
    one_run(name, (8,), "packed")()  # gradients, and what libraries take for themselves
    run = one_run(name, lengths, kind)
    before = resident_mb("VmRSS")
    run()
    print(resident_mb("VmHWM") - before)


def resident_mb(which):
    """Return the memory of this process now (VmRSS), or at most so far (VmHWM).

    Not ``ru_maxrss``, which a process takes over from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {which}")


def memory():
    """Peak memory against tokens: one volume, so that a matrix of scores would show."""
    figures = {f"peak_mb_{n}_tokens": peak_mb("small", (n,), "packed") for n in MEMORY_TOKENS}
    most = MEMORY_TOKENS[-1]
    figures[f"peak_mb_{most}_tokens_checkpointed"] = peak_mb("small", (most,), "checkpointed")
    figures |= {
        f"peak_mb_ragged_{kind}": peak_mb("small", LENGTHS, kind) for kind in ("packed", "padded")
    }
    return figures


def packing():
    """How much faster packs are than padding, and what share of padded tokens is real."""
    packed_run = one_run("small", LENGTHS, "packed")
    packed_attention = attention.packed_attention
    padded_run = one_run("small", LENGTHS, "padded")
    padded_attention, ratios = attention.packed_attention, []
    for turn in range(5):
        attention.packed_attention = packed_attention
        time = once(packed_run)
        attention.packed_attention = padded_attention
        if turn:  # the first is not counted
            ratios.append(once(padded_run) / time)
        else:
            padded_run()
    attention.packed_attention = packed_attention
    return {
        "padded_over_packed": statistics.median(ratios),
        "real_share_of_padded_tokens": sum(LENGTHS) / len(LENGTHS) / max(LENGTHS),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        return told_peak(*arguments.peak)
    figures = masks()
    for name in ("small", "base"):
        figures |= speed(name=name, lengths=LENGTHS)
    figures |= packing() | memory()
    if torch.cuda.is_available():
        for name in ("small", "base"):
            for compile in (False, True):
                torch.cuda.reset_peak_memory_stats()
                figures |= speed(
                    "cuda", torch.bfloat16, name=name, lengths=ON_GPU, compile=compile
                )  # fmt: skip
    tell(figures, arguments.json)
    return None


if __name__ == "__main__":
    main()
