"""A recording as an environment: its tasks, its splits while sessions arrive, and a student from its prompts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, ForecastConfig, PlayConfig, PlayerConfig
from agentopcd.core.errors import ConfigError, EnvError
from agentopcd.core.types import SPLITS, Context
from agentopcd.distil import distil_context
from agentopcd.knowledge import Store, identify, render
from agentopcd.knowledge.recordings import Place, record
from agentopcd.workspace.gated import as_made
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.lineage.forget import forget, plan_of
from agentopcd.workspace.recorded import _unfinished
from agentopcd.workspace.session import Session
from tests.recording import answer, keep, keep_many, model, said

CONTEXT = Context("Say left. " * 4, "system")


def session_of(work: Path, **more: Any) -> Session:
    own: dict[str, Any] = {"env": "recorded:shop", "model": "pocket"}
    return Session(PlayerConfig(**own | more), work, say=lambda line: None)


def rows_of(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (session.work / "recorded" / "shop" / session.snapshot).open()]


def splits_of(session: Session) -> dict[int, str]:
    return {task.seed: split for split in SPLITS for task in session.tasks(split)}


def test_the_snapshot_of_another_store_is_not_gone_on_with(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        run = store.start("play", {"env": "recorded:shop", "snapshot": 5}, 0)
        store.change("UPDATE run SET imported = 1 WHERE id = ?", (run,))
        assert _unfinished(store, PlayConfig(env="recorded:shop"), tmp_path) == ""


def test_a_turn_is_a_request_and_examples_of_the_client_are_none(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        store.add_model("m" * 64, "tiny")
        examples = [{"role": "system", "content": "Be brief."}, *said("Hi", "Hello", "Where?")]
        record(store, Place("shop", "s"), answer(examples, "Here."))
        record(store, Place("shop", "s"), answer([*examples, *said("", "Here.", "")[1:2], *said("Why?")], "So."))
    with session_of(tmp_path) as session:
        (task,) = [task for split in SPLITS for task in session.tasks(split)]
        turns = session.game.log(task).turns
        assert [turn.messages[-1]["content"] for turn in turns] == ["Where?", "Why?"]
        assert turns[1].messages[:5] == [*examples, {"role": "assistant", "content": "Here."}]
        assert turns[1].parts == [("state", "Assistant: Here.\n\nUser: Why?")]
        assert not session.game.graded and session.by == "distance"
    with session_of(tmp_path, env_args={"system": "drop", "turns": "last"}) as session:
        (turn,) = session.game.log(task).turns
        assert turn.messages[0] == {"role": "user", "content": "Hi"} and turn.messages[-1]["content"] == "Why?"
        assert session.env == "recorded:shop,system=drop,turns=last"


def test_sessions_about_one_thing_are_one_task(tmp_path: Path) -> None:
    keep(tmp_path, "a", "Sum?", "4")
    keep(tmp_path, "b", "Sum?", "5")  # begins alike
    keep(tmp_path, "c", "Other?", "1", task="T")
    keep(tmp_path, "d", "Another?", "1", task="T")
    keep(tmp_path, "e", "Lone?", "1")
    with Store.open(tmp_path / "store.db") as store:  # goes on from the prompt of a
        record(store, Place("shop", "f"), answer(said("Sum?", "4", "Sure?"), "Yes."))
    with session_of(tmp_path) as session:
        keys = {row["session"]: row["task"] for row in rows_of(session)}
    assert keys["a"] == keys["b"] == keys["f"] and keys["c"] == keys["d"]
    assert len(set(keys.values())) == 3


def test_requests_that_go_on_from_nothing_begin_conversations_and_second_tries_do_not(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        store.add_model("m" * 64, "tiny")
        for talk, reply in ((["Plan?"], "A"), (["Sub-agent?"], "B"), (["Plan?"], "C"), (["Plan?", "A", "Go."], "D")):
            record(store, Place("shop", "s"), answer(said(*talk), reply))
    with session_of(tmp_path) as session:
        rows = rows_of(session)
        assert [[m["content"] for m in row["messages"]] for row in rows] == [["Plan?", "A", "Go.", "D"], ["Sub-agent?", "B"]]  # fmt: skip  # noqa: E501
        assert len({row["seed"] for row in rows}) == 2 and len({row["task"] for row in rows}) == 1
        assert len(set(splits_of(session).values())) == 1


def test_a_session_that_changes_its_weights_is_a_conversation_of_each_model(tmp_path: Path) -> None:
    other = Context("Say left.")
    with Store.open(tmp_path / "store.db") as store:
        for model_id in ("m" * 64, "n" * 64):
            store.add_model(model_id, "tiny")
        store.add_context(other)
        more: list[dict[str, Any]] = [{}, {"model_id": "n" * 64}, {"model_id": "n" * 64}, {"context_id": other.id}]
        talk = ["Plan?", "A", "Go.", "B", "On.", "C", "And?", "D"]
        for turn, given in enumerate(more):
            record(store, Place("shop", "s"), answer(said(*talk[: 2 * turn + 1]), talk[2 * turn + 1], **given))
    with session_of(tmp_path) as session:
        rows = rows_of(session)
    assert [(row["model"][0], row["places"]) for row in rows] == [("m", [1]), ("n", [3, 5]), ("m", [7])]
    assert rows[2]["context"] == other.id and len(rows[1]["messages"]) == 6


def test_splits_stay_while_sessions_arrive_and_grow(tmp_path: Path) -> None:
    keep_many(tmp_path, 60)
    with session_of(tmp_path) as session:
        before, first = splits_of(session), session.snapshot
        assert len(before) == 60 and set(before.values()) == set(SPLITS)
    keep_many(tmp_path, 60, start=60)
    keep(tmp_path, "s0", "Box 0?", "Up.", "And 1?", "Down.", "More?", "No.")  # an old one goes on
    with session_of(tmp_path) as session:  # and registers the tasks again, which refuses one in another split
        after = splits_of(session)
        assert {seed: after[seed] for seed in before} == before and len(after) == 120 and session.snapshot != first
        assert len(rows_of(session)[0]["places"]) == 3
    with session_of(tmp_path) as session:
        assert splits_of(session) == after


def test_a_command_that_goes_on_reads_what_it_began_with(tmp_path: Path) -> None:
    keep_many(tmp_path, 20)
    config = PlayConfig(env="recorded:shop", model="pocket")

    def begin(**more: Any) -> tuple[str, int, Session]:
        session = Session(dataclasses.replace(config, **more), tmp_path, say=lambda line: None)
        return session.snapshot, session.ledger.begin("play"), session

    first, run, session = begin()
    session.close()  # killed
    keep_many(tmp_path, 5, start=20)
    assert begin(seed=1)[0] != first  # another command
    again, same, session = begin()
    assert (again, same) == (first, run)
    session.ledger.finish(same, {})
    session.close()
    newer, next_run, session = begin()
    session.close()
    assert newer != first and next_run != run
    shutil.rmtree(tmp_path / "recorded")
    assert begin()[0] == newer  # written again: the same sessions have the same name


def test_another_command_reads_no_snapshot_of_a_failed_run(tmp_path: Path) -> None:
    keep_many(tmp_path, 20)
    (tmp_path / "g.py").write_text("def grade(reply: str) -> bool:\n    return True\n")

    def begin(config: PlayerConfig, verb: str) -> str:
        with pytest.raises(RuntimeError), Session(config, tmp_path, say=lambda line: None) as session:
            session.ledger.begin(verb)
            raise RuntimeError("broken")
        return session.snapshot

    of_confirm = ConfirmConfig(env="recorded:shop", model="pocket")
    graded = dataclasses.replace(of_confirm, grader=f"{tmp_path / 'g.py'}:grade")
    first = begin(graded, "confirm")
    keep_many(tmp_path, 5, start=20)
    second = begin(of_confirm, "confirm")
    assert second != first  # it has no grader
    assert begin(graded, "confirm") == first
    keep_many(tmp_path, 5, start=25)
    common = PlayConfig(env="recorded:shop", model="pocket", episodes=64)
    third = begin(common, "play")
    keep_many(tmp_path, 5, start=30)
    assert begin(ForecastConfig(env="recorded:shop", model="pocket", episodes=64), "forecast") != third
    assert begin(common, "play") == third


def test_a_play_reads_no_snapshot_of_a_stage_of_learn(tmp_path: Path) -> None:
    keep_many(tmp_path, 20)
    config = PlayConfig(env="recorded:shop", model="pocket")
    with Session(config, tmp_path, say=lambda line: None) as session:
        session.ledger.stage("play", round=1)  # killed
        first = session.snapshot
    keep_many(tmp_path, 5, start=20)
    with Session(config, tmp_path, say=lambda line: None) as session:
        assert session.snapshot != first


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is recorded under 'shop' .*recordings: none.*--record shop --work \S+`"):
        session_of(tmp_path)
    keep(tmp_path, "a", "Sum?", "4", recording="other")
    with pytest.raises(ConfigError, match="recordings: other"):
        session_of(tmp_path)
    with pytest.raises(EnvError, match="is of a workspace, and this command opens none"):
        envs.make("recorded:nowhere")
    config = PlayerConfig(env="recorded:other", model="pocket")
    with pytest.raises(ConfigError, match="is gone, which this run reads"):
        Session(config, tmp_path, snapshot="0.jsonl")


def test_a_forgetting_reads_the_sessions_of_the_first_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, seen = tmp_path / "w", []
    keep_many(work, 100)
    config = ConsolidateConfig(
        env="recorded:shop", model=model(tmp_path / "model"), steps=1, batch_size=2, max_tokens=2, temperature=1.0,
        select_every=1, select_tasks=2, test_tasks=0, gate_tasks=0, compute="float32",
    )  # fmt: skip
    context = Context(render(["say left", "say seven"]), "system")
    with Session(config, work, say=lambda line: None) as session:
        session.store.add_context(context)
        student, first = distil_context(session, config, context).model_id, session.snapshot
    keep_many(work, 20, start=100)  # answered by that student, for example
    with Store.open(work / "store.db") as store:
        row = store.lookup("model", id=student)
        assert row is not None
        plan = plan_of(store, work, row, [store.item(identify("say seven"))])
        assert any("replays stored prompts" in note for note in plan.notes)

        def distil(session: Session, *given: Any) -> Any:
            seen.append(session.snapshot)
            return distil_context(session, *given, moves=False)

        forget(store, work, plan, distil=distil, say=lambda line: None)
    assert seen == [first] and len(list((work / "recorded" / "shop").iterdir())) == 1


def test_a_gate_asks_the_sessions_that_an_earlier_training_read(tmp_path: Path) -> None:
    keep_many(tmp_path, 30)
    with session_of(tmp_path) as first:
        made = run_config(first.config) | {"env": first.env, "snapshot": first.snapshot}
    keep_many(tmp_path, 20, start=30)
    with session_of(tmp_path, env="math") as session, as_made(session, made) as other:
        assert (other.env, other.snapshot) == ("recorded:shop", first.snapshot)
        assert other.tasks("confirm") == first.tasks("confirm")


@pytest.mark.slow
def test_a_student_from_recorded_prompts_comes_nearer(tmp_path: Path) -> None:
    work, lines = tmp_path / "w", []
    keep_many(work, 100)
    config = ConsolidateConfig(
        env="recorded:shop", model=model(tmp_path / "model"), steps=12, batch_size=12, max_tokens=4, temperature=1.0,
        learning_rate=1e-4, select_every=4, select_tasks=6, test_tasks=8, compute="float32", drift_budget=10,
    )  # fmt: skip
    with Session(config, work, say=lines.append) as session:
        session.store.add_context(CONTEXT)
        result = distil_context(session, config, CONTEXT)
        held = {session.manifest.tasks(split)[0].key for split in ("select", "confirm", "test")}
        trained = {task.key for task in session.tasks("train")}
        assert not held & trained
    assert any(line.startswith("method: prefix-replay") for line in lines)
    far = result.evaluation.distances if result.evaluation else None
    assert far is not None and far.closed is not None and far.closed.low > 0
    assert result.promotion is not None and result.promotion["env"] == "recorded:shop"
    assert result.promoted, result.promotion["lines"]
    with Session(config, work, say=lines.append) as session:
        assert distil_context(session, config, CONTEXT).repeated
