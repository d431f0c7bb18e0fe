"""What installing asks of a machine, and what it brings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_release_of_anything_is_asked_for_exactly():  # S63
    assert re.fullmatch(r">=3\.\d+", PROJECT["project"]["requires-python"])
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    for one in asked:
        assert "==" not in one, one
        assert one.startswith("neuro[") or ">=" in one, f"{one}: from which release on?"


def test_nothing_is_asked_for_that_is_compiled_on_install():  # S61
    asked = {re.split(r"[\[<>=!~ ]", one)[0] for one in PROJECT["project"]["dependencies"]}
    assert not asked & {"flash-attn", "torch-scatter", "torchvision", "timm", "xformers", "triton"}


def test_a_wheel_takes_all_of_the_package_and_the_config():  # S64
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["neuro"], "force-include": {"conf": "neuro/conf"}}
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    # What git ignores is left out of a wheel.
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "neuro", "conf"]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [one for one in ignored.split() if "__pycache__" not in one] == []
