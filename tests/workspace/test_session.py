"""What a verb opens: splits that stay, contexts by any name, runs found again, and the gates before training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agentopcd.core.config import ConsolidateConfig, PlayConfig, ScoreConfig
from agentopcd.core.errors import ConfigError, EnvError, TaskLeak
from agentopcd.core.types import MARKER, Context, Task
from agentopcd.envs.splits import build_splits
from agentopcd.knowledge import Found
from agentopcd.knowledge.dump import dump
from agentopcd.knowledge.exchange import load
from agentopcd.knowledge.students import move_student
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.ready import to_play
from agentopcd.workspace.session import DEFAULT_MODEL, Session
from tests import tiny


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return tiny.questions(tmp_path / "rows.jsonl")


def open_session(rows: str, work: Path, **settings: object) -> Session:
    return Session(PlayConfig(env=rows, **settings), work, say=lambda line: None)  # type: ignore[arg-type]


def test_a_workspace_may_be_named_by_a_text(rows: str, tmp_path: Path) -> None:
    with Session(PlayConfig(env=rows), str(tmp_path / "w"), say=lambda line: None) as session:
        assert session.work == tmp_path / "w"


def test_splits_are_made_once_and_kept(rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(rows, tmp_path / "w") as session:
        first = session.manifest
        assert session.store.split_of(rows, first.tasks("test")[0].key) == "test"
    monkeypatch.setattr("agentopcd.workspace.session.build_splits", None)
    with open_session(rows, tmp_path / "w") as session:
        assert session.manifest.splits == first.splits


def test_tasks_are_taken_from_the_front(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        everything = session.tasks("select")
        assert session.tasks("select", 3) == everything[:3]
        assert session.tasks("select", 10_000) == everything


def test_a_game_that_has_changed_is_told_of_before_a_model_is_loaded(rows: str, tmp_path: Path) -> None:
    open_session(rows, tmp_path / "w").close()
    file = Path(rows)
    file.write_text(file.read_text().replace("What", "Tell me what"))
    session = open_session(rows, tmp_path / "w")  # what was played before can still be read
    with session, pytest.raises(EnvError, match=r"now makes task .* new workspace"):
        to_play(session, PlayConfig(env=rows))


def test_a_split_that_has_to_hold_some_and_holds_none_says_what_to_do(rows: str, tmp_path: Path) -> None:
    build_splits(rows, sizes={"extract": 0}).save(tmp_path / "splits.json")
    with open_session(rows, tmp_path / "w", splits=str(tmp_path / "splits.json")) as session:
        assert session.needed("select", 3) == session.tasks("select", 3)
        with pytest.raises(ConfigError, match=r"no extract tasks of .*: its 1?\d\d tasks leave none .* --splits"):
            session.needed("extract")


def test_splits_of_another_environment_are_refused(rows: str, tmp_path: Path) -> None:
    build_splits(rows).save(tmp_path / "splits.json")
    other = tiny.questions(tmp_path / "other.jsonl", 140)
    with open_session(rows, tmp_path / "w", splits=str(tmp_path / "splits.json")):
        pass
    with pytest.raises(ConfigError, match="envs splits"):
        open_session(other, tmp_path / "w2", splits=str(tmp_path / "splits.json"))


def test_a_task_that_changed_its_split_is_a_leak(rows: str, tmp_path: Path) -> None:
    open_session(rows, tmp_path / "w").close()
    build_splits(rows, salt="another").save(tmp_path / "splits.json")
    with pytest.raises(TaskLeak):
        open_session(rows, tmp_path / "w", splits=str(tmp_path / "splits.json"))


def test_wrong_arguments_and_views_fail_early(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="did you mean 'math'"):
        open_session("mth", tmp_path / "w")
    with pytest.raises(EnvError, match="level"):
        open_session("math", tmp_path / "w", env_args={"levle": 2})
    with pytest.raises(EnvError, match="hidden"):
        open_session("math", tmp_path / "w", rules="hiden")


# -- contexts -------------------------------------------------------------------------------------------


def test_a_context_is_found_by_file_ref_and_id(rows: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Be brief.\n")
    with open_session(rows, tmp_path / "w") as session:
        wanted = Context("Be brief.", "system")
        assert session.context(str(tmp_path / "prompt.txt"), "system") == (wanted, True)
        session.store.move("mine", wanted.id, "person")
        assert session.context("mine") == (wanted, False)
        assert session.context(wanted.id[:8]) == (wanted, False)


def test_a_context_that_is_empty_or_unknown_is_refused(rows: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with open_session(rows, tmp_path / "w") as session:
        with pytest.raises(ConfigError, match="empty"):
            session.context(str(tmp_path / "empty.txt"))
        with pytest.raises(ConfigError, match="unknown context 'nothing'"):
            session.context("nothing")


def store_item(session: Session, text: str, task: Task) -> Context:
    """A context with one item that came from ``task``; the item is still pending."""
    run_id = session.store.start("play", {}, 0)
    session.store.add_items(run_id, [Found(text)], env=session.env, task_key=task.key)
    context = Context(f"{MARKER} {text}")
    session.store.add_context(context)
    return context


def test_an_item_of_a_held_out_task_stops_the_hand_over(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        for split in ("select", "confirm", "test"):
            context = store_item(session, f"seen in {split}", session.tasks(split)[0])
            with pytest.raises(TaskLeak, match=split):
                session.check_handover(context)


def test_a_pending_or_retired_item_stops_the_hand_over(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        context = store_item(session, "go left", session.tasks("extract")[0])
        (item,) = session.store.items(context_id=context.id)
        with pytest.raises(ConfigError, match="pending"):
            session.check_handover(context)
        session.store.event(item.id, "approve", "person")
        session.check_handover(context)
        session.store.event(item.id, "retire", "person")
        with pytest.raises(ConfigError, match="retired"):
            session.check_handover(context)


def test_only_the_confirm_gate_confirms(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        context = Context("Be brief.")
        session.store.add_context(context)
        session.store.move(f"{rows}/best", context.id, "person")
        assert not session.confirmed(context)
        session.store.move(f"{rows}/best", context.id, "confirm")  # as an import may bring it along
        assert not session.confirmed(context)
        looked(session, context, "form only")
        assert not session.confirmed(context)
        looked(session, context, "pass", plan="another")
        assert session.confirmed(context)


def looked(session: Session, context: Context, verdict: str, plan: str = "one") -> None:
    """A look at confirm tasks that ended so."""
    key = {"env": session.env, "model_id": "m" * 64, "context_id": context.id, "setup": "s", "plan": plan}
    look = session.store.begin_look(key, {})
    session.store.end_look(look["id"], verdict, {})


def test_what_was_found_to_be_form_only_is_called_so(train_session: Session) -> None:
    from agentopcd.workspace.experience.find_context import find_context
    from agentopcd.workspace.forecast import short

    context = Context("Be brief.")
    train_session.store.add_context(context)
    looked(train_session, context, "form only")
    config = dataclasses.replace(train_session.config, context=context.id)
    with pytest.raises(ConfigError, match=r"did not pass the confirm gate: form only \(look 1\); insist with --force"):
        find_context(train_session, config)  # type: ignore[arg-type]
    assert "did not pass the confirm gate: form only (look 1)" in short(train_session, context)


def test_a_placebo_is_not_handed_over(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        session.store.add_context(Context("brief Be."), {"order": "placebo", "of": "x"})
        with pytest.raises(ConfigError, match="is a placebo, which holds no knowledge; name another one"):
            session.check_handover(Context("brief Be."))


@pytest.fixture
def train_session(rows: str, tmp_path: Path, tiny_model_dir: Path) -> Session:
    config = ConsolidateConfig(env=rows, model=str(tiny_model_dir), steps=1, test_tasks=0)
    return Session(config, tmp_path / "w", say=lambda line: None)


def test_what_was_not_confirmed_is_not_distilled_unless_forced(train_session: Session) -> None:
    from agentopcd.workspace.experience.find_context import find_context

    session, store = train_session, train_session.store
    config = session.config
    assert isinstance(config, ConsolidateConfig)
    force = dataclasses.replace(config, force=True)
    with pytest.raises(ConfigError, match="knowledge score"):
        find_context(session, config)
    with pytest.raises(ConfigError, match="agentopcd play"):
        find_context(session, force)
    context = store_item(session, "go left", session.tasks("extract")[0])
    store.event(store.items(context_id=context.id)[0].id, "approve", "person")
    store.move(f"{session.env}/pool/00/01", context.id, "extract")
    assert find_context(session, force) == context
    named = dataclasses.replace(config, context=context.id)
    with pytest.raises(ConfigError, match="--force"):
        find_context(session, named)
    assert find_context(session, dataclasses.replace(named, force=True)) == context
    store.move(f"{session.env}/best", context.id, "confirm")
    looked(session, context, "pass")
    assert find_context(session, config) == find_context(session, named) == context


def test_training_on_a_held_out_task_is_a_leak(train_session: Session) -> None:
    from agentopcd.distil import distil_context

    manifest = train_session.manifest
    for split in ("select", "confirm", "test"):
        mixed = {**manifest.splits, "train": [*manifest.tasks("train"), manifest.tasks(split)[0]]}
        train_session.manifest = dataclasses.replace(manifest, splits=mixed)
        with pytest.raises(TaskLeak, match=split):
            distil_context(train_session, train_session.config, Context("Be brief."))  # type: ignore[arg-type]


# -- models and runs ------------------------------------------------------------------------------------


def test_the_model_is_the_given_one_then_env_student_then_the_built_in(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w", model="mine") as session:
        assert session.model_name()[0] == "mine"
    with open_session(rows, tmp_path / "w") as session:
        assert session.model_name()[0] == DEFAULT_MODEL
        run_id = session.store.start("consolidate", {"env": session.env}, 0)
        session.store.add_model("base", "base")
        for number in (1, 2, 3):
            (tmp_path / f"student{number}").mkdir()
            session.store.add_model(str(number), "s", str(tmp_path / f"student{number}"), "base", run_id)
        assert session.model_name()[0] == DEFAULT_MODEL  # a student counts once its run has finished
        session.store.finish(run_id)
        assert session.model_name()[0] == DEFAULT_MODEL  # and once it has become ENV/student
        for number in (1, 2, 3):
            move_student(session.store, session.env, str(number), "gate")
        assert session.model_name()[0] == str(tmp_path / "student3")
        (tmp_path / "student3").rmdir()
        with pytest.raises(ConfigError, match="which is gone"):
            session.model_name()


def test_a_run_is_resumed_until_it_is_finished(rows: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    model = str(tiny_model_dir)
    with open_session(rows, tmp_path / "w", model=model) as session:
        first = session.ledger.begin("play")
        assert session.ledger.begin("play") == first
        assert session.ledger.begin("play", pool=[1]) != first
        assert session.ledger.finished("play") is None and session.ledger.result(first) is None
        session.store.finish(first, {"n": 1})
        assert (session.ledger.finished("play"), session.ledger.result(first)) == (first, {"n": 1})
        second = session.ledger.begin("play")
        assert second != first
    with open_session(rows, tmp_path / "w", model=model) as session:
        assert session.ledger.begin("play") == second
    with open_session(rows, tmp_path / "w", model=model, temperature=0.1) as session:
        assert session.ledger.begin("play") != second
        row = json.loads(session.store.run(second)["config"])
        assert (row["env"], row["model_id"]) == (rows, session.loaded.id)


def test_a_repeated_command_without_a_model_takes_the_one_it_started_from(
    rows: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    with open_session(rows, tmp_path / "w", model=str(tiny_model_dir)) as session:
        base = session.loaded
    with open_session(rows, tmp_path / "w") as session:
        config = run_config(session.config) | {"env": session.env, "model_id": base.id, "context_id": "c"}
        run_id = session.store.start("consolidate", config, 0)
        (tmp_path / "student").mkdir()
        session.store.add_model("student", "student", str(tmp_path / "student"), base.id, run_id)
        session.store.finish(run_id)
        move_student(session.store, session.env, "student", "gate")
    with open_session(rows, tmp_path / "w") as session:
        session.resume_model("consolidate", "c")
        assert session.model_name()[0] == str(base.folder)
    with open_session(rows, tmp_path / "w") as session:
        session.resume_model("consolidate", "another context")
        assert session.model_name()[0] == str(tmp_path / "student")


def test_what_was_imported_is_no_run_of_this_workspace(rows: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """A colleague's runs with the same settings, and a student that was never here."""
    model = str(tiny_model_dir)
    with open_session(rows, tmp_path / "theirs", model=model) as session:
        done, begun = session.ledger.begin("play"), session.ledger.begin("score")
        for number in (done, begun):
            session.store.add_items(number, [Found("Holes swallow you.")])  # runs without anything do not travel
        session.store.finish(done, {"n": 1})
        config = run_config(PlayConfig(env=rows)) | {"env": session.env, "model_id": session.loaded.id}
        run_id = session.store.start("consolidate", config | {"context_id": "c"}, 0)
        session.store.add_model("student", "student", "runs/x/student", session.loaded.id, run_id)
        session.store.finish(run_id)
        exported = list(dump(session.store))
    with open_session(rows, tmp_path / "w", model=model) as session:
        load(session.store, exported)
        assert {row["verb"] for row in session.store.runs()} == {"play", "score", "consolidate"}
        assert session.ledger.finished("play") is None
        assert not {session.ledger.stage("play"), session.ledger.begin("score")} & {done, begun, run_id}
        assert session.store.models(trained=True) == [] and session.newest_student() is None
    with open_session(rows, tmp_path / "w") as session:
        assert session.ledger.started_from("consolidate", "c") is None


@pytest.mark.parametrize("folder", ["x" * 300, "runs/mine", 5])
def test_a_run_of_another_store_is_not_settled_by_a_folder_here(folder: object, rows: str, tmp_path: Path) -> None:
    (tmp_path / "w" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "w" / "runs" / "mine" / "result.json").write_text("{}")
    with open_session(rows, tmp_path / "w") as session:
        own = session.store.start("play", {"folder": "elsewhere/runs/mine"}, 0)
        imported = session.store.start("play", {"folder": folder}, 0)
        session.store.change("UPDATE run SET imported = 1 WHERE id = ?", (imported,))
    with open_session(rows, tmp_path / "w") as session:
        assert [session.store.run(id_)["status"] for id_ in (own, imported)] == ["done", "running"]


def test_settings_that_are_younger_than_a_run_and_unused_are_no_part_of_it() -> None:
    """So that a killed run of an older version is found; ``context`` is younger in scoring alone."""
    assert {"turns", "context"} & run_config(ScoreConfig(env="math")).keys() == set()
    assert run_config(ScoreConfig(env="math", method="influence", context="a", turns=9))["context"] == "a"
    assert "context" in run_config(ConsolidateConfig(env="math"))
