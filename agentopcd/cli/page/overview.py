"""What a workspace holds, at a glance: what is best in each environment and why, students, runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agentopcd.cli.page import results
from agentopcd.cli.page.episodes import config_of
from agentopcd.cli.page.marks import number
from agentopcd.core.config import RECORDED
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_dir
from agentopcd.core.runs import read_json
from agentopcd.core.text import counted
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, best_ref
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.evidence import ungraded
from agentopcd.knowledge.refs import home
from agentopcd.knowledge.students import current_student, student_moves
from agentopcd.workspace.overview import state_of


def result_of(row: Row) -> Mapping[str, Any]:
    """The result of a run; empty if there is none yet, or it cannot be read."""
    try:
        return results.mapping(json.loads(row["result"] or "{}"))
    except (ValueError, RecursionError):
        return {}


def folder_of(work: Path, row: Row) -> Path | None:
    """The folder of a run in this workspace, wherever the workspace lay when it was written; None if it has none.

    An imported run has none: a folder of the same name here is that of a run of this store.
    """
    written = config_of(row).get("folder")
    if row["imported"] or not isinstance(written, str) or not written:
        return None
    name = Path(written).name
    folder = work / "runs" / name
    return folder if name not in ("", "..") and is_dir(folder) else None


def run_rows(store: Store, work: Path, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Runs as lines of a table, with what came of each."""
    found, silent = [], ungraded(store)
    for row in rows:
        config = config_of(row)
        env, model = (config.get(name) for name in ("env", "model"))
        found.append(
            {
                "id": row["id"], "verb": row["verb"], "status": state_of(work, row), "imported": bool(row["imported"]),
                "env": env if isinstance(env, str) else "", "model": model if isinstance(model, str) else "",
                "started": row["started_at"], "took": _took(row), "outcome": outcome(row, silent),
            }
        )  # fmt: skip
    return found


def _took(row: Row) -> str:
    try:
        start, end = (datetime.fromisoformat(row[name]) for name in ("started_at", "finished_at"))
        seconds = (end - start).total_seconds()
    except (TypeError, ValueError):
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def outcome(row: Row, silent: Collection[str] = ()) -> str:
    """What came of a run, in one line.

    Args:
        silent: environments in which nothing is right or wrong.
    """
    result = result_of(row)
    if row["status"] == "failed":
        return str(result.get("error", ""))
    if table := results.evaluation(result):
        if table["rows"] or not table["measures"]:
            return _values(table["rows"])
        return f"{table['measures'][0]['name']}: {_values(table['measures'][0]['rows'])}"
    if found := results.confirmation(result):
        gain = ", ".join(f"{one['value']:+.3f} to {one['label'].removeprefix('context - ')}" for one in found["rows"])
        return f"{found['verdict']}: {gain}"
    if found := results.ranking(result):
        return f"{len(found['rows']) + found['left_out']} contexts competed"
    if rate := results.rate_of(result, ""):
        items = counted(len(results.sequence(result.get("items"))), "item")
        return f"{_rate_words(row, result, rate, silent)}, {items}"
    return ""


def _values(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['label']} {one['value']:.3f}" for one in rows)


def _rate_words(row: Row, result: Mapping[str, Any], rate: Mapping[str, Any], silent: Collection[str]) -> str:
    """The success of a play in words, or that nothing says what is right there."""
    env, success = str(config_of(row).get("env", "")), f"success {rate['value']:.3f}"
    if row["verb"] == "play" and env.startswith(RECORDED):  # only sessions that somebody has rated count
        unrated, all_ = (number(result.get(name)) or 0 for name in ("unrated", "episodes"))
        if unrated >= all_:
            return "no session rated"
        return f"{success}, {unrated:.0f} of {all_:.0f} sessions not rated" if unrated else success
    return "nothing graded" if result.get("graded") is False or env in silent else success


MOVES = 20
"""The most moves of a student's ref that are shown, the newest."""


def students(store: Store, limit: int | None = None) -> list[dict[str, Any]]:
    """Trained models, newest first, each with what it carries and how it did on test tasks.

    ``by`` says what ``gain``, the difference to its base, is of.
    """
    found = []
    for model in store.models(trained=True)[:limit]:
        run = store.lookup("run", id=model["run_id"])
        parent = store.lookup("model", id=model["parent_id"])
        table = results.evaluation(result_of(run)) if run else None
        gains = {one["label"]: one for one in table["differences"]} if table else {}
        found.append(
            {
                "id": model["id"], "name": model["name"], "run": model["run_id"], "created": model["created_at"],
                "parent": parent["name"] if parent else "", "contexts": list(store.model_contexts(model["id"])),
                "rate": next((row for row in table["rows"] if row["label"] == "student"), None) if table else None,
                "gain": gains.get("student - base"), "by": table["by"] if table else "",
                "env": str(config_of(run).get("env", "")) if run else "",
                "step": number(result_of(run).get("best_step")) if run else None,
                "gate": _gate(result_of(run)) if run else [],
            }
        )  # fmt: skip
    return found


def _gate(result: Mapping[str, Any]) -> list[str]:
    """The tests by which a student became, or did not become, the one that plays; empty if it met no gate."""
    promotion = result.get("promotion")
    lines = promotion.get("lines") if isinstance(promotion, Mapping) else None
    return [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []


def verdicts(store: Store, runs: Sequence[Row]) -> list[dict[str, Any]]:
    """For each environment, the context that is best and the student that plays, with the reasons for both. However a
    recording is shown and graded, both are those of the recording.

    Args:
        runs: the runs that name the environments.
    """
    named = [config_of(row).get("env") for row in runs]
    envs = dict.fromkeys(home(env) for env in named if isinstance(env, str) and env)
    envs |= dict.fromkeys(home(name.removesuffix("/best")) for name in store.refs() if name.endswith("/best"))
    taught = students(store)
    found = []
    for env in envs:
        best = store.ref(best_ref(env))
        moves = [move for move in store.log(best_ref(env)) if move["context_id"] == best]
        looks = [look for look in store.looks(env, best) if look["verdict"]] if best else []
        moved = student_moves(store, env)
        text = store.get_context(best).text if best and best != EMPTY.id else ""
        found.append(
            {
                "env": env, "key": hashlib.sha256(env.encode()).hexdigest()[:12],
                "best": best, "text": text, "move": moves[-1] if moves else None,
                "look": _look(looks[-1]) if looks else None,
                "student": next((one for one in taught if one["id"] == current_student(store, env)), None),
                "taught": len(own := [one for one in taught if home(one["env"]) == env]),
                "gate": own[0]["gate"] if own else [],
                "moves": moved[::-1][:MOVES], "more_moves": max(0, len(moved) - MOVES),
            }
        )  # fmt: skip
    return found


def _look(look: Row) -> dict[str, Any]:
    try:
        found = results.confirmation(json.loads(look["result"] or "{}"))
    except (ValueError, RecursionError):
        found = None
    return {"verdict": look["verdict"], "rows": found["rows"] if found else []}


def paper_rows(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of ``agentopcd reproduce`` that lie in a folder, or the one that lies in a file; and why others could
    not be read."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder] if folder.is_file() else []
    found, unread = [], []
    for file in files:
        try:
            row = results.paper_row(results.mapping(read_json(file, "make it anew with `agentopcd reproduce`")))
        except ConfigError as error:
            unread.append(str(error))
            continue
        if row:
            found.append({**row, "file": file.name})
    return found, unread
