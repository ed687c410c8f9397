"""The base class of text environments, and how a reply is parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gymnasium
from gymnasium.spaces import Text

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.core.types import PART_KINDS, Part
from agentopcd.envs.views import join_parts

MAX_CHARS = 1_000_000
"""Longest text that the spaces accept, in characters."""

_BRACKET = re.compile(r"\[([^\[\]]*)\]")


class AnyText(Text):
    """A space of any text. Gymnasium's own ``Text`` rejects spaces, newlines and most of Unicode."""

    def __init__(self, max_length: int = MAX_CHARS, seed: int | None = None) -> None:
        super().__init__(max_length, min_length=0, seed=seed)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a short word in ASCII letters, never a megabyte of noise."""
        letters = self.np_random.integers(ord("a"), ord("z") + 1, size=8)
        return "".join(map(chr, letters))

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and other.max_length == self.max_length


def last_bracket(text: str, names: Iterable[str] | None = None) -> str | None:
    """Return the last ``[word]`` after the thinking, case-folded and trimmed.

    Args:
        text: a reply.
        names: the words that count; others are skipped. ``None`` accepts any word.

    Returns:
        The word, or ``None`` if there is none.
    """
    found = [word.strip().casefold() for word in _BRACKET.findall(after_thinking(text))]
    if names is not None:
        known = {name.casefold() for name in names}
        found = [word for word in found if word in known]
    return found[-1] if found else None


def sayable(actions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the actions by the word that a reply is read as.

    Raises:
        EnvError: a name that no reply in brackets is read as, or two that are read as the same word.
    """
    words: dict[str, Any] = {}
    for name, action in actions.items():
        word = str(name).strip().casefold()
        if not word or last_bracket(f"[{word}]") != word:
            raise EnvError(f"the action {name!r} cannot be said in brackets; give it a name of plain words")
        if word in words:
            raise EnvError(f"two actions are read as [{word}]; their names must differ in more than case and spaces")
        words[word] = action
    return words


class TextEnv(gymnasium.Env[str, str]):
    """A ``gymnasium.Env`` that reads replies and writes text.

    Subclasses implement ``reset`` (ending in ``return self.first(...)``) and ``step`` (ending in
    ``return self.turn(...)``). The only source of randomness is ``self.np_random``, which
    ``super().reset(seed=seed)`` seeds.

    Observation: text, the parts joined by blank lines; only what is new.
    Action: what the agent says after its thinking, any string; empty if it never came out of it.
    Reward: 1.0 on success, else 0.0, unless ``turn`` gets another reward.
    Info: ``parts``; ``task_key`` on reset if a key is given; ``invalid`` on every step; ``success``
    at the end; ``metrics`` if given.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    packages: tuple[str, ...] = ()
    """Distributions whose version may change the tasks; manifests record them."""

    # On the class, so that a subclass need not call ``super().__init__()``.
    observation_space: gymnasium.Space[str] = AnyText()
    action_space: gymnasium.Space[str] = AnyText()

    def first(self, *, key: object = None, **parts: str) -> tuple[str, dict[str, Any]]:
        """Build the return value of ``reset``.

        Args:
            key: identity of the start state, if the ``state`` part does not show it.
            **parts: text by kind (``rules``, ``feedback``, ``state``, ``actions``, ``outcome``).

        Raises:
            EnvError: an unknown kind, or text that is not a string.
        """
        listed = _ordered(parts)
        info: dict[str, Any] = {"parts": listed}
        if key is not None:
            info["task_key"] = str(key)
        return join_parts(listed), info

    def turn(
        self,
        *,
        success: bool | None = None,
        reward: float | None = None,
        invalid: bool = False,
        metrics: Mapping[str, float] | None = None,
        **parts: str,
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Build the return value of ``step``.

        Args:
            success: ``None`` continues the episode; ``True`` or ``False`` ends it.
            reward: by default 1.0 for success, else 0.0.
            invalid: the reply could not be used.
            metrics: extra numbers to record, such as a game's own reward.
            **parts: as in :meth:`first`; empty parts are left out.

        Raises:
            EnvError: an unknown kind, or text that is not a string.
        """
        listed = _ordered(parts)
        info: dict[str, Any] = {"parts": listed, "invalid": bool(invalid)}
        if success is not None:
            info["success"] = bool(success)
        if metrics:
            info["metrics"] = {name: float(value) for name, value in metrics.items()}
        earned = float(bool(success)) if reward is None else float(reward)
        return join_parts(listed), earned, success is not None, False, info


def _ordered(parts: Mapping[str, str]) -> list[Part]:
    for kind, text in parts.items():
        if kind not in PART_KINDS:
            raise EnvError(f"unknown part kind {kind!r}{did_you_mean(kind, PART_KINDS)}")
        if not isinstance(text, str):
            raise EnvError(f"part {kind!r} must be text, got {type(text).__name__}")
    return [(kind, parts[kind]) for kind in PART_KINDS if parts.get(kind)]
