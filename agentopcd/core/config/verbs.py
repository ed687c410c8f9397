"""The settings of each verb, one dataclass per verb; shared settings are in the base classes at the top.

A new setting is a field with a string under it and an entry in :data:`agentopcd.core.config.flags.PANELS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from agentopcd.core.config.base import LARGEST, Config
from agentopcd.core.errors import ConfigError
from agentopcd.core.terminal import without_password
from agentopcd.core.types import Placement, Sampling

OnPolicy = Literal["opcd"]
Replay = Literal["prefix-replay"]
ByTeacher = Literal["context-distillation", "seqkd"]
"""Methods of training, grouped by the replies they learn from: the student's games, the student's replies to stored
turns, or the teacher's games."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayerConfig(Config):
    """Who plays what, and how replies are sampled. Every verb that plays takes these settings."""

    env: str = ""
    """Environment: a registered name, gym:ID, textarena:ID, rg:TASK, rows.jsonl, pkg.mod:Class or file.py:Class."""
    env_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Constructor arguments of the environment: key=value with a JSON value; repeat the flag for each argument."""
    rules: str = ""
    """View of the rules text: full, hidden, none or one of the environment's own; empty: the environment's default."""
    history: Literal["", "transcript", "chat"] = ""
    """How earlier turns are shown: transcript (one user message with the whole log) or chat (one message per turn);
    empty: the environment's default."""
    max_steps: int = 0
    """Replies per episode, invalid ones included; 0: the environment's own limit."""
    constrain: bool = False
    """Restrict replies to the legal actions that the environment lists; teacher and student are scored under the same
    restriction."""
    success_when: str = ""
    """When an episode is solved, in place of what the environment says: 'reward >= 1' (the last reward), 'return >=
    475' (the sum of all) or 'terminated' (it came to its own end)."""
    model: str = ""
    """Model: a Hub id, folder, .gguf file or built-in name; empty: the environment's newest student, else a built-in
    model."""
    temperature: float = 0.7
    """Divides the logits when replies are sampled; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability mass; 1 keeps all."""
    top_k: int = 0
    """Sample from only this many of the likeliest tokens; 0 keeps all."""
    max_tokens: int = 128
    """Longest reply, in tokens."""
    seed: int = 0
    """Seed of everything random: replies, task order, candidate chains."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto uses bfloat16 if the hardware supports it, else float32. Weights stay
    float32."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, ..."""
    engine: Literal["auto", "transformers", "vllm", "server", "api"] = "auto"
    """What samples replies. auto: the servers of --server if given, else vLLM on a GPU if it supports the model, else
    transformers. api: the chat endpoint at --server that runs --model; it can play, score and extract experience, but
    cannot learn."""
    server: str = ""
    """Address of a running vLLM server, such as http://localhost:8000, or of an API; separate several addresses with
    commas (see docs/engines.md)."""
    sample_batch: int = 32
    """Sequences sampled at once: per generate call, in vLLM, or in flight at each server."""
    splits: str = ""
    """Splits manifest written by `agentopcd envs splits -o FILE`; empty: built once and kept in the workspace."""
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template: key=value, such as enable_thinking=false; repeat the flag for each argument."""

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("no environment given; add --env NAME (see `agentopcd envs list`)")
        super().__post_init__()
        self._positive("max_tokens", "sample_batch")
        self._check_engine()
        self._temperature("temperature")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0 or self.max_steps < 0 or self.seed < 0:
            raise ConfigError("top_k, max_steps and seed must be 0 or more")

    def _check_engine(self) -> None:
        if self.engine in ("server", "api") and not self.servers:
            raise ConfigError(f"--engine {self.engine} needs an address; add --server URL")
        if self.engine == "api" and not self.model:
            raise ConfigError("--engine api needs the API's name for its model; add --model NAME")
        if self.engine == "api" and self.constrain:
            raise ConfigError("an API cannot restrict replies to a list; leave out --constrain")
        if self.server and self.engine in ("transformers", "vllm"):
            raise ConfigError(f"--server is of no use to --engine {self.engine}; leave one of them out")
        for url in self.servers:
            try:
                sound = url.startswith(("http://", "https://")) and urlsplit(url).hostname and urlsplit(url).port != 0
            except ValueError:  # brackets that do not close, or a port that is no number
                sound = False
            if not sound:
                shown = without_password(url)
                raise ConfigError(f"{shown!r} is no address of a server; wanted one like http://localhost:8000")

    def _needs_weights(self, what_for: str) -> None:
        if self.engine == "api":
            raise ConfigError(
                f"{self.model!r} behind an API has no weights here {what_for}: it can play, score and extract "
                "experience, but not be the student; leave out --engine api and name a model whose weights you have"
            )

    @property
    def servers(self) -> list[str]:
        return [url.strip() for url in self.server.split(",") if url.strip()]

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens)


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
    """Select tasks per candidate and per evaluation while training; subsets plays one pair of halves on each task."""
    confirm_tasks: int = 256
    """Confirm tasks that the winner and the empty context play; at most as many as the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("candidates", "select_tasks", "confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(PlayerConfig):
    """How the student is trained."""

    steps: int = 24
    """Optimizer steps."""
    batch_size: int = 32
    """Episodes per optimizer step."""
    tokens_per_batch: int = 0
    """Tokens per forward pass, padding included. Does not change the result. 0: 4096; on a CPU what takes 0.5 GiB."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""
    learning_rate: float = 0.0
    """Constant AdamW learning rate. 0: the rate in the model's agentopcd.json (pocket has one), else 2e-5; ten times
    that with LoRA."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every parameter."""
    clip_norm: float = 1.0
    """Maximum gradient norm; a step whose norm is not finite is skipped."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank, saved in PEFT's format; the teacher is the model without the adapter. 0: train
    all weights."""
    merge: bool = False
    """Save the student with its adapter merged into the weights (needs --lora-rank)."""
    shard: bool = False
    """Shard student and teacher over all processes (FSDP2); without --server each also has a whole student to play."""
    async_steps: int = 0
    """1: while a batch is learned from, --server plays the next, with weights a step older (see --importance-cap)."""
    method: OnPolicy | Replay | ByTeacher = "opcd"
    """How the student learns. opcd: from its own games; prefix-replay: from its own replies to stored turns of train
    tasks. The baselines learn from games that the teacher plays with the context: context-distillation by forward KL
    on the teacher's top-k tokens, seqkd by cross-entropy."""
    answers: Literal["once", "fresh"] = "once"
    """Baselines only: the teacher answers each train task once, or again in every epoch (fresh)."""
    teacher_kind: Literal["frozen", "periodic", "ema", "live"] = "frozen"
    """The teacher is the student before training (frozen), its latest periodic copy (periodic), its moving average
    (ema), or its current state (live, the paper's self-distillation)."""
    teacher_every: int = 8
    """Steps between the copies of a periodic teacher."""
    teacher_keeps: float = 0.95
    """Share of its own weights that an ema teacher keeps at each step; 1 is frozen, 0 is live."""
    divergence: Literal["tail", "full", "renorm", "raw", "stopgrad"] = "tail"
    """Form of the KL divergence; raw is the paper's."""
    support: int = 256
    """Number of tokens in the top-k support: the student's likeliest tokens, or with the baselines the teacher's."""
    loss_temperature: float = 0.0
    """Divides both models' logits in the loss; 0: the rollout temperature."""
    importance_cap: float = 0.0
    """Weight each token by its probability in the trainer over its probability in the engine, capped at this value;
    0: no weights."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"
    """seq_mean: every reply has equal weight (as in the paper); token_mean: every token has equal weight."""
    cut_replies: Literal["keep", "drop"] = "keep"
    """Whether to keep or drop replies that hit max_tokens."""
    select_every: int = 8
    """Steps between evaluations on select tasks; the best checkpoint becomes the student."""
    select_tasks: int = 64
    """Select tasks per evaluation."""
    save_every: int = 8
    """Steps between checkpoints for resuming a killed run."""
    keep_checkpoints: bool = False
    """Keep the model of every evaluation on select tasks in RUN/checkpoints, not only the best one."""
    test_tasks: int = 256
    """Test tasks for the evaluation before and after training; at most as many as the split holds; 0: no evaluation."""
    force: bool = False
    """Distil without a confirmed context: --context, else the newest candidate (learn: the winner on select tasks)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to train")
        self._positive("steps", "batch_size", "clip_norm", "support")
        self._positive("select_every", "select_tasks", "save_every", "teacher_every")
        self._check_teacher()
        self._check_method()
        self._check_samples()
        self._not_negative("learning_rate", "loss_temperature", "weight_decay", "test_tasks", "lora_rank")
        self._not_negative("importance_cap", "async_steps", "tokens_per_batch")
        self._temperature("loss_temperature")
        self._check_adapter()

    def _check_teacher(self) -> None:
        if not 0 <= self.teacher_keeps <= 1:
            raise ConfigError(f"teacher_keeps is {self.teacher_keeps}; it is a share, from 0 to 1")
        if self.teacher_kind != "frozen":
            frozen_only = {"--lora-rank": self.lora_rank, "--shard": self.shard, "--method": self.by_teacher}
            for flag in (flag for flag, on in frozen_only.items() if on):
                raise ConfigError(f"{flag} wants a teacher that stands still; leave out {flag} or --teacher-kind")
        self._only_with("teacher_every", self.teacher_kind == "periodic", "--teacher-kind periodic")
        self._only_with("teacher_keeps", self.teacher_kind == "ema", "--teacher-kind ema")

    def _check_method(self) -> None:
        self._only_with("answers", self.by_teacher, "--method context-distillation or seqkd")
        if self.by_teacher and (self.divergence == "stopgrad" or self.importance_cap):
            what = "--divergence stopgrad and --importance-cap are about the student's own answers"
            raise ConfigError(f"{what}; {self.method} learns from the teacher's")
        self._only_with("async_steps", bool(self.server) and not self.by_teacher, "--server and the student's answers")

    def _only_with(self, name: str, on: bool, wanted: str) -> None:
        """Refuse a setting that has no effect without another one, rather than ignore it."""
        if not on and getattr(self, name) != getattr(type(self), name):
            raise ConfigError(f"--{name.replace('_', '-')} is for {wanted}; leave it out, or add that")

    def _check_samples(self) -> None:
        if self.top_p != 1 or self.top_k != 0 or self.temperature == 0:
            raise ConfigError(
                f"rollouts for the loss need temperature above 0, top_p 1 and top_k 0 (got {self.temperature}, "
                f"{self.top_p}, {self.top_k}); otherwise the replies are not samples of the student"
            )

    def _check_adapter(self) -> None:
        if self.merge and not self.lora_rank:
            raise ConfigError("there is no adapter to merge; add --lora-rank, or leave out --merge")
        if self.shard and (self.lora_rank or self.engine == "vllm"):
            raise ConfigError("every process has the whole model anyway; leave out --shard, or --lora-rank or vllm")

    @property
    def by_teacher(self) -> bool:
        """Whether the method learns from the teacher's answers."""
        return self.method in get_args(ByTeacher)

    @property
    def replays(self) -> bool:
        """Whether the student answers stored turns, and plays no games to learn from."""
        return self.method in get_args(Replay)


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
    method: Literal["uniform", "subsets"] = "uniform"
    """uniform: whole contexts on the same select tasks; subsets: a value for every item, from random halves."""
    confirm: bool = True
    """Confirm the winner (uniform only); otherwise only rank the candidates."""
    traces: int = 0
    """Also rank the newest raw episodes as a context of up to this many tokens (uniform only), to show what extraction
    is worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.traces < 0 or (self.traces and self.method == "subsets"):
            raise ConfigError(f"traces is {self.traces}; wanted a number of tokens, and --method uniform")


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
