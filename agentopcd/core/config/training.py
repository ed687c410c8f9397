"""The settings of a training: of the student, its teacher and the loss."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from agentopcd.core.config.player import PlayerConfig
from agentopcd.core.errors import ConfigError

OnPolicy = Literal["opcd"]
Replay = Literal["prefix-replay"]
ByTeacher = Literal["context-distillation", "seqkd"]
"""Methods of training, grouped by the replies they learn from: the student's games, the student's replies to stored
turns, or the teacher's games."""


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
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the student's saved weights; training, and the choice of the checkpoint, are float32."""
    track: Literal["", "trackio", "wandb", "tensorboard", "mlflow"] = ""
    """Send every figure of metrics.jsonl, the settings and the final table to this tracker, too; empty: to none."""
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
    turn_decay: float = 0.0
    """Stored turns only: draw each later turn of a conversation this much less often; 0: all alike, 0.5: half."""
    select_every: int = 8
    """Steps between evaluations on select tasks; the best checkpoint becomes the student."""
    select_tasks: int = 64
    """Select tasks per evaluation."""
    by: str = ""
    """What the checkpoint is chosen by: success, reward, a metric that the environment reports, or distance, to the
    model that sees the context; empty: the environment's default."""
    save_every: int = 8
    """Steps between checkpoints for resuming a killed run."""
    keep_checkpoints: bool = False
    """Keep the model of every evaluation on select tasks in RUN/checkpoints, not only the best one."""
    test_tasks: int = 256
    """Test tasks for the evaluation before and after training; at most as many as the split holds; 0: no evaluation."""
    force: bool = False
    """Distil without a confirmed context: --context, else the newest candidate (learn: the winner on select tasks);
    imported free text with flags, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to train")
        self._positive("steps", "batch_size", "clip_norm", "support")
        self._positive("select_every", "select_tasks", "save_every", "teacher_every")
        if not 0 <= self.turn_decay < 1:
            raise ConfigError(f"turn_decay is {self.turn_decay}; it must be 0 or more, and below 1")
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
