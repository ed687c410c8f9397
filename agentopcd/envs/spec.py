"""The specification of an environment: how to build it, and what is known before it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.envs.views import View

DEFAULT_MAX_STEPS = 20
"""Replies per episode if neither the spec nor the caller sets a limit, so that every episode ends."""

_BASIC_VIEWS: Mapping[str, View] = {"full": {}, "hidden": {"rules": None}, "none": {"rules": None}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """How to build one environment and what to know about it before it is built."""

    id: str
    entry_point: str | Callable[..., Any]
    """``"pkg.mod:attr"``, a class or a factory."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_steps: int | None = None
    """Replies per episode, invalid ones included; ``None`` means :data:`DEFAULT_MAX_STEPS`."""
    success_at: float = 1.0
    """Smallest final reward that counts as solved if the environment does not report ``success``."""
    views: Mapping[str, View] = dataclasses.field(default_factory=dict)
    """Views for ``--rules NAME``, besides the built-in ``full``, ``hidden`` and ``none``."""
    play_format: str = "{}"
    """How a line typed by a person becomes a reply."""
    history: str = "transcript"
    """``transcript``: one user message with the full log; ``chat``: one message per turn."""
    choices: tuple[str, ...] = ()
    """All legal replies, for ``--constrain``; ``info["choices"]`` replaces them for one state."""
    slow: bool = False
    """Steps take long, so each episode runs its environment in a separate process (``info`` must be picklable)."""
    seeds: int = 4000
    """Default number of reset seeds to scan for splits."""
    split_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Tasks per split; a size that is not given here follows from the number of distinct tasks."""
    split_seeds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """A fixed protocol: the seeds of each split, overlaps included. Replaces the algorithm."""
    model: str = ""
    """Built-in model that was made for this environment; the default if the user names no model."""
    summary: str = ""

    def view(self, rules: str | None = None) -> View:
        """Return the view called ``rules``; ``None`` means ``hidden`` if the spec defines it, else ``full``.

        Raises:
            EnvError: there is no view of this name.
        """
        name = rules or ("hidden" if "hidden" in self.views else "full")
        views = {**_BASIC_VIEWS, **self.views}
        if name not in views:
            raise EnvError(f"no view {name!r} for {self.id}{did_you_mean(name, views)}")
        return views[name]

    @property
    def step_limit(self) -> int:
        """Number of replies after which an episode is cut off."""
        return DEFAULT_MAX_STEPS if self.max_steps is None else self.max_steps
