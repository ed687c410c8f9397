"""Samples of pocket's corpus, and readers of them that share no code with it."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from agentopcd.core.types import MARKER, Context
from agentopcd.envs.games.solvers import Cell
from recipes.pocket import corpus, wording
from recipes.pocket.worlds import Played, Rules


def only(kind: str, stage: corpus.Stage = corpus.LAST) -> corpus.Stage:
    """The stage with samples of one kind, or of ``games``: lakes and rooms."""
    wanted = ("lake", "room") if kind == "games" else (kind,)
    return dataclasses.replace(stage, weights=tuple(float(k in wanted) for k in corpus.KINDS))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A game of the corpus, the rules of its world and what was believed."""

    made: corpus.Sample
    letters: tuple[str, str]
    world: Rules
    belief: Rules

    @property
    def usual(self) -> bool:
        return self.letters in (("G", "H"), ("O", "X"))

    @property
    def blind(self) -> bool:
        return self.made.told == 0


def draw_games() -> list[Drawn]:
    """Lakes and rooms in equal parts, 6,000 in all, and the worlds they were played in."""
    worlds_of: list[tuple[Any, ...]] = []
    play = corpus._play

    def spy(rng: Any, game: str, stage: Any, letters: Any, world: Rules, belief: Rules, *how: Any) -> Played:
        worlds_of.append((letters, world, belief))
        return play(rng, game, stage, letters, world, belief, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_play", spy)
        return [Drawn(corpus.sample("games", n, only("games")), *worlds_of[-1]) for n in range(6000)]


# ---- boards --------------------------------------------------------------------------------------


def positions(state: str) -> dict[str, list[Cell]]:
    """What stands where on a board: letters, ``wall``, and all its cells, of which the walls are a part."""
    rows = state.removeprefix("Current Board:\n\n").split("\n")
    found: dict[str, list[Cell]] = defaultdict(list)
    if rows[0].startswith("+"):
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1::2]]
    else:
        wall = rows[0][0]
        cells = [["wall" if cell == wall else cell for cell in row.split(" ")] for row in rows]
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            found["all"].append((r, c))
            for glyph in cell.split("/"):
                found[glyph].append((r, c))
    return found


def state_of(messages: Sequence[Any]) -> str:
    """The board that a prompt asks about: the last one in it."""
    text = "Current Board:" + messages[-1]["content"].rpartition("Current Board:")[2]
    return text.removesuffix(f"\n\n{corpus.HOW_TO_MOVE}")


def board_in(text: str) -> str:
    """The first board in a text."""
    rows = text[text.index("Current Board:") :].split("\n")
    until = next((i for i, row in enumerate(rows[2:], 2) if not re.match(r"[+|]|\S( \S)+$", row)), len(rows))
    return "\n".join(rows[:until])


def cells_of(words: str) -> list[Cell]:
    """Squares as the thinking line writes them: row a, b, ... and column 1, 2, ..."""
    return [("abcdefgh".index(word[0]), int(word[1:]) - 1) for word in words.split()]


# ---- replies -------------------------------------------------------------------------------------


STATED = re.compile(r"<think>(goal|box) ([A-Z]) (hole|target) ([A-Z]) up>(up|down) right>(right|left) (.*)")


def stated(reply: str) -> Rules:
    """The belief that a reply's thinking line states."""
    found = STATED.match(reply)
    assert found, reply
    assert (found[1], found[3]) in (("goal", "hole"), ("box", "target"))
    return Rules(found[2], found[4], found[5] == "down", found[6] == "left")


# ---- contexts ------------------------------------------------------------------------------------


_LETTER = re.compile(r"""\b[Tt]he letter ([A-Z])\b|['"(]([A-Z])['")]""")


def plain(sentence: str) -> str:
    """The sentence with bare letters."""
    return _LETTER.sub(lambda found: found[1] or found[2], sentence)


def template(text: str) -> re.Pattern[str]:
    text = re.escape(text).replace(r"\{L\}", r"(?P<L>[A-Z])")
    return re.compile(text.replace(r"\{A\}", "(?P<A>[A-Z])").replace(r"\{B\}", "(?P<B>[A-Z])"))


ROLES = [(template(t), kind) for kind, listed in wording._ROLES.items() for t in listed]
PAIRS = [(template(t), ("goal", "hole") if game == "lake" else ("box", "target"))
         for game, listed in wording._PAIRS.items() for t in listed]  # fmt: skip
ASIDES = [template(t) for t in wording.ASIDES + wording._OTHER_TASKS]


def read(sentence: str) -> list[tuple[str, Any]]:
    """The facts that a sentence states; a sentence that nobody wrote is an error."""
    text = plain(sentence)
    for both, listed in wording._BOTH_AXES.items():
        if text in listed:
            return [("vertical", both[0]), ("horizontal", both[1])]
    axis = [fact for fact, listed in wording._AXIS.items() if text in listed]
    roles = [(kind, m["L"]) for pattern, kind in ROLES if (m := pattern.fullmatch(text))]
    pairs = [f for p, (a, b) in PAIRS if (m := p.fullmatch(text)) for f in ((a, m["A"]), (b, m["B"]))]
    found = axis + roles + pairs
    assert len(set(found)) == (2 if pairs else 1) or any(p.fullmatch(text) for p in ASIDES), sentence
    return found


def sentences(text: str) -> list[str]:
    lines = [re.sub(rf"^(?:{re.escape(MARKER)} |- )", "", line) for line in text.splitlines()]
    return [sentence for line in lines for sentence in re.split(r"(?<=\.) ", line) if sentence]


def earlier_of(made: corpus.Sample) -> Context:
    """The items that an extraction prompt shows as known."""
    prompt = made.turns[0][0][0]["content"]
    known = re.search(rf"so where it proves wrong:\n((?:{re.escape(MARKER)} .*\n)+)\n", prompt)
    return Context(known[1].rstrip("\n")) if known else Context()
