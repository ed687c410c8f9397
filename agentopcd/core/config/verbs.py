"""The settings of each verb, one dataclass per verb; shared settings are in base classes.

A new setting is a field with a string under it and an entry in :data:`agentopcd.core.config.flags.PANELS`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from agentopcd.core.config.base import LARGEST
from agentopcd.core.config.player import PlayerConfig
from agentopcd.core.config.training import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatherConfig(PlayerConfig):
    """How experience is gathered."""

    placement: Placement = "user"
    """Where contexts are placed: in the user message or in the system message."""
    chains: int = 4
    """Accumulation chains: repetitions of extraction with different seeds; each chain yields candidate contexts."""
    chain_steps: int = 6
    """Episodes that each chain reads, spread over the episodes played; each episode adds its items."""
    show_earlier: bool = False
    """Show the extractor the items its chain already has, so that it need not repeat them; slower, and small models
    tend to copy."""
    budget_tokens: int = 1024
    """Longest context, in tokens of the model; whole items are dropped to fit, the oldest first."""
    extract_tokens: int = 96
    """Longest reply of the extractor, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("chains", "chain_steps", "budget_tokens", "extract_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(PlayerConfig):
    """How a context is chosen."""

    candidates: int = 8
    """Score at most this many distinct contexts, the latest of each chain first."""
    select_tasks: int = 64
    """Select tasks per candidate and per evaluation while training; subsets plays so many pairs of halves, and tasks
    come again if the split has fewer."""
    confirm_tasks: int = 256
    """Confirm tasks that the winner and the empty context play; at most as many as the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("candidates", "select_tasks", "confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayConfig(GatherConfig):
    """`agentopcd play`: play episodes, store them, extract items."""

    episodes: int = 64
    """Episodes to play, on tasks of the environment that were not yet used for play."""
    split: Literal["extract", "train"] = "extract"
    """Split to play on. Items may only come from extract; play train with --no-extract."""
    extract: bool = True
    """Let the model extract experience items from the finished episodes."""
    context: str = ""
    """Play with this context in the prompt (a ref such as ENV/best, an id, or a text file); empty: no context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("episodes")
        if self.extract and self.split != "extract":
            raise ConfigError(f"items may only come from the extract split, not {self.split}; add --no-extract")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringConfig):
    """`agentopcd knowledge score`: which context is worth distilling, or what each item is worth."""

    pool: str = ""
    """Prefix of the candidate refs; empty: ENV/pool/ of this environment."""
    method: Literal["uniform", "subsets", "influence"] = "uniform"
    """uniform: whole contexts on the same select tasks; subsets: a value for every item, from random halves, and a
    context of the best, ENV/valued; influence: how much each item of a context moves the model, without playing."""
    confirm: bool = True
    """Confirm the winner (uniform only); otherwise only rank the candidates."""
    traces: int = 0
    """Also rank the newest raw episodes as a context of up to this many tokens (uniform only), to show what extraction
    is worth."""
    context: str = ""
    """Context whose items are compared (influence only): a ref, id or file; empty: ENV/best, else the newest
    candidate."""
    turns: int = 0
    """Stored turns on which they are compared (influence only), drawn by the seed; 0: 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._not_negative("turns")
        if self.traces < 0 or (self.traces and self.method != "uniform"):
            raise ConfigError(f"traces is {self.traces}; wanted a number of tokens, and --method uniform")
        if self.turns == 1:
            raise ConfigError("turns is 1; an interval takes two or more")
        influence = self.method == "influence"
        self._only_with("context", influence, "--method influence")
        self._only_with("turns", influence, "--method influence")
        if influence:
            self._needs_weights("to score replies with")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmConfig(PlayerConfig):
    """`agentopcd knowledge confirm`: one context against the empty one on fresh tasks."""

    context: str = ""
    """Ref or id of the context to confirm."""
    confirm_tasks: int = 256
    """Confirm tasks that each of the two contexts plays; at most as many as the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsolidateConfig(TrainConfig):
    """`agentopcd consolidate`: distil a context into the student's weights (arXiv:2602.12275, Algorithm 1)."""

    context: str = ""
    """Context to distil: a ref or id in the store, or a text file; empty: ENV/best, the confirmed context."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    mix: int = 0
    """Distil this many contexts at once, the best ones on select tasks; each episode draws one, weighted by its success
    there. 0: distil one context."""
    teacher: str = ""
    """Model that scores replies with the context in its prompt; empty: the student itself (see --teacher-kind)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix < 0 or (self.mix and self.context):
            raise ConfigError(f"mix is {self.mix}; wanted a number of contexts of the store, and no --context with it")
        if self.teacher and self.teacher_kind != "frozen":
            raise ConfigError(
                f"a {self.teacher_kind} teacher is the student itself; leave out --teacher {self.teacher}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(PlayerConfig):
    """`agentopcd evaluate`: base, in-context and student on the same test tasks."""

    model: str = ""
    """Base model; empty: the model that the student was trained from."""
    student: str = ""
    """Student to compare; empty: the environment's newest consolidated student."""
    context: str = ""
    """Context of the in-context arm (ref, id or file); empty: the student's distilled context, else ENV/best."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    test_tasks: int = 256
    """Test tasks; at most as many as the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to compare with a student")
        self._positive("test_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig(GatherConfig, ScoringConfig, TrainConfig):
    """`agentopcd learn`: rounds of play, extract, score and consolidate."""

    rounds: int = 1
    """Number of rounds; each round starts from the last student."""
    episodes_per_round: int = 64
    """Episodes to play in each round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("rounds", "episodes_per_round")
        if self.seed + self.rounds - 1 > LARGEST["seed"]:
            raise ConfigError(f"seed is {self.seed}; the last round's seed, seed + rounds - 1, would be too large")
