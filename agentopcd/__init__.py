"""agentopcd: an agent that plays keeps what it learned.

Episodes become experience items, items become a scored context, and on-policy context distillation
(arXiv:2602.12275) moves the context into the student's weights.

Importing this package imports neither torch nor transformers; the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AgentOpcdError": "agentopcd.errors",
    "Context": "agentopcd.types",
    "Episode": "agentopcd.types",
    "Sampling": "agentopcd.types",
    "TextEnv": "agentopcd.envs",
    "make": "agentopcd.envs",
    "register": "agentopcd.envs",
    "Store": "agentopcd.knowledge",
    "load_model": "agentopcd.models",
    "play": "agentopcd.rollouts",
    "consolidate": "agentopcd.consolidate",
    "evaluate": "agentopcd.evaluate",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'agentopcd' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
