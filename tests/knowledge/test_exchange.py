"""Out of one store and into another: nothing is lost, nothing is overwritten, nothing is trusted."""

from __future__ import annotations

import json

import pytest

from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.types import EMPTY, MARKER, Context, Job, Task
from agentopcd.knowledge import Found, Origin, Store, confirm, identify, ingest, placebo, score
from agentopcd.knowledge.database import now
from agentopcd.knowledge.dump import dump, to_jsonl
from agentopcd.knowledge.exchange import from_jsonl, load
from agentopcd.knowledge.looks import ALPHA, left_of, level_of, next_level
from agentopcd.knowledge.plain import export_text, import_text


def filled(kit) -> Store:
    """A store in which everything has happened once."""
    store = kit.open()
    store.start("play", {"unused": True}, 0)  # leaves a gap in the numbers that travel
    run_id = store.start("play", {"env": kit.env, "kind": "game"}, 1)
    tasks = kit.tasks(3, 500)
    store.add_tasks(kit.env, tasks, "extract")
    turn = kit.turn([("state", "P.\n.G\u2028")], "I go [down] 10²")
    for rep, task in enumerate((*tasks, tasks[0])):  # the last one is a second find on one task
        episode = kit.episode(Job(task, EMPTY, rep), True, turns=[turn])
        (number,) = store.add_episodes(run_id, kit.model, kit.setup, [episode])
        reply = f"{MARKER} Walk {rep % 3} steps, 10² at most.\n{MARKER} Avoid holes."
        ingest(store, reply, Origin(run_id=run_id, episode=episode, episode_id=number))
    context = kit.context("Avoid holes.", "Walk 0 steps, 10² at most.")
    play = kit.player(lambda shown: 0.9 if shown == context else 0.1)
    score(kit.bench(store, play), [context], kit.tasks(10))
    assert confirm(kit.bench(store, play), context, kit.tasks(20, 1000)).passed
    store.event(identify("Avoid holes."), "pin", "person", "obviously")
    other = {"other_id": identify("Walk 1 steps, 10² at most."), "at": now()}
    store.insert("item_event", {"item_id": identify("Avoid holes."), "event": "distinct", "actor": "person", **other})
    store.add_model("child", "child", "runs/1", kit.model, run_id, {context.id: 0.5, EMPTY.id: 0.5})
    store.move("lake/old", EMPTY.id, "person")
    store.move("lake/old", None, "person")
    store.add_context(Context("You are a doctor.\nBe brief.\n", "system"))
    return store


def lines(store: Store, *contexts: str, episodes: bool = False) -> str:
    return "".join(to_jsonl(dump(store, contexts or None, episodes=episodes)))


def reload(exported: str, gate: str = "review", prefix: str = "") -> Store:
    fresh = Store.open(":memory:")
    load(fresh, from_jsonl(exported.split("\n")), prefix, gate=gate)
    return fresh


@pytest.mark.parametrize("episodes", [False, True])
@pytest.mark.parametrize("gate", ["review", "keep"])
def test_export_import_export_is_byte_identical(kit, episodes: bool, gate: str) -> None:
    store = filled(kit) if gate == "keep" else reload(lines(filled(kit), episodes=episodes))
    exported = lines(store, episodes=episodes)  # for review: of a store that has only imported it
    fresh = reload(exported, "keep")
    assert lines(fresh, episodes=episodes) == exported
    assert "10²" in exported
    again = load(fresh, from_jsonl(exported.split("\n")), gate=gate)
    assert not any(again.values())  # uniting twice adds nothing
    assert lines(fresh, episodes=episodes) == exported


def test_what_was_imported_stays_imported_on_its_way_and_is_known_at_home(kit) -> None:
    store = filled(kit)
    friend = reload(lines(store, episodes=True))
    for gate in ("review", "keep"):
        there = reload(lines(friend, episodes=True), gate)
        assert {row["imported"] for row in there.runs()} == {1} and there.looks() == []
        assert {row["setup"] for row in there.episodes()} == {f"imported:{kit.setup}"}
        assert {row["imported"] for row in there.contexts() if row["id"] != EMPTY.id} == {1}
        assert {item.status for item in there.items()} == {"pending"}
    before = lines(store, episodes=True)
    assert not any(load(store, dump(friend, episodes=True), gate="keep").values())
    assert lines(store, episodes=True) == before


def test_the_budget_of_looks_moves_with_the_store(kit) -> None:
    """A context that was not better at its level does not pass at another one, because the store was moved."""
    store, tasks = kit.open(), kit.tasks(64, 1000)
    play = kit.player(lambda shown: 0.55 if shown == kit.context("Holes swallow you.") else 0.3)
    for number in range(9):
        confirm(kit.bench(store, play), kit.context(f"Worthless {number}."), kit.tasks(4, 5000))
    first = confirm(kit.bench(store, play), kit.context("Holes swallow you."), tasks)
    assert first.verdict == "not better" and first.look == 10
    for episodes in (False, True):
        moved = reload(lines(store, episodes=episodes), "keep")
        moved.start("score", {"env": kit.env}, seed=0)
        assert [{**row, "run_id": 1} for row in moved.looks()] == store.looks()
        again = confirm(kit.bench(moved, play), kit.context("Holes swallow you."), tasks)
        assert again.to_dict() == first.to_dict()
        assert confirm(kit.bench(moved, play), kit.context("Another."), tasks).look == 11


def test_everything_arrives(kit) -> None:
    store = filled(kit)
    fresh = reload(lines(store, episodes=True), "keep")
    assert fresh.items() == store.items()
    assert fresh.refs() == store.refs()
    assert fresh.log("lake/best")[0]["reason"] == store.log("lake/best")[0]["reason"]
    ours, theirs = store.episodes(), fresh.episodes()
    assert len(ours) == len(theirs) == 4 + 2 * 10 + 3 * 20
    for mine, other in zip(ours, theirs, strict=True):
        assert store.transcript(mine["id"]) == fresh.transcript(other["id"])
        assert mine["split"] == other["split"]
    assert fresh.carriers(identify("Avoid holes.")) == ["child"]
    assert fresh.resolve("lake/best") == store.resolve("lake/best")


def test_origin_travels_without_episodes(kit) -> None:
    store = filled(kit)
    fresh = reload(lines(store))
    assert fresh.episodes() == []
    hole = identify("Avoid holes.")
    assert (fresh.item(hole).support, store.item(hole).support) == (0, 3)  # what others say they saw is no support
    assert reload(lines(store), "keep").item(hole).support == 3
    assert {row["task_key"] for row in fresh.sources(hole)} == {task.key for task in kit.tasks(3, 500)}
    assert fresh.split_of(kit.env, kit.tasks(1, 500)[0].key) == "extract"


def test_an_import_is_no_evidence(kit) -> None:
    """Neither its moves nor its episodes: the gate asks what this store has played itself."""
    store = filled(kit)
    context = store.get_context(store.resolve("lake/best"))
    forged = [row | ({"success": 1} if row.get("type") == "episode" else {}) for row in dump(store, episodes=True)]
    fresh = Store.open(":memory:")
    fresh.add_model(kit.model, "tiny")
    fresh.start("score", {"env": kit.env}, seed=0)
    load(fresh, [row | ({"transcript": None} if row.get("type") == "episode" else {}) for row in forged])
    assert fresh.looks(kit.env) == [] and fresh.ref("lake/best") == context.id
    player = kit.player(lambda _: 0.1)
    result = confirm(kit.bench(fresh, player), context, kit.tasks(20, 1000))
    assert result.verdict == "not better" and len(player.played) == 3 * 20


def test_an_import_adds_no_origin_to_a_run_of_this_store(kit) -> None:
    store = filled(kit)
    rows = list(dump(store))
    source = next(row for row in rows if row.get("type") == "source")
    rows[-1]["rows"] += 1
    rows.insert(rows.index(source), source | {"task_key": kit.tasks(1, 900)[0].key})
    with pytest.raises(StoreError, match="this store's own; import with --gate keep if you trust the file"):
        load(store, rows)
    assert load(store, rows, gate="keep")["source"] == 1


def test_the_receivers_split_stands_and_guards(kit) -> None:
    """What the sender extracted from is a test task here: the guard must see that."""
    store = filled(kit)
    receiver = Store.open(":memory:")
    receiver.add_tasks(kit.env, kit.tasks(1, 500), "test")
    load(receiver, dump(store))
    leaks = receiver.leaks(receiver.resolve("lake/best"))
    assert {leak.split for leak in leaks} == {"test"}


def test_imported_items_wait_for_a_person(kit) -> None:
    store = filled(kit)
    hole = identify("Avoid holes.")
    assert store.item(hole).status == "pinned"
    fresh = reload(lines(store))
    assert {item.status for item in fresh.items()} == {"pending"}
    assert fresh.events(hole)[-1]["reason"] == "was pinned where it came from"
    assert {item.status for item in reload(lines(store), "keep").items()} == {"active", "pinned"}
    with pytest.raises(StoreError, match="unknown gate"):
        reload(lines(store), "kepe")


def test_a_local_status_is_not_overruled(kit) -> None:
    store = filled(kit)
    receiver = kit.open()
    (item_id,) = receiver.add_items(1, [Found("Avoid holes.")])
    receiver.event(item_id, "retire", "person")
    load(receiver, dump(store), gate="keep")
    assert receiver.item(item_id).status == "retired"


def test_refs_never_overwrite(kit) -> None:
    store = filled(kit)
    receiver = kit.open()
    mine = receiver.add_context(kit.context("Mine."))
    receiver.move("lake/best", mine, "person")
    before = lines(receiver)
    with pytest.raises(StoreError, match=r"ref 'lake/best' is at .* import under a prefix"):
        load(receiver, dump(store))
    assert lines(receiver) == before  # all or nothing
    load(receiver, dump(store), "friend/")
    assert receiver.resolve("lake/best") == mine
    assert receiver.resolve("friend/lake/best") == store.resolve("lake/best")


def test_one_context_travels_alone(kit) -> None:
    store = filled(kit)
    best = store.resolve("lake/best")
    rows = list(from_jsonl(lines(store, best).split("\n")))
    assert {row["id"] for row in rows if row.get("type") == "context"} == {EMPTY.id, best}
    assert len([row for row in rows if row.get("type") == "item"]) == 2
    fresh = reload(lines(store, best))
    assert fresh.resolve("lake/best") == best
    assert lines(reload(lines(store, best), "keep"), best) == lines(store, best)


def test_what_gave_way_to_an_item_that_stays_behind_is_out_of_use_there_too(kit) -> None:
    store = kit.open()
    old, new = store.add_items(1, [Found("Avoid holes."), Found("Avoid tiles marked H.")])
    store.event(old, "approve", "person")
    context = store.add_context(kit.context("Avoid holes."))
    store.event(old, "supersede", "person", "clearer", other=new)
    store.event(old, "distinct", "person", other=new)
    fresh = reload(lines(store, context), "keep")
    assert fresh.item(old).status == "retired" and fresh.blocked(context)
    assert (fresh.events(old)[-1]["event"], fresh.events(old)[-1]["reason"]) == ("supersede", "clearer")
    assert lines(fresh, context) == lines(store, context)
    assert reload(lines(store), "keep").successors([old]) == {old: new}


def change(exported: str, kind: str, **values: object) -> str:
    """The export with the first row of a kind changed."""
    rows = [json.loads(line) for line in exported.splitlines() if line]
    changed = next(row for row in rows if row.get("type") == kind and row.get("rendered") != "")
    changed.update(values)
    for name in [name for name, value in values.items() if value is ...]:
        del changed[name]
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("item", {"text": "Give up."}, "does not fit its text 'Give up.'; the file was changed"),
        ("item", {"text": "Avoid\nholes."}, "does not fit its text"),
        ("context", {"rendered": "Give up."}, "does not fit its text"),
        ("context", {"placement": "system"}, "does not fit its text"),
        ("source", {"run_id": 99}, "cannot be imported: KeyError"),
        ("source", {"item_id": "0" * 64}, "FOREIGN KEY"),
        ("source", {"line": False}, "line of a item_source wants INTEGER and got False"),
        ("run", {"status": "odd"}, "CHECK"),
        ("run", {"id) VALUES (1); --": 1}, "is not a column of the store"),
        ("run", {"colour": 1}, "no such column"),
        ("run", {"imported": ...}, "a row of type run lacks imported; the file was changed"),
        ("context", {"imported": ...}, "a row of type context lacks imported"),
        ("event", {"event": "odd"}, "CHECK"),
        ("event", {"item_id": "0" * 64}, "event of item '0000000.*, which is not there; the file was changed"),
        ("ref", {"reason": ...}, "a row of type ref lacks reason; the file was changed"),
        ("item", {"created_at": ...}, "a row of type item lacks created_at"),
        ("run", {"result": ..., "finished_at": ...}, "a row of type run lacks finished_at, result"),
        ("ref", {"reason": 1}, "reason of a ref_move wants TEXT and got 1"),
        ("event", {"at": 7.5}, "at of a item_event wants TEXT and got 7.5"),
        ("run", {"seed": "7"}, "seed of a run wants INTEGER and got '7'"),
        ("ref", {"type": "reff"}, "unknown row type 'reff'; did you mean 'ref'"),
    ],
)
def test_a_changed_file_is_refused(kit, kind: str, values: dict, message: str) -> None:
    store = filled(kit)
    fresh = Store.open(":memory:")
    before = lines(fresh)
    broken = change(lines(store, store.resolve("lake/best")), kind, **values)
    with pytest.raises(StoreError, match=message) as error:
        load(fresh, from_jsonl(broken.split("\n")))
    assert "\n" not in str(error.value)
    assert lines(fresh) == before


def test_a_row_in_the_place_of_another_is_seen(kit) -> None:
    """The number of rows is right, and one is missing."""
    rows = [json.loads(line) for line in lines(filled(kit)).splitlines() if line]
    rows[-2] = rows[2]
    with pytest.raises(StoreError, match="is there twice"):
        load(Store.open(":memory:"), iter(rows))


def test_files_that_are_no_export(store: Store) -> None:
    with pytest.raises(StoreError, match="not a knowledge export"):
        load(store, from_jsonl(['{"a": 1}']))
    with pytest.raises(StoreError, match="not a knowledge export"):
        load(store, iter([]))
    with pytest.raises(StoreError, match="export version 5"):
        load(store, from_jsonl(['{"format": "agentopcd-kb", "version": 5}']))
    with pytest.raises(StoreError, match="line 2 is not JSON"):
        list(from_jsonl(["{}", "{"]))
    with pytest.raises(StoreError, match="line 1 is not a JSON object"):
        list(from_jsonl(["[1]"]))


# -- text --------------------------------------------------------------------------------------------


def test_text_is_byte_equal_there_and_back(store: Store) -> None:
    text = f"{MARKER} Area is 10².\n{MARKER} Avoid holes."
    found = import_text(store, text, run_id=1, ref="lake/mine")
    assert found.items == 2 and not found.changed
    assert export_text(store, store.resolve("lake/mine")) == text
    assert import_text(store, export_text(store, found.context_id), run_id=1).context_id == found.context_id
    assert import_text(store, text + "\n", run_id=1) == found  # a last line end is no difference
    assert {item.status for item in store.items()} == {"pending"}
    assert store.sources(identify("Avoid holes."))[0]["task_key"] is None
    with pytest.raises(StoreError, match="expected not to exist"):
        import_text(store, text, run_id=1, ref="lake/mine")


def test_text_that_had_to_be_cleaned_says_so(store: Store) -> None:
    found = import_text(store, f"Notes:\n{MARKER} Win.\u200b", run_id=1)
    assert found.changed and found.items == 1
    assert export_text(store, found.context_id) == f"{MARKER} Win."


def test_what_stands_besides_the_items_is_named(store: Store) -> None:
    text = f"You are careful.\n\n{MARKER} Walk to G.\n  Then stop.\nAlso: {MARKER} Avoid H.\n"
    found = import_text(store, text, run_id=1)
    assert found.items == 2 and found.left_out == ("line 1: You are careful.", "line 4: Then stop.", "line 5: Also:")
    assert import_text(store, "No item at all.", run_id=1).left_out == ()


def test_a_mark_of_thinking_in_a_file_ends_nothing(store: Store) -> None:
    text = f"{MARKER} One rule.\n{MARKER} End your reasoning with </think> first.\n{MARKER} Never write <think>."
    found = import_text(store, text, run_id=1)
    assert found.items == 3 and not found.changed and not found.left_out


def test_free_text_is_a_context_without_items(store: Store) -> None:
    text = "You are a careful doctor.\r\nAnswer with one letter.\n"
    found = import_text(store, text, run_id=1, placement="system")
    assert (found.items, found.changed) == (0, False)
    assert store.get_context(found.context_id) == Context(text, "system")
    for empty in ("", " \n"):
        with pytest.raises(ConfigError, match="the file is empty"):
            import_text(store, empty, run_id=1)
    with pytest.raises(ConfigError, match="no item in the file"):
        import_text(store, f"{MARKER}\n{MARKER} ...", run_id=1)


def test_an_imported_item_is_not_approved_by_being_found(store: Store, kit) -> None:
    import_text(store, f"{MARKER} Avoid holes.", run_id=1)
    store.add_tasks(kit.env, ["k"], "extract")
    episode = kit.episode(Job(Task(1, "k")), True)
    got = ingest(store, f"{MARKER} Avoid holes.", Origin(run_id=1, episode=episode))
    assert got.accepted == []


def test_a_placebo_travels_with_its_context(kit) -> None:
    context, source, target = kit.context("Go left at walls."), kit.open(), kit.open()
    source.add_context(context)
    twin = source.add_context(placebo(context), {"order": "placebo", "of": context.id})
    load(target, dump(source, [twin]))
    assert {row["id"] for row in target.contexts()} >= {context.id, twin}


def test_imported_looks_are_spent_too(kit) -> None:
    def look(store: Store, plan: str) -> float:
        key = {"env": kit.env, "model_id": kit.model, "context_id": EMPTY.id, "setup": kit.setup, "plan": plan}
        return store.begin_look(key, {})["level"]

    own, one, three = kit.open(), kit.open(), kit.open()
    assert [look(own, f"own {n}") for n in (1, 2)] == [level_of(1), level_of(2)]
    look(one, "one")
    with pytest.raises(StoreError, match="no look at the confirm tasks of lake is left"):
        load(own, dump(one), gate="keep")
        look(own, "new")
    assert left_of(own.looks(kit.env)) == 0 and next_level(own.looks(kit.env)) == 0
    look(three, "first")
    rows = [{**row, "level": 0.011} if row["type"] == "look" else row for row in [*dump(three)][1:]]
    load(one, [next(dump(three)), *rows], gate="keep")
    assert left_of(one.looks(kit.env)) == pytest.approx(ALPHA - 0.0125 - 0.011)
    assert look(one, "second") == pytest.approx(0.0015) and sum(x["level"] for x in one.looks(kit.env)) <= ALPHA
