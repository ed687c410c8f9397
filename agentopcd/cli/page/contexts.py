"""Contexts and items to look at: where they come from, what is known of them, and what is different between two."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from agentopcd.cli.page.marks import Dot, dots
from agentopcd.cli.store_views import context_view, origin
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import PoolStep, Store
from agentopcd.knowledge.changes import changes, score_differences
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.evidence import unknown

POOL_STEP = re.compile(r"(?P<env>.+)/pool/(?P<chain>\d+)/(?P<step>\d+)")
NOTEWORTHY = ("best", "valued")
"""Ends of the refs whose contexts come first."""


def order_of(store: Store, first: Sequence[str] = ()) -> list[str]:
    """Ids of all contexts of a store, those that matter most first: ``first``, those in weights, those with a ref of
    their own, those that were confirmed or refused, those that had a ref, steps of chains, and the rest, newest first.
    """
    refs = store.refs()
    named = [target for name, target in refs.items() if name.rpartition("/")[2] in NOTEWORTHY]
    named += [target for name, target in refs.items() if not POOL_STEP.fullmatch(name)]
    looked = [row["context_id"] for row in reversed(store.looks())]
    taught = [context for model in store.models(trained=True) for context in store.model_contexts(model["id"])]
    earlier = [move["context_id"] for move in reversed(store.moves()) if not POOL_STEP.fullmatch(move["name"])]
    steps = [target for name, target in refs.items() if POOL_STEP.fullmatch(name)]
    rest = [row["id"] for row in reversed(store.contexts())]
    found = dict.fromkeys([*first, *taught, *named, *looked, *earlier, *reversed(steps), *rest])
    return [id_ for id_ in found if id_ not in (None, EMPTY.id)]


def context(store: Store, context_id: str) -> dict[str, Any]:
    """A context in full: text, items, scores, looks, the moves of its refs, and what it changed in the one before."""
    view = context_view(store, context_id)
    found = [move for move in store.moves() if move["context_id"] == context_id]
    before = _before(store, context_id, found)
    rows = [
        Dot(f"{row['env']} {row['split']}", row["rate"], row["low"], row["high"], f"n={row['n']}")
        for row in view["scores"]
        if row["graded"]
    ]
    return {
        **view, "moves": found, "unknown": unknown(view["scores"]),
        "picture": dots("Success with this context, with 95 % intervals", rows),
        "change": None if before is None else change(store, before, context_id),
    }  # fmt: skip


def _before(store: Store, context_id: str, moves: Sequence[Row]) -> str | None:
    """The context that this one came after: where a ref of it pointed before, else the step before in its chain."""
    for move in reversed(moves):
        earlier = [row["context_id"] for row in store.log(move["name"]) if row["id"] < move["id"]]
        if earlier and earlier[-1] not in (None, context_id):
            return earlier[-1]
    for move in moves:
        step = POOL_STEP.fullmatch(move["name"])
        if step and int(step["step"]) > 1:
            before = store.ref(PoolStep(step["env"], int(step["chain"]), int(step["step"]) - 1).ref)
            if before not in (None, context_id):
                return before
    return None


def change(store: Store, first: str, second: str) -> dict[str, Any]:
    """What makes the second context of the first, and scores where both played the same tasks."""
    return {"from": first, "to": second, **changes(store, first, second).to_dict(),
            "scores": score_differences(store, first, second)}  # fmt: skip


def log(store: Store, limit: int) -> tuple[list[Row], int]:
    """The last moves of the refs that are no steps of chains, newest first, each with where it came from; and the
    number of all of them."""
    at: dict[str, str | None] = {}
    rows = []
    for move in store.moves():
        if not POOL_STEP.fullmatch(move["name"]) and not re.fullmatch(r".+/pool/\d+/00", move["name"]):
            rows.append({**move, "from": at.get(move["name"])})
        at[move["name"]] = move["context_id"]
    return rows[::-1][:limit], len(rows)


def items(store: Store, ids: Collection[str], sources: int = 3) -> list[dict[str, Any]]:
    """Items with status, flags, decisions and origins (the first ``sources`` of them)."""
    flags, rows = store.flags(ids), []
    for item in store.items(ids=ids):
        found = store.sources(item.id)
        rows.append(
            {
                "id": item.id, "text": item.text, "status": item.status, "support": item.support,
                "flags": flags.get(item.id, []),
                "events": [event for event in store.events(item.id) if event["event"] not in ("add", "flag")],
                "origins": [origin(store, row) for row in found[:sources]],
                "more_origins": max(0, len(found) - sources),
            }
        )  # fmt: skip
    return rows
