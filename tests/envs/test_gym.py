from __future__ import annotations

import gymnasium
import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs import FromGym, TextEnv, get_spec, make, task_key
from agentopcd.envs.views import succeeded


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
    assert succeeded(reward, terminated, info)
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
    for word in ["up", *["right"] * 11, "down"]:
        _, reward, terminated, _, info = env.step(f"[{word}]")
    success_at = get_spec("gym:CliffWalking-v1").success_at
    assert success_at is not None and succeeded(reward, terminated, info, success_at)


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
