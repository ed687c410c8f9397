"""MiniGrid and BabyAI in words: what the agent sees, the names of its actions, and the whole state as a task key.

The package itself is imported by Gymnasium, when an environment is built; what is here reads its public encodings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentopcd.envs.games.inside import canonical, draws_later
from agentopcd.envs.views import hash_text

FAMILIES = ("MiniGrid-", "BabyAI-")
"""How the ids of these environments begin."""
MAX_STEPS = 100
"""Replies per episode. The package registers no limit; its environments also end by limits of their own."""

_FACING = ("east", "south", "west", "north")
_LETTERS = {
    "unseen": "?", "empty": ".", "floor": ".", "wall": "#", "door": "D", "key": "K", "ball": "B", "box": "X",
    "goal": "G", "lava": "L", "agent": "A",
}  # fmt: skip
_UNLISTED = {"unseen", "empty", "floor", "wall"}
_DOES = {
    "left": "turns you left",
    "right": "turns you right",
    "forward": "takes a step ahead",
    "pickup": "takes what lies ahead",
    "drop": "puts down what you carry",
    "toggle": "opens or closes a door or a box ahead (a locked door needs the key of its colour)",
    "done": "says that the mission is done",
}


def preset(env: Any) -> dict[str, Any]:
    """Return the arguments of :class:`.gym_bridge.FromGym` that put such an environment into words."""
    named = [(action.name, int(action)) for action in env.unwrapped.actions if int(action) < env.action_space.n]
    does = [f"[{name}] {_DOES.get(name, 'has no meaning here')}" for name, _ in named]
    rules = f"You walk on a grid and see part of it. Ahead is one cell. {'; '.join(does)}."
    return {"actions": dict(named), "rules": rules, "to_text": words, "key": state_key}


def words(obs: Mapping[str, Any], env: Any = None) -> str:
    """Return what the agent sees, in words.

    The view is drawn as it is encoded: the agent stands in the middle of the lowest row and faces up, and its own cell
    holds what it carries.

    Args:
        obs: ``image``, cells of (object, colour, state) by column and row; ``direction``, 0 to 3; ``mission``.
        env: not looked at; the bridge passes it.
    """
    cells = obs["image"]
    middle, bottom = cells.shape[0] // 2, cells.shape[1] - 1
    carried = _thing(cells[middle, bottom])
    rows = [
        " ".join(
            "^" if (column, row) == (middle, bottom) else _LETTERS.get(_kind(cells[column, row]), "*")
            for column in range(cells.shape[0])
        )
        for row in range(cells.shape[1])
    ]
    while len(rows) > 2 and not set("".join(rows[:2])) - set("?# "):  # nothing but wall from here on
        rows.pop(0)
    ahead = _kind(cells[middle, bottom - 1])
    seen = [f"{_LETTERS.get(kind, '*')} {thing}: {where}" for kind, thing, where in _listed(cells, middle, bottom)]
    return "\n".join([
        f"Mission: {obs['mission']}",
        f"You face {_FACING[int(obs['direction'])]} and carry {carried or 'nothing'}."
        f" Ahead of you: {_thing(cells[middle, bottom - 1]) or ('a wall' if ahead == 'wall' else 'nothing')}.",
        "Your view (^ you, looking up; # wall; . free; ? not seen):",
        *rows,
        *seen,
    ])  # fmt: skip


def _listed(cells: Any, middle: int, bottom: int) -> Iterator[tuple[str, str, str]]:
    """Kind, name and place of everything that is seen, nearest first."""
    places = [(column, row) for column in range(cells.shape[0]) for row in range(cells.shape[1])]
    for column, row in sorted(places, key=lambda at: (bottom - at[1] + abs(at[0] - middle), at)):
        kind = _kind(cells[column, row])
        if kind not in _UNLISTED and (column, row) != (middle, bottom):
            aside = column - middle
            steps = [f"{bottom - row} ahead"] if row < bottom else []
            steps += [f"{abs(aside)} {'left' if aside < 0 else 'right'}"] if aside else []
            yield kind, _thing(cells[column, row]).partition(" ")[2], ", ".join(steps)


def _thing(cell: Any) -> str:
    """Return a cell's thing with article, colour and state; '' for a wall, free ground, or what is not seen."""
    from minigrid.core.constants import IDX_TO_COLOR, STATE_TO_IDX

    kind = _kind(cell)
    if kind in _UNLISTED:
        return ""
    if kind == "lava":
        return "some lava"
    states = {number: name for name, number in STATE_TO_IDX.items()}
    state = f"{states[int(cell[2])]} " if kind == "door" else ""
    named = f"{state}{IDX_TO_COLOR[int(cell[1])]} {kind}"
    return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"


def _kind(cell: Any) -> str:
    from minigrid.core.constants import IDX_TO_OBJECT

    return IDX_TO_OBJECT[int(cell[0])]


def state_key(env: Any) -> str:
    """Return the key of the whole state: all cells with what boxes hold, the agent, and the mission.

    Where steps draw at random, as those of moving obstacles do, the generator's state belongs to it.
    """
    inner = env.unwrapped
    facts = (inner.width, inner.height, inner.grid.grid, inner.agent_pos, inner.agent_dir, inner.carrying)
    told = [canonical(facts), str(inner.mission)]
    if draws_later(type(inner)):
        told.append(repr(inner.np_random.bit_generator.state))
    return hash_text("\n".join(told))
