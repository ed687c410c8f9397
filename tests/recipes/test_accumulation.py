"""Success by accumulation step: hand-made chains, values worked out by hand, nothing played twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentopcd import learn as learning
from agentopcd.core.config import ConsolidateConfig, LearnConfig, PlayConfig
from agentopcd.core.runs import Run
from agentopcd.core.stats import wilson
from agentopcd.core.types import MARKER, Context
from agentopcd.distil import Distilled
from agentopcd.knowledge import PoolStep, Store, add_to_pool
from agentopcd.learn import learn
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.session import Session
from recipes import accumulation
from tests import tiny

NOISE, CLUE = Context(f"{MARKER} look"), Context(f"{MARKER} look\n{MARKER} {tiny.CLUE}")
CHAINS = {0: {2: CLUE, 3: CLUE}, 1: {1: NOISE, 2: NOISE, 3: CLUE}}
"""Chain → step → context; a third chain never finds anything. Success by step: 0, 0, 1/3, 2/3."""


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tiny.Clued]:
    """Players that need no model, and every sampler they used."""
    made: list[tiny.Clued] = []

    def player_for(session: Session, loaded: Any) -> Player:
        made.append(tiny.Clued(loaded.tokenizer))
        return Player(
            game=session.game, sampler=made[-1], chat=Chat(loaded.tokenizer), sampling=session.config.sampling,
            seed=session.config.seed,
        )  # fmt: skip

    monkeypatch.setattr(Session, "player_for", player_for)
    monkeypatch.chdir(tmp_path)
    tiny.questions(tmp_path / "rows.jsonl")
    return made


@pytest.fixture
def work(samplers: list[tiny.Clued], tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A workspace with one round, and what learn said of it."""
    config = PlayConfig(env="rows.jsonl", model=str(tiny_model_dir), chains=3, chain_steps=5, seed=4, max_tokens=77)
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        run_id = session.ledger.begin("play", round=1)
        for chain, steps in CHAINS.items():
            for step, context in steps.items():
                add_to_pool(session.store, PoolStep(session.env, 7 + chain, step), context, run_id=run_id)
        other = session.ledger.begin("play", round=0)
        add_to_pool(session.store, PoolStep(session.env, 1, 4), CLUE, run_id=other)
        session.ledger.finish(run_id, {"episodes": 3})  # fewer than chain_steps: there is no step 4
    rows = [{"label": label, "success": rate} for label, rate in (("base", 0.1), ("in-context", 0.9), ("student", 0.8))]
    told = {"played": {"run": run_id}, "distilled": {"evaluation": {"rows": rows}}}
    Run(tmp_path / "w", "learn", {"env": "rows.jsonl"}).finish({"rounds": [told]})
    return tmp_path / "w"


def call(work: Path, *more: str) -> dict[str, Any]:
    accumulation.main(["--work", str(work), "--env", "rows.jsonl", "--tasks", "6", *more])
    return json.loads((work / "accumulation" / "rows-jsonl.json").read_text())


def episodes(work: Path) -> int:
    with Store.open(work / "store.db") as store:
        return len(store.episodes())


def test_each_step_is_the_mean_over_chains(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(work)
    steps = found["steps"]
    assert [step["chains"] for step in steps] == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert [step["success"] for step in steps] == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert [step["episodes"] for step in steps] == [6, 12, 18, 12]  # empty; and NOISE; and CLUE; empty and CLUE
    assert {step["tasks"] for step in steps} == {6}
    assert (steps[0]["low"], steps[0]["high"]) == wilson(0, 6)
    assert found["rounds"][0]["test"] == {"base": 0.1, "student": 0.8}
    printed = capsys.readouterr().out
    assert "0.333" in printed and "0.000 to 1.000 (3)" in printed and "figures: " in printed


def test_what_was_played_to_be_replayed_is_no_round(work: Path, tiny_model_dir: Path) -> None:
    before = call(work)
    config = PlayConfig(env="rows.jsonl", model=str(tiny_model_dir), chains=3, chain_steps=5, seed=4, max_tokens=77)
    with Session(config, work, say=lambda line: None) as session:
        session.ledger.finish(session.ledger.stage("play", replay=1), {"episodes": 64})
    assert call(work)["steps"] == before["steps"]


def test_it_plays_as_the_round_was_played_and_never_twice(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call(work)
    assert episodes(work) == 18  # three different contexts on six tasks
    assert found["rounds"][0]["settings"]["max_tokens"] == 77
    with Store.open(work / "store.db") as store:
        assert {row["split"] for row in store.episodes()} == {"select"}
        assert json.loads(store.run(store.episodes()[0]["run_id"])["config"])["seed"] == 4
    monkeypatch.setattr(Player, "play", None)
    assert call(work) == found


def test_a_killed_call_goes_on(work: Path, samplers: list[tiny.Clued], monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(label: str, items: Iterable[Any], total: int) -> Iterator[Any]:
        for number, item in enumerate(items, start=1):
            yield item
            if number == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(accumulation, "progress", dying)
        call(work)
    assert episodes(work) == 5
    call(work)
    assert episodes(work) == 18 and samplers[-1].asked == 13


def test_the_plot(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--work", str(work), "--env", "rows.jsonl", "--tasks", "2", "--out", str(work / "plots")]
    accumulation.main(words)
    file = work / "plots" / "rows-jsonl.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    file.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    accumulation.main(words)
    assert "pip install 'agentopcd[plot]'" in capsys.readouterr().out and not file.exists()


def test_an_unknown_environment_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, env in ((work, "row.jsonl"), (work / "nowhere", "rows.jsonl")):
        with pytest.raises(SystemExit) as stopped:
            accumulation.main(["--work", str(folder), "--env", env])
        assert stopped.value.code == 2
    unknown, missing = capsys.readouterr().err.splitlines()
    assert "did you mean 'rows.jsonl'" in unknown and "no knowledge store" in missing


def test_the_interval_knows_that_chains_share_tasks() -> None:
    """Four tasks, two chains: in each case four of eight episodes are won."""
    agree = accumulation.interval([[1.0], [1.0], [0.0], [0.0]], episodes=8)
    split = accumulation.interval([[0.5], [0.5], [0.5], [0.5]], episodes=8)
    mixed = accumulation.interval([[1.0], [0.5], [0.5], [0.0]], episodes=8)
    assert agree == wilson(2, 4)  # as if each task had been played once
    assert split == wilson(2, 4)  # no variance between tasks: nothing is gained from that
    # Variance of the task means 1/6, of their mean 1/24; p(1-p) = 1/4: worth six episodes.
    assert mixed == pytest.approx(wilson(3, 6))
    assert accumulation.interval([[0.0]] * 4, episodes=8) == wilson(0, 4)


def test_a_task_with_several_starts_is_one_cluster() -> None:
    """Two tasks of two starts each, one always won and one never: no more than two tasks are known."""
    assert accumulation.interval([[1.0, 1.0], [0.0, 0.0]], episodes=4) == wilson(1, 2)


def test_two_rounds_of_learn(
    samplers: list[tiny.Clued], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing up to training: what learn has played on select tasks counts and is not played again."""

    def stays(session: Session, config: ConsolidateConfig, context: Context) -> Distilled:
        """A student that is its parent."""
        return Distilled(
            folder=str(session.loaded.folder), model_id=session.loaded.id, parent_id=session.loaded.id,
            teacher_id=session.loaded.id, context_id=context.id, best_step=1, steps=1, skipped=0, evaluation=None,
        )  # fmt: skip

    monkeypatch.setattr(learning, "distil_context", stays)
    config = LearnConfig(
        env="rows.jsonl", model=str(tiny_model_dir), rounds=2, episodes_per_round=4, chains=2, chain_steps=2,
        select_tasks=6, confirm_tasks=8,
    )  # fmt: skip
    assert [one.confirmed for one in learn(config, tmp_path / "w", say=lambda line: None)] == [True, True]
    before = episodes(tmp_path / "w")
    found = call(tmp_path / "w")
    assert [(step["round"], step["step"], step["success"]) for step in found["steps"]] == [
        (1, 0, 0), (1, 1, 1), (1, 2, 1), (2, 0, 1), (2, 1, 1), (2, 2, 1),
    ]  # fmt: skip  # chains of the second round begin with what the first one's reached
    assert [one["test"] for one in found["rounds"]] == [{}, {}]
    assert [one["settings"]["seed"] for one in found["rounds"]] == [0, 0]
    assert episodes(tmp_path / "w") == before + 6  # no context in the first round, which halving does not play
