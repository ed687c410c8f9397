"""agentopcd: an agent keeps what it learns by playing.

Episodes become experience items, items become a scored context, and on-policy context distillation
(arXiv:2602.12275) moves the context into the student's weights.

Importing this package imports neither torch nor transformers; the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# A public name that is also a submodule's, as consolidate and learn are, stands for the submodule, which can be called:
# importing it would hide a function of that name.
_PUBLIC = {
    "AgentOpcdError": "agentopcd.core.errors",
    "ConsolidateConfig": "agentopcd.core.config",
    "Context": "agentopcd.core.types",
    "Episode": "agentopcd.core.types",
    "Sampling": "agentopcd.core.types",
    "Session": "agentopcd.workspace.session",
    "Store": "agentopcd.knowledge",
    "TextEnv": "agentopcd.envs",
    "consolidate": "agentopcd.consolidate",
    "distil_context": "agentopcd.distil",
    "evaluate": "agentopcd.workspace.evaluation.table",
    "find_context": "agentopcd.workspace.experience.find_context",
    "learn": "agentopcd.learn",
    "load_model": "agentopcd.models",
    "make": "agentopcd.envs",
    "play": "agentopcd.rollouts.player",
    "register": "agentopcd.envs",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'agentopcd' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    return module if module.__name__ == f"agentopcd.{name}" else getattr(module, name)
