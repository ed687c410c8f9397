"""Imports point down: a module imports only from lower floors, and nobody imports in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FLOORS = {
    "errors": 0,
    "types": 0,
    "text": 0,
    "config": 1,
    "chat": 1,
    "ranks": 1,
    "losses": 1,
    "stats": 1,
    "runs": 1,
    "sources": 0.5,
    "models": 1,
    "envs": 2,
    "knowledge": 2,
    "sampling": 2,
    "sharding": 2,
    "positions": 2,
    "samples": 2.2,
    "chunks": 1.5,
    "teacher": 3,
    "learner": 3,
    "checkpoint": 2,
    "rollouts": 3,
    "estimate": 3,
    "metrics": 4.5,
    "played": 4.5,
    "engine": 3.2,
    "ledger": 3.2,
    "session": 3.5,
    "methods": 4,
    "experience": 4,
    "evaluate": 4,
    "drift": 4.5,
    "consolidate": 5,
    "handover": 5,
    "distil": 5.5,
    "student": 5,
    "learn": 6,
    "recipes": 1.5,
    "reproduce": 6.5,
    "report": 6,
    "cli": 7,
    "__main__": 8,
}
"""Module or folder of the package -> its floor, as design.md numbers them; a half is a module that came
between two of its floors. A folder's own modules may import each other."""

MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "text": set(),
    "losses": {"torch", "jaxtyping"},
    "stats": {"numpy"},
}
"""Modules that keep to these third-party packages."""

WITHOUT_TORCH = ("envs", "knowledge")
"""Folders that do without torch, and so without the modules of this package that import it."""
NEVER = {"torch", "transformers", "accelerate", "vllm", "peft"}
NEVER_OURS = {"losses", "models"}

PACKAGE = Path(__file__).resolve().parent.parent / "agentopcd"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def unit(path: Path) -> str:
    """``envs/spec.py`` -> ``envs``, ``chat.py`` -> ``chat``, ``__init__.py`` -> ``""``."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def module_name(path: Path) -> str:
    parts = ["agentopcd", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, whole_file: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports; without ``whole_file`` only at import time."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    return read_imports(path.read_text(encoding="utf-8"), package, whole_file=whole_file)


def read_imports(source: str, package: str, *, whole_file: bool) -> Iterator[tuple[int, str]]:
    tree = ast.parse(source)
    nodes = ast.walk(tree) if whole_file else _at_import(tree)
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.rsplit(".", level - 1)[0] if level else ""
                origin = ".".join(filter(None, (base, module)))
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_import(node)


def ours(name: str) -> str | None:
    """The unit of this package that a dotted name belongs to; None for other packages and ``__version__``."""
    head, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return first if head == "agentopcd" and first and not first.startswith("__version") else None


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_has_a_floor_and_imports_only_from_below(path: Path) -> None:
    here = unit(path)
    if not here:  # agentopcd/__init__.py names modules as strings and imports none of them
        assert [name for _, name in imports(path) if ours(name)] == []
        return
    assert here in FLOORS, f"agentopcd/{here} has no floor: add it to design.md and to this table"
    for line, name in imports(path):
        there = ours(name)
        if there is None or there == here:
            continue
        assert there in FLOORS, f"{path.name}:{line} imports {name}, which has no floor"
        assert FLOORS[there] < FLOORS[here], (
            f"{path.relative_to(PACKAGE)}:{line}, floor {FLOORS[here]}, imports {name}, floor {FLOORS[there]}"
        )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_third_party_imports_stay_where_they_belong(path: Path) -> None:
    outside = {(line, name.partition(".")[0]) for line, name in imports(path) if not name.startswith("agentopcd")}
    outside = {(line, head) for line, head in outside if head not in sys.stdlib_module_names}
    here = unit(path)
    if here in MAY_IMPORT:
        assert {head for _, head in outside} <= MAY_IMPORT[here]
    if here in WITHOUT_TORCH:
        assert not [(line, head) for line, head in outside if head in NEVER]
        assert not [(line, name) for line, name in imports(path) if ours(name) in NEVER_OURS]


def test_no_import_cycles() -> None:
    modules = {module_name(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        edges = set()
        for _, target in imports(path, whole_file=False):
            while target and target not in modules:  # agentopcd.types.Turn -> agentopcd.types
                target = target.rpartition(".")[0]
            # A name taken from one's own package, or the package above, is its __init__, already running.
            if target and target != name and not name.startswith(f"{target}."):
                edges.add(target)
        graph[name] = edges
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle in it


def test_the_reader_of_imports_sees_what_it_should() -> None:
    source = (
        "import torch.nn\n"
        "from agentopcd import learn, __version__\n"
        "from ..stats import wilson\n"
        "if TYPE_CHECKING:\n    from agentopcd.rollouts import play\n"
        "def f():\n    from agentopcd.cli import app\n    importlib.import_module('agentopcd.report')\n"
    )

    def units(*, whole_file: bool) -> list[str]:
        found = read_imports(source, "agentopcd.envs", whole_file=whole_file)
        return sorted(filter(None, (ours(name) for _, name in found)))

    assert units(whole_file=True) == ["cli", "learn", "report", "rollouts", "stats"]
    assert units(whole_file=False) == ["learn", "stats"]
