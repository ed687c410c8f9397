"""Every public name is called, as ``from agentopcd import NAME`` gives it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agentopcd
from agentopcd.core.config import ConsolidateConfig, LearnConfig
from agentopcd.core.errors import ConfigError, ModelError
from agentopcd.core.types import Task
from agentopcd.envs import registry
from agentopcd.rollouts.player import Player


def session(work: Path) -> Any:
    return agentopcd.Session(ConsolidateConfig(env="math", model="/nope"), work, say=lambda line: None)


def raises(error: type[Exception], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=words):
        call()


def calls(name: str, public: Any, work: Path) -> Any:
    """Call a public name; those that need a model get as far as the model that is not there."""
    config = ConsolidateConfig(env="math", model="/nope")
    match name:
        case "AgentOpcdError":
            assert str(public("words")) == "words"
        case "ConsolidateConfig":
            assert public(env="math").steps == 24
        case "Context":
            assert public("- EXPERIENCE ITEM: go left").lines == ["go left"]
        case "Episode":
            made = public(env="math", task=Task(0, "k"), rep=0, context_id="", turns=[], outcome=[], success=True,
                          reward=1.0, stop_reason="solved")  # fmt: skip
            assert made.output_tokens == 0
        case "Sampling":
            assert public(temperature=0.5).temperature == 0.5
        case "Session" | "find_context":
            with session(work) as opened:
                assert opened.env == "math"
                raises(ConfigError, "was confirmed", lambda: agentopcd.find_context(opened, config))
        case "Store":
            with public.open(work / "store.db") as store:
                assert store.episodes() == []
        case "TextEnv":
            assert public.turn and type("Own", (public,), {})()
        case "consolidate":
            raises(TypeError, "consolidate.. missing .* 'student'", lambda: public(None))
            raises(AttributeError, "config", lambda: public(None, student=0, teacher=0, method=0, run=0))
        case "distil_context":
            with session(work) as opened:
                raises(ModelError, "/nope", lambda: public(opened, config, agentopcd.Context("x")))
        case "evaluate":
            with session(work) as opened:
                raises(ConfigError, "no test tasks", lambda: public(opened, [], [], run_id=1))
        case "learn":
            raises(
                ModelError, "/nope", lambda: public(LearnConfig(env="math", model="/nope"), work, say=lambda _: None)
            )
        case "load_model":
            raises(ModelError, "no such", lambda: public("no such"))
        case "make":
            assert public("math").reset(seed=0)[0]
        case "play":
            sampler: Any = SimpleNamespace(drop=list, split=lambda jobs: [sampler])
            game: Any = SimpleNamespace(steps_apart=False)
            chat: Any = None
            player = Player(game=game, sampler=sampler, chat=chat, sampling=agentopcd.Sampling())
            assert list(public(player, [])) == []
        case "register":
            assert public("own-name", agentopcd.TextEnv).id == "own-name"
        case _:
            raise AssertionError(f"call {name} here, too")


@pytest.mark.parametrize("name", [name for name in agentopcd.__all__ if name != "__version__"])
def test_the_name_can_be_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agentopcd.make("math")
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    scope: dict[str, Any] = {}
    exec(f"from agentopcd import {name}", scope)
    calls(name, scope[name], tmp_path)


@pytest.mark.parametrize("name", ["consolidate", "learn"])
def test_a_name_that_is_a_module_is_both(name: str) -> None:
    module = importlib.import_module(f"agentopcd.{name}")
    assert getattr(agentopcd, name) is module and callable(getattr(module, name))
