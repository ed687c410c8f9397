"""Base, in-context and student: the same tasks, compared in pairs, played once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import EvaluateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.evaluation.table import Contestant, Evaluation, _recovered, evaluate, lines, tabulate
from agentopcd.workspace.session import Session
from tests import tiny

CLUE = Context(tiny.CLUE)


class Knows(tiny.Clued):
    """A student that has the clue in its weights."""

    def _answer(self, prompt: str) -> Any:
        return super()._answer(prompt + tiny.CLUE)


@pytest.fixture
def session(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    def player_for(session: Session, loaded: Any) -> Player:
        kind = Knows if loaded.id == "student" else tiny.Clued
        return Player(
            game=session.game, sampler=kind(loaded.tokenizer), chat=Chat(loaded.tokenizer),
            sampling=session.config.sampling,
        )  # fmt: skip

    monkeypatch.setattr(Session, "player_for", player_for)
    config = EvaluateConfig(env=tiny.questions(tmp_path / "rows.jsonl"), model=str(tiny_model_dir))
    return Session(config, tmp_path / "w", say=lambda line: None)


def contestants(session: Session) -> list[Contestant]:
    base = session.loaded
    student = dataclasses.replace(base, id="student", note="a note")
    session.store.add_model("student", "student")
    return [
        Contestant(label="base", model=base),
        Contestant(label="in-context", model=base, context=CLUE),
        Contestant(label="student", model=student),
    ]


def run(session: Session) -> Evaluation:
    tasks = session.tasks("test", 20)
    return evaluate(session, contestants(session), tasks, run_id=session.ledger.begin("evaluate"))


def test_three_arms_play_the_same_test_tasks(session: Session) -> None:
    result = run(session)
    assert [(row.label, row.rate.wins, row.rate.n, row.tasks) for row in result.rows] == [
        ("base", 0, 20, 20), ("in-context", 20, 20, 20), ("student", 20, 20, 20),
    ]  # fmt: skip
    assert result.recovered == 1.0
    assert {row["split"] for row in session.store.episodes()} == {"test"}
    assert len({row["task_key"] for row in session.store.episodes()}) == 20


def test_differences_are_paired(session: Session) -> None:
    found = run(session).comparisons
    assert set(found) == {"in-context - base", "student - base", "student - in-context"}
    gain = found["student - base"]
    assert (gain.difference.diff, gain.wins, gain.losses, gain.n) == (1.0, 20, 0, 20)
    assert gain.p < 1e-5
    assert found["student - in-context"].p > 0.4


def test_differences_are_of_what_the_session_chooses_by(session: Session) -> None:
    by_success = run(session)
    assert by_success.comparisons["student - base"].test == "mid_p" and "by" not in by_success.to_dict()
    session._by = "reward"
    found = run(session)
    assert found.comparisons["student - base"].test == "sign_flip" and found.to_dict()["by"] == "reward"
    assert "note: differences, and the share that is recovered, are of reward" in lines(found)


def test_an_evaluation_is_played_once_and_read_back_after(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(session)
    monkeypatch.setattr(Player, "play", None)
    assert run(session).to_dict() == first.to_dict()
    setup = session.setup(session.player_for(session.loaded))
    again = tabulate(
        session, [one.entry for one in contestants(session)], session.tasks("test", 20), setup=setup, run_id=1
    )
    assert again.to_dict() == first.to_dict()


def test_more_tasks_extend_what_was_played(session: Session) -> None:
    run(session)
    more = evaluate(session, contestants(session), session.tasks("test", 30), run_id=session.ledger.begin("evaluate"))
    assert [row.rate.n for row in more.rows] == [30, 30, 30]
    assert session.store.query("SELECT count(*) AS n FROM episode")[0]["n"] == 90


def test_the_table_says_what_a_reader_needs(session: Session) -> None:
    result = run(session)
    text = "\n".join(lines(result))
    overlap = "also in train or extract: 0 (0%)"
    for wanted in ("test tasks", "95 % interval", "recovered: 100%", overlap, "note: a note"):
        assert wanted in text
    assert json.loads(json.dumps(result.to_dict()))["rows"][1]["success"] == 1.0


def test_reply_length_is_the_mean_over_episodes(session: Session) -> None:
    result = run(session)
    tokens = len(session.loaded.tokenizer("Answer: 7", add_special_tokens=False)["input_ids"]) + 1
    assert [row.reply_tokens for row in result.rows] == [tokens] * 3


def test_without_a_gain_in_context_there_is_nothing_to_recover(session: Session) -> None:
    base, shown, student = contestants(session)
    session.store.add_context(Context("no use"))
    useless = dataclasses.replace(shown, context=Context("no use"))
    tasks = session.tasks("test", 5)
    assert evaluate(session, [base, useless, student], tasks, run_id=session.ledger.begin("x")).recovered is None
    assert evaluate(session, [base, student], tasks, run_id=session.ledger.begin("x")).recovered is None


def test_what_is_recovered_is_a_share_of_the_gain_on_the_tasks_that_all_have_played() -> None:
    """Of places 1 to 4, the context wins two more than the base, and the student one of them."""
    outcomes: Any = {
        "base": {1: 1, 2: 0, 3: 0, 4: 0},
        "in-context": {1: 1, 2: 1, 3: 1, 4: 0, 5: 1},
        "student": {1: 1, 2: 1, 3: 0, 4: 0, 6: 1},
    }
    assert _recovered(outcomes) == pytest.approx(0.5)


def test_no_tasks_are_refused(session: Session) -> None:
    with pytest.raises(ConfigError, match="no test tasks"):
        evaluate(session, contestants(session), [], run_id=session.ledger.begin("evaluate"))
