"""What each stretch of the data road costs, on the phantom: python benchmarks/road.py [--json FILE]

Every ratio is within one run; the floors are measured in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import matmul_rate, seconds, tell

from neuro import command
from neuro.data.volume import read_volume


def build(root, *overrides):
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        given = [f"paths.root={root}", "paths.run_dir=unused", "data.num_subjects=60", *overrides]
        cfg = compose("train", overrides=given)
    command.resolve(cfg)
    torch.manual_seed(0)
    return (
        instantiate(cfg.data.datamodule, _convert_="all"),
        instantiate(cfg.system, _convert_="all"),
    )


def measure(root):
    figures = {}
    datamodule, system = build(root, "system.llava.steps=1")
    start = time.perf_counter()
    datamodule.manifest  # noqa: B018, writes the phantom
    figures["phantom_ms_per_head"] = (time.perf_counter() - start) / 60 * 1e3
    start = time.perf_counter()
    datamodule.prepare_data()
    num_scans = len(datamodule.manifest.scans())
    figures["prepare_ms_per_scan"] = (time.perf_counter() - start) / num_scans * 1e3
    again, _ = build(root, "system.llava.steps=1")  # as the next run finds it
    again.manifest  # noqa: B018
    start = time.perf_counter()
    again.prepare_data()
    figures["prepare_again_ms_per_scan"] = (time.perf_counter() - start) / num_scans * 1e3

    cache = datamodule.cache
    scans = [one for one in datamodule.manifest.scans() if one.modality == "T1"][:40]
    read = seconds(lambda: [cache.read(one)[0].sum() for one in scans]) / len(scans)
    raw = seconds(lambda: [read_volume(one.path) for one in scans]) / len(scans)
    copy = torch.empty(48**3, dtype=torch.uint8).random_(256)
    figures["cache_read_us_per_scan"] = read * 1e6
    figures["nifti_over_cache_read"] = raw / read
    figures["cache_read_over_sum_of_memory"] = read / seconds(lambda: copy.sum(), 50)

    dataset = datamodule.dataset("train")
    rows = next(iter(datamodule.train_dataloader().batches))
    batch = datamodule.collate([dataset[row] for row in rows])
    items = [dataset[row] for row in rows]
    figures["items_ms_per_batch"] = seconds(lambda: [dataset[row] for row in rows]) * 1e3
    figures["collate_ms_per_batch"] = seconds(lambda: datamodule.collate(items)) * 1e3

    def step():
        system.losses(batch)["loss"].backward()

    step_s = seconds(step)
    figures["step_ms"] = step_s * 1e3
    figures["data_share_of_step"] = (
        figures["items_ms_per_batch"] + figures["collate_ms_per_batch"]
    ) / figures["step_ms"]
    figures["step_over_floor"] = step_s * matmul_rate() / operations(system, batch)
    figures["answer_ms_per_batch"] = seconds(lambda: system.answer(batch), 3) * 1e3

    everything, _ = build(root, "system.llava.steps=1", "system.drop_background=false")
    whole = everything.collate(items)
    figures["tokens_kept"] = visual_tokens(batch) / visual_tokens(whole)
    unfiltered = seconds(lambda: system.losses(whole)["loss"].backward())
    figures["step_without_over_with_background_filter"] = unfiltered / step_s
    return figures


def visual_tokens(batch):
    return sum(len(one.tokens) for one in batch.volumes.values())


def operations(system, batch):
    """Return the least work of a step: two operations a weight and token, forward and backward.

    Frozen layers still pass gradients to their inputs, so they cost forward and once more.
    """
    parts = {part: total for part, total, _ in system.parameter_table()}
    visual = visual_tokens(batch)
    text = int(batch.attention_mask.sum())
    embedders = sum(
        2 * len(one.tokens) * one.tokens.shape[1] * 128 for one in batch.volumes.values()
    )
    frozen = 2 * visual * (parts["vision tower"] + parts["projector"])
    frozen += 2 * text * parts["language model"]
    return 2 * (embedders + frozen)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        figures = measure(root)
    tell(figures, arguments.json)


if __name__ == "__main__":
    main()
