"""The corpus of pocket as a function: the one the weights were trained on, pure, without what is held out."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agentopcd.models import find
from recipes.pocket import corpus
from tests.recipes.pocket_readers import board_in, only


@pytest.mark.parametrize("name", find.SHIPPED)
def test_the_corpus_is_the_one_the_weights_were_trained_on(name: str) -> None:
    from recipes.pocket import train

    trained_on = json.loads((find.WEIGHTS / name / "agentopcd.json").read_text())["corpus"]
    found = corpus.fingerprint(train.SEED)
    assert found == trained_on, (
        f"the corpus changed (hash {found}, {name} was trained on {trained_on}): retraining would no longer give the "
        "shipped weights. Undo the change in recipes/pocket or agentopcd/envs/puzzles.py, or train pocket and "
        "pocket-s again (python -m recipes.pocket.train), which writes the new hash beside the weights"
    )


def test_what_figures_are_made_on_is_held_out_under_both_roles_of_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.pocket import train

    assert {f"{name}-swapped" for name in ("frozen-lake-4x4", "sokoban")} < set(train.TESTED)
    monkeypatch.setattr(train, "TESTED", ("frozen-lake-4x4", "frozen-lake-4x4-swapped"))
    held_out = train.held_out()
    assert len(held_out) == 2 * (256 + 127 + 64)
    exchange = str.maketrans("GH", "HG")
    assert {text.translate(exchange) for text in held_out} == held_out
    lakes = dataclasses.replace(only("lake"), lakes=(4,))

    def first_boards(forbidden: frozenset[str]) -> set[str]:
        made = [corpus.sample("hold", number, lakes, forbidden) for number in range(400)]
        return {text for one in made for text in corpus._first_states(one)}

    assert first_boards(frozenset()) & held_out  # else the texts are not written as training writes them
    assert not first_boards(held_out) & held_out


@pytest.mark.parametrize("kind", ["scan", "way"])
def test_held_out_boards_are_not_told_of_outside_a_game_either(kind: str) -> None:
    shown = [board for number in range(300) for board in corpus.sample("out", number, only(kind)).boards]
    assert len(shown) == 300 * {"scan": 6, "way": 12}[kind] and all(text.startswith("Current Board") for text in shown)
    for number in range(20):
        made = corpus.sample("out", number, only(kind))
        held_out = frozenset(made.boards[:1])
        assert not held_out & set(corpus.sample("out", number, only(kind), held_out).boards)


@pytest.mark.parametrize("kind", ["lake", "room", "extract", "instruct"])
def test_what_is_held_out_never_comes_first(kind: str) -> None:
    small = dataclasses.replace(only(kind), lakes=(2, 3), rooms=(5,))
    before = [corpus.sample("held", n, small) for n in range(400)]
    states = Counter(state for made in before for state in sorted(first_shown(made)))
    common = frozenset(state for state, _ in states.most_common(60))
    after = [corpus.sample("held", n, small, common) for n in range(400)]
    assert sum(bool(common & first_shown(made)) for made in before) >= 15
    assert not any(common & first_shown(made) for made in after)
    assert all(a == b for a, b in zip(after, before, strict=True) if not common & first_shown(b))


def first_shown(made: corpus.Sample) -> set[str]:
    """The first board of a game, or the questions of a sample without one, from the prompts alone."""
    text = made.turns[0][0][0]["content"]
    if made.kind == "instruct":
        return {messages[-1]["content"] for messages, _ in made.turns}
    if text.startswith("Question: "):
        return {text.partition("Question: ")[2].partition("\nYour answer:")[0]}
    return {board_in(text)}


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    for stage in corpus.STAGES.values():
        random.seed(1)
        np.random.seed(1)
        state, other = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
        first = [corpus.sample("pure", n, stage) for n in range(60)]
        assert random.getstate() == state and (np.random.get_state()[1] == other).all()  # type: ignore[union-attr]
        random.seed(2)
        np.random.seed(2)
        again = [corpus.sample("pure", n, stage) for n in reversed(range(60))][::-1]
        assert first == again
    assert corpus.sample("pure", 0, stage) != corpus.sample("other", 0, stage)
    assert {corpus.sample("pure", n, corpus.LAST).kind for n in range(300)} == set(corpus.KINDS)


def test_a_sample_does_not_depend_on_the_hash_seed(root: Path) -> None:
    code = "from recipes.pocket import corpus as c; print([c.sample('h', n, c.LAST) for n in range(150)])"
    out = [
        subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert out[0] == out[1] and len(out[0]) > 10_000
