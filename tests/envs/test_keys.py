"""One key for one game: what is hidden, and what is drawn later, tells tasks apart; what is the same does not."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from agentopcd.core.errors import EnvError
from agentopcd.envs import FromGym, TextEnv, check_env, make, task_key
from agentopcd.envs.games.inside import canonical, draws_later, for_several, is_open, lacking
from agentopcd.envs.views import hash_text


def keys(ref: str, seeds: int, **kwargs: Any) -> list[str]:
    env = make(ref, **kwargs)
    found = [task_key(*env.reset(seed=seed)) for seed in range(seeds)]
    assert [task_key(*make(ref, **kwargs).reset(seed=seed)) for seed in range(3)] == found[:3]  # a fresh one agrees
    return found


def secret(ref: str, name: str, seed: int) -> Any:
    env = make(ref)
    env.reset(seed=seed)
    return repr(env.unwrapped._game.state.game_state[name])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("game", "name"),
    [
        ("Mastermind-v0", "secret_code"),
        ("GuessTheNumber-v0", "game_number"),
        pytest.param("Set-v0", "deck", marks=pytest.mark.slow),
    ],
)
def test_a_hidden_secret_is_part_of_the_key(game: str, name: str) -> None:
    found = keys(f"textarena:{game}", 60)
    secrets = [secret(f"textarena:{game}", name, seed) for seed in range(60)]
    assert len(set(found)) == len(set(secrets)) > 1
    assert len(set(zip(found, secrets, strict=True))) == len(set(found))


@pytest.mark.parametrize("game", ["Minesweeper-v0", "Bandit-v0", "2048-v0", "Blackjack-v0"])
def test_what_is_drawn_later_tells_seeds_apart(game: str) -> None:
    assert len(set(keys(f"textarena:{game}", 20))) == 20


def test_a_game_that_shows_all_keeps_the_key_of_its_board() -> None:
    env = make("textarena:Sudoku-v0")
    obs, info = env.reset(seed=3)
    assert "task_key" not in info
    assert task_key(obs, info) == hash_text(dict(info["parts"])["state"])
    assert is_open("Sudoku-v0-easy") and not is_open("Mastermind-v0-hard")


def test_games_for_several_players_are_refused() -> None:
    for name in ("TicTacToe-v0", "Poker-v0", "PigDice-v0"):
        with pytest.raises(EnvError, match=f"{name} is a game for several players"):
            make(f"textarena:{name}")


class _Dice:
    def step(self) -> int:
        return self._roll()

    def _roll(self) -> int:
        return max(random.randint(1, 6) for _ in range(2))

    def reset(self) -> None:
        _build()


def _build() -> Any:
    return TwoPlayerState()  # type: ignore[name-defined]  # noqa: F821


class _Counts:
    def step(self) -> int:
        return 1


def test_the_code_of_a_game_is_read() -> None:
    assert draws_later(_Dice) and not draws_later(_Counts)
    assert for_several(_Dice) == "TwoPlayerState" and for_several(_Counts) == ""


def test_the_same_state_is_the_same_text() -> None:
    state = {"b": {3, 1, 2}, "a": [1, (2, None)], "board": np.eye(2), "queue": deque([1]), "say": print}
    assert canonical(state) == canonical(dict(reversed(state.items())))
    assert canonical(state) != canonical(state | {"b": {1, 2}})
    assert "0x" not in canonical(state | {"object": _Counts()})


@dataclasses.dataclass(slots=True)
class _Slotted:
    secret: int


@dataclasses.dataclass
class _Below(_Slotted):
    more: int = 0


class _Tensor:
    def __init__(self, numbers: list[int]) -> None:
        self._numbers = lambda: numbers

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self._numbers())


@pytest.mark.parametrize("kind", [_Slotted, _Below, lambda number: _Tensor([number])])
def test_state_in_slots_and_arrays_counts(kind: Any) -> None:
    assert canonical(kind(1)) == canonical(kind(1)) != canonical(kind(2))
    assert canonical(Path("/here")) == canonical(Path("/there"))


def test_slippery_and_random_games_have_a_task_a_seed_and_fixed_ones_do_not() -> None:
    assert len(set(keys("gym:FrozenLake-v1", 40))) > 35
    assert len(set(keys("gym:FrozenLake-v1", 10, is_slippery=False))) == 1
    assert len(set(keys("gym:CliffWalking-v1", 5))) == 1
    assert len(set(keys("gym:Blackjack-v1", 200))) > 180  # some hands are over before they differ
    env = make("gym:CartPole-v1")
    obs, info = env.reset(seed=0)
    assert "task_key" not in info and task_key(obs, info) == hash_text(dict(info["parts"])["state"])


class Corridor(gymnasium.Env):
    """Two doors that look alike; the seed says which one opens, and nothing shows it."""

    observation_space = Discrete(1)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.door = int(self.np_random.integers(2))
        return 0, {}

    def step(self, action: int) -> Any:
        return 0, float(action == self.door), True, False, {}


def test_a_hidden_state_behind_the_bridge_is_found_by_trying() -> None:
    env = FromGym(Corridor())
    found = {(task_key(*env.reset(seed=seed)), env._env.door) for seed in range(20)}  # type: ignore[attr-defined]
    assert sorted(door for _, door in found) == [0, 1]


class Hidden(TextEnv):
    """Says the same first text for every seed; another reply wins in each."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.right = int(self.np_random.integers(2))
        return self.first(state="Say [0] or [1].")

    def step(self, action: str) -> Any:
        return self.turn(success=f"[{self.right}]" in action)


class Keyed(Hidden):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return obs, info | {"task_key": str(self.right)}


def test_the_checker_finds_one_key_for_different_games() -> None:
    report = check_env("tests.envs.test_keys:Hidden", n=16)
    assert any("have one task key and go differently; pass first(key=...)" in error for error in report.errors), report
    assert check_env("tests.envs.test_keys:Keyed", n=16).errors == []


# -- actions and observations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["go [north]", "go [south]"], r"'go \[north\]' cannot be said in brackets"),
        (["A", "a"], r"two actions are read as \[a\]"),
        (["", "b"], "'' cannot be said"),
        (["stop</think>", "b"], "cannot be said"),
    ],
)
def test_names_that_cannot_be_said_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(EnvError, match=words):
        FromGym(Corridor(), actions={name: k for k, name in enumerate(names)})


def test_spaces_around_a_name_do_not_count() -> None:
    env = FromGym(Corridor(), actions={" Keep ": 0, "throw": 1})
    assert env.reset(seed=0)[1]["legal_actions"] == ["[keep]", "[throw]"]
    assert not env.step("[ KEEP ]")[4]["invalid"]


class Picture(gymnasium.Env):
    """One bright dot in the middle of a large array."""

    action_space = Discrete(2)

    def __init__(self, side: int = 44) -> None:
        self.side = side
        self.observation_space = Box(0, 1, (side, side), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.obs = np.zeros((self.side, self.side), dtype=np.float32)
        self.obs[20 + int(self.np_random.integers(20)), 20 + int(self.np_random.integers(20))] = 1
        return self.obs, {}

    def step(self, action: int) -> Any:
        return self.obs, float(action), True, False, {}


def test_the_whole_array_is_shown_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.envs.games.inside._LOOK_AT_SEEDS", 4)  # each writes the array, which takes long
    env = FromGym(Picture())
    texts = [env.reset(seed=seed)[0] for seed in range(4)]
    assert all(text.count("1.") == 1 and text.count("0.") == 44 * 44 - 1 and "..." not in text for text in texts)
    with pytest.raises(EnvError, match=r"takes 5\d,\d\d\d characters as text, more than 50,000; say what to show"):
        FromGym(Picture(130)).reset(seed=0)


class Mute(TextEnv):
    """Lists an action that it does not understand."""

    listed = ("[go north]", "[stay]")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        obs, info = self.first(key=seed, state=f"Room {seed}.")
        return obs, info | {"legal_actions": list(self.listed)}

    def step(self, action: str) -> Any:
        if action == "[stay]":
            return self.turn(success=True)
        return self.turn(success=False, invalid=True)


class Deaf(Mute):
    listed = ("[go north]",)


def test_the_checker_says_what_it_lists() -> None:
    report = check_env("tests.envs.test_keys:Mute", n=4)
    assert "the listed action '[go north]' counts as invalid at the start" in report.warnings
    report = check_env("tests.envs.test_keys:Deaf", n=4)
    assert "none of the listed actions is understood: '[go north]' counts as invalid" in report.errors


class Endless(TextEnv):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key=seed, state=f"Room {seed}.")

    def step(self, action: str) -> Any:
        return self.turn(state="Go on.")


class Unpaid(Endless):
    def step(self, action: str) -> Any:
        return "Over.", 0.0, True, False, {}


@pytest.mark.parametrize(
    ("name", "words"),
    [("Endless", "no episode came to an end of its own in 2,000 replies"), ("Unpaid", "no reward above 0 and no")],
)
def test_what_never_ends_or_never_says_anything_is_not_ok(name: str, words: str) -> None:
    report = check_env(f"tests.envs.test_keys:{name}", n=4)
    assert any(words in error for error in report.errors), report


def test_where_a_rule_says_what_an_end_is_random_replies_need_not_reach_one() -> None:
    report = check_env("tests.envs.test_keys:Endless", n=4, success_when="terminated")
    assert report.errors == []
    assert "no episode came to an end of its own in 2,000 random replies" in report.warnings


def test_a_hidden_word_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nltk

    words = tmp_path / "corpora" / "words"
    words.mkdir(parents=True)
    for name in ("en", "en-basic", "README"):
        (words / name).write_text("apple\nstone\nglass\n", encoding="utf-8")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda *given, **named: True)  # the game asks for it when it is imported
    found = keys("textarena:Hangman-v0", 12)
    secrets = [secret("textarena:Hangman-v0", "target_word", seed) for seed in range(12)]
    assert len(set(found)) == len(set(secrets)) == len(set(zip(found, secrets, strict=True))) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LookupError("\n***\n  Resource \x1b[93mwords\x1b[0m not found.\n"), "needs nltk's data 'words'; where there"),
        (LookupError("\n***\n  Resource 'words' not found.\n"), "run: python -m nltk.downloader words"),
        (
            ValueError("OpenRouter API key not found. Set OPENROUTER_API_KEY."),
            "set OPENROUTER_API_KEY, or take another",
        ),
        (SyntaxError("invalid syntax"), r"textarena:X-v0 is written for a Python newer than 3\.\d+"),
    ],
)
def test_what_a_game_lacks_is_one_line(error: Exception, said: str) -> None:
    found = lacking("X-v0", error)
    assert found is not None and re.search(said, str(found)) and "\n" not in str(found)


def test_other_errors_are_the_games_own() -> None:
    assert lacking("X-v0", ValueError("size must be positive")) is None
    assert lacking("X-v0", KeyError("Resource")) is None


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="it runs there")
def test_a_game_for_a_newer_python_is_refused_in_one_line() -> None:
    with pytest.raises(EnvError, match=r"^textarena:Klondike-v0 is written for a Python newer than 3\.11$"):
        make("textarena:Klondike-v0")
