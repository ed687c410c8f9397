"""What a table compares, by name: models with their folders, contexts with their refs, both with their ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.text import SHORT
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Arm, Store
from agentopcd.knowledge.faults import read_object
from agentopcd.workspace.paths import recall

PLACEBO_STUDENT = "placebo student"
"""The arm of a student that was trained on the context's placebo."""
ORDER = ("student", PLACEBO_STUDENT, "in-context", "teacher", "base")


def compared(store: Store, arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """What each arm of a table is, as JSON, by label.

    ``model`` and ``context`` are ids, the latter None without a context; ``path`` is as the store keeps it, relative to
    the workspace if it is inside. ``parent`` and ``carries``: what a student was trained from, and on which contexts.
    """
    refs: dict[str, list[str]] = {}
    for name, id_ in store.refs().items():
        refs.setdefault(id_, []).append(name)
    found = {}
    for label, arm in arms.items():
        row = store.lookup("model", id=arm.model_id) or {"name": "", "path": None, "parent_id": None}
        shown = None if arm.context_id == EMPTY.id else context_name(store, arm.context_id, refs)
        carried = [context_name(store, id_, refs) for id_ in store.model_contexts(arm.model_id)]
        found[label] = {
            "model": arm.model_id, "name": row["name"], "path": row["path"], "parent": row["parent_id"],
            "context": shown, "carries": carried,
        }  # fmt: skip
    return found


def context_name(store: Store, context_id: str, refs: Mapping[str, list[str]] | None = None) -> dict[str, Any]:
    """A context's id, its refs, those that are no chain step first, and the file that it came from, '' if from none."""
    if refs is None:
        refs = {context_id: [name for name, id_ in store.refs().items() if id_ == context_id]}
    names = sorted(refs.get(context_id, []), key=lambda name: "/pool/" in name)
    recipe = read_object(store.context_row(context_id)["recipe"], f"the recipe of context {context_id[:SHORT]}")
    return {"id": context_id, "refs": names, "file": str(recipe.get("file", ""))}


def spoken_name(context: Mapping[str, Any]) -> str:
    """A context as people name it, with the start of its id."""
    name = next(iter(context["refs"]), "") or context["file"]
    return " ".join(part for part in (name, context["id"][:SHORT]) if part)


def header(store: Store, work: Path, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is compared, a line for each arm: the student first, then the context that is shown, and the base."""
    said = []
    for label in sorted(found, key=lambda label: ORDER.index(label) if label in ORDER else len(ORDER)):
        one = found[label]
        if label == "in-context":
            said.append(f"context: {spoken_name(one['context'])}")
            continue
        row = store.lookup("model", id=one["model"])
        line = f"{label}: {_model(work, row, one)}"
        if label in ("student", PLACEBO_STUDENT) and one["parent"]:
            parent = store.lookup("model", id=one["parent"])
            taught = ", ".join(map(spoken_name, one["carries"]))
            line += f" (from {parent['name'] if parent else 'a model'} {one['parent'][:SHORT]}"
            line += f", context {taught})" if taught else ")"
        elif one["context"]:
            line += f", shown {spoken_name(one['context'])}"
        said.append(line)
    return said


def _model(work: Path, row: Mapping[str, Any] | None, one: Mapping[str, Any]) -> str:
    trained = row is not None and row["run_id"] is not None
    place = recall(work, row) if trained and row is not None else None
    return f"{place or one['name']} {one['model'][:SHORT]}"
