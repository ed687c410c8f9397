"""Pocket's replies to boards: squares, shortest ways, shortest plans."""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque

from agentopcd.envs.games.solvers import MOVES, Cell, Warehouse, shortest
from recipes.pocket import corpus, worlds
from recipes.pocket.worlds import Rules
from tests.recipes.pocket_readers import Drawn, cells_of, only, positions, state_of, stated


def test_scanned_letters_stand_where_the_reply_says() -> None:
    for number in range(150):
        for messages, reply in corpus.sample("scan", number, only("scan")).turns:
            board, _, question = messages[0]["content"].rpartition("\n\n")
            asked = re.findall(r"[A-Z]", question.removeprefix("Where"))
            on = positions(board)
            said = {part[0]: cells_of(part[1:]) for part in re.findall(r"[A-Z](?: [a-h]\d)*", reply)}
            assert list(said) == asked
            assert all(sorted(said[letter]) == sorted(on.get(letter, [])) for letter in asked), (board, reply)


def test_ways_are_shortest_and_reach_the_goal_past_the_holes() -> None:
    for number in range(150):
        for messages, reply in corpus.sample("way", number, only("way")).turns:
            found = re.fullmatch(
                r"P (\S+) [A-Z]((?: \S+)+) [A-Z]((?: \S+)*)\n\n(\d) by \4\. Which way\?", messages[0]["content"]
            )
            assert found, messages
            (start,), goals, holes = (cells_of(found[n]) for n in (1, 2, 3))
            told = re.fullmatch(r"path ((?:\S+ )+)go (\w+)", reply)
            assert told, reply
            path, size = cells_of(told[1]), range(int(found[4]))
            steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise([start, *path])]
            assert all(step in MOVES.values() for step in steps), (messages, reply)
            assert steps[0] == MOVES[told[2]] and path[-1] in goals and not set(path) & set(holes)
            assert len(path) == way(set(itertools.product(size, size)), start, set(goals), set(holes))


def way(size: set[Cell], start: Cell, goals: set[Cell], holes: set[Cell]) -> int | None:
    """Length of a shortest way over ``size`` (all cells), or ``None``."""
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        (r, c), length = queue.popleft()
        if (r, c) in goals:
            return length
        for d, e in MOVES.values():
            near = (r + d, c + e)
            if near in size and near not in seen and near not in holes:
                seen.add(near)
                queue.append((near, length + 1))
    return None


def first_step(here: Cell, there: Cell) -> str:
    (name,) = [n for n, (d, e) in MOVES.items() if (here[0] + d, here[1] + e) == there]
    return name


def split_reply(reply: str) -> tuple[Rules, str, str, str]:
    """Belief, what stands where, path and bracketed move; the direction must be the path's own."""
    found = re.fullmatch(r"<think>(?:\S+ ){6}(.*) path (.*) go (up|down|left|right)</think>\[(\w+)\]", reply)
    assert found, reply
    belief = stated(reply)
    flipped = belief.vertical if found[3] in ("up", "down") else belief.horizontal
    opposite = {"up": "down", "down": "up", "left": "right", "right": "left"}
    assert found[4] == (opposite[found[3]] if flipped else found[3]), reply  # the name that goes there
    return belief, found[1], found[2], found[3]


def test_lake_replies_are_shortest_ways(games: list[Drawn]) -> None:
    through = checked = 0
    for game in [g for g in games if g.made.kind == "lake"][:2000]:
        for messages, reply in game.made.turns:
            on = positions(state_of(messages))
            belief, where, path, go = split_reply(reply)
            named = re.fullmatch(rf"P (\S+) {belief.first} (.*) {belief.second} (.*)", where)
            assert named, reply
            assert [cells_of(x) for x in named.groups()] == [on[x] for x in ("P", belief.first, belief.second)]
            (player,), goals, holes = on["P"], set(on[belief.first]), set(on[belief.second])
            length = way(set(on["all"]), player, goals, holes)
            if length is None:  # no way under this belief: straight through
                length, holes = way(set(on["all"]), player, goals, set()), set()
                through += 1
            steps = cells_of(path)
            assert len(steps) == length and steps[-1] in goals and not holes & set(steps), reply
            assert all(first_step(a, b) for a, b in itertools.pairwise([player, *steps]))  # neighbours
            assert set(steps) <= set(on["all"]) and go == first_step(player, steps[0]), reply
            checked += 1
    assert checked > 2500 and through < checked / 5


def test_room_replies_are_shortest_plans(games: list[Drawn]) -> None:
    seen = Counter[str]()
    for game in [g for g in games if g.made.kind == "room"][:500]:
        for messages, reply in game.made.turns:
            on = positions(state_of(messages))
            belief, where, path, go = split_reply(reply)
            named = re.fullmatch(rf"P (\S+) {belief.first} (\S+) {belief.second} (\S+)", where)
            assert named, reply
            ((player,), (box,), (target,)) = (cells_of(x) for x in named.groups())
            assert ([player], [box], [target]) == tuple(on[x] for x in ("P", belief.first, belief.second))
            floor = frozenset(on["all"]) - frozenset(on["wall"])
            best = shortest(Warehouse(floor=floor, goals=frozenset({target}), player=player, boxes=frozenset({box})))
            if path == "none":
                assert best is None or len(best) > 16, reply
                seen["none"] += 1
                continue
            assert best and go == first_step(player, cells_of(path.removeprefix("push ")[:2])[0])
            count = 0
            for push, to, after in re.findall(r"(push )?(\w\d)(?(1) (\w\d))(?: |$)", path):
                (cell,), count = cells_of(to), count + 1
                move = first_step(player, cell)  # a neighbour, or this fails
                assert cell in floor and (cell == box) == bool(push), reply
                if push:
                    beyond = (cell[0] + MOVES[move][0], cell[1] + MOVES[move][1])
                    assert cells_of(after) == [beyond] and beyond in floor, reply
                    box = beyond
                player = cell
                assert (box == target) == (count == len(best)), reply
            assert count == min(len(best), worlds.SHOWN_STEPS), reply
            rest = shortest(Warehouse(floor=floor, goals=frozenset({target}), player=player, boxes=frozenset({box})))
            assert box == target or (rest and count + len(rest) == len(best)), reply
            seen["cut" if len(best) > count else "whole"] += 1
    assert seen["whole"] > 300 and seen["cut"] > 20 and seen["none"], seen
