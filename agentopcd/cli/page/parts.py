"""The parts of a page, for one file and for the live view: each reads what it shows and names the template for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

from agentopcd.cli.page import contexts, episodes, overview, results, training
from agentopcd.cli.page.render import Section
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a page shows. Whatever is left out is counted on the page."""

    runs: int = 100
    students: int = 50
    trainings: int = 6
    """Runs whose results and curves are shown, the newest."""
    contexts: int = 30
    items: int = 200
    moves: int = 60
    tasks: int = 60
    """Tasks side by side, for each student."""
    tokens: int = 3000
    """Tokens with what the loss saw, for each training."""
    characters: int = 2000
    """Of one text."""

    def smaller(self) -> Self:
        """Half of everything that makes a page large."""
        halved = {name: max(1, getattr(self, name) // 2) for name in
                  ("contexts", "items", "tasks", "tokens", "characters", "trainings")}  # fmt: skip
        return dataclasses.replace(self, **halved)


class Parts:
    """Makes the parts of pages about one workspace.

    Args:
        store: its store, to read from.
        work: its folder.
    """

    def __init__(self, store: Store, work: Path, limits: Limits) -> None:
        self.store, self.work, self.limits = store, work, limits
        self.runs = store.runs()
        """All runs, oldest first."""

    def verdicts(self) -> Section:
        found = overview.verdicts(self.store, self.runs)
        return Section("best", "What is best, and why", "verdicts.html", found)

    def students(self) -> Section:
        found = overview.students(self.store, self.limits.students)
        left_out = len(self.store.models(trained=True)) - len(found)
        return Section("students", "Students", "students.html", {"rows": found, "left_out": left_out})

    def run_table(self) -> Section:
        newest = self.runs[::-1][: self.limits.runs]
        found = {"rows": overview.run_rows(self.store, self.work, newest), "left_out": len(self.runs) - len(newest)}
        return Section("runs", "Runs", "runs.html", found)

    def run(self, row: Row) -> Section:
        """What came of one run: settings, tables, pictures, curves."""
        result, folder = overview.result_of(row), overview.folder_of(self.work, row)
        data = {
            "row": overview.run_rows(self.store, self.work, [row])[0], "evaluation": results.evaluation(result),
            "ranking": results.ranking(result), "confirmation": results.confirmation(result),
            "worth": results.worth(result), "curves": training.curves_of(folder) if folder else None,
            "settings": [(name, str(value)) for name, value in episodes.config_of(row).items()],
        }  # fmt: skip
        return Section(f"run-{row['id']}", f"Run {row['id']}: {row['verb']}", "run.html", data)

    def tokens(self, row: Row, step: int | None = None, links: Sequence[tuple[int, str]] = ()) -> Section | None:
        """What the loss saw at the tokens of a training; None for a run that is none."""
        folder = overview.folder_of(self.work, row)
        if folder is None or row["verb"] != "consolidate":
            return None
        found = training.tokens_of(folder, most=self.limits.tokens, step=step)
        heading = f"What the loss of run {row['id']} sees"
        return Section(f"tokens-{row['id']}", heading, "tokens.html", {
            **found, "run": row["id"], "step": step, "links": links})  # fmt: skip

    def noteworthy(self) -> tuple[list[Row], int]:
        """The newest runs that have something to show beside their line, tables or curves, and how many others have."""
        chosen = []
        for row in reversed(self.runs):
            result = overview.result_of(row)
            shows = results.evaluation(result) or results.confirmation(result) or results.ranking(result)
            if shows or results.values(result) or overview.folder_of(self.work, row):
                chosen.append(row)
        shown = chosen[: self.limits.trainings]
        return shown, len(chosen) - len(shown)

    def contexts(self, ids: Sequence[str], known: int) -> Section:
        found = [contexts.context(self.store, id_) for id_ in ids]
        data = {"contexts": found, "left_out": known - len(found), "longest": 2 * self.limits.characters}
        return Section("contexts", "Contexts", "contexts.html", data)

    def items(self, ids: Sequence[str], known: int, *, below: bool = True) -> Section:
        """Some items.

        Args:
            below: whether those of contexts that stand above come first; else the newest.
        """
        worth = self.item_values()
        found = [{**item, "value": worth.get(item["id"])} for item in contexts.items(self.store, ids)]
        data = {"items": found, "left_out": known - len(found), "below": below, "longest": self.limits.characters}
        return Section("items", "Items", "items.html", data)

    def items_of(self, context_ids: Collection[str]) -> tuple[list[str], int]:
        """The items of some contexts, then the newest of the store, up to the limit; and how many the store has."""
        newest, total = self.store.newest_items(self.limits.items)
        held = [item.id for id_ in context_ids for item in self.store.items(context_id=id_)]
        ids = [*dict.fromkeys([*held, *(item.id for item in reversed(newest))])]
        return ids[: self.limits.items], total

    def item_values(self) -> dict[str, dict[str, Any]]:
        """What items are worth, by item, from the newest run that measured it."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.runs:
            if row["verb"] == "score":
                found |= {one["item"]: one for one in results.values(overview.result_of(row))}
        return found

    def log(self) -> Section:
        rows, total = contexts.log(self.store, self.limits.moves)
        data = {"rows": rows, "left_out": total - len(rows)}
        return Section("moves", "Why refs moved", "log.html", data)

    def beside(self, model: Row, *, skip: int = 0, next_: str = "") -> Section:
        """The tasks of a student side by side with its base.

        Args:
            next_: the address of the tasks after these, for a page that can show them.
        """
        found = episodes.side_by_side(self.store, model, most=self.limits.tasks, skip=skip)
        more = next_ if skip + len(found["tasks"]) < found["all"] else ""
        data = {**found, "longest": self.limits.characters, "next": more}
        heading = f"Episodes side by side: student {model['id'][:12]}"
        return Section(f"beside-{model['id'][:12]}", heading, "beside.html", data)

    def paper(self, folder: Path) -> Section | None:
        rows, unread = overview.paper_rows(folder)
        found = {"rows": rows, "unread": unread}
        return Section("paper", "The paper’s tables, in small", "paper.html", found) if rows or unread else None
