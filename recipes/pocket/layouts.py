"""Boards of the grid games, drawn so that they can be won and do not tell which letter is which."""

from __future__ import annotations

import random
from collections.abc import Sequence

from recipes.pocket.worlds import LakeBoard, RoomBoard, RoomSearch, Rules, lake_path


def draw_lake(rng: random.Random, sizes: Sequence[int], letters: tuple[str, str], world: Rules) -> LakeBoard:
    """A board that can be won; how often a letter stands on it is drawn without regard to its role."""
    while True:
        size = rng.choice(sizes)
        room = [(r, c) for r in range(size) for c in range(size)]
        few, many = rng.sample(letters, 2)
        if rng.random() < 0.5:  # laid out as TextArena does: corner to corner, one letter once
            start, end = (0, 0), (size - 1, size - 1)
            if rng.random() < 0.3:
                start = rng.choice([(0, size - 1), (size - 1, 0), (size - 1, size - 1)])
                end = (size - 1 - start[0], size - 1 - start[1])
            rest = [c for c in room if c not in (start, end)]
            most = min(len(rest) - 1, size * size // 3)
            count = rng.randint(1, max(1, most)) if rng.random() < 0.5 else min(most, {3: 2, 4: 4, 5: 6}.get(size, 1))
            cells = dict.fromkeys(rng.sample(rest, count), many) | {end: few}
        else:
            start = rng.choice(room)
            rest = [c for c in room if c != start]
            counts = [rng.randint(1, max(1, size * size // 4)) for _ in range(2)]
            chosen = rng.sample(rest, min(len(rest), sum(counts)))
            cells = {c: few if i < counts[0] else many for i, c in enumerate(chosen)}
            if len(set(cells.values())) < 2:
                continue
        board = LakeBoard(size=size, start=start, cells=cells, goal_letter=world.first)
        goals, holes = board.under(world)
        if lake_path(rng, size, start, goals, holes) is not None:
            return board


def draw_room(
    rng: random.Random, sizes: Sequence[int], letters: tuple[str, str], world: Rules, glyphs: tuple[str, str]
) -> RoomBoard:
    """A room whose box can be delivered, mostly within a few moves."""
    while True:
        height, width = (rng.choice(sizes), rng.choice(sizes)) if rng.random() < 0.2 else (rng.choice(sizes),) * 2
        inner = [(r, c) for r in range(1, height - 1) for c in range(1, width - 1)]
        density = rng.choice([0.1, 0.25, 0.4, 0.5])
        blocked = {c for c in inner if rng.random() < density}
        free = [c for c in inner if c not in blocked]
        if len(free) < 4:
            continue
        start, first, second = rng.sample(free, 3)
        border = {(r, c) for r in range(height) for c in range(width)} - set(inner)
        board = RoomBoard(height=height, width=width, walls=frozenset(border | blocked), start=start, first=first,
                          second=second, letters=letters, wall=glyphs[0], floor=glyphs[1])  # fmt: skip
        box, target = board.roles(world)
        plan = RoomSearch(board, target).plan(rng, start, box, most=12)
        # Often also winnable with the roles exchanged, or the board itself would tell who is who.
        if rng.random() < 0.5 and not RoomSearch(board, box).plan(rng, start, target, most=12):
            continue
        if plan and (len(plan) <= 6 or rng.random() < 0.4):
            return board
