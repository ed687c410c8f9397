"""What a page says where something is left out, imported, ungraded, killed, or told by another name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.page import contexts, overview, parts, render, results, serve
from agentopcd.cli.page import report as pages
from agentopcd.cli.page.marks import Dot, dots, number
from agentopcd.cli.store_views import _extractor
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Task
from agentopcd.knowledge import Store
from agentopcd.knowledge.evidence import came_of
from agentopcd.knowledge.students import move_student
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import held_as
from tests.cli.page.made import BASE, FOLDER, build
from tests.cli.page.test_report import Seen, page_of


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return build(tmp_path / "lake-work")


def begun(store: Store, verb: str, config: Mapping[str, Any], *, imported: bool = False) -> int:
    run = store.start(verb, config, 0)
    if imported:
        store.change("UPDATE run SET imported = 1 WHERE id = ?", (run,))
    return run


# -- imported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["x" * 300, "a\0b", FOLDER, f"runs/{FOLDER}"])
def test_an_imported_run_has_no_folder_here(folder: str, work: Path) -> None:
    with Store.open(work / "store.db") as store:
        run = begun(store, "consolidate", {"env": "lake", "folder": folder}, imported=True)
        store.finish(run, {"evaluation": {"rows": [{"label": "student", "success": 0.125}]}})
    page = Seen(page_of(work, str(run)))
    assert "student 0.125" in page and "Loss, nats a token" not in page and "What the loss" not in page
    assert "Run 2: consolidate" in Seen(page_of(work, FOLDER))
    assert serve.answer(work, f"run/{run}", {})[0] == serve.answer(work, "", {})[0] == 200


ODD = [10**400, -(10**400), 1.7e308, float("inf"), float("nan"), True, "1", None]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:9])
def test_what_cannot_be_drawn_is_no_number(value: Any) -> None:
    assert number(value) is None
    rows = [{"label": "a", "success": value}, {"label": "b", "success": -1e300}, {"label": "c", "success": 1e300}]
    assert [row["label"] for row in (results.evaluation({"rows": rows}) or {})["rows"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("config", "said"),
    [({"extractor": "x", "extractor_id": 5}, "x"), ({"extractor": 5, "extractor_id": "a"}, ""), ({}, ""),
     ({"extractor": "x", "extractor_id": "a" * 64}, f"x ({'a' * 12})")],
)  # fmt: skip
def test_an_extractor_is_named_as_far_as_it_is_text(config: dict[str, Any], said: str) -> None:
    assert _extractor(config) == said


# -- what is ungraded, killed, or told by another name -------------------------------------------------


def test_no_success_is_told_where_nothing_is_right_or_wrong(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        before = Seen(page_of(work))
        store.finish(store.start("evaluate", {"env": "lake"}, 0), {"graded": False})
    page = Seen(page_of(work))
    assert "Success wherever it has played" in before and "Success wherever it has played" not in page
    assert "lake: nothing is right or wrong there, so no success is known." in page


SHOP = {"env": "recorded:shop,turns=last"}


@pytest.mark.parametrize(
    ("config", "result", "said"),
    [
        ({"env": "lake"}, {"success": 0.5, "episodes": 4, "items": ["a"]}, "success 0.500, 1 item"),
        ({"env": "lake"}, {"success": 0.0, "episodes": 4, "graded": False}, "nothing graded, 0 items"),
        ({"env": "chats"}, {"success": 0.0, "episodes": 4}, "nothing graded, 0 items"),
        (SHOP, {"success": 0.0, "episodes": 4, "unrated": 4}, "no session rated, 0 items"),
        (SHOP, {"success": 0.5, "episodes": 6, "unrated": 4}, "success 0.500, 4 of 6 sessions not rated, 0 items"),
        (SHOP, {"success": 0.5, "episodes": 6}, "success 0.500, 0 items"),
    ],
)  # fmt: skip
def test_what_came_of_a_play(config: dict[str, Any], result: dict[str, Any], said: str) -> None:
    row = {"verb": "play", "status": "done", "config": json.dumps(config), "result": json.dumps(result)}
    assert overview.outcome(row, {"chats", "recorded:shop,turns=last"}) == said


def test_the_first_measure_of_an_ungraded_table_is_named() -> None:
    rows = [{"label": "base", "success": 0.0, "means": {"stars": {"mean": 3.5}}}]
    result = json.dumps({"graded": False, "rows": rows})
    row = {"verb": "evaluate", "status": "done", "config": "{}", "result": result}
    assert overview.outcome(row) == "stars: base 3.500"


@pytest.mark.parametrize(
    ("env", "stop", "said"),
    [("recorded:shop", "max_steps", "played"), ("recorded:shop", "failed", "lost"), ("lake", "max_steps", "lost"),
     ("chats", "failed", "played")],
)  # fmt: skip
def test_a_session_that_nobody_has_rated_is_not_lost(env: str, stop: str, said: str, work: Path) -> None:
    assert came_of({"env": env, "stop": stop, "success": 0}, {"chats"}) == said
    with Store.open(work / "store.db") as store:
        run = store.start("play", {"env": env}, 0)
        store.finish(store.start("evaluate", {"env": "chats"}, 0), {"graded": False})
        store.add_tasks(env, ["a" * 64], "train")
        played = Episode(env=env, task=Task(999, "a" * 64), rep=0, context_id=EMPTY.id, turns=[], outcome=[],
                         success=False, reward=0.0, stop_reason=stop)  # type: ignore[arg-type]  # fmt: skip
        store.add_episodes(run, BASE, "s" * 64, [played])
        number = store.episodes(run_id=run)[0]["id"]
    assert f"{said} ({stop})" in Seen(serve.answer(work, "episodes", {})[1])
    assert f"{said.capitalize()} ({stop})" in Seen(serve.answer(work, f"episode/{number}", {})[1])


def test_a_killed_run_is_interrupted_and_an_imported_one_unfinished(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        names = ("killed", "held", "imported")
        killed, held, imported = (begun(store, "play", {"env": n}, imported=n == "imported") for n in names)
    hold = Hold(work, held_as(held))
    page = Seen(serve.answer(work, "runs", {})[1])
    hold.close()
    assert "killed interrupted" in page and "held running" in page and "imported unfinished, imported" in page
    assert "no model named: interrupted, started" in Seen(page_of(work, str(killed)))
    assert "no model named: unfinished, started" in Seen(page_of(work, str(imported)))


def test_a_difference_by_another_measure_is_told_by_its_name(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        result = json.loads(store.run(2)["result"])
        result["evaluation"]["by"] = "reward"
        store.change("UPDATE run SET result = ? WHERE id = 2", (json.dumps(result),))
    page = Seen(page_of(work))
    assert "+0.250 [-0.100, +0.500] in reward to its base" in page and "Paired differences of reward" in page
    assert "+0.250 [-0.100, +0.500] in reward 2" in page  # in the table of students, before the run


def test_a_recording_is_one_environment_however_it_is_shown(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        for env in ("recorded:shop,grader=g.py:f", "recorded:shop"):
            run = store.start("consolidate", {"env": env}, 0)
            store.add_model(f"{run}" * 64, env, None, BASE, run)
            store.finish(run, {})
        best = Context(f"{MARKER} Be brief.")
        store.add_context(best)
        store.move("recorded:shop/best", best.id, "confirm")
        key = {"env": "recorded:shop,grader=g.py:f", "model_id": BASE, "context_id": best.id, "setup": "s", "plan": "p"}
        store.end_look(store.begin_look(key, {})["id"], "pass", {})
        (shop,) = [one for one in overview.verdicts(store, store.runs()) if one["env"].startswith("recorded:")]
    assert (shop["env"], shop["taught"], shop["best"]) == ("recorded:shop", 2, best.id)
    assert shop["look"] == {"verdict": "pass", "rows": []}


# -- what is left out ---------------------------------------------------------------------------------


def test_of_many_values_both_ends_are_shown_and_the_rest_counted() -> None:
    given = {"values": [{"item": str(n), "value": n / 100} for n in range(50)]}
    found = results.worth(given)
    assert found is not None and (len(found["rows"]), found["left_out"]) == (40, 10)
    assert [row["item"] for row in found["rows"]][::39] == ["49", "0"] and len(results.values(given)) == 50
    assert results.worth({"values": []}) is None


def test_older_runs_students_and_moves_are_counted(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(work / "store.db") as store:
        for n in range(1, 5):
            run = store.start("consolidate", {"env": "lake"}, 0)
            store.add_model(f"{n}" * 64, "another", None, BASE, run)
            store.finish(run, json.loads(store.run(2)["result"]))
            for _ in range(overview.MOVES // 4):
                move_student(store, "lake", f"{n}" * 64, "person")
        score = store.start("score", {"env": "lake"}, 0)
        store.finish(score, {"values": [{"item": str(n), "value": n / 100} for n in range(50)]})
    monkeypatch.setattr(parts.Limits, "__init__", _limits(parts.Limits.__init__, students=4, trainings=5))
    page = Seen(page_of(work))
    assert "Trained models, newest first; 1 older ones are left out" in page
    assert "The tables and curves of 1 older run are left out; `agentopcd report RUN` shows one." in page
    assert "The episodes of 2 older students are left out; `agentopcd report STUDENT` shows them." in page
    assert "1 older moves are left out." in page and "10 between them are left out." in page


def _limits(made: Any, **fixed: int) -> Any:
    return lambda self, **given: made(self, **given | fixed)


def test_a_context_that_nothing_names_is_shown_too(tmp_path: Path) -> None:
    other = Context("Be brief.")
    with Store.open(tmp_path / "store.db") as store:
        store.add_context(other)
        assert contexts.order_of(store) == [other.id]
    assert "No context is stored." not in Seen(serve.answer(tmp_path, "contexts", {})[1])


def test_a_result_that_cannot_be_read_is_told(work: Path) -> None:
    broken = work / "reproduce" / "broken.json"
    broken.write_text("{")
    page = Seen(page_of(work))
    assert "broken.json cannot be read" in page and "Claims" in page
    assert "broken.json cannot be read" in Seen(pages.paper_report(work / "reproduce"))
    with pytest.raises(ConfigError, match=r"holds no result of `agentopcd reproduce` \(.*broken.json cannot be read"):
        pages.paper_report(broken)


def test_what_comes_first_is_said_where_it_stands(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "ON_PAGE", 1)
    assert "1 more items are not shown; these are the newest." in Seen(serve.answer(work, "items", {})[1])
    monkeypatch.setattr(parts.Limits, "__init__", _limits(parts.Limits.__init__, items=1))
    assert "1 more items are not shown; those of the contexts above come first" in Seen(page_of(work))


def test_a_step_that_kept_no_turns_is_named(work: Path) -> None:
    page = Seen(serve.answer(work, "run/2", {"step": ["7"]})[1])
    assert "No turns were kept at step 7." in page and "the run is older" not in page


# -- pictures, texts, parts that stay open ------------------------------------------------------------


def test_ticks_are_told_apart() -> None:
    drawn = dots("tokens", [Dot("a", 123_456_788.0, None, None), Dot("b", 123_456_790.0, None, None)])
    labels = [tick["label"] for tick in (drawn or {})["ticks"]]
    assert len(labels) == len(set(labels)) and {"123456788", "123456790"} <= set(labels)
    plain = dots("success", [Dot("a", 0.25, None, None)])
    assert [tick["label"] for tick in (plain or {})["ticks"]] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@pytest.mark.parametrize("code", [0xAD, 0x34F, 0x115F, 0x1160, 0x3164, 0xFFA0, 0x180E, 0x2065, 0x206A, 0x206F, 0xFFF9])
def test_a_character_that_shows_nothing_is_spelled_out(code: int) -> None:
    assert render.shown(f"a{chr(code)}b") == f"a\\u{code:04x}b"


def test_every_part_that_opens_has_an_id_of_its_own(work: Path) -> None:
    text = page_of(work)
    opens = re.findall("<details[^>]*>", text)
    ids = [found[1] for one in opens if (found := re.search(' id="([^"]+)"', one))]
    assert len(ids) == len(opens) == len(set(ids)) and any(id_.startswith("gate-") for id_ in ids)
