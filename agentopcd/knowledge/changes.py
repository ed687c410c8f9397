"""What is different between two contexts: their items, their text, and how they did on the same tasks."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from agentopcd.core.types import Context
from agentopcd.knowledge.episodes import Arena, Arm
from agentopcd.knowledge.evidence import ungraded
from agentopcd.knowledge.items import Item
from agentopcd.knowledge.store import Store


class Changes(NamedTuple):
    """From one context to another. Of two lists of items, ``text`` is empty."""

    added: list[Item]
    removed: list[Item]
    superseded: list[tuple[Item, Item]]
    """Items that gave way to another one, and that one."""
    moved: list[tuple[Item, int, int]]
    """Items that stand at another place among those that both have: item, place before, place after, from 1."""
    text: list[str]
    """A unified diff, if one of the two is free text."""
    placement: tuple[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""

        def short(item: Item) -> dict[str, str]:
            return {"id": item.id, "text": item.text}

        return {
            "added": [*map(short, self.added)], "removed": [*map(short, self.removed)],
            "superseded": [{"old": short(old), "new": short(new)} for old, new in self.superseded],
            "moved": [{**short(item), "from": start, "to": end} for item, start, end in self.moved],
            "text": self.text, "placement": list(self.placement),
        }  # fmt: skip


def changes(store: Store, first: str, second: str) -> Changes:
    """What would have to be done to the first context to get the second; both are ids."""
    a, b = store.get_context(first), store.get_context(second)
    old, new = store.items(context_id=first), store.items(context_id=second)
    placement = (a.placement, b.placement)
    if (a.text and not old) or (b.text and not new):
        return Changes([], [], [], [], _unified(a, b), placement)
    before, after = {item.id: item for item in old}, {item.id: item for item in new}
    gone = [item for item in old if item.id not in after]
    come = {item.id: item for item in new if item.id not in before}
    successors = store.successors([item.id for item in gone])
    superseded = [(item, come[successors[item.id]]) for item in gone if successors.get(item.id) in come]
    replaced = {item.id for pair in superseded for item in pair}
    return Changes(
        added=[item for item in come.values() if item.id not in replaced],
        removed=[item for item in gone if item.id not in replaced],
        superseded=superseded, moved=_moved(old, new, after), text=[], placement=placement,
    )  # fmt: skip


def _moved(old: list[Item], new: list[Item], after: dict[str, Item]) -> list[tuple[Item, int, int]]:
    """The fewest items whose moving explains the new order of those that both have."""
    kept = {item.id for item in old} & after.keys()
    a, b = [item.id for item in old if item.id in kept], [item.id for item in new if item.id in kept]
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    stayed = {id_ for block in blocks for id_ in a[block.a : block.a + block.size]}
    place = {id_: number for number, id_ in enumerate(a, 1)}
    return [(after[id_], place[id_], number) for number, id_ in enumerate(b, 1) if id_ not in stayed]


def _unified(a: Context, b: Context) -> list[str]:
    lines = difflib.unified_diff(a.text.splitlines(), b.text.splitlines(), lineterm="", n=2)
    return list(lines)[2:]  # without the names of files


def score_differences(store: Store, first: str, second: str) -> list[dict[str, Any]]:
    """Second minus first, wherever a model has played the same tasks in the same setup with both and something says
    what is right."""
    keys, silent = ("model_id", "env", "setup", "split"), ungraded(store)
    both = [tuple(row[name] for name in keys) for row in store.scores(first) if row["env"] not in silent]
    rows = []
    for model_id, env, setup, split in both:
        pair = store.compare(Arm(model_id, second), Arm(model_id, first), Arena(env, setup, split))
        if pair.n:
            rows.append(
                {"model_id": model_id, "env": env, "setup": setup, "split": split, "pairs": pair.n,
                 "diff": pair.difference.diff, "low": pair.difference.low, "high": pair.difference.high,
                 "p": pair.p, "test": pair.test}
            )  # fmt: skip
    return rows
