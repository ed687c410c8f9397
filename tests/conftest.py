"""Fixtures of the whole test run. Imports no torch: the tests that need none stay quick."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# One fixed set of examples: a failure on one machine is a failure on all, and none comes from a slow minute.
settings.register_profile("agentopcd", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("agentopcd")


def load_file(path: Path) -> ModuleType:
    """Import one file that belongs to no package (pytest's importlib mode puts no folder on the path)."""
    spec = importlib.util.spec_from_file_location(f"_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with a test of minutes (it sets its own time limit) first: no process ends alone with one."""
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if models := sys.modules.get("agentopcd.models"):
        models.prepare_process()  # as the command line does: numbers in bfloat16 depend on it
    torch = sys.modules.get("torch")
    if torch and torch.get_num_threads() > 2:  # more threads only cost on models this small
        torch.set_num_threads(2)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama and its tokenizer. Read it; do not write into it."""
    return load_file(ROOT / "tests" / "tiny.py").build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def cli_generator() -> ModuleType:
    """docs/generate_cli.py as a module."""
    return load_file(ROOT / "docs" / "generate_cli.py")
