"""Environments: text in, text out.

An environment is a ``gymnasium.Env`` whose ``step`` takes the agent's reply as a string. Nothing else is
required; :class:`TextEnv` makes one short to write, :func:`make` finds one by its reference, and
:func:`check_env` says what is wrong with one.

Importing this package imports neither gymnasium nor TextArena; names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "agentopcd.envs":
    raise ImportError("import this package as agentopcd.envs; the link at the root is only for readers")

if TYPE_CHECKING:
    from agentopcd.envs.base import AnyText, TextEnv, after_think, last_bracket
    from agentopcd.envs.check import CheckReport, assert_env_ok, check_env
    from agentopcd.envs.gym_bridge import FromGym
    from agentopcd.envs.questions import DatasetEnv
    from agentopcd.envs.registry import EnvSpec, get_spec, list_envs, make, parse_env_args, register
    from agentopcd.envs.remote import RemoteEnv
    from agentopcd.envs.splits import Manifest, build_splits
    from agentopcd.envs.textarena_games import TextArenaEnv
    from agentopcd.envs.views import View, apply_view, join_parts, parts_of, succeeded, task_key

_HOMES = {
    "base": ("AnyText", "TextEnv", "after_think", "last_bracket"),
    "check": ("CheckReport", "assert_env_ok", "check_env"),
    "gym_bridge": ("FromGym",),
    "questions": ("DatasetEnv",),
    "registry": ("EnvSpec", "get_spec", "list_envs", "make", "parse_env_args", "register"),
    "remote": ("RemoteEnv",),
    "splits": ("Manifest", "build_splits"),
    "textarena_games": ("TextArenaEnv",),
    "views": ("View", "apply_view", "join_parts", "parts_of", "succeeded", "task_key"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnyText",
    "CheckReport",
    "DatasetEnv",
    "EnvSpec",
    "FromGym",
    "Manifest",
    "RemoteEnv",
    "TextArenaEnv",
    "TextEnv",
    "View",
    "after_think",
    "apply_view",
    "assert_env_ok",
    "build_splits",
    "check_env",
    "get_spec",
    "join_parts",
    "last_bracket",
    "list_envs",
    "make",
    "parse_env_args",
    "parts_of",
    "register",
    "succeeded",
    "task_key",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'agentopcd.envs' has no attribute {name!r}")
    return getattr(import_module(f"agentopcd.envs.{_HOME_OF[name]}"), name)
