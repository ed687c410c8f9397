"""What a repair saves of looks whose contexts are gone: the false-alarm rate that they have spent stays spent."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentopcd.core.errors import StoreError
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, confirm
from agentopcd.knowledge.care import problems
from agentopcd.knowledge.dump import dump
from agentopcd.knowledge.exchange import load
from agentopcd.knowledge.repair import repair

KEY = ("env", "model_id", "context_id", "setup", "plan")


@pytest.fixture
def path(tmp_path: Path, kit) -> Path:
    """A store with three looks: two that were judged on the same tasks, and one that was begun, with an incumbent."""
    path = tmp_path / "store.db"
    with kit.open(path) as store:
        for text in ("Ice is slippery.", "Walk."):
            confirm(kit.bench(store, kit.player(lambda _: 0.5)), kit.context(text), kit.tasks(4, 5000))
        other = store.add_context(kit.context("Run."))
        key = {"env": kit.env, "model_id": kit.model, "setup": kit.setup, "plan": "begun"}
        begun = store.add_context(kit.context("Stand."))
        store.begin_look(key | {"context_id": begun}, {"placebo_id": other, "incumbent_id": other})
    return path


def damage(path: Path, statement: str, *values: str) -> None:
    with sqlite3.connect(path) as connection:
        (frozen,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'look_frozen'").fetchone()
        connection.execute("DROP TRIGGER look_frozen")
        connection.execute(statement, values)
        connection.execute(frozen)


@pytest.mark.parametrize("column", ["placebo_id", "incumbent_id"])
def test_a_judged_look_stays_without_what_it_was_compared_with(path: Path, kit, column: str) -> None:
    with Store.open(path) as store:
        before = store.table("look", "id")
    damage(path, f"UPDATE look SET {column} = ?", "e" * 64)
    lost = repair(path).lost
    assert f"look: 2 rows have lost their {column}" in lost
    assert "look: 1 rows have lost a context that they compared; what they spent stays spent" in lost
    with Store.open(path) as store:
        after = store.table("look", "id")
        assert after[:2] == [row | {column: None} for row in before[:2]]
        assert after[2]["context_id"] == EMPTY.id and after[2]["level"] == before[2]["level"]
        assert problems(store) == []
        again = store.begin_look({name: before[2][name] for name in KEY}, {})
        assert again["number"] == 4 and again["verdict"] is None
        with pytest.raises(StoreError, match="immutable"):
            store.change("UPDATE look SET verdict = 'pass'")


def test_a_look_at_a_context_that_is_gone_stays_spent_here_and_elsewhere(path: Path, kit) -> None:
    with Store.open(path) as store:
        before, level = store.looks(kit.env), store.next_level(kit.env)
    damage(path, "DELETE FROM context WHERE rendered != ''")
    assert "look: 3 rows have lost a context that they compared; what they spent stays spent" in repair(path).lost
    with Store.open(path) as store, Store.open(":memory:") as moved:
        assert problems(store) == []
        load(moved, dump(store), gate="keep")
        for one in (store, moved):
            looks = one.looks(kit.env)
            assert [look["level"] for look in looks] == [look["level"] for look in before]
            assert {(look["context_id"], look["model_id"], look["verdict"]) for look in looks} == {
                (EMPTY.id, None, "not better")
            }
            assert one.next_level(kit.env) == level
