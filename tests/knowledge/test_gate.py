"""Which new items are used without a person's word."""

from __future__ import annotations

import pytest

from agentopcd.core.config import LearnConfig, PlayConfig, pick
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, MARKER, Job, Task
from agentopcd.knowledge import Ingested, Origin, Store, identify, ingest
from agentopcd.workspace.ledger import run_config

HOLES, ROUTE = "Avoid holes.", "Go right, right, down."
ID = identify(HOLES)


def find(store: Store, kit, key: str, gate: str, text: str = HOLES, context=EMPTY) -> Ingested:
    """The extractor finds an item in an episode of this task."""
    store.add_tasks(kit.env, [key], "extract")
    store.add_context(context)
    episode = kit.episode(Job(Task(int(key), key), context), True)
    (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
    origin = Origin(run_id=1, episode=episode, episode_id=number)
    return ingest(store, f"{MARKER} {text}", origin, gate=gate)  # type: ignore[arg-type]


def test_auto_lets_through_what_has_no_flag(store: Store, kit) -> None:
    assert find(store, kit, "1", "auto").accepted == [ID]
    assert find(store, kit, "1", "auto", ROUTE).accepted == []


def test_review_lets_nothing_through(store: Store, kit) -> None:
    assert find(store, kit, "1", "review").accepted == []
    assert find(store, kit, "2", "review").accepted == [] and store.item(ID).support == 2
    store.event(ID, "approve", "person")
    assert find(store, kit, "3", "review").accepted == [ID]


def test_support_lets_through_at_the_second_task(store: Store, kit) -> None:
    gate = "support>=2"
    assert find(store, kit, "1", gate).accepted == []
    assert find(store, kit, "1", gate).accepted == []  # the same task again
    assert find(store, kit, "2", gate, context=kit.context(HOLES)).echoes == [ID]  # it was shown: an echo
    assert store.item(ID).status == "pending"
    assert find(store, kit, "3", gate).accepted == [ID] and store.item(ID).status == "active"
    assert store.events(ID)[-1]["actor"] == "gate:support>=2"
    for key in ("4", "5"):  # a flagged one always waits
        assert find(store, kit, key, gate, ROUTE).accepted == []


def test_a_persons_word_counts_more_than_support(store: Store, kit) -> None:
    find(store, kit, "1", "support>=2")
    store.event(ID, "retire", "person")
    assert find(store, kit, "2", "support>=2").accepted == [] and store.item(ID).status == "retired"
    store.event(ID, "approve", "person")
    assert find(store, kit, "1", "support>=2").accepted == [ID]


def test_imported_finds_are_no_support(store: Store, kit) -> None:
    find(store, kit, "1", "support>=2")
    store.change("UPDATE run SET imported = 1 WHERE id = 1")
    store.start("score", {}, 0)
    store.add_tasks(kit.env, ["2"], "extract")
    episode = kit.episode(Job(Task(2, "2"), EMPTY), True)
    (number,) = store.add_episodes(2, kit.model, kit.setup, [episode])
    origin = Origin(run_id=2, episode=episode, episode_id=number)
    assert ingest(store, f"{MARKER} {HOLES}", origin, gate="support>=2").accepted == []


def test_a_reply_that_is_read_again_after_a_kill_accepts_what_it_accepted(store: Store, kit) -> None:
    """Otherwise a run that was killed would end with other contexts than an unbroken one."""
    first = find(store, kit, "1", "support>=2").accepted
    second = find(store, kit, "2", "support>=2").accepted
    assert find(store, kit, "1", "support>=2").accepted == first == []
    assert find(store, kit, "2", "support>=2").accepted == second == [ID]


@pytest.mark.parametrize("gate", ["review", "support>=2"])
def test_an_item_whose_history_is_lost_can_be_found_again(store: Store, kit, gate: str) -> None:
    """As a repair, or an import without events, leaves it."""
    store.insert("item", {"id": ID, "text": HOLES, "created_at": "2026-01-01"}, unique=("id",))
    assert store.events(ID) == []
    assert find(store, kit, "1", gate).accepted == ([ID] if store.item(ID).status == "active" else [])


def test_an_unknown_gate_is_refused(store: Store, kit) -> None:
    with pytest.raises(ConfigError, match="unknown gate 'reveiw'; did you mean 'review'"):
        find(store, kit, "1", "reveiw")
    with pytest.raises(ConfigError, match="gate is 'support>=3'"):
        PlayConfig(env="math", gate="support>=3")  # type: ignore[arg-type]


def test_the_usual_gate_leaves_runs_of_older_versions_as_they_are() -> None:
    assert "gate" not in run_config(PlayConfig(env="math"))
    assert run_config(PlayConfig(env="math", gate="review"))["gate"] == "review"
    assert pick(LearnConfig(env="math", gate="review"), PlayConfig).gate == "review"
