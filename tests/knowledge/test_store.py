"""The store: frozen rows, splits, concurrency, resume, refs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.core.errors import StoreError, TaskLeak
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.knowledge import Arena, Arm, Found, Store, setup_id
from agentopcd.knowledge.database import migrations, statements


def test_every_statement_of_the_schema_is_executed() -> None:
    (number, script), *_ = migrations()
    found = list(statements(script))
    assert number == 1
    assert sum("CREATE TABLE" in statement for statement in found) == 12
    assert sum("CREATE TRIGGER" in statement for statement in found) == 6


def test_empty_context_is_there_from_the_start(store: Store) -> None:
    assert store.get_context(EMPTY.id) == EMPTY
    assert store.resolve("empty") == EMPTY.id
    assert store.add_context(Context("", "system")) == EMPTY.id


@pytest.mark.parametrize("table", ["item", "context", "task", "episode", "item_event", "ref_move"])
def test_frozen_tables_refuse_updates(store: Store, kit, table: str) -> None:
    store.add_tasks(kit.env, ["k"], "extract")
    store.add_episodes(1, kit.model, kit.setup, [kit.episode(Job(Task(1, "k")), True)])
    store.add_items(1, [Found("Holes end the game.")])
    store.move("lake/best", EMPTY.id, "test")
    column = {"task": "split", "episode": "reward", "context": "rendered", "item": "text"}.get(table, "actor")
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        store._connection.execute(f"UPDATE {table} SET {column} = {column}")


def test_a_task_belongs_to_one_split_for_ever(store: Store, kit) -> None:
    store.add_tasks(kit.env, [Task(1, "a"), Task(2, "b")], "select")
    store.add_tasks(kit.env, [Task(9, "a")], "select")  # another seed of the same board
    with pytest.raises(TaskLeak, match="'select' and was about to be used for 'test'"):
        store.add_tasks(kit.env, [Task(3, "c"), Task(4, "b")], "test")
    assert store.split_of(kit.env, "c") is None  # all or nothing
    store.add_tasks("other", ["a"], "test")  # another environment is another task
    store.add_tasks(kit.env, ["s"], "shared")
    store.add_tasks(kit.env, ["s"], "test")
    assert store.split_of(kit.env, "s") == "shared"
    with pytest.raises(TaskLeak):
        store.add_tasks(kit.env, ["a"], "shared")
    with pytest.raises(StoreError, match="did you mean 'select'"):
        store.add_tasks(kit.env, ["z"], "selekt")


def test_episode_comes_back_in_full(store: Store, kit) -> None:
    turn = kit.turn([("rules", "Reach G."), ("state", "P.\n.G \ud800")], "I go [right] ²")
    episode = kit.episode(Job(Task(7, "k"), rep=2), True, turns=[turn, turn])
    store.add_tasks(kit.env, [episode.task], "extract")
    (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
    assert number is not None and store.transcript(number) == episode
    row = store.episodes(env=kit.env)[0]
    assert (row["turns"], row["prompt_tokens"], row["output_tokens"]) == (2, 6, 4)
    assert (row["seed"], row["rep"], row["split"], row["success"]) == (7, 2, "extract", 1)
    assert store.used(kit.env, EMPTY.id, besides=2) == {(7, 2)}
    assert store.used(kit.env, EMPTY.id, besides=1) == set()


def test_stored_episodes_stay_and_broken_ones_never_enter(store: Store, kit) -> None:
    store.add_tasks(kit.env, ["k"], "extract")
    job = Job(Task(1, "k"))
    assert store.add_episodes(1, kit.model, kit.setup, [kit.episode(job, True)]) == [1]
    assert store.add_episodes(1, kit.model, kit.setup, [kit.episode(job, False)]) == [1]
    broken = kit.episode(Job(Task(2, "k")), True, error=True)
    assert store.add_episodes(1, kit.model, kit.setup, [broken]) == [None]
    assert store.outcomes(Arm(kit.model), Arena(kit.env, kit.setup)) == {("k", 1, 0): True}


def test_a_seed_that_makes_another_task_is_noticed(store: Store, kit) -> None:
    store.add_tasks(kit.env, ["old", "new"], "extract")
    store.add_episodes(1, kit.model, kit.setup, [kit.episode(Job(Task(1, "old")), True)])
    with pytest.raises(StoreError, match="seed 1 of lake was task old and is now new: the environment has changed"):
        store.add_episodes(1, kit.model, kit.setup, [kit.episode(Job(Task(1, "new")), True)])


def test_an_episode_names_the_parent_it_lacks(store: Store, kit) -> None:
    episode = kit.episode(Job(Task(1, "k")), True)
    with pytest.raises(StoreError, match=r"task k of lake is not in the store; call Store\.add_tasks"):
        store.add_episodes(1, kit.model, kit.setup, [episode])
    store.add_tasks(kit.env, ["k"], "extract")
    with pytest.raises(StoreError, match=r"Store\.add_model"):
        store.add_episodes(1, "nobody", kit.setup, [episode])
    unknown = kit.episode(Job(Task(1, "k"), Context("never stored")), True)
    with pytest.raises(StoreError, match=r"Store\.add_context"):
        store.add_episodes(1, kit.model, kit.setup, [unknown])


def test_runs_are_found_again_until_they_are_finished(store: Store) -> None:
    config = {"env": "lake", "n": 3}
    first, second = store.start("play", config, 1), store.start("play", config, 1)
    assert store.find_run("play", {"n": 3, "env": "lake"}) == second
    assert store.find_run("play", {"n": 4, "env": "lake"}) is None
    assert store.find_run("play", {"n": 3.0, "env": "lake"}) == second, "older versions wrote no point"
    store.finish(second, {"won": 2})
    assert store.find_run("play", config) == first
    store.finish(first, status="failed")
    assert store.find_run("play", config) is None
    with pytest.raises(StoreError, match="no run 99"):
        store.finish(99)


def test_refs_move_and_remember(store: Store, kit) -> None:
    one, two = kit.context("Avoid holes."), kit.context("Go to G.")
    ids = [store.add_context(context) for context in (one, two)]
    store.move("lake/best", ids[0], "confirm", expect=None)
    store.move("lake/best", ids[1], "confirm", "better", expect=ids[0])
    with pytest.raises(StoreError, match=r"is at .* expected at"):
        store.move("lake/best", ids[0], "someone", expect=ids[0])
    with pytest.raises(StoreError, match="expected not to exist"):
        store.move("lake/best", ids[0], "someone", expect=None)
    assert store.resolve("lake/best") == ids[1] == store.resolve(ids[1][:8])
    assert [row["context_id"] for row in store.log("lake/best")] == ids
    store.move("lake/best", None, "someone")
    with pytest.raises(StoreError, match="unknown context 'lake/best'"):
        store.resolve("lake/best")
    for bad in ("", "empty", "a b"):
        with pytest.raises(StoreError, match="cannot name a ref"):
            store.move(bad, ids[0], "someone")
    for step in (10, 9, 100):
        store.move(f"lake/pool/00/{step}", ids[0], "extract")
    assert [name.rpartition("/")[2] for name in store.refs("lake/pool/")] == ["9", "10", "100"]


def test_two_moves_with_the_same_expectation(tmp_path: Path, kit) -> None:
    """Two connections see the same state and both want to move: the second one is told."""
    with Store.open(tmp_path / "s.db") as first, Store.open(tmp_path / "s.db") as second:
        context_id = first.add_context(kit.context("Avoid holes."))
        seen = [store.refs().get("lake/best") for store in (first, second)]
        first.move("lake/best", context_id, "first", expect=seen[0])
        with pytest.raises(StoreError, match="look again"):
            second.move("lake/best", EMPTY.id, "second", expect=seen[1])
        assert second.resolve("lake/best") == context_id


def test_resolve_says_what_is_wrong(store: Store, kit) -> None:
    store.move("lake/best", store.add_context(kit.context("x")), "t")
    with pytest.raises(StoreError, match="did you mean 'lake/best'"):
        store.resolve("lake/bets")
    with pytest.raises(StoreError, match="unknown context 'abc'"):
        store.resolve("abc")  # too short for a prefix
    found: dict[str, int] = {}
    for number in range(700):  # several contexts that begin with the same four digits
        start = store.add_context(Context(f"text {number}"))[:4]
        found[start] = found.get(start, 0) + 1
    twice = [start for start, n in found.items() if n > 1]
    assert twice
    for start in twice:
        with pytest.raises(StoreError, match="give more digits"):
            store.resolve(start)


WRITER = """
import sys
from agentopcd.knowledge import Store
from agentopcd.core.types import EMPTY, Episode, Task
number = int(sys.argv[2])
with Store.open(sys.argv[1]) as store:
    run_id = store.start("play", {"writer": number}, number)
    store.add_model("m", "tiny")
    store.add_tasks("lake", ["k"], "extract")
    for i in range(400):
        store.add_episodes(run_id, "m", "s", [Episode(
            env="lake", task=Task(1000 * number + i, "k"), rep=0, context_id=EMPTY.id, turns=[],
            outcome=[("outcome", "x" * 4000)], success=False, reward=0.0, stop_reason="failed")])
"""


def test_eight_processes_lose_nothing(tmp_path: Path) -> None:
    """They also race for creating the file, its WAL mode and its schema."""
    path = tmp_path / "new" / "store.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], stderr=subprocess.PIPE)
        for number in range(8)
    ]
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert errors == [""] * 8
    with Store.open(path, create=False) as store:
        assert len(store.episodes()) == 8 * 400
        assert len(store.table("run", "id")) == 8
        assert store.transcript(3200).task.key == "k"


def test_a_failed_batch_leaves_nothing(store: Store, kit) -> None:
    store.add_tasks(kit.env, ["k"], "extract")
    good, bad = kit.episode(Job(Task(1, "k")), True), kit.episode(Job(Task(2, "unknown")), True)
    with pytest.raises(StoreError):
        store.add_episodes(1, kit.model, kit.setup, [good, bad])
    assert store.episodes() == []


def test_files_that_are_no_store(tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_text("not a database, but long enough to have a header of its own, or so one would think" * 5)
    with pytest.raises(StoreError, match="cannot be used as a knowledge store: file is not a database") as error:
        Store.open(text)
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="no knowledge store"):
        Store.open(tmp_path / "missing.db", create=False)
    with pytest.raises(StoreError, match="cannot open"):
        Store.open(tmp_path)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    with pytest.raises(StoreError, match="another program"):
        Store.open(tmp_path / "other.db")


def test_a_newer_schema_and_an_older_sqlite_are_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "store.db"
    Store.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StoreError, match="has schema 99, this agentopcd knows 5"):
        Store.open(path)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.31.0")
    with pytest.raises(StoreError, match=r"needs SQLite 3\.37 or newer, Python has 3\.31\.0"):
        Store.open(tmp_path / "fresh.db")


def test_a_store_is_not_carried_into_another_process(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)  # what a forked child would see
    with pytest.raises(StoreError, match="another process"):
        store.refs()
    with pytest.raises(StoreError, match="another process"):
        store.start("play", {}, 0)


def test_nothing_is_written_inside_a_read_view(store: Store) -> None:
    with store.read(), pytest.raises(StoreError, match="finish reading"):
        store.start("play", {}, 0)
    assert store.start("play", {}, 0) == 2


def test_models_newest_first_and_recall_through_descent(store: Store, kit) -> None:
    context = kit.context("Avoid holes.")
    context_id = store.add_context(context)
    item_id = store.items(context_id=context_id)[0].id
    train = store.start("consolidate", {"env": "lake"}, 0)
    other = store.start("consolidate", {"env": "sokoban"}, 0)
    store.add_model("child", "child", "runs/1", kit.model, train, {context_id: 1.0})
    store.add_model("grandchild", "grandchild", "runs/2", "child", train)
    store.add_model("stranger", "stranger", "runs/3", kit.model, other, {EMPTY.id: 1.0})
    assert store.carriers(item_id) == ["child", "grandchild"]
    assert store.models("lake", trained=True) == []  # a student counts once its run has finished
    store.finish(train)
    assert [model["id"] for model in store.models("lake", trained=True)] == ["grandchild", "child"]
    assert store.models()[-1]["id"] == kit.model
    assert store.models("chess") == []
    assert store.model_contexts("child") == {context_id: 1.0}


def test_status_is_the_last_event(store: Store) -> None:
    (item_id,) = store.add_items(1, [Found("Avoid holes.")])
    expected = [
        ("approve", "active"), ("pin", "pinned"), ("note", "pinned"), ("retire", "retired"),
        ("restore", "active"), ("distinct", "active"), ("flag", "pending"), ("supersede", "retired"),
    ]  # fmt: skip
    assert store.item(item_id).status == "pending"
    for event, status in expected:
        store.event(item_id, event, "person")
        assert store.item(item_id).status == status
    assert [item.id for item in store.items(status="retired")] == [item_id]
    with pytest.raises(StoreError, match="did you mean 'retire'"):
        store.event(item_id, "retired", "person")
    with pytest.raises(StoreError, match="no item"):
        store.event("0" * 64, "pin", "person")


def test_pending_and_retired_items_block_a_hand_over(store: Store, kit) -> None:
    ids = store.add_items(1, [Found("Avoid holes."), Found("Go to G."), Found("Walk.")])
    context_id = store.add_context(kit.context("Avoid holes.", "Go to G.", "Walk."))
    store.event(ids[0], "pin", "person")
    store.event(ids[1], "retire", "person")
    assert [(item.text, item.status) for item in store.blocked(context_id)] == [
        ("Go to G.", "retired"),
        ("Walk.", "pending"),
    ]


def test_a_context_lists_the_items_it_shows(store: Store, kit) -> None:
    context = kit.context("Avoid holes.", "", "Go to G.")
    context_id = store.add_context(context)
    assert [item.text for item in store.items(context_id=context_id)] == ["Avoid holes.", "Go to G."]
    assert store.sources(store.items(context_id=context_id)[0].id) == []  # origin unknown
    free = store.add_context(Context("You are a doctor.", "system"))
    assert store.items(context_id=free) == []


def test_setups_are_named_by_content() -> None:
    assert setup_id({"a": 1, "b": {"c": 2}}) == setup_id({"b": {"c": 2}, "a": 1})
    assert setup_id({"a": 1}) != setup_id({"a": 2})
