"""A store of schema 1 opens: what it spent on looks stays spent, and what was imported there is evidence no more."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store, identify, level_of
from agentopcd.knowledge.repair import repair

GOOD, POOR, THEIRS = (Context(f"{MARKER} {text}") for text in ("Holes swallow.", "Run.", "Obey us."))
AT = "2026-01-01T00:00:00.000000+00:00"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of schema 1: two contexts were confirmed, one passed; then another store was imported, with its move."""
    file = tmp_path / "store.db"
    connection = sqlite3.connect(file)
    connection.executescript((files("agentopcd.knowledge") / "schema" / "0001.sql").read_text())
    connection.execute("PRAGMA user_version = 1")

    def add(table: str, **row: Any) -> None:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))

    for number, verb, result in ((1, "score", {}), (2, "import", {"run": 1}), (3, "score", {})):
        add("run", id=number, verb=verb, code="0.1.0", seed=0, config=json.dumps({"model_id": "m"}), status="done",
            result=json.dumps(result), started_at=AT)  # fmt: skip
    add("model", id="m", name="tiny", created_at=AT)
    for context in (GOOD, POOR, THEIRS):
        add("context", id=context.id, rendered=context.text, placement="user", recipe="{}", created_at=AT)
    for i in range(3):
        add("task", env="lake", key=f"k{i}", split="confirm")
        for context in (Context(), GOOD, POOR):
            add("episode", run_id=1, model_id="m", context_id=context.id, setup="s", env="lake", task_key=f"k{i}",
                seed=i, success=1, reward=1.0, stop="solved", turns=1, prompt_tokens=1, output_tokens=1,
                created_at=AT)  # fmt: skip
    add("ref_move", name="lake/best", context_id=GOOD.id, actor="confirm", run_id=1, at=AT)
    add("ref_move", name="lake/best", context_id=THEIRS.id, actor="confirm", run_id=3, at=AT)  # run 3 came with run 2
    add("item", id=identify("Obey us."), text="Obey us.", created_at=AT)
    add("item_source", item_id=identify("Obey us."), run_id=3, env="lake", task_key="k9", line=0, raw="Obey us.")
    add("item_source", item_id=identify("Obey us."), run_id=1, env="lake", task_key="k8", line=0, raw="Obey us.")
    connection.commit()
    connection.close()
    return file


def test_looks_of_schema_1_stay_spent(old: Path) -> None:
    with Store.open(old) as store:
        assert [(look["context_id"], look["verdict"], look["level"]) for look in store.looks("lake")] == [
            (GOOD.id, "pass", 0.025), (POOR.id, "not better", 0.025),
        ]  # fmt: skip
        key = {"env": "lake", "model_id": "m", "context_id": THEIRS.id, "setup": "s", "plan": "new"}
        look = store.begin_look(key, {})
        assert (look["number"], look["level"]) == (3, level_of(3))


def test_what_was_imported_into_schema_1_is_no_evidence(old: Path) -> None:
    with Store.open(old) as store:
        assert [run["imported"] for run in store.runs()] == [0, 0, 1]
        assert store.looks(context_id=THEIRS.id) == []
        assert store.item(identify("Obey us.")).support == 1  # its own run's find alone


@pytest.mark.parametrize("damaged", [False, True])
def test_a_repair_of_schema_1_does_what_its_migration_does(old: Path, damaged: bool) -> None:
    """Damaged: the tasks are gone, of which the workspace's file of splits tells."""
    tables = ("run", "look", "student_move", "task", "model")
    whole = old.with_name("whole.db")
    shutil.copy(old, whole)
    if damaged:
        with sqlite3.connect(old) as connection:
            connection.execute("DELETE FROM task")
        (old.parent / "splits").mkdir()
        known = {"protocol": "disjoint", "splits": {"confirm": [[i, f"k{i}"] for i in range(3)]}}
        name = hashlib.sha256(b"lake").hexdigest()[:12]
        (old.parent / "splits" / f"{name}.json").write_text(json.dumps(known))
    for key in ("k8", "k9"):  # the origins' own tasks
        for file in (old, whole):
            with sqlite3.connect(file) as connection:
                connection.execute("INSERT INTO task VALUES ('lake', ?, 'extract')", (key,))
    assert repair(old).lost == []
    with Store.open(old) as mended, Store.open(whole) as opened:
        for table in tables:
            assert mended.table(table, "1, 2") == opened.table(table, "1, 2")
        assert len(mended.looks("lake")) == 2 and mended.next_level("lake") == opened.next_level("lake")
        assert mended.item(identify("Obey us.")).support == 1


def test_metrics_of_old_episodes_are_read_from_their_transcripts(kit, store: Store) -> None:
    """Schema 1 kept metrics in the transcript only; a row without both has none."""
    from agentopcd.core.types import EMPTY, Job
    from agentopcd.knowledge import Arena, Arm

    tasks = kit.tasks(2)
    store.add_tasks(kit.env, tasks, "select")
    episode = kit.episode(Job(tasks[0], EMPTY), True)
    episode.metrics["boxes"] = 2.0
    store.add_episodes(1, kit.model, kit.setup, [episode, kit.episode(Job(tasks[1], EMPTY), True)])
    store.change("DROP TRIGGER episode_frozen")
    store.change("UPDATE episode SET metrics = NULL")
    store.change("DELETE FROM transcript WHERE episode_id = 2")
    means = store.means(Arm(kit.model), Arena(kit.env, kit.setup))
    assert (means["boxes"].rate, means["boxes"].n, means["reward"].n) == (2.0, 1, 2)
