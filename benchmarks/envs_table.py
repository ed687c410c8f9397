"""Check every environment that strangers' packages bring, and write what came of it as a table.

Run:  python benchmarks/envs_table.py --out docs/envs-checked.md      (an hour; see OPTIONAL for what may be missing)

All single-player games of TextArena, all names of reasoning-gym, Gymnasium's own ids, MiniGrid's and BabyAI's, and
the games of TextWorldExpress. Each is checked as `agentopcd envs check` does, in this process and without the
comparison of two fresh ones. What was checked is kept in a file beside the table, so that a killed run goes on where
it was.

What a server or another Python brings is named: --also openenv:http://localhost:8000 --also "verifiers:ID name=value"
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium

from agentopcd.cli.options import parse_env_args
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.text import first_line
from agentopcd.envs import check_env, get_spec, make
from agentopcd.envs.guard import OutOfTime, time_limit

SEEDS = 16
LIMIT_S = 180.0
"""Seconds for one environment, all its tests together."""

FAMILIES = {
    "textarena": "TextArena, games for one",
    "rg": "reasoning-gym",
    "gym": "Gymnasium's own",
    "minigrid": "MiniGrid and BabyAI (`gym:minigrid:ID`)",
    "elsewhere": "On OpenEnv servers, and in a Python with verifiers",
    "twx": "TextWorldExpress",
}
OPTIONAL = ("minigrid", "textworld_express")
"""Packages whose environments are checked only if they are installed."""


def references(also: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Family and reference of every environment to check; ``also`` are some elsewhere, maybe with arguments."""
    yield from (("elsewhere", ref) for ref in also)
    own = sorted(gymnasium.registry)  # before a package adds its own
    yield from (("textarena", f"textarena:{name}") for name in single_player_games())
    from reasoning_gym.factory import DATASETS

    yield from (("rg", f"rg:{name}") for name in sorted(DATASETS))
    yield from (("gym", f"gym:{name}") for name in own)
    if importlib.util.find_spec("minigrid"):
        importlib.import_module("minigrid")
        added = sorted(set(gymnasium.registry) - set(own))
        yield from (("minigrid", f"gym:minigrid:{name}") for name in added)
    if importlib.util.find_spec("textworld_express"):
        from textworld_express.constants import GAME_NAMES

        yield from (("twx", f"twx:{name}") for name in sorted(GAME_NAMES))


def single_player_games() -> list[str]:
    """Ids whose module builds a state for one player; read as text, because some modules do not import."""
    import textarena
    from textarena.envs.registration import ENV_REGISTRY

    top = Path(str(textarena.__file__)).parent.parent
    found = []
    for name, spec in ENV_REGISTRY.items():
        file = top / Path(*str(spec.entry_point).partition(":")[0].split(".")).with_suffix(".py")
        if name.endswith("-raw") and file.is_file() and "SinglePlayerState(" in file.read_text(encoding="utf-8"):
            found.append(name.removesuffix("-raw"))
    return sorted(found)


def checked(ref: str, seeds: int) -> dict[str, Any]:
    """What checking one environment came to."""
    began = time.perf_counter()
    name, *arguments = ref.split()
    try:
        with time_limit(LIMIT_S), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maker = partial(make, name, **parse_env_args(arguments))
            report = check_env(maker, seeds, spec=get_spec(name))
        found = {
            "verdict": "ok" if report.ok else "errors", "lines": report.errors, "warnings": report.warnings,
            "distinct": report.distinct, "seeds": report.seeds, "random": report.random_success,
        }  # fmt: skip
    except OutOfTime:
        found = {"verdict": "too slow", "lines": [f"not done within {LIMIT_S:.0f} s"], "warnings": []}
    except AgentOpcdError as error:
        found = {"verdict": "refused", "lines": [" ".join(str(error).split())], "warnings": []}
    except Exception as error:  # the one thing that must not happen
        traceback.print_exc()
        found = {"verdict": "TRACEBACK", "lines": [f"{type(error).__name__}: {first_line(error)}"], "warnings": []}
    return {"ref": ref, "took_s": round(time.perf_counter() - began, 1), **found}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The page, line by line."""
    named = ["textarena", "reasoning-gym", "gymnasium", *(name for name in OPTIONAL if importlib.util.find_spec(name))]
    versions = ", ".join(f"{name.replace('_', '-')} {version(name)}" for name in named)
    yield "# Environments that were checked"
    yield ""
    yield f"What `agentopcd envs check` says to environments of other packages ({versions}), {date.today():%Y-%m-%d}."
    yield "Written by `python benchmarks/envs_table.py --out docs/envs-checked.md`."
    yield ""
    yield "- **ok**: no error. Distinct tasks among the seeds that were checked; share that random replies won."
    yield "- **errors**: it can be built, and results from it would be wrong. The first error is shown."
    yield "- **refused**: it cannot be built here: something is missing, or its actions are no words."
    yield "- **too slow**: not done in the time for one environment."
    yield ""
    yield "Limits of time were met on two busy cores. The command goes on with what the file of `--kept` does not hold."
    for family, title in FAMILIES.items():
        mine = [row for row in rows if row["family"] == family]
        counts = {
            verdict: sum(row["verdict"] == verdict for row in mine) for row in mine for verdict in [row["verdict"]]
        }
        if not mine:
            continue
        yield ""
        yield f"## {title}"
        yield ""
        yield ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) + f", of {len(mine)}."
        yield ""
        yield "| environment | verdict | tasks | random | what it says |"
        yield "|---|---|---|---|---|"
        for row in mine:
            tasks = f"{row['distinct']} of {row['seeds']}" if "distinct" in row else ""
            share = f"{row['random']:.0%}" if "random" in row else ""
            said = (row["lines"] or row["warnings"] or [""])[0]
            yield f"| `{row['ref']}` | {row['verdict']} | {tasks} | {share} | {_cell(said)} |"


def _cell(text: str) -> str:
    shown = text if len(text) <= 160 else f"{text[:157]}..."
    return shown.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("`", "'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the table, in Markdown")
    parser.add_argument(
        "--kept", type=Path, help="JSON lines with what was checked so far; beside the table if not given"
    )
    parser.add_argument("--only", default="", help="only references that start with this")
    parser.add_argument("--also", action="append", default=[], help="an environment elsewhere, maybe with NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    call = parser.parse_args()
    kept = call.kept or call.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    done = {row["ref"] for row in rows}
    with kept.open("a", encoding="utf-8") as file:
        for family, ref in references(call.also):
            if ref in done or not ref.startswith(call.only):
                continue
            row = {"family": family, **checked(ref, call.seeds)}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{row['verdict']:<10} {row['took_s']:>6} s  {ref}  {(row['lines'] or [''])[0][:90]}", flush=True)
    call.out.write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
