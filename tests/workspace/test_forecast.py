"""What is said of a context before training: it helps this model, it does not, or nobody has measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentopcd.workspace.evidence import evidence

from agentopcd.core.config import ConfirmConfig, EvaluateConfig, flags_for
from agentopcd.core.types import EMPTY, Context, Episode, Task
from agentopcd.workspace.session import Session
from tests import tiny

CLUE = Context("Be brief.")


@pytest.fixture
def session(tmp_path: Path, tiny_model_dir: Path) -> Any:
    config = EvaluateConfig(env=tiny.questions(tmp_path / "rows.jsonl"), model=str(tiny_model_dir))
    with Session(config, tmp_path / "w w", say=lambda line: None) as session:
        session.store.add_context(CLUE)
        yield session


def looked(session: Session, verdict: str, model: str = "", **result: Any) -> None:
    model_id = model or session.loaded.id
    key = {"env": session.env, "model_id": model_id, "context_id": CLUE.id, "setup": "s", "plan": verdict}
    session.store.end_look(session.store.begin_look(key, {})["id"], verdict, result)


def played(session: Session, context: Context, wins: int, n: int = 12) -> None:
    """Games on select tasks of which the first ``wins`` were won."""
    run_id = session.ledger.begin("score")
    for number, task in enumerate(session.tasks("select", n)):
        episode = Episode(
            env=session.env, task=Task(task.seed, task.key), rep=0, context_id=context.id, turns=[], outcome=[],
            success=number < wins, reward=0.0, stop_reason="failed",
        )  # fmt: skip
        session.store.add_episodes(run_id, session.loaded.id, session.setup(), [episode])


def test_nobody_has_measured_it(session: Session) -> None:
    said = evidence(session, CLUE, flags_for(session.config, ConfirmConfig))
    assert said.startswith(f"note: whether context {CLUE.id[:12]} helps this model was never measured here; ")
    assert f"agentopcd knowledge confirm --context {CLUE.id[:12]} --env {session.env} --model" in said
    assert said.endswith(f"--work '{session.work}' would tell")


def test_its_own_look_decides(session: Session) -> None:
    played(session, CLUE, 0), played(session, EMPTY, 12)
    against = {"empty": {"difference": 0.5, "low": 0.4, "high": 0.6}}
    looked(session, "pass", against=against)
    assert "helps this model: it passed the confirm gate, +0.500 [+0.400, +0.600] to none (look 1)" in evidence(
        session, CLUE
    )
    looked(session, "not better")
    assert "does not help this model: it did not pass the confirm gate: not better (look 2)" in evidence(session, CLUE)


def test_a_look_of_schema_1_has_no_figures(session: Session) -> None:
    looked(session, "incumbent stays")
    assert "it passed the confirm gate (look 1)" in evidence(session, CLUE)


@pytest.mark.parametrize(
    ("wins", "says"), [(12, "helps this model"), (0, "does not help this model"), (7, "may not help this model")]
)
def test_games_on_select_tasks_are_evidence(session: Session, wins: int, says: str) -> None:
    played(session, CLUE, wins), played(session, EMPTY, 6 if wins else 12)
    assert f"{says} on select tasks: " in evidence(session, CLUE) and "(n=12); not confirmed" in evidence(session, CLUE)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("pass", "passed the confirm gate, but with another model"),
        ("form only", "that was another model, this one was"),
    ],
)
def test_looks_of_another_model_are_hearsay(session: Session, verdict: str, says: str) -> None:
    looked(session, verdict, model="m" * 64)
    assert says in evidence(session, CLUE)


def test_where_nothing_is_graded_nothing_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(session.game), "graded", property(lambda game: False))
    assert evidence(session, CLUE) == ""
