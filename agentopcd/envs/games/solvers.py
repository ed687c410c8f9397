"""The two grid games as plain transition models: what a move does, and the shortest way to win.

The models serve floors, ceilings and tests; the games themselves are TextArena's. A model knows which moves
are invalid, because two invalid moves in a row end a game.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable
from typing import Any, Literal, Protocol

Cell = tuple[int, int]
Event = Literal["ok", "invalid", "won", "lost"]

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MAX_STATES = 200_000
"""Number of states at which the search for a solution gives up; only rooms with several boxes come close."""


class Model(Protocol):
    """A game whose whole state is known."""

    @property
    def moves(self) -> tuple[str, ...]: ...

    @property
    def two_invalid_end(self) -> bool:
        """Whether a second invalid move in a row ends the game."""
        ...

    @property
    def start(self) -> Hashable: ...

    def move(self, state: Any, name: str) -> tuple[Any, Event]:
        """Return the next state (unchanged after an invalid move) and the event."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Lake:
    """A frozen lake: holes end the game, the goal wins it, the border stops a move."""

    size: int
    holes: frozenset[Cell]
    start: Cell
    goal: Cell
    moves: tuple[str, ...] = tuple(MOVES)
    two_invalid_end: bool = True
    """False where bumping into the border is a move like any other (Gymnasium's lake)."""

    def move(self, state: Cell, name: str) -> tuple[Cell, Event]:
        down, right = MOVES[name]
        cell = (state[0] + down, state[1] + right)
        if not (0 <= cell[0] < self.size and 0 <= cell[1] < self.size):
            return state, "invalid"
        if cell in self.holes:
            return cell, "lost"
        return cell, "won" if cell == self.goal else "ok"


Room = tuple[Cell, frozenset[tuple[Cell, bool]]]
"""The player's cell, and each box with whether it counts as delivered."""


@dataclasses.dataclass(frozen=True, slots=True)
class Warehouse:
    """A Sokoban room.

    A box counts as delivered only after it was *pushed* onto a goal: TextArena shows a box that starts on
    a goal as undelivered.
    """

    floor: frozenset[Cell]
    goals: frozenset[Cell]
    player: Cell
    boxes: frozenset[Cell]
    moves: tuple[str, ...] = tuple(MOVES)
    two_invalid_end: bool = True

    @property
    def start(self) -> Room:
        return self.player, frozenset((box, False) for box in self.boxes)

    def move(self, state: Room, name: str) -> tuple[Room, Event]:
        (row, column), boxes = state
        down, right = MOVES[name]
        cell = (row + down, column + right)
        if cell not in self.floor:
            return state, "invalid"
        pushed = next((box for box in boxes if box[0] == cell), None)
        if pushed is None:
            return (cell, boxes), "ok"
        beyond = (cell[0] + down, cell[1] + right)
        if beyond not in self.floor or any(box[0] == beyond for box in boxes):
            return state, "invalid"
        moved = boxes - {pushed} | {(beyond, beyond in self.goals)}
        return (cell, moved), "won" if all(delivered for _, delivered in moved) else "ok"


def shortest(model: Model, max_states: int = MAX_STATES) -> list[str] | None:
    """Return a shortest winning sequence of moves, ``None`` if there is none or the search grew too large."""
    came_from: dict[Any, tuple[Any, str]] = {}
    seen = {model.start}
    queue = deque([model.start])
    while queue and len(seen) < max_states:
        state = queue.popleft()
        for name in model.moves:
            following, event = model.move(state, name)
            if event == "won":
                return [*_way_back(came_from, state), name]
            if event == "ok" and following not in seen:
                seen.add(following)
                came_from[following] = (state, name)
                queue.append(following)
    return None


def _way_back(came_from: dict[Any, tuple[Any, str]], state: Any) -> list[str]:
    moves: list[str] = []
    while state in came_from:
        state, name = came_from[state]
        moves.append(name)
    return moves[::-1]
