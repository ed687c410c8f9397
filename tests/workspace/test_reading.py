"""Recorded sessions as episodes that lessons are read from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.options import Call
from agentopcd.cli.verbs import play as command
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Rate
from agentopcd.core.types import EMPTY, MARKER
from agentopcd.knowledge import Store
from agentopcd.knowledge.evidence import Competed, scores
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace import ready
from agentopcd.workspace.experience.chains import Gathered
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session
from tests.recording import keep, keep_many, model
from tests.rollouts.scripted import Scripted

LESSON = f"{MARKER} Say where the box is."
Gather = Callable[..., Gathered]


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the extractor is asked, whose every lesson is the same."""
    seen: list[str] = []

    def player_for(session: Session, loaded: Any, config: Any = None) -> Player:
        def reply(prompt: str) -> str:
            seen.append(prompt)
            return LESSON

        sampler = Scripted(loaded.tokenizer, reply)
        return Player(game=session.game, sampler=sampler, chat=Chat(loaded.tokenizer), sampling=session.config.sampling)

    monkeypatch.setattr(Session, "player_for", player_for)
    return seen


@pytest.fixture
def read(tmp_path: Path) -> Gather:
    """Reads sessions as ``play`` does, and closes the run."""

    def gathered(**more: Any) -> Gathered:
        given: dict[str, Any] = {"env": "recorded:shop", "model": model(tmp_path / "model"), "chains": 1}
        with Session(PlayConfig(**(given | more)), tmp_path, say=lambda line: None) as session:
            config = session.config
            assert isinstance(config, PlayConfig)
            run_id = session.ledger.begin("play")
            result = gather(session, config, run_id=run_id)
            session.ledger.finish(run_id, result.to_dict())
            assert Gathered.from_dict(session.ledger.result(run_id) or {}, session.store).to_dict() == result.to_dict()
            return result

    return gathered


def test_a_play_says_that_nothing_is_graded(tmp_path: Path, prompts: list[str], read: Gather) -> None:
    talk = [{"role": "user", "content": "Up?"}, {"role": "assistant", "content": "Up."}]
    rows = [{"messages": [{"role": "system", "content": f"Be {i}."}, *talk]} for i in range(80)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(env=str(tmp_path / "chats.jsonl"), episodes=2, extract=False).to_dict()["graded"] is False


def test_sessions_become_episodes_and_unrated_ones_count_as_nothing(
    tmp_path: Path, prompts: list[str], read: Gather
) -> None:
    for i in range(90):
        rating = [None, {"success": True}, {"success": False, "reward": 0.25, "metrics": {"stars": 2}}][i % 3]
        keep(tmp_path, f"s{i}", f"Box {i}?", "Up.", f"And {i}?", "Down.", rating=rating)
    result = read(episodes=100)
    assert "graded" not in result.to_dict(), "people have rated some of them"
    with Store.open(tmp_path / "store.db") as store:
        rows = store.episodes(run_id=result.run_id)
        episodes = [store.transcript(row["id"]) for row in rows]
        (item,) = store.items(ids=result.items)
        assert item.text == "Say where the box is." and len(result.candidates) == 1
        assert {row["split"] for row in rows} == {"extract"} and {row["model_id"] for row in rows} == {"m" * 64}
        for silent in (set(), {"recorded:shop"}):  # as tables of the recording say, which are of replies
            competed = Competed(store)
            competed.silent |= silent
            (score,) = scores(store, EMPTY.id, competed)
            assert (score["n"], score["rate"], score["graded"]) == (result.rate.n, result.rate.rate, True)
    assert result.rate.n + result.unrated == len(rows) and result.unrated > 0
    rated = [e for e in episodes if e.stop_reason != "max_steps"]
    assert result.rate == Rate(sum(e.success for e in rated), len(rated)) and 0 < result.rate.wins < result.rate.n
    assert episodes[0].turns[0].response_ids == (4, 5) and episodes[0].turns[0].prompt_ids == (1, 2, 3)
    lost = next(e for e in episodes if e.stop_reason == "failed")
    assert (lost.reward, lost.metrics, lost.context_id) == (0.25, {"stars": 2.0}, EMPTY.id)
    said = "\n".join(prompts)
    assert "You had a conversation." in said and "You answered: Down." in said
    assert "Rating of the session: it succeeded." in said
    assert "Rating of the session: it failed, reward 0.25, stars 2." in said
    assert "Box" in said and said.count("Rating") < len(prompts)


def test_what_was_read_is_read_again_last(tmp_path: Path, prompts: list[str], read: Gather) -> None:
    for i in range(60):
        keep(tmp_path, f"s{i}", f"Box {i}?", "Up.", rating={"reward": 1.0})
    first = read(episodes=3)
    assert "Feedback: Rating of the session: reward 1." in prompts[0]  # a single reply with feedback on it
    second = read(episodes=3, seed=1)
    with Store.open(tmp_path / "store.db") as store:
        seeds = [{row["seed"] for row in store.episodes(run_id=one.run_id)} for one in (first, second)]
        assert len(seeds[0]) == 3 and len(seeds[1]) == 3
        split = store.query("SELECT key FROM task WHERE split = 'extract'")
        assert len(seeds[0] | seeds[1]) == min(6, len(split))


def test_reading_is_refused_or_planned_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: list[str]
) -> None:
    keep_many(tmp_path, 60)
    config = PlayConfig(env="recorded:shop", model=model(tmp_path / "model"))
    command(config, Call(tmp_path, False, True))
    assert "plan: at most 64 of" in capsys.readouterr().out
    command(config, Call(tmp_path, False, False))
    assert "recorded sessions, 0 rated as success or failure, 1 item" in capsys.readouterr().out
    with (
        Session(PlayConfig(env="recorded:shop", model="pocket", context="a"), tmp_path, say=print) as session,
        pytest.raises(ConfigError, match="were played already"),
    ):
        ready.to_play(session, session.config)  # type: ignore[arg-type]
    keep(tmp_path, "only", "Sum?", "4", recording="one")
    with (
        Session(PlayConfig(env="recorded:one", model="pocket"), tmp_path, say=print) as session,
        pytest.raises(ConfigError, match="none of the 1 recorded conversations is in extract"),
    ):
        gather(session, session.config, run_id=session.ledger.begin("play"))  # type: ignore[arg-type]
