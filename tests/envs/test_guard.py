"""Whatever a game does wrong is one fault with one line, in play, splits, floors, check, show and try alike."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import signal
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest

from agentopcd.core.errors import EnvError, GameFault
from agentopcd.core.types import Job, Task
from agentopcd.envs import AnyText, EnvSpec, TextEnv, build_splits, check_env, get_spec, make, register
from agentopcd.envs.floors import floors
from agentopcd.envs.guard import KNOWN_INFO, Guarded, Hang, OutOfTime, time_limit
from agentopcd.envs.spec import written_on

HERE = "tests.envs.test_guard"
# The checker imports this file in two new processes for the classes in it, so what plays them (torch and transformers,
# 10 s of a slow processor for each) is imported inside the tests that play.


class Room(TextEnv):
    """Say [left] or [right]. What it does wrong is said by ``fault``."""

    fault = ""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.n = int(seed or 0)
        if self.fault == "one seed" and seed == 7:
            [].pop()
        if self.fault == "hangs" and seed == 2:
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(0.01)
        half = " \ud83d" if self.fault == "half a pair" and self.n == 1 else ""
        obs, info = self.first(key=self.n, state=f"Room {self.n}.{half}", actions="Answer [left] or [right].")
        return obs, info | {"legal_actions": ["[left]", "[right]"]}

    def step(self, action: str) -> Any:
        odd = self.n % 2
        match self.fault if odd else "":
            case "nan":
                return self.turn(success=True, reward=float("nan"))
            case "raises":
                raise ValueError("no such room\nand more")
            case "env error":
                return self.turn(feedbak="No.")
            case "exits":
                raise SystemExit(0)
            case "cancelled":
                raise asyncio.CancelledError("the server went")
            case "word":
                obs, *rest, info = self.turn(success=True)
                return obs, *rest, info | {"metrics": {"level": "hard"}}
            case "list":
                obs, *rest, info = self.turn(success=True)
                return obs, *rest, info | {"metrics": []}
            case "split":
                obs, *rest, info = self.turn(success=True)
                return obs, *rest, info | {"split": ["train"]}
            case "info":
                return "Done.", 1.0, True, False, None
            case "four":
                return "Done.", 1.0, True, {}
        return self.turn(success="[right]" in action)

    def close(self) -> None:
        if self.fault == "close":
            raise RuntimeError("already closed")


FAULTS = {
    "nan": "the reward nan is not a finite number",
    "raises": "step raised ValueError: no such room",
    "env error": "step: unknown part kind 'feedbak'; did you mean 'feedback'?",
    "exits": "step called exit(0)",
    "cancelled": "step raised CancelledError: the server went",
    "word": "info['metrics']['level'] must be a finite number, got 'hard'",
    "list": "info['metrics'] must map names to numbers, got []",
    "split": "info['split'] must be the name of a split, got ['train']",
    "info": "info must be a dict, got NoneType",
    "four": "step must return (observation, reward, terminated, truncated, info), got 4 values",
}


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Room, "fault", request.param)
    return request.param


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("fault", FAULTS, indirect=True)
def test_a_fault_costs_its_own_episodes_everywhere(fault: str, tokenizer: Any) -> None:
    from agentopcd.rollouts.player import play
    from tests.rollouts.scripted import player_of

    said = FAULTS[fault]
    player = player_of(tokenizer, lambda prompt: "[right]", f"{HERE}:Room")
    episodes = {e.task.seed: e for e in play(player, [Job(Task(seed, str(seed))) for seed in range(4)])}
    assert {seed: e.stop_reason for seed, e in episodes.items()} == {
        0: "solved", 1: "env_error", 2: "solved", 3: "env_error"
    }  # fmt: skip
    assert str(episodes[1].error).strip().splitlines()[-1].endswith(f"GameFault: {said}")
    assert build_splits(f"{HERE}:Room", seeds=10).distinct == 10
    with pytest.warns(UserWarning, match="random episodes of .*Room broke off"):
        found = floors(f"{HERE}:Room", {}, [Task(seed, str(seed)) for seed in range(4)])
    assert found.random == pytest.approx(0.5, abs=0.07) and found.random_episodes == 500
    report = check_env(f"{HERE}:Room", n=4)
    assert report.errors == [said]


class SaysNone(Room):
    """Names every entry of ``info``, also those that it has nothing for."""

    choices: ClassVar = ["[left]", "[right]"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return obs, dict.fromkeys(KNOWN_INFO) | {"task_key": info["task_key"], "legal_actions": info["legal_actions"]}

    def step(self, action: str) -> Any:
        obs, *rest, info = super().step(action)
        return obs, *rest, dict.fromkeys(KNOWN_INFO) | {"success": info["success"]}


@pytest.mark.parametrize("constrain", [False, True])
def test_an_entry_of_none_is_one_that_is_not_there(constrain: bool, tokenizer: Any) -> None:
    from agentopcd.rollouts.player import play
    from tests.rollouts.scripted import player_of

    player = player_of(tokenizer, lambda prompt: "[right]", f"{HERE}:SaysNone")
    player = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=constrain))
    (episode,) = play(player, [Job(Task(1, "1"))])
    assert episode.stop_reason == "solved", episode.error


@pytest.mark.parametrize("fault", ["one seed", "half a pair"], indirect=True)
def test_a_seed_that_cannot_be_reset_is_left_out_and_told(fault: str) -> None:
    with pytest.warns(UserWarning, match=r"1 of 10 seeds of .*Room cannot be reset and are left out \(seed \d: "):
        manifest = build_splits(f"{HERE}:Room", seeds=10)
    assert manifest.distinct == 9
    if fault == "one seed":
        report = check_env(f"{HERE}:Room", n=4)
        assert report.ok
        assert "1 of 300 more seeds cannot be reset: reset(seed=7) raised IndexError: pop from empty list" in (
            report.warnings
        )


@pytest.mark.parametrize("fault", ["close"], indirect=True)
def test_a_close_that_raises_is_a_warning(fault: str) -> None:
    with pytest.warns(UserWarning, match=r"close\(\) raised RuntimeError: already closed; ignored"):
        assert build_splits(f"{HERE}:Room", seeds=10).distinct == 10
    report = check_env(f"{HERE}:Room", n=4)
    assert report.ok and "close() raised RuntimeError: already closed; ignored" in report.warnings


@pytest.mark.parametrize("fault", ["hangs"], indirect=True)
def test_a_hang_is_stopped_and_told(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.envs.walks.CHECK_LIMIT_S", 0.2)
    report = check_env(f"{HERE}:Room", n=4)
    assert report.errors == ["reset(seed=2) gave no answer within 0 s"]
    env = Guarded(Room(), 3, limit_s=0.2)
    with pytest.raises(Hang, match=r"reset\(seed=2\) gave no answer within 0 s"):
        env.reset(seed=2)
    assert env.reset(seed=3)[0].startswith("Room 3.")


def test_the_alarm_of_somebody_else_goes_on() -> None:
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with time_limit(10):
            pass
        with pytest.raises(OutOfTime), time_limit(0.05):
            while True:
                pass
        assert not rang
        time.sleep(0.4)
        assert rang == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_no_seed_at_all_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(self: Room, *, seed: int | None = None, options: Any = None) -> Any:
        raise OSError("the file is gone")

    monkeypatch.setattr(Room, "reset", reset)
    words = r"no tasks of .*Room: 20 of the seeds looked at cannot be reset \(.*OSError: the file is gone\)"
    with pytest.raises(EnvError, match=words):
        build_splits(f"{HERE}:Room")


class IgnoresItsSeed(Room):
    count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        IgnoresItsSeed.count += 1
        return super().reset(seed=IgnoresItsSeed.count)


def test_an_environment_that_ignores_its_seed_is_refused() -> None:
    with pytest.raises(EnvError, match="gave another task the second time"):
        build_splits(f"{HERE}:IgnoresItsSeed", seeds=5)


class Unbuildable(Room):
    def __init__(self) -> None:
        open("/nonexistent/games/train.json").close()


class NoSpaces(gymnasium.Env):
    """What people write first."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return f"Room {int(self.np_random.integers(100_000))}. Say [go].", {}

    def step(self, action: str) -> Any:
        return "Done.", float("[go]" in action), True, False, {}


class Old(gymnasium.Env):
    """The interface before 0.26."""

    observation_space = action_space = AnyText()

    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "Say [go]."


class Coroutine(Room):
    async def step(self, action: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.turn(success=True)


def test_what_cannot_be_built_is_one_line() -> None:
    with pytest.raises(GameFault, match=r"building .*Unbuildable raised FileNotFoundError: .*train\.json"):
        make(f"{HERE}:Unbuildable")
    with pytest.raises(GameFault, match=r"reset\(seed=0\) raised TypeError: .*'seed'"):
        make(f"{HERE}:Old").reset(seed=0)
    env = make(f"{HERE}:Coroutine")
    env.reset(seed=0)
    with pytest.raises(GameFault, match="step is a coroutine"):
        env.step("[go]")


@pytest.mark.slow
def test_where_no_space_is_declared_text_is_assumed() -> None:
    env = make(f"{HERE}:NoSpaces")
    assert env.reset(seed=0)[0].endswith("Say [go].") and env.step("[go]")[1] == 1.0
    assert check_env(f"{HERE}:NoSpaces", n=8).errors == []


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("import sys; sys.exit()", r"it called exit\(\)"),
        ("import asyncio; raise asyncio.CancelledError('no')", "CancelledError: no"),
    ],
)
def test_a_module_that_leaves_python_is_a_line(does: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "quits.py"
    file.write_text(does)
    with pytest.raises(EnvError, match=rf"cannot import .*quits\.py.*: {told}"):
        get_spec(f"{file}:E")


class Settled(Room):
    max_steps = 8
    history = "chat"
    success_when = "return >= 2"
    choices: ClassVar = ["[left]", "[right]"]
    seeds = "not a number: the game's own affair, since its code reads it"

    def told(self) -> list[str]:
        return self.seeds.split()


class Bare(Room):
    pass


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_steps", "8", "Named.max_steps is '8', which sets nothing; wanted a value of type int"),
        ("max_steps", True, "wanted a value of type int"),
        ("slow", 1, "wanted a value of type bool"),
        ("choices", "[left]", "wanted a value of type tuple or list"),
        ("graded", False, "Named.graded is False, which sets nothing on a class; give it to agentopcd.envs.register"),
    ],
)
def test_what_looks_like_a_setting_and_cannot_be_one_is_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(EnvError, match=re.escape(words)):
        written_on(type("Named", (Bare,), {name: value}))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("timeout", 5, "limit_s"),
        ("max_turns", 8, "max_steps"),
        ("max_step", 8, "max_steps"),
        ("sucess_at", 1, "success_at"),
    ],
)
def test_what_looks_like_a_setting_and_sets_nothing_is_told(name: str, value: object, meant: str) -> None:
    with pytest.warns(UserWarning, match=f"Named.{name} is {value}, which sets nothing; did you mean {meant}"):
        assert written_on(type("Named", (Bare,), {name: value})) == {}


def test_what_the_game_reads_itself_and_what_has_a_name_of_its_own_is_not_told() -> None:
    reads = {"max_turns": 8, "left": property(lambda self: [self.max_turns for _ in "ab"])}
    own = {"levels": 3, "lamps": (1, 2), "_timeout": 4, "timeout": None, "actions": lambda self: ()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert written_on(type("Reads", (Bare,), reads)) == {} == written_on(type("Own", (Bare,), own))
        assert written_on(type("Summed", (Bare,), {"summary": "A room.", "max_steps": 3})) == {
            "summary": "A room.",
            "max_steps": 3,
        }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("choices", [0, 1, 2], "choices must be a tuple of texts"),
        ("views", {"camera": (64, 64)}, "must map kinds of parts"),
        ("history", "long", "history is 'long'"),
    ],
)
def test_a_setting_of_another_meaning_is_the_games_own_where_its_code_reads_it(
    name: str, value: object, says: str
) -> None:
    source = f"class Own(Bare):\n    {name} = {value!r}\n    def of(self):\n        return self.{name}\n"
    scope: dict[str, Any] = {"Bare": Bare}
    exec(source, scope)
    assert written_on(scope["Own"]) == {}
    with pytest.raises(EnvError, match=says):
        EnvSpec(id="x", entry_point=Bare, **written_on(type("Named", (Bare,), {name: value})))


def test_what_is_written_on_a_class_counts() -> None:
    spec = get_spec(f"{HERE}:Settled")
    assert (spec.step_limit, spec.history, spec.success_when) == (8, "chat", "return >= 2")
    assert (spec.choices, spec.seeds) == (("[left]", "[right]"), EnvSpec(id="", entry_point="").seeds)
    assert register("settled-in-a-test", Settled, max_steps=3).step_limit == 3
    with pytest.raises(EnvError, match="history is 'chatty'"):
        EnvSpec(id="x", entry_point=Room, history="chatty")
