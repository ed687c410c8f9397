"""``agentopcd report``: a workspace, or one thing of it, as one HTML file that stands alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from agentopcd.cli.page import overview
from agentopcd.cli.page.contexts import order_of
from agentopcd.cli.page.episodes import config_of
from agentopcd.cli.page.parts import Limits, Parts
from agentopcd.cli.page.render import Link, Section, page
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.text import counted
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row

LARGEST_BYTES = 5_000_000
STUDENTS = 3
"""Students of a whole workspace whose episodes are shown side by side, the newest."""


def report(store: Store, work: Path, name: str = "") -> str:
    """The page about a workspace, a run, a student or a context.

    The page stays below :data:`LARGEST_BYTES`: the limits of what it shows are halved until it does.

    Args:
        name: the number or folder of a run, a ref or id of a context, a student's id or folder; '': the workspace.

    Raises:
        StoreError: nothing, or more than one thing, has this name.
    """
    limits = Limits()
    for _ in range(12):
        parts = Parts(store, work, limits)
        title, sections = _about(parts, name) if name else _workspace(parts)
        nav = [(section.heading, f"#{section.id}") for section in sections]
        text = page(title, sections, _links(sections), live=False, nav=nav, longest=2 * limits.characters)
        if len(text.encode()) < LARGEST_BYTES:
            return text
        limits = limits.smaller()
    raise StoreError(f"the page of {name or work} does not fit into {LARGEST_BYTES} bytes; name one run of it")


def paper_report(folder: Path) -> str:
    """The page about results of ``agentopcd reproduce``.

    Raises:
        ConfigError: there is none.
    """
    rows, unread = overview.paper_rows(folder)
    if not rows:
        why = f" ({'; '.join(unread)})" if unread else ""
        raise ConfigError(f"{folder} holds no result of `agentopcd reproduce`{why}; name a file or a folder that does")
    section = Section("paper", "Claims and arms", "paper.html", {"rows": rows, "unread": unread})
    return page("The paper’s tables, in small", [section], lambda *_: "", live=False, nav=[])


def _workspace(parts: Parts) -> tuple[str, list[Section]]:
    store = parts.store
    (noteworthy, more), order = parts.noteworthy(), order_of(parts.store)
    trained = store.models(trained=True)
    chosen = order[: parts.limits.contexts]
    sections = [parts.verdicts(), parts.students(), parts.run_table(), *_runs(parts, noteworthy)]
    if more:
        words = f"The tables and curves of {counted(more, 'older run')} are left out; `agentopcd report RUN` shows one."
        sections.append(Section("older-runs", "Older runs", "notice.html", words))
    sections += [parts.beside(model) for model in trained[:STUDENTS]]
    if (more := len(trained) - STUDENTS) > 0:
        words = f"The episodes of {counted(more, 'older student')} are left out; `agentopcd report STUDENT` shows them."
        sections.append(Section("older-students", "Older students", "notice.html", words))
    sections += [*_knowledge(parts, chosen, len(order)), parts.log()]
    if paper := parts.paper(parts.work / "reproduce"):
        sections.append(paper)
    return f"Workspace {parts.work.name}", sections


def _runs(parts: Parts, rows: Collection[Row]) -> list[Section]:
    return [section for row in rows for section in (parts.run(row), parts.tokens(row)) if section]


def _knowledge(parts: Parts, chosen: list[str], known: int) -> list[Section]:
    return [parts.contexts(chosen, known), parts.items(*parts.items_of(chosen))]


def _about(parts: Parts, name: str) -> tuple[str, list[Section]]:
    """The parts about one thing.

    Raises:
        StoreError: nothing, or more than one thing, has this name.
    """
    store = parts.store
    if row := _run_of(parts, name):
        models = [model for model in store.models(trained=True) if model["run_id"] == row["id"]]
        return f"Run {row['id']}: {row['verb']}", _training(parts, row, models)
    if model := _model_of(store, name):
        rows = [row for row in parts.runs if row["id"] == model["run_id"]]
        return f"Student {model['id'][:12]}", _training(parts, rows[0], [model])
    context = store.resolve(name)
    order = order_of(store, [context])
    before = [move["context_id"] for move in store.log(name) if move["context_id"] not in (None, context)]
    chosen = [*dict.fromkeys([context, *reversed(before)])][: parts.limits.contexts]
    return f"Context {name}", [*_knowledge(parts, chosen, len(order)), parts.log()]


def _training(parts: Parts, row: Row, models: list[Row]) -> list[Section]:
    named = config_of(row).get("context_id")
    carried = [id_ for model in models for id_ in parts.store.model_contexts(model["id"])]
    ids = [id_ for id_ in dict.fromkeys([*carried, named]) if id_ and parts.store.lookup("context", id=id_)]
    beside = [parts.beside(model) for model in models]
    return [*_runs(parts, [row]), *beside, *(_knowledge(parts, ids, len(ids)) if ids else [])]


def _run_of(parts: Parts, name: str) -> Row | None:
    """The run that a name means: its number, or its folder."""
    for row in parts.runs:
        folder = overview.folder_of(parts.work, row)
        if str(row["id"]) == name or (folder and Path(name).name == folder.name):
            return row
    return None


def _model_of(store: Store, name: str) -> Row | None:
    """The trained model that a name means: the start of its id, or its folder.

    Raises:
        StoreError: more than one has this name.
    """
    ids, path = set(store.prefixed("model", name)), f"/{name.rstrip('/')}"
    found = [
        model
        for model in store.models(trained=True)
        if model["id"] in ids or (model["path"] and path.endswith(f"/{model['path']}"))
    ]
    if len(found) > 1:
        raise StoreError(f"{name!r} means {len(found)} students; give more digits of the id")
    return found[0] if found else None


def _links(sections: list[Section]) -> Link:
    """Links within one file: to what it shows, and to nothing else."""
    anchors = {section.id for section in sections}
    for section in sections:
        if section.template == "contexts.html":
            anchors |= {f"context-{one['id'][:12]}" for one in section.data["contexts"]}
        if section.template == "items.html":
            anchors |= {f"item-{one['id'][:12]}" for one in section.data["items"]}

    def link(kind: str, id_: Any) -> str:
        anchor = f"beside-{id_[:12]}" if kind == "model" else f"{kind}-{str(id_)[:12]}"
        return f"#{anchor}" if anchor in anchors else ""

    return link
