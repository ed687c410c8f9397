"""Where things lie: the folders, the three links at the root, and what must not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINKS = ("envs", "knowledge", "cli")


@pytest.mark.parametrize("folder", ["envs", "knowledge", "rollouts/sampling", "cli"])
def test_packages_are_there(root: Path, folder: str) -> None:
    assert (root / "agentopcd" / folder / "__init__.py").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "pyproject.toml",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "NOTICE",
        ".ci/run",
        "docs/method.md",
    ],
)
def test_files_are_there(root: Path, name: str) -> None:
    assert (root / name).is_file()


def test_the_ci_script_can_be_run(root: Path) -> None:
    assert os.access(root / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", LINKS)
def test_root_links_are_relative(root: Path, name: str) -> None:
    assert (root / name).is_symlink()
    assert os.readlink(root / name) == f"agentopcd/{name}"


def test_root_links_refuse_to_be_imported(root: Path) -> None:
    probe = (
        "import importlib\n"
        f"for name in {LINKS!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        print(name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(LINKS), done.stdout
    for name, line in zip(LINKS, lines, strict=True):
        assert line.startswith(name)
        assert f"agentopcd.{name}" in line, "the message must say under which name to import it"


def test_no_drawers_for_everything(root: Path) -> None:
    found = [path for name in ("utils.py", "common.py", "helpers.py") for path in (root / "agentopcd").rglob(name)]
    assert found == []


def test_the_loop_can_be_read_in_a_sitting(root: Path) -> None:
    loop = root / "agentopcd" / "consolidate.py"
    if loop.exists():
        assert len(loop.read_text(encoding="utf-8").splitlines()) < 400


def test_the_package_is_marked_as_typed(root: Path) -> None:
    assert (root / "agentopcd" / "py.typed").exists()
