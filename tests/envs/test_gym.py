from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from agentopcd.core.errors import EnvError, GameFault
from agentopcd.envs import EnvSpec, FromGym, TextEnv, get_spec, make, task_key
from agentopcd.envs.success import solved


@pytest.mark.parametrize("ref", ["gym:FrozenLake-v1", "gym-frozen-lake"])
def test_frozen_lake_speaks_text(ref: str) -> None:
    env = make(ref, is_slippery=False)
    obs, info = env.reset(seed=0)
    assert [kind for kind, _ in info["parts"]] == ["rules", "state", "actions"]
    assert "[S]" in dict(info["parts"])["state"] and "\x1b" not in obs
    assert info["legal_actions"] == ["[left]", "[down]", "[right]", "[up]"]
    obs, _, terminated, _, info = env.step("first [left], no: [up]")
    assert info["action"] == "[up]" and "[S]" in obs and not terminated
    assert get_spec(ref).play_format == "[{}]"


def test_the_fixed_map_is_won_by_the_known_way() -> None:
    env = make("gym:FrozenLake-v1", is_slippery=False)
    env.reset(seed=0)
    for word in ["down", "down", "right", "right", "down", "right"]:
        _, reward, terminated, _, info = env.step(f"[{word}]")
    assert solved([float(reward)], terminated, info)
    assert get_spec("gym:FrozenLake-v1").step_limit == 100


def test_a_reply_without_an_action_moves_nothing() -> None:
    env = make("gym:FrozenLake-v1", is_slippery=False)
    _, first = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step("right")
    assert info["invalid"] and (reward, terminated, truncated) == (0.0, False, False)
    assert dict(info["parts"])["state"] == dict(first["parts"])["state"] and "No action" in obs


def test_every_seed_has_its_own_map_and_the_same_one_again() -> None:
    env = make("gym-frozen-lake")
    keys = [task_key(*env.reset(seed=seed)) for seed in range(20)]
    assert len(set(keys)) > 15
    assert [task_key(*env.reset(seed=seed)) for seed in range(20)] == keys
    with pytest.raises(EnvError, match="size of 2 or more"):
        make("gym-frozen-lake", size=1)


def test_success_where_every_move_costs() -> None:
    env = make("gym:CliffWalking-v1")
    env.reset(seed=0)
    reward, terminated, info = 0.0, False, {}
    for word in ["up", *["right"] * 11, "down"]:
        _, reward, terminated, _, info = env.step(f"[{word}]")
    success_at = get_spec("gym:CliffWalking-v1").success_at
    assert success_at is not None and solved([float(reward)], terminated, info, success_at=success_at)


def test_numbers_stand_for_unnamed_actions_and_own_words_for_observations() -> None:
    env = FromGym(gymnasium.make("CartPole-v1"), to_text=lambda obs, env: f"angle {obs[2]:.1f}", rules="Balance.")
    obs, info = env.reset(seed=0)
    assert obs.startswith("Balance.\n\nangle") and info["legal_actions"] == ["[0]", "[1]"]
    assert env.step("[1]")[1] == 1.0
    env.close()


def test_text_actions_pass_through() -> None:
    class Echo(TextEnv):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.first(state="say")

        def step(self, action):
            return self.turn(feedback=action)

    env = FromGym(Echo())
    env.reset(seed=0)
    assert env.step("<think>a</think>b [c]")[0] == "b [c]"


def test_actions_that_need_names_and_wrong_arguments_are_refused() -> None:
    with pytest.raises(EnvError, match="name some, as in FromGym"):
        make("gym:Pendulum-v1")
    with pytest.raises(EnvError, match=r"gym:FrozenLake-v1: .*slipery"):
        make("gym:FrozenLake-v1", slipery=False)


class Counted(gymnasium.Env):
    """Two doors that look alike, with a count of its resets; ``missing`` is a seed that cannot be reset."""

    observation_space = Discrete(1)
    action_space = Discrete(2)
    resets = 0

    def __init__(self, missing: int | None = None, doors: int = 2) -> None:
        self.missing, self.doors = missing, doors

    def reset(self, seed=None):  # type: ignore[override]  # many take no options
        super().reset(seed=seed)
        type(self).resets += 1
        if seed is not None and seed == self.missing:
            raise FileNotFoundError(f"level {seed} is missing")
        self.door = int(self.np_random.integers(self.doors))
        return 0, {}

    def step(self, action):
        return 0, float(action == self.door), True, False, {}


def test_what_is_hidden_is_found_out_once_for_a_game_and_before_its_episodes() -> None:
    spec = EnvSpec(id="counted", entry_point=Counted, success_at=1.0)
    make(spec)
    taken = []
    for seed in range(3):
        env, Counted.resets = make(spec), 0
        env.reset(seed=seed)
        taken.append(Counted.resets)
    assert max(taken) < 10, "an instance of its own in every episode asks nothing again"
    hides = {doors: "task_key" in make(spec, doors=doors).reset(seed=0)[1] for doors in (1, 2)}
    assert hides == {1: False, 2: True}, "with other arguments it is another game"


def test_a_seed_that_cannot_be_reset_breaks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(EnvSpec(id="counted", entry_point=Counted, success_at=1.0), missing=7)
    keys = {task_key(*env.reset(seed=seed)) for seed in range(7)}
    assert len(keys) == 2
    with pytest.raises(GameFault, match="level 7 is missing"):
        env.reset(seed=7)
    monkeypatch.setattr(Counted, "reset", lambda self, seed=None: 1 / 0)
    broken = FromGym(Counted())
    with pytest.raises(ZeroDivisionError):
        broken.reset(seed=0)
    monkeypatch.undo()
    assert "task_key" in broken.reset(seed=0)[1], "where nothing could be reset, nothing was found out"


class Told(gymnasium.Env):
    """Says in ``info`` what this package reads."""

    observation_space = Discrete(1)
    action_space = Discrete(2)
    first = (0, {"split": "test", "choices": ["[0]"], "noise": 1})

    def reset(self, seed=None):  # type: ignore[override]
        return self.first

    def step(self, action):
        return 0, 0.0, False, False, {"choices": ["[1]"], "invalid": True}


def test_what_an_environment_says_in_info_is_kept() -> None:
    env = FromGym(Told())
    _, info = env.reset(seed=0)
    assert (info["split"], info["choices"], "noise" in info) == ("test", ["[0]"], False)
    assert env.step("what?")[4]["choices"] == ["[0]"], "nothing moved"
    info = env.step("[0]")[4]
    assert info["choices"] == ["[1]"] and info["invalid"]


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (np.zeros(2), r"reset must return \(observation, info\), got ndarray"),
        ((0, 5), "info must be a dict, got int"),
    ],
)
def test_a_reset_of_the_old_kind_is_told(monkeypatch: pytest.MonkeyPatch, first: object, says: str) -> None:
    monkeypatch.setattr(Told, "first", first)
    with pytest.raises(GameFault, match=says):
        make(EnvSpec(id="told", entry_point=Told)).reset(seed=0)


@pytest.mark.parametrize(
    ("ref", "given", "says"),
    [
        ("gym-frozen-lake", {"size": "4x"}, "size of 2 or more .* got '4x'"),
        ("gym:FrozenLake-v1", {"map_name": "9x9"}, "gym:FrozenLake-v1: '9x9'"),
        ("gym:CartPole-v1", {"actions": "left"}, "actions must map names to actions, .* got 'left'"),
        ("gym:CartPole-v1", {"actions": {"right": 9}}, "the action 'right' is 9, which is not in Discrete"),
        ("frozen-lake", {"size": "big"}, "must be whole numbers, got 'big'"),
        ("sokoban", {"dim_room": 6}, "two sides of 5 or more and a box, got 6, 1"),
        ("ifeval", {"file": 5}, "file must be the name of a .jsonl file, got 5"),
    ],
)
def test_arguments_of_a_wrong_kind_are_one_line(ref: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvError, match=says) as error:
        make(ref, **given)
    assert "raised" not in str(error.value)


def test_thousands_of_actions_need_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "action_space", Discrete(5000))
    with pytest.raises(EnvError, match=r"has 5,000 actions, .* name some actions"):
        FromGym(Told())
    assert FromGym(Told(), actions={"first": 0}).reset(seed=0)[1]["legal_actions"] == ["[first]"]


class OneWay(gymnasium.Env):
    observation_space = Discrete(1)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.door = int(self.np_random.integers(2))
        return 0, {}

    def step(self, action):
        return 0, float(action == 1 and self.door), True, False, {}


class Drawn(OneWay):
    """Draws itself as text, and takes no render_mode; `metadata` of a wrapper is a property."""

    metadata: ClassVar[Any] = {"render_modes": ["ansi"]}

    def __init__(self) -> None:
        super().__init__()


class Unnamed(OneWay):
    metadata: ClassVar[Any] = {"render_modes": None}


class Wrapped(gymnasium.Wrapper):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(OneWay())


@pytest.mark.parametrize("kind", [Drawn, Unnamed, Wrapped])
def test_what_is_registered_with_gymnasium_is_built_as_it_is(kind: Any) -> None:
    gymnasium.register(f"{kind.__name__}InATest-v0", entry_point=f"tests.envs.test_gym:{kind.__name__}")
    try:
        assert make(f"gym:{kind.__name__}InATest-v0").reset(seed=0)[1]["legal_actions"] == ["[0]", "[1]"]
    finally:
        del gymnasium.registry[f"{kind.__name__}InATest-v0"]


def test_what_one_instance_found_out_says_nothing_of_another_with_other_actions() -> None:
    gymnasium.register("OneWayInATest-v0", entry_point="tests.envs.test_gym:OneWay")
    try:
        told = [
            "task_key" in FromGym("OneWayInATest-v0", actions=actions).reset(seed=0)[1]
            for actions in ({"wait": 0}, {"wait": 0, "open": 1})
        ]
    finally:
        del gymnasium.registry["OneWayInATest-v0"]
    assert told == [False, True]
