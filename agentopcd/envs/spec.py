"""What is known about an environment before it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.envs.views import View

DEFAULT_MAX_STEPS = 20
"""Replies per episode where neither the spec nor the caller says: no episode goes on for ever."""

_BASIC_VIEWS: Mapping[str, View] = {"full": {}, "hidden": {"rules": None}, "none": {"rules": None}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """How to build one environment and what to know about it before it is built."""

    id: str
    entry_point: str | Callable[..., Any]
    """``"pkg.mod:attr"``, a class or a factory."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_steps: int | None = None
    """Replies per episode, invalid ones too; ``None`` takes :data:`DEFAULT_MAX_STEPS`."""
    success_at: float = 1.0
    """Last reward that counts as solved where the environment does not say ``success``."""
    views: Mapping[str, View] = dataclasses.field(default_factory=dict)
    """``--rules NAME`` beside the built-in ``full``, ``hidden`` and ``none``."""
    play_format: str = "{}"
    """How a line typed by a person becomes a reply."""
    history: str = "transcript"
    """``transcript``: one user message with the full log; ``chat``: one message per turn."""
    choices: tuple[str, ...] = ()
    """All legal replies, for ``--constrain``; ``info["choices"]`` names those of one state instead."""
    slow: bool = False
    """Stepping takes long: each episode has its environment in a process of its own (``info`` must be picklable)."""
    seeds: int = 4000
    """How many reset seeds are looked at for splits, unless told otherwise."""
    split_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Tasks per split; what is not named follows from the number of distinct tasks."""
    split_seeds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """A fixed protocol: the seeds of each split, overlaps included. Replaces the algorithm."""
    model: str = ""
    """Built-in model that was made for it, taken where the user names none."""
    summary: str = ""

    def view(self, rules: str | None = None) -> View:
        """Return the view called ``rules``; ``None`` is ``hidden`` where the spec words it, else ``full``.

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
        """Replies per episode after which it is cut off."""
        return DEFAULT_MAX_STEPS if self.max_steps is None else self.max_steps
