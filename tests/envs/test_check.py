from __future__ import annotations

import importlib.util
import random
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import pytest
from gymnasium.spaces import Discrete

from agentopcd.core.errors import EnvError
from agentopcd.envs import EnvSpec, TextEnv, assert_env_ok, check_env, make

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def faulty() -> ModuleType:
    found = importlib.util.spec_from_file_location("faulty_envs", DATA / "faulty.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules["faulty_envs"] = module
    found.loader.exec_module(module)
    return module


def check(faulty: ModuleType, name: str):
    return check_env(lambda: getattr(faulty, name)(), n=8)  # a lambda, so no second process is started


def test_a_sound_environment_has_nothing_to_complain_about(faulty: ModuleType) -> None:
    report = check(faulty, "Sound")
    assert (report.errors, report.warnings, report.seeds, report.distinct) == ([], [], 8, 8)
    assert_env_ok(faulty.Sound, n=4)


def test_what_play_leaves_out_or_reads_as_a_number_is_no_fault(faulty: ModuleType) -> None:
    report = check(faulty, "OwnInfo")
    assert (report.errors, report.warnings) == ([], [])


def test_one_slow_step_may_be_an_import(faulty: ModuleType) -> None:
    assert check(faulty, "SlowOnce").warnings == []
    assert any("set slow=True" in warning for warning in check(faulty, "SlowTwice").warnings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SeedsGlobal", "changes the global state of random"),
        ("UsesGlobal", "depends on the global random state"),
        ("Unseeded", "Gymnasium's check"),
        ("NoOptions", "Gymnasium's check"),
        ("Clock", "Gymnasium's check"),
        ("AddsText", "are not the observation"),
        ("KeepsLog", "something is kept"),
        ("SharedCounter", "influence each other"),
        ("RaisesOnJunk", "raised ValueError"),
        ("NoSuccess", "no info['success'] at the end"),
        ("WrongSolution", "solution() of seed 0 does not solve it"),
        ("Colours", "ANSI escapes"),
        ("NotJson", "info['task_key'] cannot be written as JSON: set"),
        ("Infinite", "not a finite number"),
    ],
)
def test_every_planted_fault_is_found(faulty: ModuleType, name: str, words: str) -> None:
    report = check(faulty, name)
    assert any(words in error for error in report.errors), report
    with pytest.raises(EnvError):
        assert_env_ok(lambda: getattr(faulty, name)(), n=4)


@pytest.mark.parametrize(("name", "words"), [("Prints", "writes to stdout"), ("OneTask", "one task for every seed")])
def test_what_is_only_odd_is_a_warning(faulty: ModuleType, name: str, words: str) -> None:
    report = check(faulty, name)
    assert any(words in warning for warning in report.warnings), report


class Pay(TextEnv):
    """Says nothing of success, and pays a half for `win`."""

    max_steps, success_when = 10, "reward >= 0.5"

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 10
        return self.first(key=seed, state=f"Game {seed}: say win.")

    def step(self, action: str) -> Any:
        self.left -= 1
        obs, _, _, _, info = self.turn(feedback="again")
        return obs, 0.5 if action == "win" else 0.0, action == "win" or not self.left, False, info

    def solution(self) -> list[str]:
        return ["win"]


def test_a_class_is_checked_with_what_stands_on_it() -> None:
    assert check_env(Pay, n=3).errors == []
    assert check_env(lambda: Pay(), n=3).errors  # the rule is what makes it sound


def test_two_processes_tell_a_hash_apart() -> None:
    report = check_env(f"{DATA / 'faulty.py'}:Hashes", n=4)
    assert any("different processes" in error for error in report.errors), report


@pytest.mark.parametrize("name", ["guess.py", "guess_bare.py"])
def test_guess_is_sound_in_both_forms(name: str) -> None:
    assert check_env(partial(make, f"{DATA / name}:Guess"), n=4).errors == []


def test_the_games_are_sound_and_the_caller_keeps_its_generator() -> None:
    random.seed(3)
    before = random.getstate()
    lake = check_env("frozen-lake", n=32)
    assert lake.errors == [] and lake.warnings == ["17 distinct tasks in 32 seeds"]
    room = check_env(lambda: make("sokoban"), n=16)
    assert room.errors == [] and any("cannot be won within the step limit" in line for line in room.warnings)
    for ref in ("math", "gym-frozen-lake"):
        assert check_env(partial(lambda ref: make(ref), ref), n=4).errors == []
    assert random.getstate() == before


def test_what_cannot_be_built_raises() -> None:
    with pytest.raises(EnvError, match="did you mean 'sokoban'"):
        check_env("sokobann")
    with pytest.raises(EnvError, match="n must be 2 or more"):
        check_env("math", n=1)


class Doors(gymnasium.Env):
    """Plain Gymnasium: numbers, no text."""

    observation_space = Discrete(3)
    action_space = Discrete(2)
    success_at = 1.0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.door = int(self.np_random.integers(2))
        return self.door, {}

    def step(self, action: int) -> Any:
        return 2, float(action == self.door), True, False, {}


class Undeclared(gymnasium.Env):
    """Text, without spaces."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return f"Room {int(self.np_random.integers(100_000))}. Say [go].", {}

    def step(self, action: str) -> Any:
        return "Done.", float("[go]" in action), True, False, {}


@pytest.mark.parametrize("cls", [Doors, Undeclared])
def test_a_class_is_built_as_by_its_reference(cls: type) -> None:
    report, by_name = check_env(cls, n=3), check_env(f"tests.envs.test_check:{cls.__name__}", n=3)
    assert report.errors == [] and report == by_name


class Counts(Pay):
    """Says how many instances are open."""

    solution = "a word"  # type: ignore[assignment]  # data of the game's own
    choices = ("win", "wait", "look", "go")
    open: ClassVar = {"now": 0, "most": 0}

    def __init__(self) -> None:
        self.open["now"] += 1
        self.open["most"] = max(self.open.values())

    def close(self) -> None:
        self.open["now"] -= 1


def test_what_is_built_is_closed() -> None:
    assert check_env(lambda: Counts(), n=3, spec=EnvSpec(id="", entry_point=Counts, success_at=0.5)).errors == []
    assert Counts.open["now"] == 0 and Counts.open["most"] <= 3


class OfOldGym(Pay):
    def reset(self) -> Any:  # type: ignore[override]
        return "Start. Say [1]."


def test_what_every_seed_does_wrong_is_one_error() -> None:
    errors = check_env(OfOldGym, n=4, spec=EnvSpec(id="", entry_point=OfOldGym)).errors
    assert [error.partition(" raised ")[0] for error in errors] == ["reset(seed=0)"]


class Patient(Pay):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        time.sleep(0.02)
        return super().reset(seed=seed)


@pytest.mark.parametrize(("settings", "ok"), [({}, False), ({"limit_s": 5.0}, True), ({"slow": True}, True)])
def test_a_check_is_as_patient_as_the_spec(settings: Any, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.envs.walks.CHECK_LIMIT_S", 0.01)
    monkeypatch.setattr("agentopcd.envs.probe.SLOW_STEP_S", 0.0)
    monkeypatch.setattr("agentopcd.envs.probe.MORE_SEEDS", 3)
    monkeypatch.setattr("agentopcd.envs.probe.Probe.processes", lambda self: None)
    report = check_env(Patient, n=2, spec=EnvSpec(id="", entry_point=Patient, success_when="reward > 0", **settings))
    assert (report.errors == []) is ok, report
    assert any("set slow=True" in line for line in report.warnings) is ("limit_s" in settings)
