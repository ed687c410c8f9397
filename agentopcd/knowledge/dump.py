"""Write a store, or some of its contexts, as the typed rows of an export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from agentopcd.core.errors import StoreError
from agentopcd.core.transcript import UNREADABLE, unpack
from agentopcd.core.types import EMPTY
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.exchange import FORMAT, IMPORTED, VERSION, signs, without
from agentopcd.knowledge.faults import REPAIR
from agentopcd.knowledge.store import PLACEBO, Store


def dump(store: Store, contexts: Iterable[str] | None = None, *, episodes: bool = False) -> Iterator[Row]:
    """Export the store as typed rows, header first.

    Args:
        contexts: only these contexts (ids) with their items, origins and refs; by default everything.
        episodes: also export episodes and transcripts. Without them, an item's origin still names
            environment and task, so the leak guard works in the receiving store.
    """
    with store.read():
        wanted = None if contexts is None else {EMPTY.id, *contexts}
        try:
            rows = list(_Dump(store, wanted, episodes and wanted is None).rows())
        except KeyError as error:
            raise StoreError(f"{store.path} refers to row {error} of a table, which is not there; {REPAIR}") from error
    yield {"format": FORMAT, "version": VERSION}
    for row in rows:
        if row["type"] == "episode":  # unpacked one by one: together they may not fit in memory
            row = {**row, "transcript": _transcript(store, row["transcript"])}
        yield row
    yield {"type": "end", "rows": len(rows)}


def _transcript(store: Store, episode_id: int) -> Row | None:
    body = store.lookup("transcript", episode_id=episode_id)
    try:
        return unpack(body["body"]) if body else None
    except UNREADABLE as error:
        raise StoreError(f"the transcript of episode {episode_id} in {store.path} is damaged; {REPAIR}") from error


class _Dump:
    """Collects the rows of one export. Runs come first in the file but are known last."""

    def __init__(self, store: Store, wanted: set[str] | None, episodes: bool) -> None:
        self.store, self.episodes = store, episodes
        known = list(store.table("context", "id"))
        if wanted is not None:  # an importer checks a placebo against the context it is the placebo of
            wanted = wanted | {of for row in known if row["id"] in wanted and (of := _twin_of(row))}
        self.contexts = [row for row in known if wanted is None or row["id"] in wanted]
        self.links = {row["id"]: [item.id for item in store.items(context_id=row["id"])] for row in self.contexts}
        held = {item_id for ids in self.links.values() for item_id in ids}
        self.items = [row for row in store.table("item", "id") if wanted is None or row["id"] in held]
        self.held = {row["id"] for row in self.items}
        self.shown = {row["id"] for row in self.contexts}
        self.everything = wanted is None
        self.runs: dict[int, Row] = {row["id"]: row for row in store.table("run", "id")}
        self.used: set[int] = set()

    def rows(self) -> Iterator[Row]:
        models = self._models()
        episodes = list(self.store.table("episode", "id")) if self.episodes else []
        self.local = {row["id"]: number for number, row in enumerate(episodes, 1)}
        sources, events, refs = self._sources(), self._events(), self._refs()
        looks = list(self.store.table("look", "id")) if self.everything else []
        made = (*models, *episodes, *sources, *refs, *looks)
        self.used.update(row["run_id"] for row in made if row["run_id"] is not None)
        number = {run_id: n for n, run_id in enumerate(sorted(self.used), 1)}
        for run_id, n in number.items():
            yield {**_typed("run", self.runs[run_id]), "id": n}
        for row in self._tasks(episodes):
            yield _typed("task", row)
        for row in self.items:
            yield _typed("item", row)
        for row in self.contexts:
            yield {**_typed("context", row), "items": self.links[row["id"]]}
        for row in models:
            weights = self.store.model_contexts(row["id"]) if self.everything else {}
            yield {**_typed("model", row), "run_id": number.get(row["run_id"]), "contexts": weights}
        for row in episodes:
            yield {**_typed("episode", row), "id": self.local[row["id"]], "run_id": number[row["run_id"]],
                   "transcript": row["id"]}  # fmt: skip
        for row in sources:
            yield {**_typed("source", row), "run_id": number[row["run_id"]]}
        for row in events:
            yield without(_typed("event", row), "id")
        for kind, rows in (("ref", refs), ("look", looks)):
            for row in rows:
                yield {**without(_typed(kind, row), "id"), "run_id": number.get(row["run_id"])}

    def _models(self) -> list[Row]:
        return list(self.store.table("model", "rowid")) if self.everything else []

    def _tasks(self, episodes: list[Row]) -> list[Row]:
        """Tasks of the exported episodes; the origin of an item carries its own task."""
        played = {(row["env"], row["task_key"]) for row in episodes}
        return [row for row in self.store.table("task", "env, key") if (row["env"], row["key"]) in played]

    def _sources(self) -> list[Row]:
        """Origins of the items; without episodes, origins that differ only in their episode are merged.

        An echo stays one: what an item was found with travels as the context that was shown, also where only its
        episode said so. If that context stays behind, another one with the item stands for it.
        """
        holders: dict[str, set[str]] = {}
        for link in self.store.table("context_item", "context_id, pos"):
            holders.setdefault(link["item_id"], set()).add(link["context_id"])
        kept: dict[tuple[Any, ...], tuple[bool, Row]] = {}
        for row in self.store.origins():
            seen = (row["shown_context_id"], row.pop("played_with"))
            if row["item_id"] not in self.held:
                continue
            holding = holders.get(row["item_id"], set())
            echo = any(id_ in holding for id_ in seen)
            row["episode_id"] = self.local.get(row["episode_id"])
            if echo and row["episode_id"] is None:
                there = (id_ for id_ in seen if id_ in holding and id_ in self.shown)
                row["shown_context_id"] = next(there, None) or min(holding & self.shown)
            elif row["shown_context_id"] not in self.shown:
                row["shown_context_id"] = None
            key = tuple(row[name] for name in ("item_id", "run_id", "episode_id", "env", "task_key", "line"))
            if key not in kept or (kept[key][0] and not echo):  # of an echo and a find, the find counts
                kept[key] = echo, row
        return sorted((row for _, row in kept.values()), key=_source_order)

    def _events(self) -> list[Row]:
        """The history of the items. An item that gave way to one that does not travel gave way all the same."""
        texts = {row["id"]: row["text"] for row in self.items}

        def travels(row: Row) -> bool:
            if row["item_id"] not in self.held:
                return False
            both = row["other_id"] is None or row["other_id"] in self.held or row["event"] == "supersede"
            again = (row["actor"], row["event"]) == (IMPORTED, "flag") and row["reason"] in signs(texts[row["item_id"]])
            return both and not again

        rows = [
            row if row["other_id"] in self.held else {**row, "other_id": None}
            for row in filter(travels, self.store.table("item_event", "id"))
        ]
        return sorted(rows, key=lambda row: row["item_id"])  # because an importer may hold the items in another order

    def _refs(self) -> list[Row]:
        moves = list(self.store.table("ref_move", "id"))
        if not self.everything:
            current = {name for name, context_id in self.store.refs().items() if context_id in self.shown}
            moves = [row for row in moves if row["name"] in current and row["context_id"] in self.shown]
        return sorted(moves, key=lambda row: row["name"])


def _twin_of(context: Row) -> str | None:
    recipe = json.loads(context["recipe"])
    return recipe.get("of") if recipe.get("order") == PLACEBO else None


def _source_order(row: Row) -> tuple[Any, ...]:
    return (
        row["run_id"],
        row["episode_id"] or 0,
        row["env"] or "",
        row["task_key"] or "",
        row["line"],
        row["item_id"],
    )


def _typed(kind: str, row: Row) -> Row:
    return {"type": kind, **row}


def to_jsonl(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON text per row, line end included."""
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
        if any("\ud800" <= char <= "\udfff" for char in line):  # half a surrogate pair, which only an escape can write
            line = json.dumps(row, separators=(",", ":")) + "\n"
        yield line
