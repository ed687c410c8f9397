"""MiniGrid in words. The package is not needed for its encodings; with it: pytest -m games (agentopcd[minigrid])."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentopcd.core.errors import DependencyError
from agentopcd.envs import FromGym, check_env, get_spec, make, task_key
from agentopcd.envs.games import minigrid

UNSEEN, EMPTY, WALL, DOOR, KEY, BOX, LAVA = (0, 0, 0), (1, 0, 0), (2, 5, 0), (4, 5, 2), (5, 1, 0), (7, 3, 0), (9, 0, 0)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's public tables, whether it is installed or not."""
    constants: Any = ModuleType("minigrid.core.constants")
    kinds = ["unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent"]
    constants.IDX_TO_OBJECT = dict(enumerate(kinds))
    constants.IDX_TO_COLOR = dict(enumerate(["red", "green", "blue", "purple", "yellow", "grey"]))
    constants.STATE_TO_IDX = {"open": 0, "closed": 1, "locked": 2}
    for name in ("minigrid", "minigrid.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "minigrid.core.constants", constants)


def seen(*rows: list[tuple[int, int, int]], direction: int = 1, mission: str = "go to a grey door") -> dict[str, Any]:
    """An observation with these rows; the package counts columns first."""
    return {"image": np.array(rows).transpose(1, 0, 2), "direction": direction, "mission": mission}


@pytest.mark.usefixtures("encodings")
def test_a_view_can_be_read() -> None:
    obs = seen([UNSEEN] * 3, [WALL, DOOR, WALL], [WALL, EMPTY, UNSEEN], [KEY, EMPTY, LAVA])
    assert minigrid.words(obs).splitlines() == [
        "Mission: go to a grey door",
        "You face south and carry nothing. Ahead of you: nothing.",
        "Your view (^ you, looking up; # wall; . free; ? not seen):",
        "? ? ?",
        "# D #",
        "# . ?",
        "K ^ L",
        "K green key: 1 left",
        "L lava: 1 right",
        "D locked grey door: 2 ahead",
    ]


@pytest.mark.usefixtures("encodings")
def test_what_is_carried_and_what_is_ahead_is_said() -> None:
    wall, box = seen([WALL] * 3, [EMPTY, KEY, EMPTY], direction=0), seen([EMPTY, BOX, EMPTY], [EMPTY] * 3, direction=3)
    assert "You face east and carry a green key. Ahead of you: a wall." in minigrid.words(wall)
    assert "K green key" not in minigrid.words(wall)  # it lies nowhere
    assert "You face north and carry nothing. Ahead of you: a purple box." in minigrid.words(box)


@pytest.mark.usefixtures("encodings")
def test_rows_with_nothing_but_wall_are_left_out() -> None:
    far = seen([UNSEEN] * 3, [WALL] * 3, [WALL, WALL, UNSEEN], [EMPTY] * 3)
    assert minigrid.words(far).splitlines()[3:] == ["# # ?", ". ^ ."]


class _Agent:
    """An environment as far as names of actions and the key look at it."""

    actions = (SimpleNamespace(name="left"), SimpleNamespace(name="forward"), SimpleNamespace(name="toggle"))
    width, height, agent_dir, carrying, mission = 2, 1, 0, None, "go"
    action_space = SimpleNamespace(n=2)

    def __init__(self, held: Any = None, mission: str = "go") -> None:
        self.grid = SimpleNamespace(grid=[None, SimpleNamespace(type="box", contains=held)])
        self.agent_pos = np.array([0, 0])
        self.mission, self.np_random = mission, np.random.default_rng(0)

    @property
    def unwrapped(self) -> _Agent:
        return self

    def step(self, action: int) -> None:
        self.agent_pos = (action, action)


class _Restless(_Agent):
    def step(self, action: int) -> None:
        self.agent_pos = tuple(self.np_random.integers(2, size=2))


def test_the_key_covers_what_boxes_hold_and_the_mission_and_the_draws_to_come() -> None:
    assert minigrid.state_key(_Agent()) == minigrid.state_key(_Agent())
    others = [_Agent(held=SimpleNamespace(type="key")), _Agent(mission="stay"), _Agent()]
    assert len({minigrid.state_key(env) for env in others}) == 3
    turned, later = _Agent(), _Restless()
    turned.agent_dir = 1
    assert minigrid.state_key(turned) != minigrid.state_key(_Agent())
    before = minigrid.state_key(later)
    later.np_random.random()
    assert minigrid.state_key(later) != before
    still = _Agent()
    still.np_random.random()
    assert minigrid.state_key(still) == minigrid.state_key(_Agent())


def test_only_actions_that_exist_are_named() -> None:
    env = _Agent()
    env.actions = tuple(_Number(name, number) for number, name in enumerate(["left", "forward", "toggle"]))  # type: ignore[assignment]
    given = minigrid.preset(env)
    assert given["actions"] == {"left": 0, "forward": 1}
    assert "[forward] takes a step ahead" in given["rules"] and "toggle" not in given["rules"]


class _Number(int):
    """A named number, as the package's actions are."""

    name: str

    def __new__(cls, name: str, number: int) -> _Number:
        made = super().__new__(cls, number)
        made.name = name
        return made


def test_the_bridge_takes_the_key_that_it_is_given() -> None:
    env = FromGym("FrozenLake-v1", key=lambda env: "mine")
    assert env.reset(seed=0)[1]["task_key"] == "mine"


def test_a_missing_package_is_named() -> None:
    with pytest.raises(DependencyError, match="needs the package no_such_package; run: pip install no_such_package"):
        get_spec("gym:no_such_package:Thing-v0")


@pytest.mark.games
@pytest.mark.parametrize(
    "name",
    ["MiniGrid-Empty-5x5-v0", "BabyAI-GoToDoor-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0", "BabyAI-UnlockPickup-v0"],
)
def test_the_package_itself(name: str) -> None:
    report = check_env(f"gym:minigrid:{name}", 6)
    assert report.ok, report.errors


@pytest.mark.games
def test_a_known_way_wins_and_keys_tell_games_apart() -> None:
    env = make("gym:minigrid:MiniGrid-Empty-5x5-v0")
    env.reset(seed=0)
    for word in ["forward", "forward", "right", "forward", "forward"]:
        _, reward, terminated, _, info = env.step(f"[{word}]")
    spec = get_spec("gym:minigrid:MiniGrid-Empty-5x5-v0")
    assert spec.solved([float(reward)], terminated, info) and spec.step_limit == minigrid.MAX_STEPS
    doors = make("gym:minigrid:MiniGrid-LockedRoom-v0")
    assert len({task_key(*doors.reset(seed=seed)) for seed in range(12)}) == 12
    assert len({env.reset(seed=seed)[1]["task_key"] for seed in range(5)}) == 1


@pytest.mark.games
def test_own_rules_and_arguments_still_count() -> None:
    env = make("gym:minigrid:MiniGrid-Empty-5x5-v0", rules="Walk.", agent_view_size=3)
    obs, _ = env.reset(seed=0)
    assert obs.startswith("Walk.\n\n") and "# . .\n# ^ ." in obs
