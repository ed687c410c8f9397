"""The specification of an environment: how to build it, and what is known before it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.envs.success import rule_of, solved
from agentopcd.envs.views import View

DEFAULT_MAX_STEPS = 20
"""Replies per episode if neither the spec nor the caller sets a limit, so that every episode ends."""

HISTORIES = ("transcript", "chat")

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
    success_at: float | None = None
    """Smallest final reward that counts as solved if the environment does not report ``success``; ``None``: 1, where
    the rewards can say it (see :func:`agentopcd.envs.success.solved`)."""
    success_when: str = ""
    """The rule in place of ``success_at``: ``return >= 475``, ``reward > 0`` or ``terminated``."""
    judged_by: str = "success"
    """What contexts and checkpoints are chosen by, unless ``--by`` says so: ``success``, ``reward`` or a metric; of
    checkpoints also ``distance``, to the model that sees the context."""
    graded: bool = True
    """Whether a reply can be right or wrong here. If not, results are distances to the model that sees the context."""
    logged: bool = False
    """Whether the prompts are stored, so that replies do not change what comes next. ``log(seed)`` gives the turns."""
    views: Mapping[str, View] = dataclasses.field(default_factory=dict)
    """Views for ``--rules NAME``, besides the built-in ``full``, ``hidden`` and ``none``."""
    play_format: str = "{}"
    """How a line typed by a person becomes a reply."""
    history: str = "transcript"
    """``transcript``: one user message with the full log; ``chat``: one message per turn."""
    choices: tuple[str, ...] = ()
    """All legal replies, for ``--constrain``; ``info["choices"]`` replaces them for one state."""
    slow: bool = False
    """Steps take long, so each episode runs its environment in a separate process."""
    waits: bool = False
    """Steps wait for another machine or process, so each episode takes its steps in a thread of its own. The
    environment itself sees to it that none takes for ever: the alarm of ``limit_s`` rings in the main thread only."""
    limit_s: float = 0.0
    """Seconds that one reset or step may take before it counts as hung; 0: a minute, ten if ``slow``."""
    seeds: int = 4000
    """Default number of reset seeds to scan for splits."""
    split_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Tasks per split; a size that is not given here follows from the number of distinct tasks."""
    split_seeds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """A fixed protocol: the seeds of each split, overlaps included. Replaces the algorithm."""
    model: str = ""
    """Built-in model that was made for this environment; the default if the user names no model."""
    summary: str = ""

    def __post_init__(self) -> None:
        if self.success_when:
            rule_of(self.success_when)
        if self.history not in HISTORIES:
            raise EnvError(f"{self.id}: history is {self.history!r}{did_you_mean(str(self.history), HISTORIES)}")

    def solved(
        self, rewards: Sequence[float], terminated: bool, info: Mapping[str, Any], chosen: str = ""
    ) -> bool | None:
        """Whether an episode that just ended was solved, see :func:`agentopcd.envs.success.solved`."""
        return solved(
            rewards, terminated, info, chosen=chosen, success_when=self.success_when, success_at=self.success_at
        )

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


_ON_CLASSES: Mapping[str, tuple[type, ...]] = {
    "max_steps": (int,), "success_at": (int, float), "success_when": (str,), "judged_by": (str,), "views": (Mapping,),
    "play_format": (str,), "history": (str,), "choices": (tuple, list), "slow": (bool,), "limit_s": (int, float),
    "seeds": (int,), "split_sizes": (Mapping,),
}  # fmt: skip
"""Fields that an environment may also write on its class. Another type under such a name is the game's own affair."""


def written_on(target: Any) -> dict[str, Any]:
    """The fields of a spec that an environment has written on its class, as in ``max_steps = 8``."""
    if not isinstance(target, type):
        return {}
    fields: dict[str, Any] = {}
    for name, types in _ON_CLASSES.items():
        value = getattr(target, name, None)
        if isinstance(value, types) and isinstance(value, bool) == (name == "slow"):
            fields[name] = value
    return fields | ({"choices": tuple(fields["choices"])} if "choices" in fields else {})
