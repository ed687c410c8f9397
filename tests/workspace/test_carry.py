"""What goes on from round to round: items that helped, and none that are retired, worse, or in the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import EMPTY, MARKER, Context
from agentopcd.knowledge import PoolStep, Ranking, Store, add_to_pool, identify
from agentopcd.knowledge.episodes import Count
from agentopcd.knowledge.score import Scored
from agentopcd.workspace.experience.carry import carried, worse


def context(*texts: str) -> Context:
    return Context("\n".join(f"{MARKER} {text}" for text in texts))


def ranking(**rates: tuple[Context, int]) -> Ranking:
    """Contexts with their wins of ten, the best first."""
    rows = [
        Scored(context_id=made.id, count=Count(Rate(wins, 10), 10), against_empty=None, rounds=1)
        for made, wins in sorted(rates.values(), key=lambda entry: -entry[1])
    ]
    outcomes = {made.id: {(f"task {n}", n, 0): n < wins for n in range(10)} for made, wins in rates.values()}
    return Ranking(
        rows=rows, empty=None, competed=len(rows), errors=0, episodes=10 * len(rows), means={}, outcomes=outcomes
    )


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "store.db") as opened:
        opened.add_model("base", "base")
        opened.add_model("student", "student", None, "base")
        yield opened


def played(store: Store, *ends: list[Context]) -> dict[str, Any]:
    """A play of the lake whose chains have gone through these contexts."""
    config = {"env": "lake", "chains": len(ends), "chain_steps": max(map(len, ends))}
    run_id = store.start("play", config, 0)
    for chain, steps in enumerate(ends):
        for step, made in enumerate(steps, 1):
            add_to_pool(store, PoolStep("lake", chain, step), made, run_id=run_id)
    store.finish(run_id, {"episodes": 9})
    return store.run(run_id) | {"config": config}


def test_chains_go_on_where_they_ended(store: Store) -> None:
    row = played(store, [context("a"), context("a", "b")], [context("c")])
    assert carried(store, row, None, "base") == [context("a", "b"), context("c")]


def test_an_item_without_which_contexts_did_better_stays_behind(store: Store) -> None:
    good, bad, both = context("good"), context("bad"), context("good", "bad")
    row = played(store, [good, both], [bad])
    ranked = ranking(a=(good, 9), b=(both, 6), c=(bad, 1))
    assert worse(store, ranked) == {identify("bad")}
    assert carried(store, row, ranked, "base") == [good, EMPTY]
    assert worse(store, ranking(a=(both, 0))) == set(), "what every context holds is compared with nothing"


def test_items_are_compared_on_the_same_tasks(store: Store) -> None:
    """After halving, those who lost early have played the first tasks only, which here are easy."""
    good, bad = context("good"), context("bad")
    played(store, [good], [bad])
    easy, hard = [(f"easy {n}", n, 0) for n in range(5)], [(f"hard {n}", n, 0) for n in range(50)]
    winner = dict.fromkeys(easy, True) | {place: place[1] < 20 for place in hard}
    loser = {place: place[1] < 4 for place in easy}
    assert sum(winner.values()) / len(winner) < sum(loser.values()) / len(loser)
    ranked = dataclasses.replace(ranking(a=(good, 9)), outcomes={good.id: winner, bad.id: loser})
    assert worse(store, ranked) == {identify("bad")}


def test_a_context_without_a_finished_game_says_nothing_of_its_items(store: Store) -> None:
    """Its mean of nothing is 0, which where all rewards are negative would be the best."""
    good, broken = context("good"), context("bad")
    played(store, [good], [broken])
    rows = [
        Scored(made.id, Count(Mean(reward, reward, reward, n), n), None)
        for made, reward, n in ((good, -1.0, 10), (broken, 0.0, 0))
    ]
    outcomes = {good.id: {("task", 0, 0): -1.0}, broken.id: {}}
    assert worse(store, dataclasses.replace(ranking(a=(good, 9)), rows=rows, outcomes=outcomes)) == set()


def test_what_is_retired_or_in_the_weights_does_not_go_on(store: Store) -> None:
    row = played(store, [context("old", "known", "new")])
    store.event(identify("old"), "retire", "person")
    store.add_model("taught", "taught", None, "student", None, {store.add_context(context("known")): 1.0})
    assert carried(store, row, None, "taught") == [context("new")]
    assert carried(store, row, None, "student") == [context("known", "new")]
