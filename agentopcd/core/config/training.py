"""The settings of a training: of the student, its teacher and the loss."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from agentopcd.core.config.player import PlayerConfig
from agentopcd.core.errors import ConfigError

OnPolicy = Literal["opcd"]
Replay = Literal["prefix-replay"]
ByTeacher = Literal["context-distillation", "seqkd"]
ByBoth = Literal["mixed"]
"""Methods of training, grouped by the replies they learn from: the student's games, the student's replies to stored
turns, the teacher's games, or both models' games."""

FORMS = {
    "reverse": ("full", "tail", "renorm", "raw", "stopgrad"),
    "forward": ("full", "tail", "renorm", "raw"),
    "jensen-shannon": ("full", "tail"),
}
"""The forms of each direction, as :mod:`agentopcd.distillation.losses` has them."""


MARGIN = 0.1
"""Margin of non-inferiority where none is set."""
DRIFT_BUDGET = 0.5
"""Budget of drift where none is set, in nats a token."""
MOST_ANCHORED = 10
"""The most replies to neutral prompts for each episode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(PlayerConfig):
    """How the student is trained."""

    steps: int = 24
    """Optimizer steps."""
    batch_size: int = 32
    """Episodes per optimizer step."""
    tokens_per_batch: int = 0
    """Tokens per forward pass, padding included. Does not change the result; 0: 4096, on a CPU as many as take 0.5
    GiB."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""
    learning_rate: float = 0.0
    """AdamW learning rate; 0: 3e-4 for pocket (the model's agentopcd.json), 2e-5 for others, ten times that with
    LoRA."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its full value."""
    decay: Literal["", "linear", "cosine"] = ""
    """How the learning rate falls after that, linear or cosine, to nearly 0 at the last step; empty: it stays."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every parameter."""
    clip_norm: float = 1.0
    """Maximum gradient norm; a step whose norm is not finite is skipped."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank, saved in PEFT's format; 0: all weights are trained."""
    merge: bool = False
    """Save the student with its adapter merged into the weights (needs --lora-rank)."""
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the student's saved weights; training, and the choice of the checkpoint, are float32."""
    track: Literal["", "trackio", "wandb", "tensorboard", "mlflow"] = ""
    """Send every figure of metrics.jsonl, the settings and the final table to this tracker, too; empty: to none."""
    shard: bool = False
    """Shard student and teacher over all processes (FSDP2); without --server each also has a whole student to play."""
    async_steps: int = 0
    """1: while a batch is learned from, --server plays the next, with weights a step older (see --importance-cap); 0:
    play and learn in turn."""
    method: OnPolicy | Replay | ByTeacher | ByBoth = "opcd"
    """Whose replies are learned from. opcd: the student's games; prefix-replay: its replies to stored turns; the
    teacher's games, as baselines: context-distillation (forward KL), seqkd (cross-entropy); mixed: in each step half
    as opcd and half as context-distillation."""
    answers: Literal["once", "fresh"] = "once"
    """Baselines and mixed only: the teacher answers each train task once, or again in every epoch (fresh)."""
    teacher_kind: Literal["frozen", "periodic", "ema", "live"] = "frozen"
    """The teacher is the student before training (frozen), its latest periodic copy (periodic), its moving average
    (ema), or its current state (live, the paper's self-distillation)."""
    teacher_every: int = 8
    """Steps between the copies of a periodic teacher."""
    teacher_keeps: float = 0.95
    """Share of its own weights that an ema teacher keeps at each step; 1 is frozen, 0 is live."""
    teacher_strength: float = 0.0
    """How much the context counts for the teacher: its log-probabilities without the context, plus this many times what
    the context changes in them. Below 1 a milder target, above 1 a stronger one; 0: the teacher as it is (1)."""
    turn_items: int = 0
    """At each turn, show the teacher only this many items of the context, those whose words the turn shows most of; 0:
    the whole context."""
    direction: Literal["", "reverse", "forward", "jensen-shannon"] = ""
    """Direction of the divergence on the student's own answers (on the teacher's it is forward); empty: reverse, from
    student to teacher, as in the paper."""
    divergence: Literal["tail", "full", "renorm", "raw", "stopgrad"] = "tail"
    """Form of the divergence; raw is the paper's."""
    support: int = 256
    """Number of tokens in the top-k support: the student's likeliest; with --direction forward, and where the teacher
    answered, the teacher's; with jensen-shannon so many of each."""
    loss_temperature: float = 0.0
    """Divides both models' logits in the loss; 0: as --temperature."""
    importance_cap: float = 0.0
    """Weight each token by its probability in the trainer over its probability in the engine, capped at this value;
    0: no weights."""
    token_cap: float = 0.0
    """Largest loss of a token, in nats: a token above it pulls as if it were at the cap; 0: no cap."""
    anchor: float = 0.0
    """For each episode of a step, so many replies to neutral prompts that keep the student near its teacher without the
    context, such as 0.25; 0: none."""
    turn_fade: float = 0.0
    """Weigh each later turn of an episode by this share less in the loss, 0.5 half as much; 0: all alike."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"
    """seq_mean: every reply has equal weight (as in the paper); token_mean: every token has equal weight."""
    cut_replies: Literal["keep", "drop"] = "keep"
    """Whether to keep or drop replies that hit max_tokens."""
    turn_decay: float = 0.0
    """Stored turns only: draw each later turn of a conversation by this share less often, 0.5 half as often; 0: all
    alike."""
    select_every: int = 8
    """Steps between evaluations on select tasks; the best checkpoint becomes the student."""
    select_tasks: int = 64
    """Select tasks per evaluation."""
    by: str = ""
    """What the checkpoint is chosen by: success, reward, a metric that the environment reports, or distance, to the
    model that sees the context; empty: the environment's default."""
    patience: int = 0
    """Stop after this many evaluations on select tasks without a better student; 0: take all steps."""
    save_every: int = 8
    """Steps between checkpoints for resuming a killed run."""
    keep_checkpoints: bool = False
    """Keep the model of every evaluation on select tasks in RUN/checkpoints, not only the best one."""
    test_tasks: int = 256
    """Test tasks for the evaluation before and after training, at most as many as the split holds; 0 leaves it out."""
    gate_tasks: int = 256
    """Confirm tasks that a student plays before it becomes ENV/student, at most as many as the split holds: it must
    beat its parent. With 0 it becomes ENV/student at once."""
    margin: float = 0.0
    """How much worse the student may be, in environments that its lineage has learned before, to become ENV/student; 0:
    0.1. A difference of success rates; of another score, a share of twice its standard deviation over tasks."""
    drift_budget: float = 0.0
    """How far its replies to neutral prompts may be from the base's, in nats a token; 0: 0.5."""
    force: bool = False
    """Distil without a confirmed context: --context, else the newest candidate (learn: the winner on select tasks);
    imported free text with flags, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_weights("to train")
        self._positive("steps", "batch_size", "clip_norm", "support")
        self._positive("select_every", "select_tasks", "save_every", "teacher_every")
        for name in ("turn_decay", "turn_fade"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more, and below 1")
        self._check_teacher()
        self._check_method()
        self._check_schedule()
        self._check_samples()
        self._not_negative("learning_rate", "loss_temperature", "weight_decay", "test_tasks", "lora_rank")
        self._not_negative("importance_cap", "async_steps", "tokens_per_batch", "patience", "warmup_steps")
        self._not_negative("anchor", "token_cap", "teacher_strength", "turn_items", "gate_tasks", "drift_budget")
        if not 0 <= self.margin < 1:
            what = "a difference of success rates, or a share of the spread of another score"
            raise ConfigError(f"margin is {self.margin}; it is {what}, 0 or more and below 1")
        self._temperature("loss_temperature")
        self._check_adapter()

    def _check_teacher(self) -> None:
        if not 0 <= self.teacher_keeps <= 1:
            raise ConfigError(f"teacher_keeps is {self.teacher_keeps}; it is a share, from 0 to 1")
        if self.teacher_kind != "frozen":
            frozen_only = {"--shard": self.shard, "--method": self.asks_teacher, "--anchor": self.anchor}
            for flag in (flag for flag, on in frozen_only.items() if on):
                raise ConfigError(f"{flag} wants a teacher that stands still; leave out {flag} or --teacher-kind")
        if self.teacher_strength and getattr(self, "teacher", ""):
            raise ConfigError(
                "--teacher-strength compares the teacher with itself without the context, on the student's prompts; "
                "leave it out, or leave out --teacher"
            )
        self._only_with(
            "teacher_strength", self.method != "seqkd", "methods that learn from the teacher's probabilities, not seqkd"
        )
        self._only_with("teacher_every", self.teacher_kind == "periodic", "--teacher-kind periodic")
        self._only_with("teacher_keeps", self.teacher_kind == "ema", "--teacher-kind ema")

    def _check_method(self) -> None:
        self._only_with("turn_items", not self.asks_teacher, "the student's own answers")
        self._only_with("anchor", not self.by_teacher, "methods that learn from the student's own answers")
        if self.anchor > MOST_ANCHORED:
            raise ConfigError(
                f"anchor is {self.anchor:g}; it is so many replies to neutral prompts for each episode, at most "
                f"{MOST_ANCHORED}"
            )
        if self.anchor > 0 and round(self.anchor * self.batch_size) == 0:
            raise ConfigError(
                f"anchor is {self.anchor}, which adds no reply to a step of {self.batch_size} episodes; "
                f"{1 / self.batch_size:.4g} adds one"
            )
        self._only_with("answers", self.asks_teacher, "--method context-distillation, seqkd or mixed")
        if self.by_teacher and (self.divergence == "stopgrad" or self.importance_cap):
            what = "--divergence stopgrad and --importance-cap are about the student's own answers"
            raise ConfigError(f"{what}; {self.method} learns from the teacher's")
        if self.by_both and self.divergence == "stopgrad":
            raise ConfigError("--divergence stopgrad is about the student's own answers; mixed has the teacher's, too")
        if self.by_both and self.batch_size < 2:
            raise ConfigError(
                "--method mixed needs --batch-size 2 or more: an episode of the student's and one of the teacher's"
            )
        if self.direction and self.by_teacher:
            raise ConfigError(
                f"--direction is about the student's own answers; {self.method} learns from the teacher's"
            )
        allowed = FORMS[self.direction or "reverse"]
        if self.divergence not in allowed:
            raise ConfigError(
                f"--direction {self.direction} has no form {self.divergence!r}; its forms: {', '.join(allowed)}"
            )
        self._only_with("async_steps", bool(self.server) and not self.by_teacher, "--server and the student's answers")

    def _check_schedule(self) -> None:
        if self.warmup_steps > self.steps:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps; lower it")
        if self.decay and self.warmup_steps >= self.steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, which leaves none for --decay; lower it, "
                "or leave out --decay"
            )
        stops = (1 + self.patience) * self.select_every
        if self.patience > 0 and stops >= self.steps:
            raise ConfigError(
                f"patience is {self.patience}: with an evaluation every {self.select_every} steps, training could stop "
                f"after step {stops} at the earliest, and has {self.steps}; lower it or --select-every, or leave it out"
            )

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
    def most_lost(self) -> float:
        """The margin by which a student may be worse elsewhere."""
        return self.margin or MARGIN

    @property
    def budget_nats(self) -> float:
        """The most that a student's replies to neutral prompts may have drifted, in nats a token."""
        return self.drift_budget or DRIFT_BUDGET

    @property
    def by_teacher(self) -> bool:
        """Whether the method learns from the teacher's answers."""
        return self.method in get_args(ByTeacher)

    @property
    def by_both(self) -> bool:
        """Whether the method learns from the student's and from the teacher's answers in each step."""
        return self.method in get_args(ByBoth)

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher plays train tasks before training."""
        return self.by_teacher or self.by_both

    @property
    def replays(self) -> bool:
        """Whether the student answers stored turns, and plays no games to learn from."""
        return self.method in get_args(Replay)
