"""What a run leaves behind besides weights: how it was started, on what, and what it reached."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def write_start(run_dir: Path, cfg: DictConfig) -> None:
    """Write ``config.yaml``, ``command.sh`` and ``environment.json``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    (run_dir / "command.sh").write_text(f"#!/bin/sh\n{command}\n")
    (run_dir / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return interpreter, system, revision of the code, and every package with its version."""
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "revision": _revision(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def write_parameters(run_dir: Path, table: Sequence[tuple[str, int, int]]) -> None:
    """Write the parameters of each part to ``parameters.json``."""
    rows = [
        {"part": part, "parameters": total, "trainable": trained} for part, total, trained in table
    ]
    (run_dir / "parameters.json").write_text(json.dumps(rows, indent=2) + "\n")


def write_metrics(run_dir: Path, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Write the last value of each figure to ``metrics.json`` and return them."""
    plain = {name: float(value) for name, value in sorted(metrics.items())}
    (run_dir / "metrics.json").write_text(json.dumps(plain, indent=2) + "\n")
    return plain


def _revision() -> str | None:
    """Return the commit of a checkout, with a plus if files differ; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
