"""What is said for a context: rates of repeated tasks, looks of two kinds, and what other stores have played."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentopcd.core.types import Context, Job
from agentopcd.knowledge import Store
from agentopcd.knowledge.evidence import Competed, evidence, scores, ungraded
from agentopcd.knowledge.exchange import ELSEWHERE
from agentopcd.knowledge.students import CANARY
from tests.knowledge_commands import run


@pytest.fixture
def shown(store: Store, kit) -> Context:
    """A context that has played ten times on each of four tasks, and always wins or always loses on each."""
    context = kit.context("Avoid holes.")
    store.add_context(context)
    tasks = kit.tasks(4)
    store.add_tasks(kit.env, tasks, "select")
    games = [kit.episode(Job(task, context, rep), task.seed > 1) for task in tasks for rep in range(10)]
    store.add_episodes(1, kit.model, kit.setup, games)
    return context


def test_where_tasks_repeat_the_interval_is_over_tasks(store: Store, shown: Context) -> None:
    (row,) = scores(store, shown.id, Competed(store))
    assert (row["rate"], row["n"], row["tasks"]) == (0.5, 40, 4)
    assert row["high"] - row["low"] > 0.6  # forty independent games would have 0.3
    assert f"0.500 [{row['low']:.3f}, {row['high']:.3f}], n = 40 on 4 tasks" in evidence(store, shown.id)[0]


def look(store: Store, kit, context: Context, setup: str) -> None:
    key = {"env": kit.env, "model_id": kit.model, "context_id": context.id, "setup": setup, "plan": "p"}
    store.end_look(store.begin_look(key, {})["id"], "pass", {})


def test_a_comparison_of_served_sessions_is_no_look_at_confirm_tasks(tmp_path: Path, kit) -> None:
    context = kit.context("Avoid holes.")
    with kit.open(tmp_path / "store.db") as store:
        store.add_context(context)
        look(store, kit, context, kit.setup)
        look(store, kit, context, CANARY)
        first, second = evidence(store, context.id)
    assert "look 1 at confirm tasks" in first and "look 2 of served sessions" in second
    said = run(tmp_path, "show", context.id)
    assert "look 1 at confirm tasks: pass" in said and "look 2 of served sessions: pass" in said
    run(tmp_path, "export", context.id, "-o", str(tmp_path / "SKILL.md"))
    assert "look 2 of served sessions" in (tmp_path / "SKILL.md").read_text(encoding="utf-8")


def test_what_another_store_has_played_is_no_evidence_of_this_one(tmp_path: Path, kit) -> None:
    context = kit.context("Avoid holes.")
    with kit.open(tmp_path / "store.db") as store:
        store.add_context(context)
        store.add_tasks(kit.env, kit.tasks(4), "select")
        for arm in (context, kit.empty):
            store.add_context(arm)
            games = [kit.episode(Job(task, arm), arm is context) for task in kit.tasks(4)]
            store.add_episodes(1, kit.model, f"{ELSEWHERE}{kit.setup}", games)
        assert evidence(store, context.id) == ["none: this store has not played with it"]
    assert f"(4 episodes on 4 tasks, model {kit.model[:8]}, imported)" in run(tmp_path, "show", context.id)
    assert f"(4 pairs, model {kit.model[:8]}, imported)" in run(tmp_path, "diff", "empty", context.id)
    run(tmp_path, "export", context.id, "-o", str(tmp_path / "SKILL.md"))
    assert "none: this store has not played with it" in (tmp_path / "SKILL.md").read_text(encoding="utf-8")


def test_what_others_could_not_grade_is_graded_here(kit) -> None:
    store = kit.open()
    own = {"verb": "evaluate", "code": "1", "seed": 0, "status": "done", "started_at": "2026-01-01T00:00:00Z"}
    told = {"config": '{"env": "lake"}', "result": '{"graded": false}'}
    store.insert("run", own | told | {"imported": 1})
    assert ungraded(store) == set()
    store.insert("run", own | told)
    assert ungraded(store) == {"lake"}
