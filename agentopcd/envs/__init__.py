"""Environments: text in, text out.

An environment is a ``gymnasium.Env`` whose ``step`` takes the agent's reply as a string. Nothing else is
required. :class:`TextEnv` is a convenient base class, :func:`make` builds an environment from a reference,
and :func:`check_env` reports breaches of the contract.

Importing this package imports neither gymnasium nor TextArena; names load on first use.
"""

# ruff: noqa: F401 (the imports are for type checkers; names load on first use)

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "agentopcd.envs":
    raise ImportError("import this package as agentopcd.envs; the link at the root is only for readers")

if TYPE_CHECKING:
    from agentopcd.core.text import after_thinking
    from agentopcd.envs.base import AnyText, TextEnv, last_bracket
    from agentopcd.envs.chats.env import ConversationEnv
    from agentopcd.envs.check import CheckReport, assert_env_ok, check_env
    from agentopcd.envs.games.gym_bridge import FromGym
    from agentopcd.envs.games.textarena import TextArenaEnv
    from agentopcd.envs.manifest import Manifest
    from agentopcd.envs.questions.env import DatasetEnv
    from agentopcd.envs.registry import get_spec, list_envs, make, register
    from agentopcd.envs.remote import RemoteEnv
    from agentopcd.envs.spec import EnvSpec
    from agentopcd.envs.splits import build_splits
    from agentopcd.envs.tools import ToolEnv, call, tool
    from agentopcd.envs.views import View, apply_view, join_parts, parts_of, task_key

_HOMES = {
    "base": ("AnyText", "TextEnv", "after_thinking", "last_bracket"),
    "check": ("CheckReport", "assert_env_ok", "check_env"),
    "games.gym_bridge": ("FromGym",),
    "chats.env": ("ConversationEnv",),
    "questions.env": ("DatasetEnv",),
    "registry": ("get_spec", "list_envs", "make", "register"),
    "remote": ("RemoteEnv",),
    "spec": ("EnvSpec",),
    "manifest": ("Manifest",),
    "splits": ("build_splits",),
    "tools": ("ToolEnv", "call", "tool"),
    "games.textarena": ("TextArenaEnv",),
    "views": ("View", "apply_view", "join_parts", "parts_of", "task_key"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'agentopcd.envs' has no attribute {name!r}")
    return getattr(import_module(f"agentopcd.envs.{_HOME_OF[name]}"), name)
