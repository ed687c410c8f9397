"""The settings of each verb, one dataclass for each; what verbs share is in the classes on top.

A new setting is a field with a string under it, and a place in :data:`agentopcd.core.config.flags.PANELS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from agentopcd.core.config.base import Config
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Placement, Sampling

OnPolicy = Literal["opcd"]
Replay = Literal["prefix-replay"]
ByTeacher = Literal["context-distillation", "seqkd"]
"""Methods of training, by whose replies are learned from: the student's games, its replies to stored turns, the
teacher's games."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayerConfig(Config):
    """Who plays what, and how replies are drawn. Every verb that plays takes these."""

    env: str = ""
    """A registered name, gym:ID, textarena:ID, rg:TASK, rows.jsonl, pkg.mod:Class or file.py:Class."""
    env_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Constructor arguments of the environment; as flags key=value with a JSON value, one each time."""
    rules: str = ""
    """View of the rules text: full, hidden, none or one of the environment's own; empty: its default."""
    history: Literal["", "transcript", "chat"] = ""
    """Earlier turns: transcript (a fresh user message with the log) or chat; empty: the environment's default."""
    max_steps: int = 0
    """Replies per episode, invalid ones included; 0: the environment's own limit."""
    constrain: bool = False
    """Hold replies to the legal actions that the environment lists; teacher and student are scored alike."""
    model: str = ""
    """Hub id, folder, .gguf file or built-in name; empty: the environment's newest student, else a built-in one."""
    temperature: float = 0.7
    """Divides the logits when replies are drawn; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Smallest set of tokens with this much mass; 1 keeps all."""
    top_k: int = 0
    """Keep only this many tokens; 0 keeps all."""
    max_tokens: int = 128
    """Longest reply, in tokens."""
    seed: int = 0
    """Seeds everything random: replies, task order, candidate chains."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products; auto takes bfloat16 where the machine has instructions for it. Weights stay float32."""
    device: str = "auto"
    """auto, cpu, cuda, ...: where the model lives."""
    engine: Literal["auto", "transformers", "vllm", "server", "api"] = "auto"
    """What samples; auto: servers if --server names any, vLLM on a GPU if it knows the model, else transformers. api: a
    chat endpoint at --server that runs --model; it plays, scores and writes experience down, and cannot learn."""
    server: str = ""
    """Address of a running vLLM server, such as http://localhost:8000, or of an API; several with commas
    (docs/engines.md)."""
    sample_batch: int = 32
    """Sequences per generate call, that vLLM runs at once, or under way at each server."""
    splits: str = ""
    """A manifest written by `agentopcd envs splits -o FILE`; empty: made once and kept in the workspace."""
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template; as flags key=value, such as enable_thinking=false, one each time."""

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("no environment given; add --env NAME (see `agentopcd envs list`)")
        super().__post_init__()
        self._positive("max_tokens", "sample_batch")
        self._check_engine()
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0 or self.max_steps < 0 or self.seed < 0:
            raise ConfigError("top_k, max_steps and seed must be 0 or more")

    def _check_engine(self) -> None:
        if self.engine in ("server", "api") and not self.servers:
            raise ConfigError(f"--engine {self.engine} needs an address; add --server URL")
        if self.engine == "api" and not self.model:
            raise ConfigError("--engine api needs the name that the API knows its model by; add --model NAME")
        if self.engine == "api" and self.constrain:
            raise ConfigError("an API cannot hold replies to a list; leave out --constrain")
        if self.server and self.engine in ("transformers", "vllm"):
            raise ConfigError(f"--server {self.server} is of no use to --engine {self.engine}; leave one of them out")
        for url in self.servers:
            if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
                raise ConfigError(f"{url!r} is no address of a server; wanted one like http://localhost:8000")

    def _needs_weights(self, what_for: str) -> None:
        if self.engine == "api":
            raise ConfigError(
                f"{self.model!r} behind an API has no weights here {what_for}: it can play, score and write experience "
                "down, but not be the student; leave out --engine api and name a model whose weights you have"
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
    """Where contexts are put: in the user message, or in the system message."""
    chains: int = 4
    """Accumulation chains: repetitions of extraction with other seeds; each leaves candidate contexts."""
    chain_steps: int = 6
    """Episodes a chain reads, spread over the episodes played; each one adds its items."""
    show_earlier: bool = False
    """Show the extractor what its chain already has, so that it need not repeat it; slower, and small models copy."""
    budget_tokens: int = 1024
    """Longest context, in tokens of the model; the oldest whole items fall off."""
    extract_tokens: int = 96
    """Longest reply of the extractor, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("chains", "chain_steps", "budget_tokens", "extract_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(PlayerConfig):
    """How a context is chosen."""

    candidates: int = 8
    """At most this many distinct contexts, the latest of each chain first."""
    select_tasks: int = 64
    """Select tasks per candidate (per pair of halves with subsets), and per evaluation while training."""
    confirm_tasks: int = 256
    """Confirm tasks the winner and the empty context play, at most what the split holds."""

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
    tokens_per_batch: int = 4096
    """Tokens per forward pass, padding included; lower it when memory runs out. Does not change the result."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: less memory, more time, the same result."""
    learning_rate: float = 0.0
    """AdamW, constant; 0: what the model suggests in its agentopcd.json (pocket does), else 2e-5. LoRA: times 10."""
    weight_decay: float = 0.01
    """Decoupled, on every parameter."""
    clip_norm: float = 1.0
    """Gradient norm is clipped to this; a step with a norm that is not finite is skipped."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank, saved as PEFT does; the teacher is the model without it. 0: all weights."""
    merge: bool = False
    """Save the student with its adapter merged into the weights (needs --lora-rank)."""
    shard: bool = False
    """Spread student and teacher over all processes (FSDP2); each also holds a whole student, to play with."""
    method: OnPolicy | Replay | ByTeacher = "opcd"
    """opcd learns from games of the student, prefix-replay from its replies to stored turns of train tasks. The
    baselines learn from the teacher's games, played with the context: context-distillation by forward KL on its
    top-k, seqkd by cross-entropy."""
    answers: Literal["once", "fresh"] = "once"
    """Baselines: the teacher answers each train task once, or anew in every epoch."""
    teacher_kind: Literal["frozen", "periodic", "ema", "live"] = "frozen"
    """The teacher is the student before training (frozen), as of the last copy (periodic), averaged (ema), or as it is
    now (live, the paper's self-distillation)."""
    teacher_every: int = 8
    """Steps between the copies of a periodic teacher."""
    teacher_keeps: float = 0.95
    """Share of its own weights that an ema teacher keeps at each step; 1 is frozen, 0 is live."""
    divergence: Literal["tail", "full", "renorm", "raw", "stopgrad"] = "tail"
    """Form of the KL; raw is the paper's."""
    support: int = 256
    """Tokens of the top-k support: the student's, or with the baselines the teacher's."""
    loss_temperature: float = 0.0
    """Divides both models' logits in the loss; 0: the rollout temperature."""
    importance_cap: float = 0.0
    """Weigh each token by how much likelier it is to the trainer than to the engine, at most by this; 0: do not."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"
    """seq_mean: every reply votes once (the paper); token_mean: every token does."""
    cut_replies: Literal["keep", "drop"] = "keep"
    """Train on replies that hit max_tokens, or leave them out."""
    select_every: int = 8
    """Steps between evaluations on select tasks; the best checkpoint is kept."""
    select_tasks: int = 64
    """Select tasks per evaluation."""
    save_every: int = 8
    """Steps between checkpoints to resume from."""
    keep_checkpoints: bool = False
    """Keep the model of every evaluation on select tasks, in RUN/checkpoints, and not only the best one."""
    test_tasks: int = 256
    """Test tasks of the evaluation before and after, at most what the split holds; 0: none."""
    force: bool = False
    """Distil although nothing was confirmed: --context, else the newest candidate (learn: the winner on select)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to train")
        self._positive("steps", "batch_size", "tokens_per_batch", "clip_norm", "support")
        self._positive("select_every", "select_tasks", "save_every", "teacher_every")
        self._check_teacher()
        self._check_method()
        self._check_samples()
        self._not_negative("learning_rate", "loss_temperature", "weight_decay", "test_tasks", "lora_rank")
        self._not_negative("importance_cap")
        self._check_adapter()

    def _check_teacher(self) -> None:
        if not 0 <= self.teacher_keeps <= 1:
            raise ConfigError(f"teacher_keeps is {self.teacher_keeps}; it is a share, from 0 to 1")
        if self.teacher_kind != "frozen":
            still = {"--lora-rank": self.lora_rank, "--shard": self.shard, "--method": self.by_teacher}
            for flag in (flag for flag, on in still.items() if on):
                raise ConfigError(f"{flag} wants a teacher that stands still; leave it or --teacher-kind out")
        self._only_with("teacher_every", self.teacher_kind == "periodic", "--teacher-kind periodic")
        self._only_with("teacher_keeps", self.teacher_kind == "ema", "--teacher-kind ema")

    def _check_method(self) -> None:
        self._only_with("answers", self.by_teacher, "--method context-distillation or seqkd")
        if self.by_teacher and (self.divergence == "stopgrad" or self.importance_cap):
            raise ConfigError(
                f"--divergence stopgrad and --importance-cap are about the student's own answers; {self.method} "
                "learns from the teacher's"
            )

    def _only_with(self, name: str, on: bool, wanted: str) -> None:
        """A setting that has no effect without another one is refused, and not passed over."""
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
        if self.shard and self.lora_rank:
            raise ConfigError("every process plays with the whole model anyway; leave out --shard or --lora-rank")

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
    """Episodes to play, on tasks that this environment has not used for play yet."""
    split: Literal["extract", "train"] = "extract"
    """Split to play on. Items may only come from extract; play train with --no-extract."""
    extract: bool = True
    """Let the model write experience items from the finished episodes."""
    context: str = ""
    """Play with this context in the prompt (a ref such as ENV/best, an id, or a text file); empty: without."""

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
    """Confirm the winner (uniform only); without, only the ranking is made."""
    traces: int = 0
    """Also rank the newest episodes as they are, up to this many tokens (uniform only): what extraction is worth."""

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
    """Confirm tasks each of the two plays, at most what the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("confirm_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsolidateConfig(TrainConfig):
    """`agentopcd consolidate`: distil a context into the student's weights (arXiv:2602.12275, Algorithm 1)."""

    context: str = ""
    """Ref or id in the store, or a text file; empty: ENV/best, the confirmed context."""
    placement: Placement = "user"
    """Where a context from a file is put: in the user message, or in the system message."""
    mix: int = 0
    """Distil so many contexts at once, those that did best on select tasks: each episode draws one, weighted by its
    success there. 0: one context."""
    teacher: str = ""
    """Model that scores with the context; empty: a frozen copy of the student."""

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
    """The base; empty: the model the student was trained from."""
    student: str = ""
    """Student to compare; empty: the newest consolidated student of this environment."""
    context: str = ""
    """Context of the in-context arm (ref, id or file); empty: what the student was distilled from, else ENV/best."""
    placement: Placement = "user"
    """Where a context from a file is put: in the user message, or in the system message."""
    test_tasks: int = 256
    """Test tasks, at most what the split holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to compare with a student")
        self._positive("test_tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig(GatherConfig, ScoringConfig, TrainConfig):
    """`agentopcd learn`: rounds of play, extract, score and consolidate."""

    rounds: int = 1
    """Rounds; each starts from the last student."""
    episodes_per_round: int = 64
    """Episodes to play in each round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("rounds", "episodes_per_round")
