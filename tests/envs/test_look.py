"""What is no environment is not called, whatever a reference names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import EnvError
from agentopcd.envs import get_spec
from agentopcd.envs.look import builds_environment
from agentopcd.rollouts.engine import game_of

FILE = """
import functools
import shutil
from agentopcd import envs
from agentopcd.envs import FromGym, TextEnv
from gymnasium import make

class Game(TextEnv):
    pass

class Tool:
    def __init__(self):
        open("called", "w").close()

def tool(**_):
    open("called", "w").close()

def direct():
    return Game()

def through_another():
    return direct()

def wrapped():
    return FromGym(make("Blackjack-v1"), actions={"hit": 1})

def lazy():
    import gymnasium
    return gymnasium.make("Blackjack-v1")

def by_annotation() -> "gymnasium.Env":
    return globals()["Ga" + "me"]()

def of_module():
    return envs.make("math")

partly = functools.partial(direct)
bound = functools.partial(shutil.rmtree, "called")
small = lambda: Game()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "games.py").write_text(FILE)
    return "games.py"


@pytest.mark.parametrize(
    "name",
    ["Game", "direct", "through_another", "wrapped", "lazy", "by_annotation", "of_module", "partly", "small"],
)
def test_what_builds_an_environment_is_taken(name: str, file: str) -> None:
    assert get_spec(f"{file}:{name}").id == f"{file}:{name}"


@pytest.mark.parametrize("ref", ["{}:Tool", "{}:tool", "{}:bound", "os:getcwd", "os:remove", "subprocess:Popen",
                                 "builtins:exec", "shutil:rmtree", "pickle:loads"])  # fmt: skip
def test_what_is_something_else_is_refused_before_it_is_called(ref: str, file: str, tmp_path: Path) -> None:
    for arguments in ({}, {"path": "x"}):
        with pytest.raises(EnvError, match="does not look like an environment, so it is not called"):
            game_of(PlayConfig(env=ref.format(file), env_args=arguments))
    assert not (tmp_path / "called").exists()


def test_a_class_counts_by_what_it_can_do() -> None:
    class Plain:
        def reset(self) -> Any: ...
        def step(self, action: str) -> Any: ...

    assert builds_environment(gymnasium.Env) and builds_environment(Plain)
    assert builds_environment(functools.partial(Plain)) and not builds_environment(dict)
