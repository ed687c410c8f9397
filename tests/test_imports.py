"""A command starts at once: importing the package or its command line loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "vllm",
    "gguf",
    "numpy",
    "gymnasium",
    "textarena",
    "reasoning_gym",
    "pyarrow",
)


@pytest.mark.parametrize("module", ["agentopcd", "agentopcd.core.errors", "agentopcd.core.types", "agentopcd.cli"])
def test_nothing_heavy_is_imported(root: Path, module: str) -> None:
    probe = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", [["--version"], ["--help"]])
def test_version_and_help_load_nothing_heavy(root: Path, command: list[str]) -> None:
    probe = (
        "import sys\n"
        "from agentopcd.cli import main\n"
        f"sys.argv = ['agentopcd', *{command!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_unknown_names_and_the_version() -> None:
    import agentopcd

    assert agentopcd.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = agentopcd.nothing


def test_every_public_name_loads() -> None:
    import agentopcd

    for name in agentopcd.__all__:
        assert getattr(agentopcd, name) is not None, name


def test_public_names_are_what_they_say_however_often_and_in_whatever_order(root: Path) -> None:
    """A name that a module of the package bears as well stands for that module, which can be called."""
    import agentopcd

    names = [name for name in agentopcd.__all__ if name != "__version__"]
    probe = (
        "import importlib, pkgutil, agentopcd\n"
        f"first = {{name: getattr(agentopcd, name) for name in {names!r}}}\n"
        "for found in pkgutil.iter_modules(agentopcd.__path__, 'agentopcd.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        f"for name in {names!r}:\n"
        "    exec(f'from agentopcd import {name} as again')\n"
        "    assert again is first[name] is getattr(agentopcd, name), name\n"
        "    assert callable(again), name\n"
        "assert agentopcd.Context('x').text == 'x' and agentopcd.make('math').reset(seed=0)\n"
        "try:\n"
        "    agentopcd.load_model('no such model')\n"
        "except agentopcd.AgentOpcdError:\n"
        "    print('called')\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "called"


@pytest.mark.parametrize("verb", ["play", "knowledge score", "consolidate", "learn", "forecast", "evaluate"])
def test_a_mistyped_environment_is_told_before_torch_is_loaded(verb: str, root: Path, tmp_path: Path) -> None:
    """Which takes seconds; and no workspace is made for it."""
    words = ["agentopcd", *verb.split(), "--env", "frozen-lak", "--work", str(tmp_path / "w")]
    probe = f"""
import sys
from agentopcd.cli import main
sys.argv = {words!r}
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True)
    assert done.stdout == "2 False\n" and "did you mean 'frozen-lake'" in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "w").exists()
