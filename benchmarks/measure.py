"""What the benchmarks share: a time, a rate to compare with, a table."""

from __future__ import annotations

import json
import os
import statistics
import time

import torch


def seconds(function, repeats=5):
    """Return the median time of a call, after one that is not counted."""
    function()
    return statistics.median(once(function) for _ in range(repeats))


def once(function):
    """Return the time of one call, work on a GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(size=1536, *, device="cpu", dtype=torch.float32, repeats=5):
    """Return the floating-point operations per second of a large matrix product."""
    one = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: one @ one, repeats)


def tell(figures, path=None):
    """Print figures as a table, and write them to a file if one is named."""
    figures |= {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # above the number of cores, others take part of it
    }
    for name, value in figures.items():
        print(f"{name:45} {value:12.3f}")
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n")
