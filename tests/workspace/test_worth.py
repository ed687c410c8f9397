"""Items of a pool get values, and the best of them a context under a name; a player that needs a clue plays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli import main
from agentopcd.core.config import ScoreConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Origin, Store, identify, ingest, render
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.experience.worth import Worth, value_items
from agentopcd.workspace.session import Session
from tests import tiny

NOISE = ("say nothing", "say more", "say it again")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def player_for(session: Session, loaded: Any) -> Player:
        return Player(
            game=session.game, sampler=tiny.Clued(loaded.tokenizer), chat=Chat(loaded.tokenizer),
            sampling=session.config.sampling, seed=session.config.seed,
        )  # fmt: skip

    monkeypatch.setattr(Session, "player_for", player_for)
    return tiny.questions(tmp_path / "rows.jsonl")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "w"


def pool(session: Session, *texts: str, budget: int | None = None) -> Context:
    """A pool of one context with these items, all of them active."""
    store = session.store
    for text in texts:
        ingest(store, f"{MARKER} {text}", Origin(run_id=store.start("play", {}, 0)))
    context = Context(render(texts))
    store.add_context(context, {"order": "chain", "budget": budget} if budget else None)
    store.move(f"{session.env}/pool/00/01", context.id, "extract")
    return context


Run = Callable[..., tuple[Worth, Session]]


@pytest.fixture
def run(rows: str, work: Path, tiny_model_dir: Path) -> Run:
    def run(
        *texts: str, budget: int | None = None, pinned: str = "", lines: list[str] | None = None, **settings: Any
    ) -> tuple[Worth, Session]:
        settings = {"env": rows, "model": str(tiny_model_dir), "method": "subsets", "select_tasks": 20} | settings
        config = ScoreConfig(**settings)
        session = Session(config, work, say=(lines if lines is not None else []).append)
        context = pool(session, *texts, budget=budget)
        if pinned:
            session.store.event(identify(pinned), "pin", "person")
        return value_items(session, config, [context], run_id=session.ledger.begin("score")), session

    return run


def test_the_clue_is_named_and_assembled(run: Run) -> None:
    lines: list[str] = []
    worth, session = run(*NOISE, tiny.CLUE, lines=lines, seed=1)
    with session:
        first = worth.values[0]
        assert worth.items[first.item_id].text == tiny.CLUE and first.value == 1.0  # its half wins every time
        assert first.verdict == "helpful" and first.p == 2 / 2**20
        assert {one.verdict for one in worth.values[1:]} == {"not shown"}
        assert worth.context.lines[0] == tiny.CLUE and worth.budget == 1024
        assert session.store.ref(f"{session.env}/valued") == worth.context.id == worth.to_dict()["assembled"]["id"]
        recipe = json.loads(session.store.context_row(worth.context.id)["recipe"])
        assert (recipe["order"], recipe["budget"]) == ("value", 1024)
    assert any("20 pairs of halves, 40 episodes, for 4 items: 10 an item" in line for line in lines)
    assert "1 helpful, 0 harmful, 3 not shown" in "\n".join(worth.lines())


def test_items_are_valued_by_what_is_asked_for(run: Run) -> None:
    worth, session = run(*NOISE, tiny.CLUE, by="reward")
    with session:
        assert worth.items[worth.values[0].item_id].text == tiny.CLUE and worth.values[0].value == 1.0
    with pytest.raises(ConfigError, match="reports 'style'; wanted one of: success, reward"):
        run(*NOISE, tiny.CLUE, by="style")


def test_of_a_large_pool_only_the_last_round_is_assembled(run: Run) -> None:
    worth, session = run(tiny.CLUE, *(f"say it {number} times" for number in range(20)), select_tasks=60)
    with session:
        assert worth.rounds == 3 and worth.values[0].round == 3
        assert worth.items[worth.values[0].item_id].text == tiny.CLUE
        shown = {worth.items[one.item_id].text for one in worth.values if one.round == 3}
        assert set(worth.context.lines) <= shown
    lines = worth.lines()
    assert "helpful: " in lines[0] and sum("left after round 1: " in line for line in lines) == 8


def test_the_context_fits_the_budget_of_the_pool_under_the_model_s_tokenizer(run: Run) -> None:
    worth, session = run(*NOISE, tiny.CLUE, budget=30)
    with session:
        count = session.player.chat.count_tokens
        assert worth.tokens == count(worth.context.text) <= 30 == worth.budget
        assert tiny.CLUE in worth.context.lines
        assert count(render([tiny.CLUE, *NOISE])) > 30  # so something had to go


def test_a_pinned_item_stays_whatever_it_is_worth(run: Run) -> None:
    worth, session = run(tiny.CLUE, *NOISE, pinned=NOISE[0])
    with session:
        assert worth.context.lines[:2] == [NOISE[0], tiny.CLUE]


def test_pinned_items_that_do_not_fit_are_told_of_before_play(run: Run, work: Path) -> None:
    with pytest.raises(ConfigError, match="the 1 pinned items alone have"):
        run(tiny.CLUE, *NOISE, pinned=NOISE[0], budget=1)
    with Store.open(work / "store.db") as store:
        assert not store.table("episode", "id")


def test_repeating_the_call_plays_nothing_and_moves_nothing(run: Run) -> None:
    worth, session = run(tiny.CLUE, *NOISE)
    with session:
        played = len(session.store.episodes())
    again, session = run(tiny.CLUE, *NOISE)
    with session:
        assert again.to_dict() == worth.to_dict()
        assert len(session.store.episodes()) == played == 40
        assert len(session.store.log(worth.ref)) == 1


def test_nothing_worth_showing_is_said_and_leaves_no_name(run: Run) -> None:
    worth, session = run(*NOISE)  # no half ever wins
    with session:
        assert worth.context.text == "" and session.store.ref(worth.ref) is None
        assert worth.to_dict()["assembled"] is None
    assert "nothing to assemble" in worth.lines()[-1]


def test_more_pairs_than_tasks_are_announced(run: Run) -> None:
    lines: list[str] = []
    worth, session = run(tiny.CLUE, NOISE[0], lines=lines, select_tasks=30)
    with session:
        split = len(session.tasks("select"))
    assert split < 30 and worth.values[0].n == 30
    assert f"the split has {split} select tasks, so they come again with other halves" in lines


def test_a_pool_without_an_active_item_is_refused(rows: str, work: Path, tiny_model_dir: Path) -> None:
    config = ScoreConfig(env=rows, model=str(tiny_model_dir), method="subsets")
    with Session(config, work, say=lambda line: None) as session:
        context = Context(f"{MARKER} nobody has approved this")
        session.store.add_context(context)
        with pytest.raises(ConfigError, match="no active item"):
            value_items(session, config, [context], run_id=1)


def test_the_command_prints_all_of_it(
    run: Run, rows: str, work: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _, session = run(tiny.CLUE, *NOISE)
    session.close()

    def call(*more: str) -> str:
        words = (
            f"knowledge score --method subsets --env {rows} --model {tiny_model_dir} --select-tasks 20 --work {work}"
        )
        monkeypatch.setattr(sys, "argv", ["agentopcd", *words.split(), *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    said = call()
    assert "helpful: say seven" in said and f"next: agentopcd knowledge confirm --context {rows}/valued --env" in said
    assert "plan: 20 pairs of halves, 40 episodes, for 4 items" in call("--dry-run")
    found = json.loads(call("--json"))
    assert found["values"][0]["text"] == tiny.CLUE and found["values"][0]["verdict"] == "helpful"
    assert {"p", "q", "low", "high", "n"} <= found["values"][0].keys()
