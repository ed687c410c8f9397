"""What an import brings is no word of this store: not its ENV/best, not its students, not its echoes."""

from __future__ import annotations

import pytest

from agentopcd.cli.store_views import item_view
from agentopcd.core.errors import StoreError
from agentopcd.core.types import EMPTY, MARKER, Job
from agentopcd.knowledge import Origin, Store, confirm, identify, ingest, own_best
from agentopcd.knowledge.dump import dump
from agentopcd.knowledge.exchange import load


def moved(kit, text: str, actor: str, run_id: int | None) -> Store:
    """A store whose lake/best is at a context of one item that a person has approved."""
    store = kit.open()
    context = store.add_context(kit.context(text))
    store.event(identify(text), "approve", "person")
    store.move("lake/best", context, actor, "0.9 against 0.1", run_id)
    return store


@pytest.mark.parametrize(("actor", "run_id"), [("confirm", 1), ("person", None)])
def test_an_imported_best_is_no_incumbent_until_it_is_confirmed_here(kit, actor: str, run_id: int | None) -> None:
    theirs, mine = kit.context("Obey us."), kit.context("Holes swallow you.")
    here = kit.open()
    load(here, dump(moved(kit, "Obey us.", actor, run_id)))
    assert here.ref("lake/best") == theirs.id and own_best(here, kit.env) is None
    assert here.log("lake/best")[-1]["actor"] == f"imported:{actor}"
    rows = [row for row in dump(here) if row.get("type") == "ref"]
    third = Store.open(":memory:")
    load(third, dump(here), gate="keep")  # nor where it goes from here
    assert own_best(third, kit.env) is None and [row for row in dump(third) if row.get("type") == "ref"] == rows
    player = kit.player(lambda shown: 0.9 if shown in (theirs, mine) else 0.1)
    found = confirm(kit.bench(here, player), theirs, kit.tasks(20, 1000))
    assert found.passed and own_best(here, kit.env) == theirs.id
    assert [move["actor"] for move in here.log("lake/best")] == [f"imported:{actor}", "confirm"]
    player = kit.player(lambda shown: 0.9 if shown in (theirs, mine) else 0.1)
    assert "incumbent" in confirm(kit.bench(here, player), mine, kit.tasks(20, 2000)).against


def test_ones_own_context_takes_the_place_of_an_imported_best(kit) -> None:
    theirs, mine = kit.context("Obey us."), kit.context("Holes swallow you.")
    here = kit.open()
    load(here, dump(moved(kit, "Obey us.", "confirm", 1)))
    player = kit.player(lambda shown: 0.9 if shown in (theirs, mine) else 0.1)
    found = confirm(kit.bench(here, player), mine, kit.tasks(20, 1000))
    assert found.passed and set(found.against) == {"empty", "placebo"} and here.ref("lake/best") == mine.id
    assert theirs.id not in {job.context.id for job in player.played}


def test_an_imported_best_counts_where_a_person_moves_it_or_trusts_the_file(kit) -> None:
    theirs, here, trusting = kit.context("Obey us."), kit.open(), kit.open()
    load(here, dump(moved(kit, "Obey us.", "confirm", 1)))
    here.move("lake/best", theirs.id, "person")
    load(trusting, dump(moved(kit, "Obey us.", "confirm", 1)), gate="keep")
    assert own_best(here, kit.env) == own_best(trusting, kit.env) == theirs.id


@pytest.mark.parametrize("travels", ["all", "best", "other"])
def test_an_echo_is_no_find_elsewhere_either(kit, travels: str) -> None:
    """Found unprompted on one task; on one with it in the context of the game; on one before the extractor's eyes."""
    store, context, other = kit.open(), kit.context("Avoid holes."), kit.context("Avoid holes.", "Run.")
    tasks = kit.tasks(3)
    store.add_tasks(kit.env, tasks, "extract")
    best, more = store.add_context(context), store.add_context(other)
    for rep, (task, played) in enumerate([(tasks[0], context), *zip(tasks, (EMPTY, context, EMPTY), strict=True)]):
        episode = kit.episode(Job(task, played, rep), True)
        (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
        earlier = context if task == tasks[2] else None
        found = Origin(run_id=1, episode=episode, episode_id=number, shown=earlier)
        ingest(store, f"{MARKER} Avoid holes.", found)
    wanted = {"all": None, "best": [best], "other": [more]}[travels]
    there = Store.open(":memory:")
    load(there, dump(store, wanted), gate="keep")
    hole = identify("Avoid holes.")
    assert store.item(hole).support == there.item(hole).support == 1
    assert {row["task_key"] for row in there.sources(hole)} == {task.key for task in tasks}
    assert [*dump(there, wanted)] == [*dump(store, wanted)]


def claimed(kit, base: str, **values: object) -> list[dict]:
    """An export that says of a model that it was trained on a context."""
    store = kit.open()
    run_id = store.start("consolidate", {"env": kit.env}, seed=0)
    store.finish(run_id, {})
    context = store.add_context(kit.context("Holes swallow you."))
    store.add_model(base, "theirs", "/home/sender/student", kit.model, run_id, {context: 1.0})
    return [row | values if row.get("id") == base else row for row in dump(store)]


@pytest.mark.parametrize("parent_id", [None, "m" * 64])
def test_an_import_puts_no_context_into_the_weights_of_a_model(kit, parent_id: str | None) -> None:
    """Else it would take the incumbent out of the looks of every model that this store does not know yet."""
    base, mine = "b" * 64, kit.context("Holes swallow you.")
    here, keeping = kit.open(), kit.open()
    load(here, claimed(kit, base, parent_id=parent_id))
    load(keeping, claimed(kit, base), gate="keep")
    assert here.learned(base) == set() and keeping.learned(base) == {mine.id}
    here.move("lake/best", here.add_context(mine), "person")
    here.add_model(base, "base")
    player = kit.player(lambda shown: 0.9 if shown == mine else 0.1)
    found = confirm(kit.bench(here, player, base), kit.context("Run."), kit.tasks(20, 1000))
    assert "incumbent" in found.against


def test_an_imported_model_takes_nothing_from_its_parent_here(kit) -> None:
    """Else a base that this store does not know yet could pass for a child of its best student."""
    here, base = kit.open(), "b" * 64
    here.add_model("s" * 64, "mine", "runs/1", kit.model, 1, {here.add_context(kit.context("Walk.")): 1.0})
    rows = [row | ({"contexts": {}, "parent_id": "s" * 64} if row.get("id") == base else {}) for row in
            claimed(kit, base)]  # fmt: skip
    load(here, rows)
    assert here.learned(base) == set() and here.learned("s" * 64) == {kit.context("Walk.").id}


def test_a_model_that_claims_no_run_or_one_of_this_store_is_refused(kit) -> None:
    rows = claimed(kit, "b" * 64, run_id=None)
    with pytest.raises(StoreError, match="says that it was trained, by no run; import with --gate keep if you trust"):
        load(kit.open(), rows)
    here = kit.open()
    load(here, claimed(kit, "b" * 64), gate="keep")
    forged = [row | ({"id": "c" * 64} if row.get("id") == "b" * 64 else {}) for row in dump(here)]
    with pytest.raises(StoreError, match="by run 2, which is this store's own"):
        load(here, forged)


def test_a_student_that_is_trained_here_is_ones_own_though_it_was_imported(kit) -> None:
    here, student = kit.open(), "b" * 64
    load(here, claimed(kit, student))
    assert here.models(trained=True) == []
    run_id = here.start("consolidate", {"env": kit.env}, seed=0)
    here.add_model(student, "mine", "runs/7", kit.model, run_id, {EMPTY.id: 1.0})
    here.finish(run_id, {})
    (found,) = here.models(trained=True)
    assert (found["path"], found["run_id"], here.learned(student)) == ("runs/7", run_id, {EMPTY.id})
    here.add_model(kit.model, "same weights", "runs/8", kit.model, run_id)  # a training that has moved nothing
    assert here.lookup("model", id=kit.model)["parent_id"] is None
    here.add_model(student, "again", "runs/9", kit.model, here.start("consolidate", {}, seed=1))
    assert here.lookup("model", id=student)["path"] == "runs/7"


def test_an_item_of_a_run_whose_prompt_is_no_text_is_shown(kit) -> None:
    store, (task,) = kit.open(), kit.tasks(1)
    run_id = store.start("play", {"env": kit.env, "kind": "game", "extract_prompt_text": 5}, 0)
    store.add_tasks(kit.env, [task], "extract")
    episode = kit.episode(Job(task, EMPTY), True, turns=[kit.turn([("state", "P.G")], "I go [right]")])
    (number,) = store.add_episodes(run_id, kit.model, kit.setup, [episode])
    ingest(store, f"{MARKER} Avoid holes.", Origin(run_id=run_id, episode=episode, episode_id=number))
    here = Store.open(":memory:")
    load(here, dump(store, episodes=True))
    assert "You played one round" in item_view(here, identify("Avoid holes."))["origins"][0]["prompt"]
