"""Episodes side by side: the same task by the base, by the base that sees the context, and by the student."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from agentopcd.cli.page.results import mapping
from agentopcd.core.errors import StoreError
from agentopcd.core.types import EMPTY
from agentopcd.envs.manifest import FRESH
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.evidence import came_of, ungraded

Place = tuple[str, int, int]

RULE = (
    "The patterns of who won take turns, and within a pattern tasks come in the order of their keys: nobody has picked "
    "them by hand."
)


def config_of(row: Row) -> Mapping[str, Any]:
    """The settings of a run; empty if they cannot be read."""
    try:
        return mapping(json.loads(row["config"]))
    except (ValueError, RecursionError):
        return {}


def arms_of(store: Store, model: Row) -> dict[str, tuple[str, str]]:
    """Who is compared with a trained model: label to model and context."""
    shown = store.model_contexts(model["id"])
    best = max(shown, key=lambda context: (shown[context], context), default=None)
    arms = {"base": (model["parent_id"], EMPTY.id)}
    if best:
        arms["in-context"] = (model["parent_id"], best)
    return {**arms, "student": (model["id"], EMPTY.id)}


def side_by_side(store: Store, model: Row, *, most: int, skip: int = 0) -> dict[str, Any]:
    """Test episodes of a trained model beside those of its base on the same tasks.

    Args:
        model: the row of the trained model.
        most: the most tasks to return.
        skip: leave out so many tasks at the beginning.

    Returns:
        The ``arms``, the ``tasks`` with the episode of each arm, how many there are in ``all``, and how often each
        ``pattern`` of who won occurs.
    """
    arms = arms_of(store, model)
    played = {label: _played(store, *arm) for label, arm in arms.items()}
    setup = _common_setup(played)
    by_place = {
        label: {place: row for (where, *place_), row in rows.items() if where == setup for place in [tuple(place_)]}
        for label, rows in played.items()
    }
    common = set.intersection(*(set(rows) for rows in by_place.values())) if setup else set()
    silent = ungraded(store)
    tasks = [
        {"key": place[0], "seed": place[1], "rep": place[2],
         "graded": all(rows[place]["env"] not in silent for rows in by_place.values()),
         "won": {label: bool(rows[place]["success"]) for label, rows in by_place.items()},
         "rows": {label: rows[place] for label, rows in by_place.items()}}
        for place in sorted(common)
    ]  # fmt: skip
    patterns = Counter(pattern_of(task) for task in tasks)
    chosen = _in_turns(tasks)[skip : skip + most]
    return {
        "model": model["id"], "arms": list(arms), "all": len(tasks), "skip": skip, "rule": RULE,
        "patterns": patterns.most_common(), "left_out": len(tasks) - len(chosen),
        "tasks": [
            {**task, "pattern": pattern_of(task),
             "episodes": {label: episode(store, row) for label, row in task["rows"].items()}}
            for task in chosen
        ],
    }  # fmt: skip


def pattern_of(task: Mapping[str, Any]) -> str:
    """Who won a task, in words."""
    if not task["graded"]:
        return "nothing is won or lost here"
    won = [label for label, success in task["won"].items() if success]
    return " and ".join(won) + " won" if won else "nobody won"


def _played(store: Store, model_id: str, context_id: str) -> dict[tuple[Any, ...], Row]:
    rows = store.episodes(model_id=model_id, context_id=context_id, split="test")
    reports = range(FRESH["test"], FRESH["forecast"])  # where splits share their tasks, other games have chosen
    rows = [row for row in rows if row["split"] == "test" or row["rep"] in reports]
    return {(row["env"] + row["setup"], row["task_key"], row["seed"], row["rep"]): row for row in rows}


def _common_setup(played: Mapping[str, Mapping[tuple[Any, ...], Row]]) -> str | None:
    """The environment and setup in which all arms have played the most common tasks."""
    common = set.intersection(*(set(rows) for rows in played.values()))
    counts = Counter(place[0] for place in common)
    return counts.most_common(1)[0][0] if counts else None


def _in_turns(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks, one of each pattern after the other; the rarest pattern first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        groups.setdefault(pattern_of(task), []).append(task)
    rounds = zip_longest(*sorted(groups.values(), key=len))
    return [task for row in rounds for task in row if task is not None]


def episode(store: Store, row: Row) -> dict[str, Any]:
    """An episode with its turns; ``turns`` is None where it was stored without them, or they cannot be read."""
    facts = {**row, "result": came_of(row, ungraded(store)), "turns_played": row["turns"]}
    if store.lookup("transcript", episode_id=row["id"]) is None:
        return {**facts, "turns": None, "outcome": [], "note": "stored without its turns"}
    try:
        told = store.transcript(row["id"])
    except StoreError as error:
        return {**facts, "turns": None, "outcome": [], "note": str(error)}
    turns = [
        {"saw": _parts(turn.parts), "reply": turn.reply, "reward": turn.reward, "invalid": turn.invalid,
         "finish": turn.finish_reason, "tokens": turn.output_tokens}
        for turn in told.turns
    ]  # fmt: skip
    return {**facts, "turns": turns, "outcome": _parts(told.outcome), "note": told.error or ""}


def _parts(parts: Sequence[Any]) -> list[tuple[str, str]]:
    """Kind and text of each part; an imported transcript may hold others."""
    return [(str(part[0]), str(part[-1])) for part in parts if part]
