"""What the benchmark of planted items counts: what an item is by its words, and the figures by hand."""

from __future__ import annotations

import json
import random
from math import inf
from pathlib import Path

import pytest

from agentopcd.knowledge import Item, ItemValue, identify
from agentopcd.rollouts.player import Player
from benchmarks import planted


def test_an_item_is_what_its_words_say() -> None:
    kinds = planted.kinds()
    told = {
        "good": ["G is the goal.", "Never step on H.", "[up] moves P up.", "Left is left and right is right."],
        "harmful": ["H is the goal.", "Never step on G.", "[up] moves P down.", "Left and right are swapped."],
        "inert": ["Be careful.", "Leaving the board is an invalid move.", "Two invalid moves in a row end the game."],
    }
    for kind, texts in told.items():
        assert {kinds[identify(text)] for text in texts} == {kind}
    assert identify("[up] moves P up and [right] moves P right.") not in kinds  # two facts: left out
    assert identify("X is the box.") not in kinds


@pytest.mark.parametrize("seed", range(5))
def test_planted_sentences_are_of_their_kind_and_spread_over_the_facts(seed: int) -> None:
    kinds, stacks = planted.kinds(), planted.planted(random.Random(seed))
    for kind, texts in stacks.items():
        assert len(set(texts)) == planted.PLANTED
        assert {kinds[identify(text)] for text in texts} == {kind}
    for fact in planted.facts_of(planted.GAME, planted.WORLD):
        assert 2 <= len(set(stacks["good"]) & set(planted.sentences(fact))) <= 3


def test_the_figures_by_hand() -> None:
    texts = [
        "G is the goal.",
        "[up] moves P somewhere.",
        "Be careful.",
        "H is a hole.",
        "H is the goal.",
        "G is a hole.",
    ]
    items = {identify(text): Item(identify(text), text, "active") for text in texts}
    worth = [0.3, 0.25, 0.2, 0.1, 0.05, -0.1]
    values = [
        ItemValue(identify(text), value, value - 0.1, value + 0.1, 9, p=0.01, q=0.01 if abs(value) > 0.15 else 0.5)
        for text, value in zip(texts, worth, strict=True)
    ]
    found = planted.measured(7, values, items, {identify(text) for text in texts[3:]}, 600)
    # Good: .3 and .1; others that are counted: .2, .05, -.1. Five of six pairs are in order.
    assert found.auc == 5 / 6 and found.chance == 2 / 5 and found.precision == 2 / planted.PLANTED
    assert found.harmful_below_0 == 1 / 2
    assert found.own == {"good": 1, "unknown": 1, "inert": 1}
    assert found.named == {"helpful good": 1, "helpful inert": 1}
    assert [row["kind"] for row in found.items] == ["good", "unknown", "inert", "good", "harmful", "harmful"]
    assert "precision at 10 0.20 (chance 0.40), AUC 0.833" in str(found)


def test_means_over_few_seeds_have_student_s_interval() -> None:
    def of(seed: int, value: float) -> planted.Result:
        return planted.Result(
            seed, 9, {}, [], chance=value, precision=value, auc=value, harmful_below_0=value, named={}
        )

    # 1, 2 and 3: standard deviation 1, and 4.303 standard errors to each side for two degrees of freedom.
    found = planted.means_of([of(seed, seed) for seed in (1, 2, 3)])["auc"]
    assert found == (2, pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4), pytest.approx(2 + 4.30265 / 3**0.5, abs=1e-4))
    assert planted.means_of([of(1, 0.5)])["auc"] == (0.5, -inf, inf)


@pytest.mark.slow
def test_a_finished_run_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--work", str(tmp_path), "--model", "pocket-s", "--seeds", "3", "--episodes", "32", "--play", "8"]
    words += ["--confirm-tasks", "4", "--turns", "3"]
    planted.main([*words, "--json", str(tmp_path / "one.json")])
    monkeypatch.setattr(Player, "play", None)
    planted.main([*words, "--json", str(tmp_path / "two.json")])
    whole = json.loads((tmp_path / "one.json").read_text())
    assert all(ends[1:] == [None, None] for ends in whole["means"].values())  # one seed; JSON has no infinity
    found = whole["results"][0]
    assert {row["n"] for row in found["items"]} == {12} and found["episodes"] == 32
    assert {row["n"] for row in found["confirm"].values()} == {4}
    assert int(found["inert"]["inert"].rpartition(" of ")[2]) >= planted.PLANTED  # and its own
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
