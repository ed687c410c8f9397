"""What was wrong first in the lost games of Frozen Lake, read off the thinking lines.

``python -m recipes.pocket.lost --work DIR --env frozen-lake-4x4`` reads the stored episodes of a workspace and plays
nothing. A game counts under the first thing that was wrong in it, in this order: the line's form, the roles of the
letters, where the moves go (directions), where things stand (squares), the path (a hole in it, a step that is none, not
to the goal), the move. What a model without a context believes is a guess, so it shows up under roles and directions.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentopcd import envs
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.types import EMPTY, Turn
from agentopcd.envs.games.solvers import MOVES
from agentopcd.knowledge import Store
from recipes.pocket.worlds import ROWS, Rules, places

LINE = re.compile(r"<think>goal (\w) hole (\w) up>(\w+) right>(\w+) P (\S+) (.*?) path (.*?) go (\w+)</think>\[(\w+)\]")
REASONS = ("form", "roles", "directions", "squares", "path", "move", "other")


def rules_of(env: str) -> Rules:
    """The true rules of a lake.

    Raises:
        ConfigError: the environment is not TextArena's Frozen Lake.
    """
    spec = envs.get_spec(env)
    if "lake" not in spec.id:
        raise ConfigError(f"{env!r} is no Frozen Lake; its thinking lines have another form")
    kwargs = spec.kwargs
    return Rules(kwargs.get("goal", "G"), kwargs.get("hole", "H"), kwargs.get("swap") == "vertical")


def wrong(turn: Turn, rules: Rules) -> str:
    """The first thing that is wrong in one reply, or ''."""
    found = LINE.fullmatch(turn.reply.strip())
    if not found:
        return "form"
    goal, hole, up, right, player, squares, way, step, move = found.groups()
    if (goal, hole) != (rules.first, rules.second):
        return "roles"
    if (up, right) != (rules.direction("up"), rules.direction("right")):
        return "directions"
    on = places(dict(turn.parts)["state"])
    here = next(at for letter, at in on.items() if letter.startswith("P"))
    goals = on.get(f"P/{goal}", []) + on.get(goal, [])
    if [player] != here or squares.split() != [goal, *goals, hole, *on.get(hole, [])]:
        return "squares"
    path = [player, *way.split()]
    if way == "none" or path[-1] not in goals or set(path) & set(on.get(hole, [])):
        return "path"
    steps = [_delta(a, b) for a, b in itertools.pairwise(path)]
    if not all(one in MOVES.values() for one in steps) or steps[0] != MOVES.get(step):
        return "path"
    return "" if move == rules.direction(step) else "move"


def _delta(a: str, b: str) -> tuple[int, int]:
    return ROWS.find(b[0]) - ROWS.find(a[0]), int(b[1:]) - int(a[1:]) if b[1:].isdecimal() else 0


def count(store: Store, env: str) -> dict[tuple[str, str], Counter[str]]:
    """``(model id, context id)`` → games by what was wrong first; ``won`` for the others.

    Raises:
        ConfigError: no episode of ``env`` is stored.
    """
    rules = rules_of(env)
    found: dict[tuple[str, str], Counter[str]] = {}
    for row in store.episodes(env=env):
        games = found.setdefault((row["model_id"], row["context_id"]), Counter())
        if row["success"]:
            games["won"] += 1
        else:
            turns = store.transcript(row["id"]).turns
            games[next((reason for turn in turns if (reason := wrong(turn, rules))), "other")] += 1
    if not found:
        raise ConfigError(f"no episode of {env!r} in {store.path}; play first")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("agentopcd-work"), help="workspace with the episodes")
    parser.add_argument("--env", default="frozen-lake-4x4", help="a Frozen Lake")
    args = parser.parse_args(arguments)
    try:
        with Store.open(args.work / "store.db", create=False) as store:
            found = count(store, args.env)
            names = {row["id"]: row["name"] for row in store.models()}
            texts = {id_: " ".join(store.get_context(id_).text.split())[:60] for _, id_ in found}
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    table = Table(title=f"{args.env}: what was wrong first")
    for column in ("model", "context", "games", "won", *REASONS):
        table.add_column(column, justify="left" if column in ("model", "context") else "right")
    for (model, context), games in found.items():
        told = "none" if context == EMPTY.id else texts[context]
        figures = (games.total(), games["won"], *(games[reason] for reason in REASONS))
        table.add_row(Path(names[model]).name, told, *map(str, figures))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
