"""Imports point down: a module imports only from lower floors, and nobody imports in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FOLDERS = {
    "core": 0,
    "models": 1,
    "envs": 1,
    "knowledge": 1,
    "rollouts": 2,
    "distillation": 3,
    "workspace": 4,
    "consolidate": 5,
    "distil": 6,
    "learn": 7,
    "cli": 8,
    "__main__": 9,
}
"""Folder or module at the top of the package: it imports only from those with a lower number."""

INSIDE = {
    "core": [
        "errors text callable_module files hosts quantiles",
        "calls launch types terminal",
        "encoding messages power stats runs transcript config.base",
        "apart crossed groups",
        "calibration",
        "config.engine",
        "api config.player config.serve",
        "config.training",
        "config.flags config.verbs",
        "config.toml",
        "config",
    ],
    "models": [
        "folder_files process",
        "compute gguf head parallel.ranks merged recast shortcuts tokens",
        "find",
        "load push",
        "adapter attention parallel.sharding",
        "models",
    ],
    "envs": [
        "views load look success games.java games.solvers hub.mapping questions.symbolic questions.answers "
        "questions.files hub.verifiers_worker",
        "base graders guard judge spec games.inside questions.grading",
        "builtin games.minigrid games.textworld hub.session hub.workers questions.text_checks questions.values tools",
        "hub.openenv_env hub.verifiers_env",
        "games.gym_bridge games.textarena questions.choices",
        "questions.rows",
        "chats.rows",
        "registry chats.env",
        "chats.recorded",
        "manifest scan walks",
        "probe",
        "check floors remote splits questions.env",
        "questions.ifeval questions.puzzles questions.reasoning",
        "envs",
    ],
    "knowledge": [
        "faults refs extract items looks placebo",
        "database poison",
        "assemble episodes recordings",
        "queries",
        "store",
        "bench care exchange ingest students",
        "confirm decide dump evidence plain repair score values",
        "changes edit similar",
        "lineage nearest",
        "knowledge",
    ],
    "rollouts": [
        "call_forms fault_log replies sampling.choices sampling.protocol sampling.requests unread",
        "calls marks history tools",
        "chat",
        "sampling sampling.decoding sampling.drawing sampling.prefixes sampling.same_weights sampling.vllm_choices "
        "sampling.vllm_command sampling.vllm_endpoints sampling.vllm_process",
        "sampling.drafts sampling.lean sampling.shared",
        "sampling.recorded sampling.steps",
        "sampling.rows",
        "sampling.continuous",
        "sampling.shares",
        "sampling.chat_api sampling.transformers_engine sampling.vllm_engine sampling.vllm_server",
        "game",
        "player",
        "engine",
    ],
    "distillation": [
        "losses checkpoint positions",
        "weights chunks prefix samples",
        "tokens",
        "memory",
        "compare",
        "teacher learner",
        "anchor best deal methods",
        "played",
        "metrics",
        "checks",
        "distance",
    ],
    "workspace": [
        "day evaluation.spoken extraction handover holding paths trackers",
        "canary ledger lineage.found named",
        "recorded strangers",
        "card lineage.measure lineage.proof lineage.recorded overview session gateway.connection gateway.schema "
        "gateway.redact gateway.said gateway.engine",
        "gateway.answers gateway.asked",
        "gateway.choice gateway.desk gateway.incoming",
        "gateway.dealer",
        "gateway.app",
        "gateway.serve",
        "checks known pace resolved",
        "evaluation.names experience.chains experience.choose experience.reading",
        "gated ready",
        "evaluation.table",
        "evaluation.distance evaluation.drift evaluation.neutral evaluation.rounds experience.carry "
        "experience.find_context experience.gather experience.influence experience.worth",
        "evaluation.distilled evaluation.student experience.teach forecast lineage.audit lineage.forget ratchet",
    ],
    "cli": [
        "store_views student_view help completion pulse spoken templates.text_env templates.tool_env",
        "options",
        "paper.plan paper.verdicts config envs knowledge new_env page.marks page.render",
        "paper.report page.contexts page.results",
        "paper.run page.episodes page.training",
        "page.overview",
        "page.parts",
        "page.report page.serve",
        "closing",
        "plans",
        "canary decisions lineage look_up pages push reproduce rollback serve status store verbs",
        "cli",
    ],
}
"""Inside a folder: its modules from the bottom up. A line imports only from the lines above it. A folder's own name is
its ``__init__``, where that holds code."""

MAY_IMPORT = {
    "core.errors": set(),
    "core.types": set(),
    "core.text": set(),
    "core.stats": {"numpy"},
    "distillation.losses": {"torch", "jaxtyping"},
    "distillation.weights": {"torch", "jaxtyping"},
}
"""Modules that keep to these third-party packages."""

WITHOUT_TORCH = ("core", "envs", "knowledge")
"""Folders that do without torch; they stand too low to import a module of ours that needs it."""
NEVER = {"torch", "transformers", "accelerate", "vllm", "peft"}
WITHOUT_TORCH_TOO = {"envs.tools": {"transformers"}}
"""Its maker of JSON schemas imports no torch (``tests/envs/test_tools.py``)."""

PACKAGE = Path(__file__).resolve().parent.parent / "agentopcd"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def module_name(path: Path) -> str:
    parts = ["agentopcd", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, at once or later."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    return read_imports(path.read_text(encoding="utf-8"), package)


def read_imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
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


MODULES = {module_name(path): path for path in FILES}


def module_of(name: str) -> str | None:
    """The module of this package that a dotted name belongs to, without ``agentopcd.``; None for other packages."""
    while name and name not in MODULES:  # agentopcd.core.types.Turn -> agentopcd.core.types
        name = name.rpartition(".")[0]
    return name.removeprefix("agentopcd.") if name.startswith("agentopcd.") else None


def place(module: str) -> tuple[str, int]:
    """Folder at the top, and the number of the module's line in it."""
    folder, _, rest = module.partition(".")
    lines = [line.split() for line in INSIDE.get(folder, [folder])]
    found = [number for number, names in enumerate(lines) if (rest or folder) in names]
    assert folder in FOLDERS and len(found) == 1, f"agentopcd.{module} has no place: add it to the order in this file"
    return folder, found[0]


def only_a_docstring(path: Path) -> bool:
    return path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) == 1


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_has_a_place_and_imports_only_from_below(path: Path) -> None:
    here = module_name(path).removeprefix("agentopcd").removeprefix(".")
    if not here or only_a_docstring(path):  # agentopcd/__init__.py names modules as strings and imports none of them
        assert [name for _, name in imports(path) if module_of(name)] == []
        return
    folder, line_here = place(here)
    for line, name in imports(path):
        there = module_of(name)
        if there is None or only_a_docstring(MODULES[f"agentopcd.{there}"]):
            continue
        other, line_there = place(there)
        below = line_there < line_here if other == folder else FOLDERS[other] < FOLDERS[folder]
        assert below, f"{path.relative_to(PACKAGE)}:{line} imports {there}, which does not stand below {here}"


def test_the_order_names_nothing_that_is_not_there() -> None:
    written = {folder for folder in FOLDERS if folder not in INSIDE}
    for folder, lines in INSIDE.items():
        names = {name for line in lines for name in line.split()}
        written |= {folder if name == folder else f"{folder}.{name}" for name in names}
    assert {name for name in written if f"agentopcd.{name}" not in MODULES} == set()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_third_party_imports_stay_where_they_belong(path: Path) -> None:
    outside = {(line, name.partition(".")[0]) for line, name in imports(path) if not name.startswith("agentopcd")}
    outside = {(line, head) for line, head in outside if head not in sys.stdlib_module_names}
    here = module_name(path).removeprefix("agentopcd.")
    if here in MAY_IMPORT:
        assert {head for _, head in outside} <= MAY_IMPORT[here]
    if here.partition(".")[0] in WITHOUT_TORCH:
        assert not [(line, head) for line, head in outside if head in NEVER - WITHOUT_TORCH_TOO.get(here, set())]


def test_no_import_cycles() -> None:
    """Lazy imports and those for the type checker count, too."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found = {module_of(target) for _, target in imports(path)}
        edges = {f"agentopcd.{target}" for target in found if target}
        # A name taken from one's own package, or the package above, is its __init__, already running.
        graph[name] = {target for target in edges if target != name and not name.startswith(f"{target}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle in it


def test_the_reader_of_imports_sees_what_it_should() -> None:
    source = (
        "import torch.nn\n"
        "from agentopcd import learn, __version__\n"
        "from ..core.stats import wilson\n"
        "if TYPE_CHECKING:\n    from agentopcd.rollouts.player import play\n"
        "def f():\n    from agentopcd.cli import app\n    importlib.import_module('agentopcd.cli.paper.report')\n"
    )
    found = [module_of(name) for _, name in read_imports(source, "agentopcd.envs")]
    wanted = ["cli", "cli.paper.report", "core.stats", "learn", "rollouts.player"]
    assert sorted(name for name in found if name) == wanted
