"""The trace of a finished game: the facts it shows, how the game ended, and traces that show nothing."""

from __future__ import annotations

import random

from recipes.pocket import wording, worlds
from recipes.pocket.worlds import Played, Rules


def supported(game: str, played: Played, world: Rules) -> list[wording.Fact]:
    """The facts about ``world`` that this trace shows."""
    facts: list[wording.Fact] = []
    for step in played.steps:
        if not step.tried:
            continue
        kind = "vertical" if step.tried in ("up", "down") else "horizontal"
        # Where a bump names no direction, only a move that was made shows where its name goes.
        if step.actual or game == "lake":
            facts.append((kind, world.vertical if kind == "vertical" else world.horizontal))
        if not step.actual:
            facts.append(("wall", None))
    if game == "lake":
        facts += [("goal", world.first)] * played.won + [("hole", world.second)] * played.fell
    else:
        facts += [("box", world.first)] * played.pushed + [("target", world.second)] * played.won
    facts += [("invalid", None)] * played.two_invalid
    return list(dict.fromkeys(facts))


def ending(game: str, played: Played, world: Rules) -> str:
    if game == "lake":
        return f"won {world.first}" if played.won else f"lost {world.second}" if played.fell else "open"
    if played.won:
        return f"won {world.first} {world.second}"
    return f"pushed {world.first}" if played.pushed else "open"


_MUMBLES = ("", "I do not know", "right", "go on", "P", "down please")


def mumbled(rng: random.Random, game: str, played: Played) -> Played:
    """The same board, answered twice without a move: such a trace shows nothing of the rules."""
    reason = {
        "lake": "Invalid action format. Use [up], [down], [left], [right] or [w], [a], [s], [d].",
        "room": "The submitted move does not follow the correct format. Use [up], [down], [left], [right] or "
        "[w], [a], [s], [d].",
    }[game]
    state = played.steps[0].state
    steps = [worlds.Step("", state, "", rng.choice(_MUMBLES)),
             worlds.Step(worlds.INVALID.format(reason), state, "", rng.choice(_MUMBLES))]  # fmt: skip
    return Played(steps, "", state, f"Invalid Move: {reason}")
