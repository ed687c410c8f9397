"""``agentopcd knowledge diff, log, search``: what a person types and reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli.knowledge import app
from agentopcd.core.types import EMPTY, Context, Job
from agentopcd.knowledge import Found, Store, identify, score
from tests.knowledge_commands import fails, run

A = ["Avoid holes.", "A wall stops you.", "Ice is slippery.", "G is the goal."]
B = ["G is the goal.", "Avoid holes.", "A wall stops every move.", "Boxes cannot be pulled."]


@pytest.fixture
def work(tmp_path: Path, kit) -> Path:
    with kit.open(tmp_path / "work" / "store.db") as store:
        store.add_tasks(kit.env, ["k"], "extract")
        store.add_items(1, [Found(A[0])], env=kit.env, task_key="k")
        store.event(identify(A[0]), "approve", "gate:auto")
        for name, texts in (("a", A), ("b", B)):
            store.add_context(kit.context(*texts))
            store.move(f"lake/{name}", kit.context(*texts).id, "person", f"list {name}")
        store.event(identify(A[1]), "supersede", "person", other=identify(B[2]))
        play = kit.player(lambda shown: 0.9 if shown == kit.context(*B) else 0.2)
        score(kit.bench(store, play), [kit.context(*A), kit.context(*B)], kit.tasks(40))
    return tmp_path / "work"


# -- diff --------------------------------------------------------------------------------------------


def test_diff_of_two_lists_of_items(work: Path) -> None:
    lines = run(work, "diff", "lake/a", "lake/b").splitlines()
    assert f"- {identify(A[2])[:12]}  {A[2]}" in lines
    assert f"+ {identify(B[3])[:12]}  {B[3]}" in lines
    place = lines.index(f"~ {identify(A[1])[:12]}  {A[1]}")
    assert lines[place + 1] == f"  -> {identify(B[2])[:12]}  {B[2]}"
    assert len([line for line in lines if line.startswith("~")]) == 2  # one moved: goal before holes, or the other way
    assert any("1 -> 2" in line or "2 -> 1" in line for line in lines)
    (scores,) = [line for line in lines if "from A to B" in line]
    assert scores.startswith("lake select: +0.") and "(40 pairs, model mmmmmmmm)" in scores


def test_diff_as_json_and_the_other_way_round(work: Path) -> None:
    there = json.loads(run(work, "diff", "lake/a", "lake/b", "--json"))
    back = json.loads(run(work, "diff", "lake/b", "lake/a", "--json"))
    assert [row["text"] for row in there["added"]] == [B[3]] and [row["text"] for row in there["removed"]] == [A[2]]
    assert there["superseded"] == [
        {"old": {"id": identify(A[1]), "text": A[1]}, "new": {"id": identify(B[2]), "text": B[2]}}
    ]
    assert {row["text"] for row in back["added"]} == {A[2], A[1]} and back["superseded"] == []
    (score_there,), (score_back,) = there["scores"], back["scores"]
    assert score_there["diff"] == -score_back["diff"] > 0.3 and score_there["pairs"] == 40


def test_diff_of_what_is_equal_empty_or_placed_elsewhere(work: Path) -> None:
    assert "no difference" in run(work, "diff", "lake/a", "lake/a")
    said = run(work, "diff", "empty", "lake/a")
    assert len([line for line in said.splitlines() if line.startswith("+ ")]) == 4 and "lake select: " in said
    with Store.open(work / "store.db") as store:
        moved = Context(store.get_context(store.resolve("lake/a")).text, "system")
        store.add_context(moved)
    assert "~ placement user -> system" in run(work, "diff", "lake/a", moved.id[:12])
    assert "unknown context 'lake/c'" in fails(work, "diff", "lake/a", "lake/c")


def test_diff_of_free_text_is_by_line(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        for number, text in enumerate(("Be kind.\nBe brief.\nBe exact.", "Be kind.\nBe\u200b long.\nBe exact.")):
            store.add_context(Context(text))
            store.move(f"prompt/{number}", Context(text).id, "person")
    lines = run(work, "diff", "prompt/0", "prompt/1").splitlines()
    assert lines[2:] == [" Be kind.", "-Be brief.", r"+Be\u200b long.", " Be exact."]
    mixed = run(work, "diff", "prompt/0", "lake/a")
    assert "-Be kind." in mixed and "+- EXPERIENCE ITEM: Avoid holes." in mixed


# -- log ---------------------------------------------------------------------------------------------


def test_log_tells_every_move(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        a, b = store.resolve("lake/a"), store.resolve("lake/b")
        run_id = store.start("confirm", {}, 0)
        store.move("lake/a", b, "confirm", "better", run_id)
        store.move("lake/a", None, "person")
    lines = run(work, "log", "lake/a").splitlines()
    assert [line[21:] for line in lines[:3]] == [
        f"nothing -> {a[:12]}  person: list a",
        f"{a[:12]} -> {b[:12]}  confirm: better (run {run_id}, confirm)",
        f"{b[:12]} -> nothing  person: -",
    ]
    assert lines[3] == f"3 moves; agentopcd knowledge move lake/a CONTEXT --work {work} goes back to one"
    with Store.open(work / "store.db") as store:
        store.move('f={"a":1}/best', a, "person")
    (*_, back) = run(work, "log", 'f={"a":1}/best').splitlines()
    assert shlex.split(back)[3:7] == ["knowledge", "move", 'f={"a":1}/best', "CONTEXT"]
    rows = json.loads(run(work, "log", "lake/a", "--json"))
    assert [(row["from"], row["to"], row["verb"]) for row in rows] == [
        (None, a, None),
        (a, b, "confirm"),
        (b, None, None),
    ]
    assert "no ref 'lake/B'; did you mean 'lake/b'" in fails(work, "log", "lake/B")


# -- search ------------------------------------------------------------------------------------------


def test_search_wants_every_word_in_any_case(work: Path) -> None:
    said = run(work, "search", "HOLES", "avoid")
    assert f"{identify(A[0])[:12]}  active " in said and "1 item, 2 contexts" in said and "(lake/b)" in said
    found = json.loads(run(work, "search", "wall", "every", "--json"))
    assert [row["text"] for row in found["items"]] == [B[2]] and len(found["contexts"]) == 1
    assert "0 items, 0 contexts" in run(work, "search", "wall", "unicorn")


def test_search_by_status_environment_and_limit(work: Path) -> None:
    assert "1 item, 0 contexts" in run(work, "search", "a", "--status", "active")
    assert "1 item, 0 contexts" in run(work, "search", "wall", "--status", "retired")
    found = json.loads(run(work, "search", "a", "--env", "lake", "--json"))
    assert [row["text"] for row in found["items"]] == [A[0]] and len(found["contexts"]) == 2
    assert "0 items, 0 contexts" in run(work, "search", "a", "--env", "chess")
    said = run(work, "search", "a", "--limit", "1")
    assert "items, 2 contexts, the newest 1 of each shown" in said and len(said.splitlines()) == 3
    assert EMPTY.id[:12] not in said


def test_search_knows_letters_beyond_ascii(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        store.add_items(1, [Found("Überspringe die Straße.")])
    assert "1 item, " in run(work, "search", "überspringe", "STRASSE")
    assert "1 item, " in run(work, "search", "u\u0308berspringe")  # as some systems write it, in two characters


def test_every_help_has_an_example() -> None:
    for command in ("diff", "log", "search"):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0 and "Example: agentopcd knowledge" in " ".join(result.output.split())


# -- show and list, of much --------------------------------------------------------------------------


def test_show_scores_the_newest_contexts_of_an_item_and_names_the_others(work: Path, kit) -> None:
    with Store.open(work / "store.db") as store:
        for number in range(7):
            store.add_context(kit.context(A[0], f"Rule {number}."))
        newest = [row["id"] for row in store.contexts(item_id=identify(A[0]))][::-1]
    said = run(work, "show", identify(A[0])[:8])
    assert f"in context {newest[0][:12]}" in said and f"in context {newest[1][:12]}" in said
    assert f"in 7 older contexts: {newest[6][:12]}, " in said and said.count("in context") == 2
    shown = json.loads(run(work, "show", identify(A[0])[:8], "--json"))
    assert shown["other_contexts"] == newest[:1:-1]


def test_list_shows_the_newest_items_and_counts_all(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        everything = [item.text for item in store.items()]
        pending = [item.text for item in store.items(status="pending")]
    said = run(work, "list", "items", "--limit", "2")
    assert f"{len(everything)} items, the newest 2 shown" in said
    assert [text for text in everything if text in said] == everything[-2:]
    assert f"{len(pending)} items;" in run(work, "list", "items", "--status", "pending")
    assert [row["text"] for row in json.loads(run(work, "list", "items", "--env", "lake", "--json"))] == [A[0]]


def test_competitors_are_those_of_the_model_that_is_asked_about(work: Path, kit) -> None:
    with Store.open(work / "store.db") as store:
        for other in ("a" * 64, "z" * 64):
            store.add_model(other, "other")
            for number in range(3):
                context = kit.context(f"Rule {number}.")
                store.add_context(context)
                (task,) = kit.tasks(1)
                store.add_episodes(1, other, kit.setup, [kit.episode(Job(task, context), True)])
        counted = {
            model: store.competitors(kit.env, "select", model_id=model) for model in ("a" * 64, kit.model, "z" * 64)
        }
        assert counted == {"a" * 64: 3, kit.model: 2, "z" * 64: 3}
        assert store.competitors(kit.env, "select") == 8 and store.competitors(kit.env, "select", model_id="b") == 0
