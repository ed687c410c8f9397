"""Pocket's corpus favours no rules: every belief is as frequent as any other, and no board tells which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from agentopcd.envs.games.solvers import MOVES
from recipes.pocket import worlds
from recipes.pocket.worlds import Rules
from tests.recipes.pocket_readers import Drawn, positions, state_of, stated


def test_every_reply_of_a_game_states_one_and_the_same_belief(games: list[Drawn]) -> None:
    for game in games:
        assert {stated(reply) for _, reply in game.made.turns} == {game.belief}


def chi_square(counts: Counter[Any], cells: Sequence[Any]) -> float:
    expected = sum(counts[cell] for cell in cells) / len(cells)
    assert expected > 20 and sum(counts.values()) == sum(counts[cell] for cell in cells), counts
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells)


@pytest.mark.parametrize("letters", [("G", "H"), ("O", "X")])
@pytest.mark.parametrize("told", ["blind", "told"])
def test_textarenas_own_rules_are_as_frequent_as_any_other(
    letters: tuple[str, str], told: str, games: list[Drawn]
) -> None:
    mine = [g for g in games if g.letters == letters and g.made.kind == ("lake" if "G" in letters else "room")]
    beliefs = Counter(stated(g.made.turns[0][1]) for g in mine if g.blind == (told == "blind"))
    assert chi_square(beliefs, worlds.hypotheses(letters)) < 29.9  # 7 degrees of freedom: one chance in 10,000
    first = Counter(b.first for b in beliefs.elements())
    assert chi_square(first, letters) < 15.1  # one degree


def test_unusual_letters_take_each_role_equally_often(games: list[Drawn]) -> None:
    mine = [g for g in games if not g.usual]
    assert chi_square(Counter(g.belief.first == min(g.letters) for g in mine), (True, False)) < 15.1
    assert len({g.belief.first for g in mine}) == len({g.belief.second for g in mine}) == 25


def test_a_blind_guess_is_independent_of_the_world(games: list[Drawn]) -> None:
    def number(g: Drawn, rules: Rules) -> int:
        return worlds.hypotheses(g.letters).index(rules)

    pairs = Counter((number(g, g.world), number(g, g.belief)) for g in games if g.blind)
    assert chi_square(pairs, [(w, b) for w in range(8) for b in range(8)]) < 115  # 63 degrees: one in 10,000
    agree = Counter(world == belief for world, belief in pairs.elements())
    assert 0.08 < agree[True] / agree.total() < 0.17  # an eighth


@pytest.mark.parametrize("kind", ["lake", "room"])
def test_no_board_gives_the_guess_away(kind: str, games: list[Drawn]) -> None:
    """Which letter is alone, nearest, in the corner, ... tells nothing of the guess; nor does the first move."""
    agree: dict[str, Counter[bool]] = defaultdict(Counter)
    for g in games:
        if g.made.kind != kind or not g.blind:
            continue
        on = positions(state_of(g.made.turns[0][0]))
        (player,) = on["P"]
        first, second = (on[letter] for letter in (g.belief.first, g.belief.second))
        for name, a, b in (
            ("fewer", len(first), len(second)),
            ("nearer", *(min(abs(c[0] - player[0]) + abs(c[1] - player[1]) for c in x) for x in (first, second))),
            ("higher", min(first), min(second)),
            ("lower", max(first), max(second)),
            ("at a wall", *(sum((c[0] + d, c[1] + e) in on["wall"] for c in x for d, e in MOVES.values())
                            for x in (first, second))),
            ("corner", max(on["all"]) in first, max(on["all"]) in second),
        ):  # fmt: skip
            if a != b:
                agree[name][a < b] += 1  # type: ignore[operator]  # both of one type
    assert len(agree) >= 3
    for name, counts in agree.items():
        if counts.total() > 40:
            assert chi_square(counts, (True, False)) < 15.1, (name, counts)


def test_worlds_agree_with_what_their_context_tells_mostly(games: list[Drawn]) -> None:
    full = [game for game in games if game.made.told == 4]
    true = sum(game.world == game.belief for game in full) / len(full)
    assert 0.77 < true < 0.88  # 80 %, and an eighth of the rest
