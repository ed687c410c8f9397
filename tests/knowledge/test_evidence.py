"""What is said for a context: rates of repeated tasks, looks of two kinds, and what other stores have played."""

from __future__ import annotations

import pytest

from agentopcd.core.types import Context, Job
from agentopcd.knowledge import Store
from agentopcd.knowledge.evidence import Competed, evidence, scores


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
