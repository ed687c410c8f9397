"""The settings of each verb, one dataclass per verb; shared settings are in base classes.

A new setting is a field with a string under it and an entry in :data:`agentopcd.core.config.flags.PANELS`.
"""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from agentopcd.core.config.base import LARGEST, pick
from agentopcd.core.config.player import RECORDED, PlayerConfig
from agentopcd.core.config.training import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.terminal import without_password
from agentopcd.core.types import Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatherConfig(PlayerConfig):
    """How experience is gathered."""

    placement: Placement = "user"
    """Where contexts are placed: in the user message or in the system message."""
    chains: int = 4
    """Repetitions of extraction with other seeds; each yields candidate contexts."""
    chain_steps: int = 6
    """Episodes that each chain reads, spread over those played; each adds its items."""
    show_earlier: bool = False
    """Show the extractor the items its chain already has, so that it need not repeat them; slower, and small models
    tend to copy."""
    budget_tokens: int = 1024
    """Longest context, in tokens of the model; whole items are dropped to fit, the oldest first."""
    extract_tokens: int = 96
    """Longest reply of the extractor, in tokens."""
    extractor: str = ""
    """Model that writes the items: like --model, or a chat endpoint as ADDRESS#NAME, such as
    http://localhost:8000/v1#qwen; empty: the model that plays."""
    extract_prompt: str = ""
    """File with your own extraction prompt, with the places {trace} (needed), {earlier} and {marker}; empty: the
    built-in prompt for what was played."""
    gate: Literal["auto", "review", "support>=2"] = "auto"
    """Which new items are used without a person's word: auto, all without a flag; support>=2, those that were found
    unprompted on two tasks and have no flag; review, none. The others wait: see `agentopcd knowledge approve`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("chains", "chain_steps", "budget_tokens", "extract_tokens")
        _ = self.extracting

    @property
    def extracting(self) -> PlayerConfig:
        """The settings with which the extractor replies: the player's own, unless ``extractor`` names another model.

        Another model never answers on the player's servers, which hold the player's weights.

        Raises:
            ConfigError: ``extractor`` is an address without the name of a model, or no address.
        """
        if not self.extractor:
            return self
        own: dict[str, Any] = {"constrain": False}
        if self.extractor.startswith(("http:", "https:")):
            address, _, name = self.extractor.rpartition("#")
            if not address or not name.strip():
                raise ConfigError(
                    f"extractor is {without_password(self.extractor)!r}, an address that names no model; wanted "
                    "ADDRESS#NAME, such as http://localhost:8000/v1#qwen"
                )
            own |= {"engine": "api", "server": address, "model": name.strip()}
        else:
            here = self.engine if self.engine in ("transformers", "vllm") else "auto"
            own |= {"engine": here, "server": "", "model": self.extractor}
        return pick(self, PlayerConfig, **own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(PlayerConfig):
    """How a context is chosen."""

    candidates: int = 32
    """Score at most this many distinct contexts, the latest of each chain first."""
    select_tasks: int = 64
    """Select tasks per evaluation while training and per candidate of --method uniform; halving shares out all that the
    split holds, whatever this says; subsets plays so many pairs of halves, and tasks come again if the split has
    fewer."""
    confirm_tasks: int = 256
    """Confirm tasks that the winner and its rivals play, at most as many as the split holds."""
    by: str = ""
    """What contexts and checkpoints are chosen by: success, reward, or a metric that the environment reports; empty:
    the environment's choice, mostly success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("candidates", "select_tasks", "confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayConfig(GatherConfig, verb="play"):
    """`agentopcd play`: play episodes, store them, extract items."""

    episodes: int = 64
    """Episodes to play, on tasks not yet used for play."""
    split: Literal["extract", "train"] = "extract"
    """Split to play on. Items may only come from extract; play train with --no-extract."""
    extract: bool = True
    """Let the model extract experience items from the episodes."""
    context: str = ""
    """Play with this context in the prompt: a ref such as ENV/best, an id, or a text file; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("episodes")
        if self.extract and self.split != "extract":
            raise ConfigError(f"items may only come from the extract split, not {self.split}; add --no-extract")
        for name in ("extractor", "extract_prompt") if not self.extract else ():
            if getattr(self, name):
                raise ConfigError(f"--{name.replace('_', '-')} is of no use with --no-extract; leave one of them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringConfig, verb="score"):
    """`agentopcd knowledge score`: which context is worth distilling, or what each item is worth."""

    pool: str = ""
    """Prefix of the candidate refs; empty: ENV/pool/ of this environment."""
    method: Literal["halving", "uniform", "subsets", "influence"] = "halving"
    """halving: the better half of the contexts plays on; uniform: all play the same tasks; subsets: a value for every
    item; influence: the same without playing."""
    confirm: bool = True
    """Confirm the winner; otherwise only rank the candidates. Of no use to subsets."""
    traces: int = 0
    """Also rank the newest raw episodes as a context of up to this many tokens (uniform only), to show what extraction
    is worth; 0: no such context."""
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
        self._only_with("candidates", self.method in ("halving", "uniform"), "--method halving or uniform")
        self._only_with("by", not influence, "--method halving, uniform or subsets")
        self._only_with("select_tasks", not influence, "--method uniform or subsets")
        for name in ("confirm", "confirm_tasks"):
            self._only_with(name, self.method in ("halving", "uniform"), "--method halving or uniform")
        if influence:
            self._needs_weights("to score replies with")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmConfig(PlayerConfig, verb="confirm"):
    """`agentopcd knowledge confirm`: one context against the empty one, its placebo and ENV/best on fresh tasks."""

    context: str = ""
    """The context to confirm: a text file, a ref or an id."""
    confirm_tasks: int = 256
    """Confirm tasks that each of the contexts plays, at most as many as the split holds."""
    by: str = ""
    """What is compared: success, reward, or a metric that the environment reports; empty: the environment's choice,
    mostly success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForecastConfig(PlayerConfig, verb="forecast"):
    """`agentopcd forecast`: whether there is a gain to distil, before anything is trained."""

    context: str = ""
    """Context to look at: a ref or id in the store, or a text file; empty: ENV/best."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    episodes: int = 64
    """Select tasks to play with the context, without it and with its placebo, at most as many as the split holds; games
    that are stored are not played again."""
    by: str = ""
    """What is compared: success, reward, or a metric that the environment reports; empty: the environment's choice,
    mostly success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to compare replies with")
        self._positive("episodes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsolidateConfig(TrainConfig, verb="consolidate"):
    """`agentopcd consolidate`: distil a context into the student's weights (arXiv:2602.12275, Algorithm 1)."""

    context: str = ""
    """Context to distil: a ref or id in the store, or a text file; empty: ENV/best, the confirmed context."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    mix: int = 0
    """Distil this many contexts at once, the best ones on select tasks; each episode draws one, weighted by its success
    there, or all alike where another score chooses (--by); 0: one context."""
    placebo: bool = False
    """Train a second student in the same way on the context's placebo, which has its form and none of its content, and
    compare the two on test tasks: what the form alone gives is no knowledge."""
    teacher: str = ""
    """Model that scores replies with the context in its prompt; empty: the student itself (see --teacher-kind)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._only_with("placebo", bool(self.test_tasks), "a comparison on test tasks (--test-tasks above 0)")
        if self.mix < 0 or (self.mix and self.context):
            raise ConfigError(f"mix is {self.mix}; wanted a number of contexts of the store, and no --context with it")
        if self.teacher and self.teacher_kind != "frozen":
            raise ConfigError(
                f"a {self.teacher_kind} teacher is the student itself; leave out --teacher {self.teacher}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(PlayerConfig, verb="evaluate"):
    """`agentopcd evaluate`: base, in-context and student on the same test tasks."""

    model: str = ""
    """Base model; empty: the model that the student was trained from."""
    student: str = ""
    """Student to compare; empty: the environment's newest student."""
    context: str = ""
    """Context of the in-context arm: a ref, an id or a file; empty: the one that the student was trained on, else
    ENV/best."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    test_tasks: int = 256
    """Test tasks, at most as many as the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to compare with a student")
        self._positive("test_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig(GatherConfig, ScoringConfig, TrainConfig, verb="learn"):
    """`agentopcd learn`: rounds of play, extract, score and consolidate."""

    rounds: int = 1
    """Rounds; each starts from the last student."""
    episodes_per_round: int = 64
    """Episodes to play in each round."""
    one_method: bool = False
    """Train by --method alone. Otherwise, where a student does not become ENV/student, short pilots of the other ways
    to train are compared on select tasks, and the best of them trains another student."""
    context: str = ""
    """Context to distil from a recording that nothing grades: a ref, an id or a text file; empty: ENV/best, else the
    one that the newest session was served with."""
    since: str = ""
    """Only sessions of the recording with a request or a rating since then: yesterday, a day such as 2026-11-26, or
    hours such as 24h, in UTC. Then a report is written, and the exit code says what came of it: 0, a student was
    promoted; 3, none was; empty: all sessions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("rounds", "episodes_per_round")
        for name in ("context", "since"):
            self._only_with(name, self.env.startswith(RECORDED), f"--env {RECORDED}NAME")
        since_of(self.since)
        if self.by == "distance":
            raise ConfigError("--by distance chooses checkpoints, and learn ranks contexts, too; leave it out")
        if self.seed + self.rounds - 1 > LARGEST["seed"]:
            raise ConfigError(f"seed is {self.seed}; the last round's seed, seed + rounds - 1, would be too large")


def since_of(text: str, now: datetime | None = None) -> str:
    """The moment that ``--since`` names, in UTC as the store writes it; hours are counted from the last full one.

    Args:
        now: in UTC; None: the current time.

    Raises:
        ConfigError: it names none, or one to come.
    """
    now = now or datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if not text:
        return ""
    if text == "yesterday":
        moment = day - timedelta(days=1)
    elif hours := re.fullmatch(r"([0-9]{1,5})h", text):
        moment = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=int(hours[1]))
    else:
        try:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ConfigError(f"since is {text!r}; wanted yesterday, a day such as 2026-11-26, or 24h") from None
    if moment > now:
        raise ConfigError(f"since is {text!r}, which is still to come; wanted yesterday, an earlier day, or 24h")
    return moment.isoformat(timespec="microseconds")
