"""ENV/student has a history that only grows, and older stores get the one that their students made."""

from __future__ import annotations

import json
import sqlite3
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import StoreError
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, best_ref, home, level_of
from agentopcd.knowledge.repair import repair
from agentopcd.knowledge.students import (
    current_student,
    env_of,
    lineage,
    move_student,
    past_students,
    student_moves,
    student_ref,
)

AT = "2026-01-01T00:00:0{}.000000+00:00"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "store.db") as opened:
        opened.add_model("base", "base")
        for name, parent in (("a", "base"), ("b", "a"), ("c", "b")):
            opened.add_model(name, name, None, parent)
        yield opened


def test_a_rollback_takes_the_last_move_back_and_another_one_that_before(store: Store) -> None:
    move_student(store, "lake", "a", "gate")
    move_student(store, "lake", "b", "gate")
    move_student(store, "lake", "c", "person")
    move_student(store, "lake", "b", "rollback")
    assert past_students(student_moves(store, "lake")) == ["a", "b"] and current_student(store, "lake") == "b"
    move_student(store, "lake", "a", "rollback")
    move_student(store, "lake", None, "rollback")
    assert past_students(student_moves(store, "lake")) == [] and current_student(store, "lake") is None
    assert len(student_moves(store)) == 6, "nothing is forgotten"
    assert current_student(store, "sokoban") is None


def test_moves_cannot_be_changed_and_name_models_of_the_store(store: Store) -> None:
    move_student(store, "lake", "a", "gate")
    with pytest.raises(StoreError):
        store.change("UPDATE student_move SET model_id = 'b'")
    with pytest.raises(StoreError, match="no model nobody"):
        move_student(store, "lake", "nobody", "gate")


def test_a_recordings_student_is_one_however_its_sessions_are_shown_and_graded(store: Store) -> None:
    shown, other = "recorded:desk,grader=g.py:f,turns=last", "recorded:desk2"
    move_student(store, shown, "a", "gate")
    with store.write():  # as an older version wrote it
        store.insert("student_move", {"env": shown, "model_id": "b", "actor": "gate", "reason": "", "at": AT.format(1)})
    move_student(store, other, "c", "gate")
    assert (
        student_ref(shown) == "recorded:desk/student" and env_of("recorded:desk,turns=last/student") == "recorded:desk"
    )
    assert best_ref(shown) == "recorded:desk/best" and home(other) == other
    for env in ("recorded:desk", shown, "recorded:desk,turns=all"):
        assert current_student(store, env) == "b"
        assert past_students(student_moves(store, env)) == ["a", "b"]
    assert [move["env"] for move in student_moves(store)] == ["recorded:desk", "recorded:desk", other]
    move_student(store, "lake,size=5", "c", "gate")  # another game, and not another look at it
    assert current_student(store, "lake") is None and student_ref("lake,size=5") == "lake,size=5/student"


def test_looks_of_a_recording_are_of_one_budget_however_it_was_graded(store: Store) -> None:
    store.add_context(EMPTY)
    names = ["recorded:desk", "recorded:desk,grader=g.py:f", "recorded:desk2", "lake", "lake,size=5", "recorded:desk"]
    for plan, env in enumerate(names):
        key = {"env": env, "model_id": "a", "context_id": EMPTY.id, "setup": "s", "plan": str(plan)}
        store.begin_look(key, {})
    assert [(look["number"], look["level"]) for look in store.looks("recorded:desk,turns=last")] == [
        (number, level_of(number)) for number in (1, 2, 3)
    ]
    assert [look["number"] for look in store.looks()] == [1, 2, 1, 1, 1, 3]
    assert [look["env"] for look in store.looks("lake")] == ["lake"]


def test_students_of_a_recording_are_found_however_it_was_graded(store: Store) -> None:
    for name, env in (("d", "recorded:desk,grader=g.py:f"), ("e", "recorded:desk"), ("f", "recorded:desk2")):
        run = store.start("consolidate", {"env": env}, seed=0)
        store.finish(run, {})
        store.add_model(name, name, None, "base", run)
    assert [row["id"] for row in store.models("recorded:desk", trained=True)] == ["e", "d"]
    assert [row["id"] for row in store.models("recorded:desk,turns=last", trained=True)] == ["e", "d"]


def test_a_lineage_goes_to_the_base(store: Store) -> None:
    assert lineage(store, "c") == ["c", "b", "a", "base"]
    assert (student_ref("gym:a/b"), env_of("gym:a/b/student"), env_of("gym:a/b")) == ("gym:a/b/student", "gym:a/b", "")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of schema 3 with two students of one environment, the second newer, and one whose run failed."""
    file = tmp_path / "old.db"
    connection = sqlite3.connect(file)
    for number in (1, 2, 3):
        connection.executescript((files("agentopcd.knowledge") / "schema" / f"000{number}.sql").read_text())
    connection.execute("PRAGMA user_version = 3")
    for number, status in ((1, "done"), (2, "done"), (3, "failed")):
        connection.execute(
            "INSERT INTO run (id, verb, code, seed, config, status, started_at)"
            " VALUES (?, 'consolidate', '', 0, ?, ?, ?)",
            (number, json.dumps({"env": "lake"}), status, AT.format(number)),
        )
    for name, parent, run in (("base", None, None), ("a", "base", 1), ("b", "base", 2), ("c", "base", 3)):
        connection.execute(
            "INSERT INTO model (id, name, parent_id, run_id, created_at) VALUES (?, ?, ?, ?, ?)",
            (name, name, parent, run, AT.format(run or 0)),
        )
    connection.commit()
    connection.close()
    return file


def test_in_an_older_store_the_newest_student_goes_on_to_play(old: Path) -> None:
    with Store.open(old) as store:
        moves = student_moves(store, "lake")
        assert [(move["model_id"], move["actor"], move["run_id"]) for move in moves] == [
            ("a", "newest", 1), ("b", "newest", 2),
        ]  # fmt: skip
        assert current_student(store, "lake") == "b"


def test_a_repair_keeps_the_history_and_makes_that_of_an_older_store(old: Path, tmp_path: Path) -> None:
    repair(old)
    with Store.open(old) as store:
        assert current_student(store, "lake") == "b"
        move_student(store, "lake", "a", "rollback")
    repair(old)
    with Store.open(old) as store:
        assert [move["model_id"] for move in student_moves(store)] == ["a", "b", "a"]
