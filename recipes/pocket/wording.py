"""How a context may say what it says: many wordings of each fact, some kept out of training.

A *fact* is ``(kind, value)``: ``("goal", "G")``, ``("hole", "H")``, ``("box", "X")``, ``("target", "O")``,
``("vertical", swapped)`` or ``("horizontal", swapped)``.
"""

from __future__ import annotations

import random
from typing import Any

from agentopcd.core.types import MARKER, Context
from recipes.pocket.worlds import LETTERS, Rules

Fact = tuple[str, object]

_ROLES = {
    "goal": [
        "{L} is the goal.", "Reach {L} to win.", "Stepping on {L} wins the game.", "The goal is {L}.",
        "Walk to {L}.", "Go to {L}, that wins.", "{L} is the goal, reach it.", "You win when you reach {L}.",
        "Move P onto {L} to win.", "{L} marks the goal.", "Get to {L}.", "Your goal is {L}.", "{L} wins.",
        "The way to win is to step on {L}.", "{L} is where P has to go.", "Head for {L}.",
    ],
    "hole": [
        "{L} is a hole.", "{L} is a hole, never step on it.", "Never step on {L}.", "Avoid {L}.",
        "Stepping on {L} ends the game.", "Stepping on {L} loses the game.", "You lose when you step on {L}.",
        "Keep away from {L}.", "{L} loses.", "Do not walk into {L}.", "Walk around {L}.", "Holes are drawn as {L}.",
        "{L} is deadly.",
        "If you enter {L} you fall and lose.", "{L} marks a hole.", "Falling into {L} ends the round.",
    ],
    "box": [
        "{L} is the box.", "{L} is a box, push it.", "Push {L}.", "Walk into {L} to push it.", "{L} can be pushed.",
        "{L} moves when you walk into it.", "The box is {L}.", "The box is drawn as {L}.", "{L} is what you push.",
        "Stand behind {L} and push it.", "{L} marks the box.", "The thing to push is {L}.",
    ],
    "target": [
        "{L} is the target.", "The box must end on {L}.", "Bring the box to {L}.", "{L} is where the box must go.",
        "Push the box onto {L} to win.", "The target is {L}.", "You win when the box is on {L}.",
        "{L} marks the target.",
        "Deliver the box to {L}.", "The box belongs on {L}.", "The target is drawn as {L}.",
        "Win by pushing the box to {L}.",
    ],
}  # fmt: skip
_PAIRS = {
    "lake": [
        "{A} is the goal and {B} is a hole.", "Reach {A} and avoid {B}.", "Go to {A}, never step on {B}.",
        "{B} is a hole and {A} is the goal.", "Walk around {B} to reach {A}.", "Avoid {B} and reach {A}.",
        "{A} wins and {B} loses.", "Find the shortest way to {A} that does not touch {B}.",
    ],
    "room": [
        "Push {A} onto {B}.", "{A} is the box and {B} is the target.", "Push {A} to {B} to win.",
        "Move {A} onto {B}.", "The box {A} must be pushed onto the target {B}.",
        "{B} is the target and {A} is the box.",
        "Get behind {A} and push it toward {B}.", "You win when {A} stands on {B}.",
    ],
}  # fmt: skip
_AXIS = {
    ("vertical", False): [
        "[up] moves P up.", "[down] moves P down.", "[up] moves P up and [down] moves P down.", "[up] goes up.",
        "[down] goes down.", "Up and down work as named.", "The vertical moves go where their names say.",
        "[up] goes one row up.", "To go up answer [up].", "To go down answer [down].", "Up is up and down is down.",
    ],
    ("vertical", True): [
        "[up] moves P down.", "[down] moves P up.", "[up] moves P down and [down] moves P up.", "[up] goes down.",
        "[down] goes up.", "Up and down are swapped.", "The vertical moves go the opposite way.",
        "[up] goes one row down.", "To go up answer [down].", "To go down answer [up].", "Up is down and down is up.",
    ],
    ("horizontal", False): [
        "[right] moves P right.", "[left] moves P left.", "[left] moves P left and [right] moves P right.",
        "[right] goes right.", "[left] goes left.", "Left and right work as named.",
        "The horizontal moves go where their names say.", "[right] goes one column right.",
        "To go right answer [right].", "To go left answer [left].", "Left is left and right is right.",
    ],
    ("horizontal", True): [
        "[right] moves P left.", "[left] moves P right.", "[left] moves P right and [right] moves P left.",
        "[right] goes left.", "[left] goes right.", "Left and right are swapped.",
        "The horizontal moves go the opposite way.", "[right] goes one column left.",
        "To go right answer [left].", "To go left answer [right].", "Left is right and right is left.",
    ],
}  # fmt: skip
_BOTH_AXES = {
    (False, False): [
        "Moves go where their names say.", "All moves work as named.", "Every move does what it says.",
        "[up], [down], [left] and [right] move P as named.", "The moves are not swapped.",
    ],
    (True, True): [
        "Every move goes the opposite way.", "All moves are swapped.", "The moves do the opposite of their names.",
        "All four moves are reversed.",
    ],
    (True, False): [
        "Up and down are swapped, left and right are not.", "Only up and down are swapped.",
        "Only the vertical moves are swapped.", "Left and right work as named, up and down are swapped.",
        "[up] moves P down and [down] moves P up, [left] and [right] move P as named.",
        "The vertical moves go the opposite way, the horizontal moves go where their names say.",
    ],
    (False, True): [
        "Left and right are swapped, up and down are not.", "Only left and right are swapped.",
        "Only the horizontal moves are swapped.", "Up and down work as named, left and right are swapped.",
        "[left] moves P right and [right] moves P left, [up] and [down] move P as named.",
        "The horizontal moves go the opposite way, the vertical moves go where their names say.",
    ],
}  # fmt: skip
ASIDES = [
    "Think before you move.", "Shorter ways are better.", "Two invalid moves in a row end the game.",
    "Leaving the board is an invalid move.", "Plan the whole way first.", "P is you.", "You are P.", "Be careful.",
    "Answer with one move.", "Do not hurry.", "You are a helpful assistant.", "A wall cannot be entered.",
    "Look at the whole board.", "You can not walk through a wall.", "Every move counts.",
]  # fmt: skip
ORDERS = ["Take all results modulo 7.", "Write the answer in brackets.", "Answer in upper case.", "Reverse the words."]
_OTHER_TASKS = [*ORDERS, "{L} is a friend.", "{L} is harmless.", "{L} is only snow."]

HELD_OUT = {
    "goal": ["Get P onto {L} and the game is won.", "What you are after is {L}."],
    "hole": ["Stay off {L}, it kills you.", "Beware of {L}: it swallows P and the round is lost."],
    "box": ["What has to be shoved is {L}."],
    "target": ["Park the box on top of {L}."],
}
"""Wordings that no training text uses, for measuring whether a context is read or only recognised."""


def facts_of(game: str, rules: Rules) -> list[Fact]:
    """All that can be said about ``rules``."""
    names = ("goal", "hole") if game == "lake" else ("box", "target")
    return [
        (names[0], rules.first), (names[1], rules.second),
        ("vertical", rules.vertical), ("horizontal", rules.horizontal),
    ]  # fmt: skip


def letter(rng: random.Random, name: str) -> str:
    """A letter as people write one."""
    return rng.choice([name] * 8 + [f"'{name}'", f'"{name}"', f"the letter {name}", f"({name})"])


def sentences(fact: Fact) -> list[str]:
    """Every sentence that states this fact and no other, with its letter as it is."""
    kind, value = fact
    if kind in _ROLES:
        return [_capital(wording.format(L=value)) for wording in dict.fromkeys([*_ROLES[kind], *ITEM[kind]])]
    return _AXIS[kind, bool(value)]


def say(rng: random.Random, fact: Fact) -> str:
    """One sentence for one fact."""
    kind, value = fact
    if kind in _ROLES:
        return _capital(rng.choice(_ROLES[kind]).format(L=letter(rng, str(value))))
    return rng.choice(_AXIS[kind, bool(value)])


def say_all(rng: random.Random, game: str, facts: list[Fact]) -> list[str]:
    """Sentences for ``facts``, in any order, two facts in one sentence where a wording for it exists."""
    left = dict(facts)
    lines = []
    names = ("goal", "hole") if game == "lake" else ("box", "target")
    if all(name in left for name in names) and rng.random() < 0.4:
        first, second = (letter(rng, str(left.pop(name))) for name in names)
        lines.append(_capital(rng.choice(_PAIRS[game]).format(A=first, B=second)))
    if "vertical" in left and "horizontal" in left and rng.random() < 0.5:
        axes = bool(left.pop("vertical")), bool(left.pop("horizontal"))
        lines.append(rng.choice(_BOTH_AXES[axes]))
    lines += [say(rng, fact) for fact in left.items()]
    rng.shuffle(lines)
    return lines


def context(rng: random.Random, game: str, belief: Rules, plain: float = 0.0) -> tuple[Context, list[Fact]]:
    """A context and the facts it settles. What it leaves open is for the reader to guess.

    Args:
        plain: share of contexts that tell every fact once and nothing else.
    """
    facts = facts_of(game, belief)
    if rng.random() < plain:
        lines = say_all(rng, game, facts)
        marked = rng.random() < 0.5
        return Context("\n".join(f"{MARKER} {line}" if marked else line for line in lines)), facts
    draw = rng.random()
    if draw < 0.55:
        told = facts
    elif draw < 0.9:
        told = rng.sample(facts, rng.randint(1, 3))
    else:
        told = []
    lines = say_all(rng, game, told)
    if told and rng.random() < 0.35:  # found more than once, in other words
        lines += [say(rng, rng.choice(told)) for _ in range(rng.randint(1, 4))]
        rng.shuffle(lines)
    if told and rng.random() < 0.12:  # one wrong line, outvoted by two right ones of the same fact
        fact = rng.choice(told)
        lines += [say(rng, fact), say(rng, fact), say(rng, opposite(game, fact, belief))]
        rng.shuffle(lines)
    if not told or rng.random() < 0.35:
        for _ in range(rng.randint(1, 3)):
            unused = rng.choice([x for x in LETTERS if x not in (belief.first, belief.second)])
            aside = rng.choice(ASIDES) if rng.random() < 0.7 else rng.choice(_OTHER_TASKS).format(L=unused)
            if rng.random() < 0.15:  # true of another game
                aside = say(rng, (rng.choice(["box", "target"] if game == "lake" else ["goal", "hole"]), unused))
            lines.insert(rng.randint(0, len(lines)), aside)
    lines = list(dict.fromkeys(lines))
    placement = "system" if rng.random() < 0.3 else "user"
    if rng.random() < 0.6:
        return Context("\n".join(f"{MARKER} {line}" for line in lines), placement), told
    joint = rng.choice([" ", " ", "\n", "\n- "])
    return Context(("- " if joint == "\n- " else "") + joint.join(lines), placement), told


def opposite(game: str, fact: Fact, belief: Rules) -> Fact:
    """The same kind of fact, as it is not."""
    kind, value = fact
    if kind in ("vertical", "horizontal"):
        return kind, not value
    return kind, belief.second if value == belief.first else belief.first


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text[0].islower() and text[1].islower() else text


ITEM: dict[str, Any] = {
    "goal": ["{L} is the goal, reach it.", "{L} is the goal.", "Reach {L} to win.", "Stepping on {L} wins the game."],
    "hole": ["{L} is a hole, never step on it.", "{L} is a hole.", "Never step on {L}.",
             "Stepping on {L} ends the game."],
    "box": ["{L} is the box.", "{L} is a box, push it.", "{L} can be pushed.", "Walk into {L} to push it."],
    "target": ["{L} is the target.", "The box must end on {L}.", "You win when the box is on {L}.",
               "Bring the box to {L}."],
    "wall": {"lake": "Leaving the board is an invalid move.", "room": "A wall cannot be entered."},
    "invalid": ["Two invalid moves in a row end the game."],
}  # fmt: skip
"""How the extractor words what a trace supports."""


def item(rng: random.Random, game: str, fact: Fact, pressed: set[str]) -> str:
    """One lesson. Of the moves it names only those that were ``pressed``, as the player calls them."""
    kind, value = fact
    if kind in ("vertical", "horizontal"):
        one, other = ("up", "down") if kind == "vertical" else ("right", "left")
        wordings = _AXIS[kind, bool(value)]
        if {one, other} <= pressed:
            return rng.choice(wordings[:3] + wordings[5:7])
        return wordings[0 if one in pressed else 1]
    if kind == "wall":
        return ITEM[kind][game]
    return rng.choice(ITEM[kind]).format(L=value)
