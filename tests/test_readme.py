"""README tells the truth about the tree, and about the commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def listed():
    """Return the paths of README's tree, from its indentation."""
    (block,) = re.findall(r"```\n(neuro/\n.*?)```", README, flags=re.DOTALL)
    folders, paths = [], set()
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            paths.add("/".join([*folders, name]))
    return paths


def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_tree_lists_every_file_of_the_package():
    files = {
        path
        for path in tracked()
        if path.startswith("neuro/") and path.endswith(".py") and not path.endswith("__init__.py")
    }
    assert {
        path for path in listed() if path.startswith("neuro/") and path.endswith(".py")
    } == files


def test_the_two_commands_are_the_first_two_blocks():
    first, second = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)[:2]
    assert "train.py system=llava_mri" in first
    assert "pytest" in second


def test_nothing_in_the_repository_names_a_person_or_a_machine():
    """No key, no home folder (6.5 test 18)."""
    secret = re.compile(
        r"(wandb|api)_?key\s*[:=]\s*['\"]?[0-9a-f]{20,}|AKIA[0-9A-Z]{16}", re.IGNORECASE
    )
    home = re.compile(r"[\"' =](/home/|/Users/|/root/|/pscratch/)")
    for name in tracked():
        path = ROOT / name
        if not path.is_file() or path == Path(__file__) or path.suffix in (".png", ".gz"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not secret.search(text), name
        assert not home.search(text), name


ROWS = [*range(12, 21), *range(26, 34), 37, *range(41, 45), 47, *range(50, 54), 58, 59, 63, 65, 66]


@pytest.mark.parametrize("row", [*ROWS, 68, 69, 75, 77])
def test_each_mistake_of_the_list_has_a_test(row):
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(re.search(rf"\bD{row}\b", source) for source in sources)
