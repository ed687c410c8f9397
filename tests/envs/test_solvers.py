from __future__ import annotations

import dataclasses
import warnings
from itertools import combinations, product
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Task
from agentopcd.envs import TextEnv, get_spec, make
from agentopcd.envs import floors as floor_module
from agentopcd.envs.floors import best_blind, floors, random_win, solvable_share
from agentopcd.envs.games.solvers import MOVES, Lake, Warehouse, shortest

PAPER = [Task(468460046 + 1000 * i, "") for i in range(128)]


def lakes(size: int, holes: int) -> list[Lake]:
    """Every board that can be won, enumerated."""
    ends = ((0, 0), (size - 1, size - 1))
    cells = [(r, c) for r in range(size) for c in range(size) if (r, c) not in ends]
    boards = [
        Lake(size=size, holes=frozenset(chosen), start=ends[0], goal=ends[1]) for chosen in combinations(cells, holes)
    ]
    return [board for board in boards if shortest(board)]


def test_the_small_lake_has_19_boards_of_length_4() -> None:
    boards = lakes(3, 2)
    assert len(boards) == 19 and {len(shortest(board) or []) for board in boards} == {4}
    assert best_blind(boards, 5)[0] == 6
    assert sum(random_win(board, 5) for board in boards) / 19 == pytest.approx(0.016, abs=0.0005)


def test_the_larger_lake_has_757_boards_and_a_blind_floor_of_a_sixth() -> None:
    boards = lakes(4, 4)
    assert len(boards) == 757
    wins, moves = best_blind(boards, 6)
    assert wins / 757 == pytest.approx(0.166, abs=0.0005) and len(moves) == 6


@pytest.mark.parametrize("ref", ["frozen-lake-4x4", "sokoban"])
def test_the_search_for_blind_moves_finds_what_trying_them_all_finds(ref: str) -> None:
    env: Any = make(ref)
    models = []
    for seed in range(12):
        env.reset(seed=seed)
        models.append(env.unwrapped.model())

    def wins(model: Any, sequence: tuple[str, ...]) -> bool:
        state, bumps = model.start, 0
        for name in sequence:
            state, event = model.move(state, name)
            bumps = bumps + 1 if event == "invalid" else 0
            if event in ("won", "lost") or bumps == 2:
                return event == "won"
        return False

    steps = 6 if ref == "frozen-lake-4x4" else 4
    every = product(MOVES, repeat=steps)
    best = max(sum(wins(model, sequence) for model in models) for sequence in every)
    found, moves = best_blind(models, steps)
    assert found == best == sum(wins(model, moves) for model in models)


def test_floors_on_the_seeds_of_the_paper() -> None:
    lake = floors("frozen-lake", {}, PAPER)
    assert (lake.n, lake.solvable, lake.random_episodes) == (128, 1.0, 0)
    assert lake.blind == pytest.approx(0.414, abs=0.001)
    assert lake.random == pytest.approx(0.0169, abs=0.0001)
    room = floors("sokoban", {}, PAPER)
    assert room.blind == pytest.approx(0.32, abs=0.005) and len(room.blind_moves) <= 5
    assert room.solvable == pytest.approx(0.883, abs=0.001)
    assert room.random == pytest.approx(0.164, abs=0.001)


def test_floors_of_sokoban_on_the_first_seeds() -> None:
    found = floors("sokoban", {}, [Task(seed, "") for seed in range(300)])
    assert found.random == pytest.approx(0.158, abs=0.02)
    assert found.blind == pytest.approx(0.28, abs=0.04)
    assert found.solvable == pytest.approx(0.86, abs=0.04)


def test_the_blind_sequence_really_wins_that_often() -> None:
    tasks = PAPER[:40]
    found = floors("frozen-lake", {}, tasks)
    env: Any = make("frozen-lake")
    wins = 0
    for task in tasks:
        env.reset(seed=task.seed)
        for move in found.blind_moves:
            _, reward, terminated, _, _ = env.step(f"[{move}]")
            if terminated:
                wins += reward == 1.0
                break
    assert found.blind == wins / 40


def test_floors_are_none_where_they_are_not_known_and_played_where_there_are_moves() -> None:
    unknown = floors("math", {}, [Task(0, "")])
    assert (unknown.random, unknown.blind, unknown.solvable, unknown.n) == (None, None, None, 1)
    slippery = floors("gym-frozen-lake", {"is_slippery": True}, [Task(seed, "") for seed in range(3)])
    assert slippery.random is not None and slippery.blind is None
    assert slippery.random_episodes == 999
    assert floors("sokoban", {}, []).n == 0
    assert solvable_share("math", {}, [Task(0, "")]) is None
    assert solvable_share("sokoban", {}, PAPER) == pytest.approx(0.883, abs=0.001)


class Halves(TextEnv):
    """One question with two answers."""

    choices = ("[heads]", "[tails]")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.side = self.choices[int(self.np_random.integers(2))]
        return self.first(key=seed, state="The coin lies under the cup.", actions="Say [heads] or [tails].")

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.turn(outcome="The cup is lifted.", success=action == self.side)


def test_replies_listed_on_the_class_or_in_an_episode_are_moves_of_the_random_player(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves = floors("tests.envs.test_solvers:Halves", {}, [Task(seed, "") for seed in range(100)])
    assert halves.random_episodes == 1000 and halves.random == pytest.approx(0.5, abs=0.05)
    spec = get_spec("tests.envs.test_solvers:Halves")
    for way in ({"slow": True}, {"waits": True}):  # a thousand episodes of it could take hours
        monkeypatch.setattr(floor_module, "get_spec", lambda ref, way=way: dataclasses.replace(spec, **way))
        assert floors("tests.envs.test_solvers:Halves", {}, [Task(0, "")]).random is None
    monkeypatch.undo()
    ferry = floors("examples/own_environment.py:Ferry", {}, [Task(seed, "") for seed in range(4)])
    assert ferry.random_episodes == 1000 and ferry.random is not None and ferry.random < 0.2 and ferry.solvable == 1


class Named(Halves):
    """Has attributes of a solver's names that are none."""

    def __init__(self) -> None:
        self.model, self.solution = "gpt-4o", 7


class Broken(Halves):
    def solution(self) -> list[str]:
        raise EnvError("not yet")


class Loose(Halves):
    def solution(self) -> Any:
        return 7


class Odd(Halves):
    def model(self) -> Any:
        return Broken  # a class of the game's own


class Fails(Halves):
    def model(self) -> Any:
        raise RuntimeError("no model")


@pytest.mark.parametrize("name", ["Named", "Broken", "Loose", "Odd", "Fails"])
def test_what_is_no_model_and_a_solution_that_raises_are_unknown(name: str) -> None:
    tasks, ref = [Task(seed, "") for seed in range(100)], f"tests.envs.test_solvers:{name}"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found, share = floors(ref, {}, tasks), solvable_share(ref, {}, tasks, max_steps=2)
    assert found.random == pytest.approx(0.5, abs=0.05) and (found.blind, found.solvable, share) == (None, None, None)
    assert len(warned) == (2 if name in ("Broken", "Loose", "Fails") else 0)
    assert all(f"the ceiling of {ref} stays unknown: " in str(one.message) for one in warned)


def test_a_random_player_on_a_lake_of_two_by_two_by_hand() -> None:
    # Start, one hole, one way: right then down. From the start up and left are invalid, down is the hole.
    lake = Lake(size=2, holes=frozenset({(1, 0)}), start=(0, 0), goal=(1, 1))
    assert random_win(lake, 1) == 0
    assert best_blind([lake], 2) == (1, ("right", "down")) and best_blind([lake], 1) == (0, ())
    assert random_win(lake, 2) == pytest.approx(1 / 16)
    # three moves: bump-right-down (2 · 1/64) and right-bump-down (2 · 1/64) join in
    assert random_win(lake, 3) == pytest.approx(1 / 16 + 4 / 64)
    free = Lake(size=2, holes=lake.holes, start=(0, 0), goal=(1, 1), two_invalid_end=False)
    assert random_win(free, 4) > random_win(lake, 4)


def test_a_box_that_starts_on_a_goal_must_be_pushed_there() -> None:
    row = frozenset((0, c) for c in range(5))
    room = Warehouse(floor=row, goals=frozenset({(0, 2), (0, 3)}), player=(0, 1), boxes=frozenset({(0, 2)}))
    assert room.move(room.start, "left")[1] == "ok"
    assert room.move(room.start, "up")[1] == "invalid"
    assert shortest(room) == ["right"]


@pytest.mark.parametrize(("ref", "kwargs"), [("sokoban", {}), ("sokoban", {"num_boxes": 2}),
                                             ("frozen-lake-4x4", {}), ("gym-frozen-lake", {})])  # fmt: skip
def test_the_model_is_the_game(ref: str, kwargs: dict[str, int]) -> None:
    """Random walks in the model and in the game agree about every move."""
    import random

    env: Any = make(ref, max_steps=40, **kwargs)
    rng = random.Random(1)
    for seed in range(15):
        env.reset(seed=seed)
        model = env.unwrapped.model()
        state, before = model.start, "ok"
        for _ in range(30):
            name = rng.choice(list(MOVES))
            state, event = model.move(state, name)
            _, _, terminated, _, info = env.step(f"[{name}]")
            if model.two_invalid_end:
                assert info["invalid"] == (event == "invalid")
            over = event in ("won", "lost") or (event == before == "invalid" and model.two_invalid_end)
            assert terminated == over
            before = event
            if over:
                break


def test_solutions_win() -> None:
    for ref in ("sokoban", "frozen-lake-4x4", "gym-frozen-lake"):
        env: Any = make(ref, max_steps=50)
        for seed in range(10):
            env.reset(seed=seed)
            for reply in env.unwrapped.solution():
                _, reward, terminated, _, _ = env.step(reply)
            assert terminated and reward == 1.0
