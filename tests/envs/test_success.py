"""What counts as success where the reward alone does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Job, Task
from agentopcd.envs import TextEnv, check_env, get_spec, make
from agentopcd.envs.success import rule_of, solved


@pytest.mark.parametrize(
    ("rule", "rewards", "terminated", "won"),
    [
        ("reward >= 1", [0, 1], True, True),
        ("reward >= 1", [0, 1], False, False),  # cut off: the end that pays never came
        ("reward>0", [0, 0.955], True, True),
        ("reward > 0", [0, 0], True, False),
        ("reward >= -1", [-1, -1], True, True),
        ("return >= 3", [1, 1, 1], False, True),
        ("return > 3", [1, 1, 1], True, False),
        ("return >= 1", [0.1] * 10, True, True),  # one after the other they make 0.9999999999999999
        ("return>=-2.5e0", [-1, -1, -1], True, False),
        ("terminated", [-1, -1], True, True),
        ("terminated", [-1, -1], False, False),
    ],
)
def test_a_rule(rule: str, rewards: list[float], terminated: bool, won: bool) -> None:
    assert rule_of(rule).holds(rewards, terminated) is won
    assert solved(rewards, terminated, {"success": not won}, chosen=rule) is won  # what the user chose decides
    assert solved(rewards, terminated, {"success": not won}, success_when=rule) is not won


@pytest.mark.parametrize("text", ["", "reward", "reward == 1", "return >= x", "terminated >= 1", "reward >= 1 or more"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(EnvError, match=r"success_when is .*; wanted 'reward >= 1'"):
        rule_of(text)


@pytest.mark.parametrize(
    ("rewards", "terminated", "won"),
    [
        ([1], True, True),
        ([0, 0, 1], True, True),
        ([-0.01, -0.01, 1], True, True),
        ([-0.01, -0.01, -1], True, False),
        ([0, 0, 0], True, False),
        ([0, -1], True, False),
        ([1, 1, 1], False, False),  # a cut is no success
        ([1, 1, 1], True, None),  # CartPole: falling pays like standing
        ([-1, -1, -1], True, None),  # MountainCar: reaching the goal costs like all before
        ([-1, -1, 0], True, None),  # the goal costs nothing
        ([-1, -100, -1], True, None),  # CliffWalking: the goal costs like a step
        ([0, -1, 0], True, None),
        ([-1], True, False),
        ([1, -1], True, False),
        ([-1, 1], True, True),
        ([0, 0.955], True, None),  # MiniGrid: a share
        ([0, 0, 3], True, None),  # points, of how many nobody knows
        ([0, 0, 250], True, None),
    ],
)
def test_what_rewards_alone_can_say(rewards: list[float], terminated: bool, won: bool | None) -> None:
    assert solved(rewards, terminated, {}) is won


def play_gym(ref: str, reply: str, *, max_steps: int | None = None) -> bool | None:
    spec = get_spec(ref)
    env = make(ref, max_steps=max_steps)
    env.reset(seed=0)
    rewards: list[float] = []
    while True:
        _, reward, terminated, truncated, info = env.step(reply)
        rewards.append(float(reward))
        if terminated or truncated:
            return spec.solved(rewards, terminated, info)


def test_falling_is_no_success_and_thresholds_are_those_of_gymnasium() -> None:
    assert play_gym("gym:CartPole-v1", "[0]") is False
    assert get_spec("gym:CartPole-v1").success_when == "return >= 475"
    assert get_spec("gym:CartPole-v1").solved([1.0] * 500, False, {}) is True
    assert get_spec("gym:LunarLander-v3").success_when == "return >= 200"


def test_reaching_the_goal_is_success_where_every_step_costs() -> None:
    spec = get_spec("gym:MountainCar-v0")
    assert spec.solved([-1.0] * 120, True, {}) is True
    assert spec.solved([-1.0] * 200, False, {}) is False
    assert get_spec("gym:Acrobot-v1").solved([-1.0, 0.0], True, {}) is True
    assert get_spec("gym:Taxi-v4").solved([-1.0, -10.0, 20.0], True, {}) is True
    assert get_spec("gym:Blackjack-v1").solved([0.0, -1.0], True, {}) is False


class Costs(TextEnv):
    """Costs 1 each step; the goal costs nothing, and nothing says that it is one."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 3
        return self.first(key=seed, state=f"Walk {seed}.")

    def step(self, action: str) -> Any:
        self.left -= 1
        return f"{self.left} to go.", -1.0 if self.left else 0.0, self.left == 0, False, {}


def test_a_goal_that_costs_nothing_is_asked_for() -> None:
    report = check_env(Costs, n=2)
    assert any("does not say; say when it is solved" in error for error in report.errors), report
    assert check_env(Costs, n=2, success_when="terminated").errors == []


class Pays(TextEnv):
    """Pays 1 each step and ends after three; nothing says whether that is good."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 3
        return self.first(key="pays", state="Go on.")

    def step(self, action: str) -> Any:
        self.left -= 1
        return "On.", 1.0, self.left == 0, False, {}


PAYS = "tests.envs.test_success:Pays"
# The checker imports this file in two new processes for the classes in it, so what plays them (torch and transformers,
# 10 s of a slow processor for each) is imported inside the test that plays.


def test_play_asks_where_nothing_says_it_and_takes_the_rule(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    from agentopcd.rollouts.game import Game
    from agentopcd.rollouts.player import play
    from tests.rollouts.scripted import player_of

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    player = player_of(tokenizer, lambda prompt: "go", PAYS)
    job = Job(Task(0, "pays"))
    with pytest.raises(EnvError, match=r"last rewards were 1, 1, 1; add --success-when with one of 'reward >= 1'"):
        list(play(player, [job]))
    for rule, won in (("return >= 3", True), ("return > 3", False)):
        game = Game(ref=PAYS, success_when=rule)
        (episode,) = play(type(player)(**{**vars(player), "game": game}), [job])
        assert episode.success is won
    assert Game(ref=PAYS).describe() == {k: v for k, v in game.describe().items() if k != "success_when"}
    with pytest.raises(EnvError, match="success_when is 'won'"):
        Game(ref=PAYS, success_when="won")


@pytest.mark.slow
def test_the_checker_asks_as_well() -> None:
    report = check_env(PAYS, n=4)
    assert any("a last reward of 1 does not say" in error for error in report.errors), report
    assert check_env(PAYS, n=4, success_when="return >= 3").errors == []
