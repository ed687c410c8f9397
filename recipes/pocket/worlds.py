"""Grid games with hidden rules: what a letter means and where a move goes are drawn anew for every world.

The boards and the feedback are written as TextArena 0.7.4 writes them (``agentopcd.envs.games.textarena``
shows them; tests compare the two), so what is learned here carries over to the real games.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque

from agentopcd.envs.games.solvers import MOVES, Cell, Lake, Warehouse

ROWS = "abcdefgh"
OPPOSITE = {"up": "down", "down": "up", "left": "right", "right": "left"}
LETTERS = "ABCDEFGHIJKLMNOQRSTUVWXYZ"
"""All but P, which is the player."""

INVALID = (
    "You attempted an invalid move. Reason: {} Please resubmit a valid move and remember to follow the game "
    "rules to avoid penalties."
)


def square(cell: Cell) -> str:
    """The name of a cell in the thinking line: row a, b, ... from the top, column 1, 2, ... from the left."""
    return f"{ROWS[cell[0]]}{cell[1] + 1}"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is hidden: the letter to reach (or to push to), the other letter, and which names are swapped."""

    first: str
    """The goal of a lake, the box of a room."""
    second: str
    """The hole of a lake, the target of a room."""
    vertical: bool = False
    """Whether [up] goes down and [down] goes up."""
    horizontal: bool = False

    def direction(self, name: str) -> str:
        """Where a move called ``name`` goes; also the name that goes in the direction ``name``."""
        swapped = self.vertical if name in ("up", "down") else self.horizontal
        return OPPOSITE[name] if swapped else name


def hypotheses(letters: tuple[str, str]) -> list[Rules]:
    """All rules one can believe of a game with these two letters: eight."""
    a, b = letters
    return [Rules(x, y, v, h) for x, y in ((a, b), (b, a)) for v in (False, True) for h in (False, True)]


@dataclasses.dataclass(frozen=True)
class LakeBoard:
    """A lake without its rules: which letter stands where."""

    size: int
    start: Cell
    cells: dict[Cell, str]
    goal_letter: str = ""
    """In the world's true rules; a hole is not seen under the player, a goal is."""

    def under(self, rules: Rules) -> tuple[frozenset[Cell], frozenset[Cell]]:
        """Goals and holes, as ``rules`` have it."""
        goals = frozenset(c for c, letter in self.cells.items() if letter == rules.first)
        return goals, frozenset(c for c, letter in self.cells.items() if letter == rules.second)

    def draw(self, player: Cell) -> str:
        border = "+" + "+".join(["-----"] * self.size) + "+"
        lines = [border]
        for row in range(self.size):
            shown = []
            for column in range(self.size):
                letter = self.cells.get((row, column), "")
                if (row, column) == player:
                    letter = f"P/{letter}" if letter and letter == self.goal_letter else "P"
                shown.append(f" {letter:^3} ")
            lines += ["|" + "|".join(shown) + "|", border]
        return "Current Board:\n\n" + "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class RoomBoard:
    """A Sokoban room without its rules."""

    height: int
    width: int
    walls: frozenset[Cell]
    start: Cell
    first: Cell
    """Where the letter ``letters[0]`` stands."""
    second: Cell
    letters: tuple[str, str]
    wall: str = "#"
    floor: str = "_"

    def roles(self, rules: Rules) -> tuple[Cell, Cell]:
        """Box and target, as ``rules`` have it."""
        return (self.first, self.second) if rules.first == self.letters[0] else (self.second, self.first)

    def draw(self, player: Cell, at: dict[Cell, str]) -> str:
        lines = []
        for row in range(self.height):
            shown = []
            for column in range(self.width):
                cell = (row, column)
                glyph = self.wall if cell in self.walls else at.get(cell, self.floor)
                shown.append("P" if cell == player else glyph)
            lines.append(" ".join(shown))
        return "Current Board:\n\n" + "\n".join(lines)


def places(board: str) -> dict[str, list[str]]:
    """Letter → squares where it stands, in reading order, read off a drawn board."""
    found: dict[str, list[str]] = {}
    rows = [line for line in board.splitlines()[2:] if not line.startswith("+")]
    for r, line in enumerate(rows):
        cells = line.strip("|").split("|") if line.startswith("|") else line.split(" ")
        for c, cell in enumerate(cells):
            found.setdefault(cell.strip(), []).append(square((r, c)))
    return found


# ---- playing ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """What the environment showed before a reply, and what the reply was."""

    feedback: str
    state: str
    think: str
    """The thinking line under the player's belief; '' where the target of a room cannot be seen."""
    move: str
    """The bracketed move, as the log of the game repeats it."""
    actual: str = ""
    """Where it really went; '' for an invalid move."""
    tried: str = ""
    frm: str = ""
    to: str = ""


@dataclasses.dataclass
class Played:
    steps: list[Step]
    feedback: str
    state: str
    outcome: str
    won: bool = False
    fell: bool = False
    pushed: bool = False
    two_invalid: bool = False


def lake_plan(rng: random.Random, board: LakeBoard, rules: Rules, player: Cell) -> tuple[str, str]:
    """The thinking line and the reply's move, under ``rules``: a random one of the shortest ways."""
    goals, holes = board.under(rules)
    path = lake_path(rng, board.size, player, goals, holes)
    if path is None:
        path = lake_path(rng, board.size, player, goals, frozenset())
    mine, others = sorted(goals), sorted(holes)
    words = [
        f"goal {rules.first} hole {rules.second} up>{rules.direction('up')} right>{rules.direction('right')}",
        f"P {square(player)}",
        " ".join([rules.first, *(square(c) for c in mine)]),
        " ".join([rules.second, *(square(c) for c in others)]),
    ]
    if not path:
        step = rng.choice(list(MOVES))
        words.append(f"path none go {step}")
    else:
        step = _direction(player, path[0])
        words.append("path " + " ".join(square(c) for c in path) + f" go {step}")
    return " ".join(words), f"[{rules.direction(step)}]"


def lake_path(
    rng: random.Random, size: int, start: Cell, goals: frozenset[Cell], holes: frozenset[Cell]
) -> list[Cell] | None:
    """A uniformly drawn step at a time along shortest ways from ``start`` to the nearest goal."""
    distance = dict.fromkeys(goals, 0)
    queue = deque(goals)
    while queue:
        cell = queue.popleft()
        for near in _around(cell, size):
            if near not in distance and near not in holes:
                distance[near] = distance[cell] + 1
                queue.append(near)
    if start not in distance:  # the start itself may be a hole letter's cell
        return None
    path, here = [], start
    while distance[here]:
        here = rng.choice([n for n in _around(here, size) if distance.get(n) == distance[here] - 1])
        path.append(here)
    return path


def _around(cell: Cell, size: int) -> list[Cell]:
    near = [(cell[0] + d, cell[1] + r) for d, r in MOVES.values()]
    return [c for c in near if 0 <= c[0] < size and 0 <= c[1] < size]


def _direction(here: Cell, there: Cell) -> str:
    step = (there[0] - here[0], there[1] - here[1])
    return next(name for name, delta in MOVES.items() if delta == step)


def play_lake(
    rng: random.Random, board: LakeBoard, world: Rules, belief: Rules, limit: int, slip: float = 0.0
) -> Played:
    """One game in ``world`` by a player who plans under ``belief`` and, at times, moves at random."""
    goals, holes = board.under(world)
    model = Lake(size=board.size, holes=holes, start=board.start, goal=(-1, -1))
    here, feedback, invalid = board.start, "", 0
    way = sum(min(abs(board.start[i] - g[i]) for g in goals) for i in (0, 1)) or 1
    steps: list[Step] = []
    for _ in range(limit):
        think, move = lake_plan(rng, board, belief, here)
        if rng.random() < slip:
            move = f"[{rng.choice(list(MOVES))}]"
        actual = world.direction(move[1:-1])
        state = board.draw(here)
        to, event = model.move(here, actual)
        if event == "ok" and to in goals:
            event = "won"
        step = Step(feedback, state, think, move, tried=actual, frm=square(here))
        steps.append(step)
        if event == "invalid":
            invalid += 1
            reason = f"You tried to move {actual} but hit a wall!"
            if invalid == 2:
                return Played(steps, "", state, f"Invalid Move: {reason}", two_invalid=True)
            feedback = INVALID.format(reason)
            continue
        invalid, here = 0, to
        step.actual, step.to = actual, square(here)
        feedback = f"You moved {actual} to position ({here[0]}, {here[1]})."
        if event == "won":
            return Played(steps, feedback, board.draw(here), "Congratulations! You reached the goal!", won=True)
        if event == "lost":
            left = min(abs(here[0] - g[0]) + abs(here[1] - g[1]) for g in goals)
            done = max(0, round(100 * (way - left) / way))
            outcome = f"You fell into a hole! Game over. You completed {done}% of the journey to the goal."
            return Played(steps, feedback, board.draw(here), outcome, fell=True)
    return Played(steps, feedback, board.draw(here), "")


class RoomSearch:
    """Shortest plans in one room, for one belief: box and target change places between beliefs."""

    def __init__(self, board: RoomBoard, target: Cell) -> None:
        inside = {(r, c) for r in range(board.height) for c in range(board.width)} - board.walls
        self.model = Warehouse(floor=frozenset(inside), goals=frozenset({target}), player=(-1, -1), boxes=frozenset())
        self.target = target

    def plan(
        self, rng: random.Random, player: Cell, box: Cell, most: int = 16
    ) -> list[tuple[Cell, Cell | None]] | None:
        """``(the player's next cell, the box's new cell if it was pushed)`` for each move, or ``None``."""
        floor = self.model.floor
        start = (player, box)
        came: dict[tuple[Cell, Cell], tuple[tuple[Cell, Cell], bool]] = {}
        seen, layer = {start}, [start]
        for _ in range(most):
            following: list[tuple[Cell, Cell]] = []
            rng.shuffle(layer)
            for state in layer:
                (row, column), at = state
                for down, right in MOVES.values():
                    cell = (row + down, column + right)
                    if cell not in floor:
                        continue
                    if cell != at:
                        new = (cell, at)
                        pushed = False
                    else:
                        beyond = (cell[0] + down, cell[1] + right)
                        if beyond not in floor:
                            continue
                        new, pushed = (cell, beyond), True
                    if new in seen:
                        continue
                    seen.add(new)
                    came[new] = (state, pushed)
                    if pushed and new[1] == self.target:
                        return self._back(came, start, new)
                    following.append(new)
            layer = following
            if not layer:
                return None
        return None

    @staticmethod
    def _back(came, start, state) -> list[tuple[Cell, Cell | None]]:  # type: ignore[no-untyped-def]
        steps = []
        while state != start:
            before, pushed = came[state]
            steps.append((state[0], state[1] if pushed else None))
            state = before
        return steps[::-1]


SHOWN_STEPS = 7
"""Steps of a plan that the thinking line spells out."""


def room_plan(
    rng: random.Random, board: RoomBoard, belief: Rules, search: RoomSearch, player: Cell, box: Cell
) -> tuple[str, str]:
    """The thinking line and the move of a room, under ``belief``."""
    words = [
        f"box {belief.first} target {belief.second} up>{belief.direction('up')} right>{belief.direction('right')}",
        f"P {square(player)} {belief.first} {square(box)} {belief.second} {square(search.target)}",
    ]
    plan = search.plan(rng, player, box)
    if plan:
        shown = [square(to) if pushed is None else f"push {square(to)} {square(pushed)}"
                 for to, pushed in plan[:SHOWN_STEPS]]  # fmt: skip
        step = _direction(player, plan[0][0])
        words.append("path " + " ".join(shown) + f" go {step}")
    else:
        free = [n for n, (d, r) in MOVES.items() if (player[0] + d, player[1] + r) not in board.walls]
        step = rng.choice(free or list(MOVES))
        words.append(f"path none go {step}")
    return " ".join(words), f"[{belief.direction(step)}]"


def play_room(
    rng: random.Random, board: RoomBoard, world: Rules, belief: Rules, limit: int, slip: float = 0.0
) -> Played:
    """One game of Sokoban in ``world`` by a player who plans under ``belief``."""
    box, target = board.roles(world)
    model = RoomSearch(board, target).model
    here, feedback, invalid = board.start, "", 0
    same = belief.first == world.first
    search = RoomSearch(board, target if same else box)
    steps: list[Step] = []
    pushes = False

    def shown() -> str:
        at = {target: world.second} | {box: world.first}
        if box == target:
            at[box] = "√"
        return board.draw(here, at)

    for _ in range(limit):
        if same:
            think, move = room_plan(rng, board, belief, search, here, box)
        else:  # believes that the true target is the box and the true box the target
            search.target = box
            think, move = room_plan(rng, board, belief, search, here, target)
        if here == target:
            think = ""  # the target cannot be seen, so no plan can be read off this board
        if rng.random() < slip:
            move = f"[{rng.choice(list(MOVES))}]"
        actual = world.direction(move[1:-1])
        state = shown()
        (to, boxes), event = model.move((here, frozenset({(box, False)})), actual)
        step = Step(feedback, state, think, move, tried=actual, frm=square(here))
        steps.append(step)
        if event == "invalid":
            invalid += 1
            reason = "You cannot move into a wall!"
            if invalid == 2:
                return Played(steps, "", state, f"Invalid Move: {reason}", pushed=pushes, two_invalid=True)
            feedback = INVALID.format(reason)
            continue
        moved = next(iter(boxes))[0]
        pushed = moved != box
        pushes |= pushed
        invalid, here, box = 0, to, moved
        step.actual, step.to = actual, square(here)
        feedback = f"You {'pushed a box while' if pushed else ''} moved [{actual}]."
        if event == "won":
            outcome = "Congratulations! You have solved the Sokoban puzzle!"
            return Played(steps, feedback, shown(), outcome, won=True, pushed=True)
    return Played(steps, feedback, shown(), "", pushed=pushes)
