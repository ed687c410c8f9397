"""agentopcd: an agent keeps what it learns by playing.

Episodes become experience items, items become a scored context, and on-policy context distillation
(arXiv:2602.12275) moves the context into the student's weights.

Importing this package imports neither torch nor transformers; the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# No public name may equal the name of a submodule: importing the submodule would hide the function.
_PUBLIC = {
    "AgentOpcdError": "agentopcd.core.errors",
    "ConsolidateConfig": "agentopcd.core.config",
    "Context": "agentopcd.core.types",
    "Episode": "agentopcd.core.types",
    "Sampling": "agentopcd.core.types",
    "Session": "agentopcd.workspace.session",
    "Store": "agentopcd.knowledge",
    "TextEnv": "agentopcd.envs",
    "distil_context": "agentopcd.distil",
    "evaluate": "agentopcd.workspace.evaluation.table",
    "find_context": "agentopcd.workspace.experience.find_context",
    "load_model": "agentopcd.models",
    "make": "agentopcd.envs",
    "play": "agentopcd.rollouts.player",
    "register": "agentopcd.envs",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'agentopcd' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
