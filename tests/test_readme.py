"""README tells the truth about the tree, and about the commands."""

from __future__ import annotations

import re
import subprocess
import sys
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


def test_nothing_in_the_repository_names_a_person_or_a_machine():  # D72
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


# Rows of the two lists of mistakes: D of the language models, S of pretraining and classification.
CANNOT = re.findall(r"^\| (D\d+) \|", (ROOT / "tests/README.md").read_text(), re.MULTILINE)
ROWS = [f"D{row}" for row in range(1, 79) if f"D{row}" not in CANNOT]
ROWS += [f"S{row}" for row in (*range(2, 9), *range(10, 18), *range(30, 51))]
ROWS += [f"S{row}" for row in (1, *range(18, 30), *range(61, 67), 79, 80, 81)]  # of pretraining
ROWS += [f"S{row}" for row in (9, 52, 53, 54, *range(72, 79), *range(84, 91))]  # of findings


@pytest.mark.parametrize("row", ROWS)
def test_each_mistake_of_the_lists_has_a_test(row):
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(re.search(rf"\b{row}\b", source) for source in sources)


def test_every_module_can_be_imported():  # D1, D5: names that a library no longer has
    paths = [Path(one) for one in tracked() if one.startswith("neuro/") and one.endswith(".py")]
    names = [".".join(path.with_suffix("").parts) for path in paths]
    lines = [f"import {name.removesuffix('.__init__')}" for name in names]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_package_prints_nothing():  # S47: what goes wrong is an error or a line of the log
    for name in tracked():
        if name.startswith("neuro/") and name.endswith(".py"):
            assert not re.search(r"^\s*print\(", (ROOT / name).read_text(), re.MULTILINE), name
