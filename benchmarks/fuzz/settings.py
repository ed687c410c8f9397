"""Settings as TOML and as flags, recipes, and manifests of splits."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import tomllib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from agentopcd.cli import app
from agentopcd.cli.config import VERBS
from agentopcd.cli.paper.plan import RECIPES, read
from agentopcd.core.config import choices, default_of
from agentopcd.core.types import SPLITS
from agentopcd.envs.splits import Manifest, build_splits
from benchmarks.fuzz import stock
from benchmarks.fuzz.harness import Case, Silent, call
from benchmarks.fuzz.mutate import ODD_NUMBERS, ODD_TEXTS, damage_bytes, damage_json, odd_text

COMMANDS = {name: ("knowledge", name) if name in ("score", "confirm") else (name,) for name in VERBS}

RAW = (
    "nan", "inf", "-inf", "+inf", "1e999", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z",
    "0x1F", "1_000", "9" * 5000,
    "[]", "[1, 2]", "{}", "{ a = 1 }", "''", '""', "'''\nx'''", "true", "false", "-1", "0", "1", "2", "1.5", "-0.0",
    "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e308", "5e-324", "99999999999999999999999",
    '"\\u0000"', '"\\u001b[31m"', '"~"', '"."', '"a\\nb"', '"²"', "",
)  # fmt: skip
"""Values in TOML's own words."""


# -- a file of settings --------------------------------------------------------------------------------


def _plausible(rng: random.Random, default: Any, known: tuple[str, ...]) -> str:
    if known:
        return json.dumps(rng.choice(known))
    if isinstance(default, bool):
        return rng.choice(("true", "false"))
    if isinstance(default, int):
        return str(rng.choice((0, 1, 2, 3, 8, default, 2**31)))
    if isinstance(default, float):
        return str(rng.choice((0.0, 0.5, 1.0, 1, default, 1e-6)))
    if isinstance(default, dict):
        return rng.choice(("{}", "{ level = 1 }", '{ level = "x" }', "{ a = { b = [1] } }", "{ level = nan }"))
    return json.dumps(rng.choice(("", default, default, odd_text(rng)[:50]))).replace("\\ud800", "?")


def try_settings(case: Case) -> None:
    """A TOML file: each value is taken as it is written, and is one that a run can have; or refused."""
    rng = case.rng
    verb, config = rng.choice(list(VERBS.items()))
    lines: dict[str, str] = {}
    for field in rng.sample(dataclasses.fields(config), rng.randint(1, 4)):
        known = choices(config).get(field.name, ())
        odd = rng.random() < 0.2
        lines[field.name] = rng.choice(RAW) if odd else _plausible(rng, default_of(field), known)
    if rng.random() < 0.05:
        lines[rng.choice(("stepps", "ENV", "a.b", '"x y"'))] = "1"
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    data, how = text.encode(), "whole"
    if rng.random() < 0.1:
        data, how = damage_bytes(rng, data)
    (case.folder / "run.toml").write_bytes(data)
    words = [*COMMANDS[verb], "--config", "run.toml", "--dry-run", "--json", "--work", str(stock.workspace())]
    words += ["--env", "frozen-lake"] if "env" not in lines else []
    words += ["--model", str(stock.MODEL)] if "model" not in lines else []
    words += ["--context", str(stock.CONTEXT)] if verb == "consolidate" and not {"context", "mix"} & {*lines} else []
    words += ["--context", "frozen-lake/pool/00/01"] if verb == "confirm" and "context" not in lines else []
    words += ["--student", str(stock.MODEL)] if verb == "evaluate" and "student" not in lines else []
    case.shown = f"{verb}, {how}: {data[:300]!r}"
    said = json.loads(call(*words))["settings"]
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()  # any end of line counts, as in a file
    given = tomllib.loads(text)
    for name, value in given.items():
        value = None if value == math.inf else value  # JSON has no infinity
        if name not in said or said[name] != value or isinstance(value, bool) != isinstance(said[name], bool):
            raise Silent(f"{name} = {value!r:.60} was taken as {said.get(name)!r:.60}")
    for name, value in said.items():
        _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value) or abs(value) >= (2**64 if isinstance(value, int) else 3.5e38):
        raise Silent(f"{name} = {value!r:.60} was kept, and no run can have it")
    if value < 0 and name != "seed":
        raise Silent(f"{name} = {value!r:.60} was kept, and is negative")


# -- flags ---------------------------------------------------------------------------------------------

SAFE = (
    "math", "frozen-lake", "sokoban", "rows.jsonl", "missing.jsonl", "gym:", "gym:Taxi-v3",
    "gym:Nope-v0", "rg:nope", ":",
    "nope", "nope.py:X", "json:JSONDecoder", "json:nope", "collections:OrderedDict", ".", "", "empty", "room/best",
    "room/mine", "room/pool/00/02", "0000", "1", "99", "context.txt", "rules.jsonl", "0", "-1",
    "8", "0.5", "nan", "true",
    "select", "test", "user", "system", "review", "keep", "items", "refs", "episodes", "contexts", "pending", "level=2",
    "level=x", "a", "=", "x=[1", "http://localhost:1", "ftp://x", "cpu", "auto", "out.txt", "out.jsonl", "sub/out.json",
    "table2", "table1", "mini", "full", "paper", "play", "learn",
)  # fmt: skip
"""Words for any place of a command line; none of them leads out of the case's folder."""


SERVERS = ("serve", "view")
"""Commands that run until they are stopped, whatever they are given."""


def _leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command below, with its words."""
    below = getattr(command, "commands", None)
    if below is None:
        return [(path, command)]
    return [leaf for name, inner in below.items() if name not in SERVERS for leaf in _leaves(inner, (*path, name))]


def _value(rng: random.Random, parameter: Any) -> str:
    """A value of a parameter's type, or an odd one."""
    if rng.random() < 0.25:
        odd = rng.choice((odd_text(rng), str(rng.choice(ODD_NUMBERS)), rng.choice(ODD_TEXTS)))[:200]
        # No word of a command line holds a zero byte, and none of ours leads out of the folder.
        return odd.replace("\0", "").replace("/", "").encode("utf-8", "replace").decode()
    annotation = parameter.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return str(rng.choice(list(annotation)).value)
    if annotation is int:
        return str(rng.choice((0, 1, 2, 3, 8, 64)))
    if annotation is float:
        return str(rng.choice((0.0, 0.5, 1.0)))
    return rng.choice(SAFE)


def _words(rng: random.Random, path: tuple[str, ...], command: Any, work: Path) -> list[str]:
    """A command with some of its arguments and options; where it can, it only says what it would do."""
    options = {p.opts[0]: p for p in command.params if p.opts[0].startswith("-")}
    words = list(path)
    for argument in (p for p in command.params if not p.opts[0].startswith("-")):
        if argument.required or rng.random() < 0.7:
            words.append(_value(rng, argument))
    free = sorted(options.keys() - {"--dry-run", "--work", "--server", "--json"})
    for flag in rng.sample(free, min(len(free), rng.randint(0, 4))):
        words.append(flag)
        if not options[flag].is_flag:
            words.append(_value(rng, options[flag]))
    words += ["--work", str(work)] if "--work" in options else []
    words += ["--dry-run"] if "--dry-run" in options else []
    words += ["--json"] if "--json" in options and rng.random() < 0.5 else []
    return [*words, "--seeds", "3"] if path[0] == "envs" and "--seeds" in options else words


def try_flags(case: Case) -> None:
    """Any command with any words: it ends well or in one line, and ``--json`` is JSON."""
    rng = case.rng
    leaves = _leaves(typer.main.get_command(app))
    path, command = rng.choice([leaf for leaf in leaves if leaf[0] != ("envs", "check")])  # it starts processes
    work = stock.copy(stock.store(), case.folder / "work")
    (case.folder / "rows.jsonl").write_text('{"question": "What is 3+4?", "answer": "7"}\n')
    (case.folder / "context.txt").write_text("Free text.\n")
    words = _words(rng, path, command, work)
    case.shown = " ".join(map(repr, words))[:400]
    call(*words, stdin="right\nq\n", may_fail="check" in path)


# -- recipes and manifests -----------------------------------------------------------------------------


def _with_toml(case: Case, text: str) -> bytes:
    """The text with a changed value, a changed line, or changed bytes."""
    rng, lines = case.rng, text.splitlines()
    if rng.random() < 0.3:
        return damage_bytes(rng, text.encode())[0]
    at = rng.randrange(len(lines))
    name, equals, _ = lines[at].partition(" = ")
    lines[at] = (
        f"{name} = {rng.choice(RAW)}" if equals else rng.choice((f"[[{odd_text(rng)[:20]}]]", "", lines[at][1:]))
    )
    case.shown = f"line {at + 1}: {lines[at]!r:.200}"
    return "\n".join(lines).encode("utf-8", "replace")


def try_recipe(case: Case) -> None:
    """A recipe with a changed line: its rows are read, or refused."""
    source = case.rng.choice(sorted(RECIPES.glob("*.toml")))
    file = case.folder / source.name
    for other in RECIPES.iterdir():
        if other.suffix != ".toml" and other.is_file():
            (case.folder / other.name).symlink_to(other)
    file.write_bytes(_with_toml(case, source.read_text(encoding="utf-8")))
    size = case.rng.choice(("mini", "full"))
    _, plans = read(file, size)
    for plan in plans:
        for arm in (*plan.untrained, *plan.arms):
            for seed in plan.seeds:
                settings = plan.config(arm, seed).to_dict()
                for name, value in settings.items():
                    _check_number(name, value)


_MANIFEST: list[dict[str, Any]] = []


def try_splits(case: Case) -> None:
    """A manifest with damage: what it says is what is used, and no task is in two splits."""
    rng = case.rng
    if not _MANIFEST:
        sizes = {"test": 3, "confirm": 3, "select": 3, "extract": 3}
        _MANIFEST.append(json.loads(build_splits("math", {}, seeds=20, sizes=sizes).to_json()))
    raw, how = damage_json(rng, _MANIFEST[0], (*SPLITS, "shared"))
    text = json.dumps(raw)
    file = case.folder / "splits.json"
    data = text.encode()
    if rng.random() < 0.3:
        data, how = damage_bytes(rng, data)
    file.write_bytes(data)
    case.shown = how
    manifest = Manifest.load(file)
    if how in ("flip", "noise", "zeros", "a piece twice", "without a piece"):
        raw = json.loads(data.decode("utf-8-sig"))
    written = json.loads(manifest.to_json())
    if json.dumps(written, sort_keys=True) != json.dumps(raw, sort_keys=True):
        raise Silent(f"written again it differs: {_difference(written, raw)}")
    owner: dict[str, str] = {}
    for split in manifest.names:
        for task in manifest.tasks(split):
            if manifest.protocol == "disjoint" and owner.setdefault(task.key, split) != split:
                raise Silent(f"task {task.key} is in {owner[task.key]} and in {split}")
    for split in SPLITS:
        manifest.tasks(split)


def _difference(new: dict[str, Any], old: Any) -> str:
    if not isinstance(old, dict):
        return "it was no object"
    names = [name for name in {**new, **old} if json.dumps(new.get(name)) != json.dumps(old.get(name))]
    return ", ".join(f"{name}: {old.get(name)!r:.40} became {new.get(name)!r:.40}" for name in names)


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {
    "settings": (try_settings, 1300),
    "flags": (try_flags, 1200),
    "recipes": (try_recipe, 250),
    "splits": (try_splits, 350),
}
