"""Where splits share their tasks, no game that has chosen anything is reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.page.episodes import side_by_side
from agentopcd.core.config import ScoreConfig
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.envs.manifest import Protocol
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.evaluation.drift import _replies
from agentopcd.workspace.evaluation.rounds import stages
from agentopcd.workspace.evaluation.table import Contestant, evaluate, lines
from agentopcd.workspace.experience.choose import choose, traced
from agentopcd.workspace.gated import confirm_jobs
from agentopcd.workspace.session import Session
from tests import tiny

CLUE = Context(tiny.CLUE)


def opened(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, protocol: Protocol, rows: int) -> Session:
    def player_for(session: Session, loaded: Any) -> Player:
        return Player(
            game=session.game, sampler=tiny.Clued(loaded.tokenizer), chat=Chat(loaded.tokenizer),
            sampling=session.config.sampling,
        )  # fmt: skip

    monkeypatch.setattr(Session, "player_for", player_for)
    config = ScoreConfig(env=tiny.questions(tmp_path / "rows.jsonl", rows), model=str(model))
    session = Session(config, tmp_path / "w", say=lambda line: None)
    session.manifest = dataclasses.replace(session.manifest, protocol=protocol)
    return session


@pytest.mark.parametrize(("protocol", "rows"), [("shared", 30), ("paper", 300), ("disjoint", 300)])
def test_what_chose_is_not_what_is_reported(
    protocol: Protocol, rows: int, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(tmp_path, tiny_model_dir, monkeypatch, protocol, rows)
    assert isinstance(session.config, ScoreConfig)
    run_id, tasks = session.ledger.begin("score"), session.tasks("test", 12)
    session.bench(run_id).play_missing("checkpoints", [Job(task) for task in session.tasks("select")])
    choose(session, session.config, [CLUE, *(Context(f"no use {n}") for n in range(4))], run_id=run_id)
    session.bench(run_id).play_missing("gate", confirm_jobs(session, 8))
    before = {row["id"] for row in session.store.episodes()}
    model = session.loaded
    both = [Contestant(label="base", model=model), Contestant(label="in-context", model=model, context=CLUE)]
    table = evaluate(session, both, tasks, run_id=session.ledger.begin("evaluate"))
    fresh = [row for row in session.store.episodes() if row["id"] not in before]
    assert {row.label: row.rate.n for row in table.rows} == {"base": 12, "in-context": 12}
    assert len(fresh) == 24  # nothing was read back
    assert {row["rep"] for row in fresh} == ({0} if protocol == "disjoint" else {2_000_000})
    base, setup = both[0], session.setup()
    assert set(_replies(session, base, tasks, setup=setup)[0]) <= {row["id"] for row in fresh}
    (stage,) = stages(session, [("base", model.id, True)], tasks)
    assert stage.rate == table.rate("base")
    told = [line for line in lines(table) if line.startswith("note:")]
    assert any("says nothing" in one for one in told) == (protocol == "shared")


def test_the_papers_own_seeds_say_on_how_many_test_tasks_it_was_chosen(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(tmp_path, tiny_model_dir, monkeypatch, "paper", 300)
    test = session.tasks("test", 12)
    session.manifest = dataclasses.replace(session.manifest, splits={**session.manifest.splits, "select": test[:9]})
    base = Contestant(label="base", model=session.loaded, context=EMPTY)
    table = evaluate(session, [base], test, run_id=session.ledger.begin("evaluate"))
    assert "note: as in the paper, contexts and checkpoints were chosen on 9 of these 12 tasks" in lines(table)


@pytest.mark.parametrize(("protocol", "rows"), [("shared", 30), ("paper", 300)])
def test_games_that_confirm_or_report_teach_nothing(
    protocol: Protocol, rows: int, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(tmp_path, tiny_model_dir, monkeypatch, protocol, rows)
    bench = session.bench(session.ledger.begin("play"))
    extract, select = session.tasks("extract")[:4], session.tasks("select")[4:8]
    bench.play_missing("play", [Job(task) for task in extract])
    bench.play_missing("select", [Job(task) for task in select])
    evaluate(session, [Contestant(label="base", model=session.loaded)], session.tasks("test", 6), run_id=bench.run_id)
    bench.play_missing("gate", confirm_jobs(session, 6))
    wanted = {*extract, *(select if protocol == "shared" else [])}  # a shared task is every split's
    assert {Task(row["seed"], row["task_key"]) for row in traced(session)} == wanted
    assert {row["rep"] for row in traced(session)} == {0}


def test_pages_show_the_games_that_report(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(tmp_path, tiny_model_dir, monkeypatch, "shared", 30)
    base, store = session.loaded, session.store
    student = dataclasses.replace(base, id="student")
    run_id = session.ledger.begin("evaluate")
    store.add_model("student", "student", None, base.id, run_id)
    for model in (base, student):
        session.bench(run_id, model).play_missing("select", [Job(task) for task in session.tasks("select")])
    both = [Contestant(label="base", model=base), Contestant(label="student", model=student)]
    evaluate(session, both, session.tasks("test", 5), run_id=run_id)
    row = store.lookup("model", id="student")
    assert row is not None
    shown = side_by_side(store, row, most=9)
    assert shown["all"] == 5 and {task["rep"] for task in shown["tasks"]} == {2_000_000}
