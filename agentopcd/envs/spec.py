"""The specification of an environment: how to build it, and what is known before it is built."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import CodeType, FunctionType
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.types import PART_KINDS, SPLITS
from agentopcd.envs.look import class_of
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
    """All legal replies, for ``--constrain`` and random play; ``info["choices"]`` replaces them for one state.
    Without either, ``info["legal_actions"]`` are all."""
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
        for name, view in self.views.items():
            _check_view(f"{self.id}: views[{name!r}]", view)
        for name, size in self.split_sizes.items():
            if name not in SPLITS:
                raise EnvError(f"{self.id}: split_sizes: no split {name!r}{did_you_mean(str(name), SPLITS)}")
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                said = f"{name!r} must be a whole number of tasks, 0 or more, got {size!r:.40}"
                raise EnvError(f"{self.id}: split_sizes: {said}")
        listed: Any = self.choices
        if not isinstance(listed, tuple | list) or not all(isinstance(reply, str) and reply for reply in listed):
            raise EnvError(f"{self.id}: choices must be a tuple of texts, got {listed!r:.60}")
        if self.split_seeds:
            _check_seeds(f"{self.id}: split_seeds", self.split_seeds)

    def solved(
        self, rewards: Sequence[float], terminated: bool, info: Mapping[str, Any], chosen: str = ""
    ) -> bool | None:
        """Whether an episode that just ended was solved, see :func:`agentopcd.envs.success.solved`."""
        return solved(
            rewards, terminated, info, chosen=chosen, success_when=self.success_when, success_at=self.success_at
        )

    def moves(self, info: Mapping[str, Any]) -> list[str]:
        """The replies that are listed for one state, for ``--constrain`` and random play; empty if none are: the
        ``choices`` of this state, else those of the environment, else the ``legal_actions`` of this state."""
        return list(info.get("choices") or self.choices or info.get("legal_actions") or ())

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


def _check_seeds(what: str, given: Any) -> None:
    """Refuse fixed seeds that lack a split, or name one that there is not."""
    if not isinstance(given, Mapping) or set(given) != set(SPLITS):
        got = ", ".join(map(repr, given)) if isinstance(given, Mapping) else f"{given!r:.60}"
        raise EnvError(f"{what} must map each of {', '.join(SPLITS)} to its seeds, got {got}")
    for name, seeds in given.items():
        whole = isinstance(seeds, tuple | list | range) and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not whole or not seeds:
            raise EnvError(f"{what}: {name!r} must be a tuple of whole numbers, 0 or more, got {seeds!r:.40}")


def _check_view(what: str, view: Any) -> None:
    """Refuse a view of which something would never be seen: what it was to hide would be shown."""
    if not isinstance(view, Mapping):
        raise EnvError(f"{what} must map kinds of parts to texts or None, got {view!r:.60}")
    for kind, text in view.items():
        if kind not in PART_KINDS:
            raise EnvError(f"{what} has an unknown kind {kind!r}{did_you_mean(str(kind), PART_KINDS)}")
        if text is not None and not isinstance(text, str):
            raise EnvError(f"{what}[{kind!r}] must be text or None, got {text!r:.60}")


_ON_CLASSES: Mapping[str, tuple[type, ...]] = {
    "max_steps": (int,), "success_at": (int, float), "success_when": (str,), "judged_by": (str,), "views": (Mapping,),
    "play_format": (str,), "history": (str,), "choices": (tuple, list), "slow": (bool,), "limit_s": (int, float),
    "seeds": (int,), "split_sizes": (Mapping,), "summary": (str,),
}  # fmt: skip
"""Fields that an environment may also write on its class."""

_NOT_ON_CLASSES = ("kwargs", "graded", "logged", "waits", "split_seeds", "model")
"""Fields that only a spec has: these names mean other things in many a game."""

_MEANT = {
    "timeout": "limit_s", "time_limit": "limit_s", "step_timeout": "limit_s", "max_turns": "max_steps",
    "max_episode_steps": "max_steps", "step_limit": "max_steps", "turn_limit": "max_steps", "horizon": "max_steps",
    "reward_threshold": "success_at", "actions": "choices", "legal_actions": "choices",
}  # fmt: skip
"""Other words for fields, in use elsewhere."""


def written_on(target: Any) -> dict[str, Any]:
    """The fields of a spec that an environment has written on its class, as in ``max_steps = 8``.

    What looks like a field and is none is told, unless code of the class reads it: then it is the game's own affair.

    Args:
        target: the class, or what builds it and says so (see :func:`agentopcd.envs.look.class_of`).

    Raises:
        EnvError: a field has a value of another type, or is one that counts in a spec alone.
    """
    cls = class_of(target)
    if cls is None:
        return {}
    fields = settings_of(cls)
    for name, value in _unread(cls).items():
        if name in fields:
            continue
        where = f"{cls.__name__}.{name} is {value!r}"
        if name in _ON_CLASSES:
            wanted = " or ".join(kind.__name__.lower() for kind in _ON_CLASSES[name])
            raise EnvError(f"{where}, which sets nothing; wanted a value of type {wanted}")
        if name in _NOT_ON_CLASSES:
            raise EnvError(f"{where}, which sets nothing on a class; give it to agentopcd.envs.register or an EnvSpec")
        if meant := _MEANT.get(name) or next(iter(get_close_matches(name, _ON_CLASSES, n=1, cutoff=0.85)), None):
            warnings.warn(f"{where}, which sets nothing; did you mean {meant}?", stacklevel=2)
    return fields


def settings_of(cls: type) -> dict[str, Any]:
    """The fields on a class that a spec can have; of those with a wrong content, only what no code of the class reads,
    so that a spec refuses it."""
    found: dict[str, Any] = {}
    for name, types in _ON_CLASSES.items():
        value: Any = getattr(cls, name, None)
        if isinstance(value, types) and isinstance(value, bool) == (name == "slow"):
            found[name] = tuple(value) if name == "choices" else value
    own = {name for name, value in found.items() if not _fits(name, value)}
    return {name: value for name, value in found.items() if name not in own or name in _unread(cls)}


def _fits(name: str, value: Any) -> bool:
    given: dict[str, Any] = {name: value}
    try:
        EnvSpec(id="", entry_point="", **given)
    except EnvError:
        return False
    return True


def _unread(target: type) -> dict[str, Any]:
    """The plain attributes of a class, and of its bases outside this package, that none of their code reads."""
    ours = ("agentopcd.", "gymnasium.", "builtins", "typing", "abc")
    classes = [cls for cls in target.__mro__ if not f"{cls.__module__}.".startswith(ours)]
    attributes = {name: value for cls in reversed(classes) for name, value in vars(cls).items()}
    code = [function.__code__ for value in attributes.values() if (function := _function(value))]
    read: set[str] = set()
    while code:
        one = code.pop()
        read |= {*one.co_names, *(constant for constant in one.co_consts if isinstance(constant, str))}  # also getattr
        code += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
    return {
        name: value
        for name, value in attributes.items()
        if not (name.startswith("_") or name in read or value is None or callable(value) or hasattr(value, "__get__"))
    }


def _function(value: Any) -> FunctionType | None:
    """The function behind a method, a property, or a class or static method."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
    return value if isinstance(value, FunctionType) else None
