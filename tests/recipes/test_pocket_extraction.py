"""Pocket's extractions: they say only what the trace shows."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from agentopcd.core.types import MARKER
from agentopcd.envs.games.solvers import Cell
from agentopcd.knowledge import flags, parse
from recipes.pocket import corpus
from tests.recipes.pocket_readers import board_in, cells_of, earlier_of, only, positions, read


def told_by_trace(prompt: str) -> tuple[set[tuple[str, Any]], list[tuple[str, Cell]]]:
    """The facts that the text of a trace shows, and each answer with where P stood; read from the text alone."""
    trace = prompt.partition("This is what you saw and what you answered.\n\n")[2]
    turns = re.findall(r"Turn \d+\. You saw:\n(.*?)\nYou answered: (.*?)(?=\n\n(?:Turn|End))", trace, re.S)
    end = re.search(r"\n\nEnd of the round:\n(.*?)\n\n(?:What you know|The next round)", trace, re.S)
    assert turns and end
    shown = [text for text, _ in turns] + [end[1]]
    found: set[tuple[str, Any]] = set()
    boards = [positions(board_in(text)) for text in shown]
    for (_, answer), before, after, on, then in zip(turns, shown, shown[1:], boards, boards[1:], strict=False):
        move = answer.strip("[]")
        went = re.search(r"You moved (\w+) to|moved \[(\w+)\]\.|You tried to move (\w+) but", after)
        if went:
            actual = next(x for x in went.groups() if x)
            axis = {"up": "vertical", "down": "vertical", "left": "horizontal", "right": "horizontal"}[actual]
            assert answer == f"[{move}]" and before
            found.add((axis, move != actual))
        stood = [letter for letter in on if len(letter) == 1 and letter != "P" and then["P"][0] in on[letter]]
        if "fell into a hole" in after:
            found.add(("hole", *stood))  # type: ignore[arg-type]
        if "reached the goal" in after:
            found.add(("goal", *stood))  # type: ignore[arg-type]
        if "pushed a box" in after:
            found.add(("box", *stood))  # type: ignore[arg-type]
        if "solved the Sokoban" in after:
            (spot,) = then["√"]
            found.add(("target", *(x for x in on if len(x) == 1 and spot in on[x])))  # type: ignore[arg-type]
        if "hit a wall" in after or "cannot move into a wall" in after:
            found.add(("wall", None))
            if after is shown[-1] and "Invalid Move:" in after:
                found.add(("invalid", None))
    return found, [(answer, on["P"][0]) for (_, answer), on in zip(turns, boards, strict=False)]


SAID = {"Leaving the board is an invalid move.": ("wall", None), "A wall cannot be entered.": ("wall", None),
        "Two invalid moves in a row end the game.": ("invalid", None)}  # fmt: skip


def test_extraction_says_only_what_the_trace_shows() -> None:
    seen, mumbled, single = Counter[str](), 0, 0
    for number in range(2500):
        made = corpus.sample("extract", number, only("extract"))
        ((messages, reply),) = made.turns
        prompt = messages[0]["content"]
        think, _, said = reply.partition(corpus.END_THINK)
        items = parse(reply)
        assert said == "\n".join(f"{MARKER} {item.text}" for item in items) == "\n".join(i.raw for i in items)
        assert len(items) <= 2
        assert not any(flags(item.text) for item in items), said
        if prompt.startswith("Question: "):
            assert reply == f"{corpus.THINK}open{corpus.END_THINK}"
            single += 1
            continue
        if "[w], [a], [s], [d]" in prompt:
            assert reply == f"{corpus.THINK}open{corpus.END_THINK}"
            mumbled += 1
            continue
        shown, moves = told_by_trace(prompt)
        known = {fact for line in earlier_of(made).lines for fact in read(line) or [SAID[line]]}
        told = [fact for item in items for fact in read(item.text) or [SAID[item.text]]]
        assert known <= shown and not known & set(told) and set(told) <= shown, (prompt, reply)
        assert len(told) == len(items) == len(set(told))
        assert bool(told) == bool(shown - known), (prompt, reply)  # and says something wherever there is something
        named = {move for item in items for move in re.findall(r"\[(up|down|left|right)\]", item.text)}
        assert named <= {answer.strip("[]") for answer, _ in moves}, (prompt, reply)
        notes = re.findall(r"(\[\w+\]) (\w\d) (\w\d)", think)
        assert [(move, *cells_of(a)) for move, a, _ in notes] == moves, reply
        seen.update(kind for kind, _ in told)
    assert mumbled > 30 and single > 30
    kinds = ("goal", "hole", "box", "target", "vertical", "horizontal", "wall", "invalid")
    assert all(seen[kind] > 20 for kind in kinds), seen
