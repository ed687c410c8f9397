"""What a person sees of a student: which sentences are in its weights, from which episodes, and what the last audits of
it and of its ancestors found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentopcd.core.text import SHORT
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.items import escaped
from agentopcd.knowledge.lineage import generations, taught
from agentopcd.workspace.lineage.found import Shown, audits, spoken
from agentopcd.workspace.paths import recall

ORIGINS = 3
"""Episodes of an item that are shown to people."""


def student_view(store: Store, work: Path, row: Row) -> Row:
    """A student as plain data: its ``lineage``, the oldest model first, with contexts and items of each training."""
    found = {one.item: one for audit in audits(store, row["id"]) for one in audit.items if audit.student == row["id"]}
    lineage = []
    for one in generations(store, row["id"]):
        first = {entry.item.id: entry for entry in taught(store, one)}
        items = [
            {"id": entry.item.id, "context": entry.context_id, "status": entry.item.status, "text": entry.item.text,
             "origins": _origins(store, entry.item.id),
             "audit": found[entry.item.id].to_dict() if entry.item.id in found else None}
            for entry in first.values()
        ]  # fmt: skip
        contexts = [{"id": id_, "share": share} for id_, share in one.contexts.items()]
        lineage.append(
            {"model": one.model["id"], "name": one.model["name"], "folder": recall(work, one.model),
             "contexts": contexts, "items": items}
        )  # fmt: skip
    return {"kind": "student", "id": row["id"], "folder": recall(work, row), "lineage": lineage}


def _origins(store: Store, item_id: str) -> list[Row]:
    names = ("env", "task_key", "run_id", "episode_id")
    return [{name: source[name] for name in names} for source in store.sources(item_id)]


def student_lines(view: Row, where: str = "") -> Iterator[str]:
    """The view as text. ``where``: the words that name the workspace in a command."""
    yield f"student {view['id'][:SHORT]}  {view['folder'] or '(its folder is gone)'}"
    for one in view["lineage"]:
        yield f"{one['model'][:SHORT]}  {one['folder'] or one['name']}" + ("" if one["contexts"] else "  (a base)")
        for context in one["contexts"]:
            share = "" if context["share"] == 1 else f", {context['share']:.0%} of the training"
            held = [item for item in one["items"] if item["context"] == context["id"]]
            look = f"agentopcd knowledge show {context['id'][:SHORT]}{where}"
            text = "" if held else f"  (no items of its own; {look} says what it holds)"
            yield f"  trained on context {context['id'][:SHORT]}{share}{text}"
            for item in held:
                yield from _item_lines(item)


def _item_lines(item: Row) -> Iterator[str]:
    yield f"    {item['id'][:SHORT]}  {item['status']:<8} {escaped(item['text'])}"
    known = [origin for origin in item["origins"] if origin["task_key"] is not None]
    told = [
        f"{one['env']} task {one['task_key'][:SHORT]}, run {one['run_id']}"
        + (f", episode {one['episode_id']}" if one["episode_id"] else "")
        for one in known[:ORIGINS]
    ]
    more = f" and {len(known) - ORIGINS} more" if len(known) > ORIGINS else ""
    yield f"      from {'; '.join(told)}{more}" if told else "      from: unknown (written by hand or imported)"
    if item["audit"]:
        yield f"      audited: {audited(item['audit'])}"


def audited(row: dict[str, Any]) -> str:
    """The verdict of an audit on one item, with the share that the student shows."""
    if row["verdict"] == "inert":
        return "inert, nothing to carry"
    own, nothing = Shown.from_dict(row["own"]), Shown.from_dict(row["placebo"])
    return f"{row['verdict']}, {spoken(own.share)} of its effect, placebo {spoken(nothing.share)}"
