"""The figures that every training step logs, and its line for people. Names carry their unit.

``docs/method.md`` lists the fields.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from agentopcd.core.stats import Rate, finite
from agentopcd.core.types import EMPTY, Context, Episode, Mixture
from agentopcd.distillation import losses, weights
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import Method
from agentopcd.distillation.played import Played
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.distillation.tokens import Watch
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.sampling import choices

LATER = ("teacher_strength", "token_cap", "turn_fade", "turn_decay", "turn_items", "anchor")
"""Settings of the loss that its definition names where they are used."""
FULL_EVERY = 4
"""The full KL is computed on every fourth token, which is enough to see what the support leaves out."""


class StepMeter:
    """Collects per-token figures over the micro-batches of one step.

    Args:
        temperature: the loss temperature, at which entropies and masses are taken.
        sampling_temperature: the temperature at which the trainer's log-probabilities are compared with the sampler's.
        importance_cap: largest importance weight of a token; 0: no importance weights.
        token_cap: largest loss of a token, in nats; 0: no cap.
        watch: keeps what is seen at the tokens of a few turns, for people.
    """

    def __init__(
        self,
        temperature: float,
        sampling_temperature: float,
        importance_cap: float = 0.0,
        token_cap: float = 0.0,
        watch: Watch | None = None,
    ) -> None:
        self.temperature, self.watch = temperature, watch
        self.sampling_temperature = sampling_temperature
        self.importance_cap, self.token_cap = importance_cap, token_cap
        self.rows: dict[str, list[Tensor]] = defaultdict(list)
        """The parts of each column: one figure per token, in ``full`` one per :data:`FULL_EVERY` tokens."""

    def begin(self, samples: Sequence[Sample]) -> None:
        """Begin a batch: its rows come in the order of :func:`agentopcd.distillation.positions.response_hidden`."""
        self.ids = torch.tensor([i for s in samples for i in s.response_ids])
        self.sampled = torch.tensor([lp for s in samples for lp in s.logprobs])
        self.allowed = [ids for s in samples for ids in choices.allowed_in(s.choices, s.response_ids)]
        self.rows["position"].append(torch.cat([torch.arange(s.num_tokens) for s in samples]).float())
        self.rows["turn"].append(torch.cat([torch.full((s.num_tokens,), s.turn) for s in samples]).float())
        of = torch.tensor([2 if s.context == EMPTY.id else int(s.by_teacher) for s in samples])
        self.rows["of"].append(of.repeat_interleave(torch.tensor([s.num_tokens for s in samples])))
        if self.watch:
            self.watch.begin(samples)

    def keep(self, where: slice, logits_NV: Tensor) -> Tensor:
        """Mask the tokens that were not allowed in the rows ``where`` of the batch."""
        return choices.keep(logits_NV, self.allowed[where])

    @torch.no_grad()
    def add(self, where: slice, student_NV: Tensor, teacher_NV: Tensor, token: losses.TokenDivergence) -> None:
        """Record the rows ``where`` of the batch, which start at a multiple of :data:`FULL_EVERY`."""
        student_NV = student_NV.detach()
        trainer_N = losses.token_logprobs(student_NV, self.ids[where].to(student_NV.device), self.sampling_temperature)
        columns = {
            "value": token.value_N,
            "student_mass": token.student_mass_N,
            "teacher_mass": token.teacher_mass_N,
            "student_entropy": losses.entropy_nats(student_NV, self.temperature),
            "teacher_entropy": losses.entropy_nats(teacher_NV, self.temperature),
            "overlap": losses.topk_overlap(student_NV, teacher_NV),
        }
        if len(self.sampled):  # empty if the teacher answered
            columns["gap"] = (trainer_N - self.sampled[where].to(trainer_N)).abs()
        for name, column in columns.items():
            self.rows[name].append(column.float().cpu())
        few = (student_NV[::FULL_EVERY], teacher_NV[::FULL_EVERY])
        self.rows["full"].append(losses.full_kl(*few, temperature=self.temperature).cpu())
        if self.watch:
            self.watch.add(where, student_NV, teacher_NV, self.ids[where], token.value_N)

    def aside(self) -> Self:
        """A meter with the same settings whose figures are thrown away, for a batch that does not count."""
        return type(self)(self.temperature, self.sampling_temperature, self.importance_cap, self.token_cap)

    def importance(self, where: slice, student_NV: Tensor) -> Tensor | float:
        """:func:`agentopcd.distillation.weights.importance_weights` of the rows ``where``; 1 without a cap, and for
        what the teacher answered."""
        if not self.importance_cap or not len(self.sampled):
            return 1.0
        ids, sampled = (column[where].to(student_NV.device) for column in (self.ids, self.sampled))
        weights_N = weights.importance_weights(
            student_NV, ids, sampled, cap=self.importance_cap, temperature=self.sampling_temperature
        )
        self.rows["importance"].append(weights_N.cpu())
        return weights_N

    def capped(self, token: losses.TokenDivergence) -> Tensor | float:
        """:func:`agentopcd.distillation.weights.cap_weights` of these tokens; 1 without a cap."""
        if not self.token_cap:
            return 1.0
        weights_N = weights.cap_weights(token.value_N, self.token_cap)
        self.rows["capped"].append((weights_N < 1).float().cpu())
        return weights_N

    def gather(self, of_all: Sequence[dict[str, list[Tensor]]]) -> None:
        """Replace this meter's rows by the rows of all processes."""
        names = {name for rows in of_all for name in rows}
        self.rows = {name: [part for rows in of_all for part in rows.get(name, [])] for name in names}

    def gap_nats(self) -> float:
        """The mean distance between the sampler's log-probabilities and the trainer's; 0 if none are known."""
        return float(torch.cat(self.rows["gap"]).mean()) if self.rows.get("gap") else 0.0

    def result(self) -> dict[str, float]:
        """The figures of the step, over all its tokens."""
        column = {name: torch.cat(parts) for name, parts in self.rows.items()}
        value, position = column["value"], column["position"]
        figures = {
            "loss/value_nats": value.mean(),
            "loss/kl_full_sampled_nats": column["full"].mean(),
            "loss/negative_share": (value < 0).float().mean(),
            "kl/student_mass_mean": column["student_mass"].mean(),
            "kl/student_mass_p05": column["student_mass"].quantile(0.05),
            "kl/teacher_mass_mean": column["teacher_mass"].mean(),
            "kl/teacher_mass_p05": column["teacher_mass"].quantile(0.05),
            "kl/student_mass_outside_topk": 1 - column["student_mass"].mean(),
            "kl/top16_overlap": column["overlap"].mean(),
            "kl/student_entropy_nats": column["student_entropy"].mean(),
            "kl/teacher_entropy_nats": column["teacher_entropy"].mean(),
        }
        if "gap" in column:
            figures["engine/logprob_gap_mean_nats"] = column["gap"].mean()
            figures["engine/logprob_gap_max_nats"] = column["gap"].max()
            figures["engine/logprob_gap_above_1_share"] = (column["gap"] > 1).float().mean()
        if "importance" in column:
            figures["loss/importance_mean"] = column["importance"].mean()
            figures["loss/importance_max"] = column["importance"].max()
        if "capped" in column:
            figures["loss/capped_share"] = column["capped"].mean()
        places = {"token0": position == 0, "tokens1_7": (position >= 1) & (position <= 7), "rest": position >= 8}
        for name, where in places.items():
            if where.any():
                figures[f"position/{name}_nats"] = value[where].mean()
        for turn in column["turn"].unique().int().tolist():
            where = column["turn"] == turn
            figures[f"turn/{turn}/nats"] = value[where].mean()
            figures[f"turn/{turn}/student_mass"] = column["student_mass"][where].mean()
            figures[f"turn/{turn}/tokens"] = where.sum()
        return {name: round(float(figure), 7) for name, figure in figures.items()}

    def apart(self) -> dict[str, float]:
        """The loss on the student's answers, on the teacher's and on neutral prompts; none of what there is not."""
        value, of = torch.cat(self.rows["value"]), torch.cat(self.rows["of"])
        parts = {name: value[of == kind] for kind, name in enumerate(("on_policy", "off_policy", "anchor"))}
        return {f"loss/{name}_nats": round(float(part.mean()), 7) for name, part in parts.items() if len(part)}


def step_record(method: Method, context: Context | Mixture, played: Played, meter: StepMeter) -> dict[str, Any]:
    """What is logged of a step's episodes and of its loss. Of a mixed step, rollout figures are the student's."""
    record = meter.result() if played.samples else {"loss/value_nats": 0.0}
    own: Sequence[Episode] = played.episodes
    if played.samples and (len(method.parts) > 1 or method.config.anchor):
        record |= meter.apart()
    if len(method.parts) > 1:
        own, theirs = ([e for e in own if (e.context_id != EMPTY.id) == shown] for shown in (False, True))
        record |= off_policy_record(theirs, played.samples)
    record |= method.measured(rollout_record(own, played.samples, played.dropped))
    tokens = context_tokens(method.player.chat, context)
    return record | {
        "loss/name": method.name, "train/turns_read_apart": played.apart, "teacher/context_tokens": tokens,
        "engine/policy_step": played.policy_step,
    }  # fmt: skip


def off_policy_record(episodes: Sequence[Episode], samples: Sequence[Sample]) -> dict[str, float | int]:
    """Figures of the teacher's part of a mixed step: its episodes, and its share of all ``samples``."""
    whole = [e for e in episodes if e.stop_reason != "env_error"]
    return {
        "off_policy/sample_share": sum(sample.by_teacher for sample in samples) / max(1, len(samples)),
        "off_policy/episodes": len(whole),
        "off_policy/success": sum(e.success for e in whole) / max(1, len(whole)),
    }


def rollout_record(episodes: Sequence[Episode], samples: Sequence[Sample], dropped: int) -> dict[str, float | int]:
    """Figures of the rollouts of one step; ``dropped`` counts the turns left out of the loss."""
    scored = [e for e in episodes if e.stop_reason != "env_error"]
    turns = [turn for e in scored for turn in e.turns]
    lengths = sorted(len(turn.response_ids) for turn in turns) or [0]
    repeats = [repetition(turn.response_ids) for turn in turns] or [0.0]
    count = max(1, len(turns))
    return {
        "rollout/episodes": len(scored),
        "rollout/env_errors": len(episodes) - len(scored),
        "rollout/success": sum(e.success for e in scored) / max(1, len(scored)),
        "rollout/turns": len(turns),
        "rollout/samples": len(samples),
        "rollout/dropped": dropped,
        "rollout/response_tokens_mean": sum(lengths) / len(lengths),
        "rollout/response_tokens_p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        "rollout/clipped_share": sum(turn.finish_reason == "length" for turn in turns) / count,
        "rollout/empty_share": sum(not turn.reply.strip() for turn in turns) / count,
        "rollout/invalid_share": sum(turn.invalid for turn in turns) / count,
        "rollout/repetition_mean": sum(repeats) / len(repeats),
        "rollout/looping_share": sum(r > 0.5 for r in repeats) / len(repeats),
    }


def repetition(ids: Sequence[int]) -> float:
    """Share of token 4-grams that repeat an earlier one: 0 for no repetition, near 1 for a loop."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def definition(
    student: LoadedModel, teacher: FrozenTeacher, context: Context | Mixture, method: Method
) -> dict[str, Any]:
    """The definition of the loss, logged once per run. A model's id covers its weights, tokenizer and chat template."""
    config, parts = method.config, method.parts
    return {
        "student": student.id,
        "method": config.method,
        "answers": " + ".join(config.answers if part.by_teacher else "the student's own" for part in parts),
        "direction": " + ".join(part.direction for part in parts),
        "name": method.name,
        "support": " + ".join(f"{part.support_of} top-{config.support}" for part in parts),
        "rollout_temperature": config.temperature,
        "loss_temperature": method.temperature,
        "reduction": config.reduction,
        "cut_replies": config.cut_replies,
        "importance_cap": config.importance_cap,
        **{name: value for name in LATER if (value := getattr(config, name))},
        "teacher": teacher.kind,
        "teacher_hash": teacher.hash,
        "context": context.id,
        "placement": context.placement,
        "context_tokens": context_tokens(method.player.chat, context),
        "setup": method.player.setup(),
    }


def context_tokens(chat: Chat, context: Context | Mixture) -> int:
    """The number of tokens of the context; of the longest one, for a mixture."""
    return max(chat.count_tokens(part.text) for part in context.parts)


def update_record(
    progress: Progress, learner: Learner, norm: float, moved: bool, gap_nats: float | None
) -> dict[str, Any]:
    """What the optimizer did in the last step.

    Args:
        norm: the gradient norm before clipping.
        moved: whether the weights changed.
        gap_nats: how far an engine with its own copy of the weights was off after it took over the new ones.
    """
    return {
        "step": progress.step,
        "train/grad_norm": norm if math.isfinite(norm) else None,
        "train/clipped": norm > learner.config.clip_norm,
        "train/skipped": not moved,
        "train/skipped_total": progress.skipped,
        "train/learning_rate": learner.rate,
    } | ({} if gap_nats is None else {"engine/drift_nats": gap_nats})


def select_record(progress: Progress, step: int, by: str = "success") -> dict[str, Any]:
    """Success rate, mean score or distance on select tasks at ``step``, with its interval."""
    rate = progress.select[step]
    name = "select/success" if isinstance(rate, Rate) else "select/score"
    name = "select/distance_nats" if by == "distance" else name
    return {name: rate.rate, "select/n": rate.n, "select/low": finite(rate.low), "select/high": finite(rate.high)}


def console_line(record: Mapping[str, Any], steps: int, eta_s: float) -> str:
    """The line that people see for a step; ``record`` is the step's line of metrics.jsonl."""
    step, norm = record["step"], record["train/grad_norm"]
    won = f"success {record['rollout/success']:.2f} " if "rollout/success" in record else ""
    return (
        f"step {step:03d}/{steps:03d} | {record['loss/name']} {record['loss/value_nats']:.4f} nats/tok"
        f" | response {record['rollout/response_tokens_mean']:.0f} tok"
        f" | {won}({record['rollout/episodes']} ep)"
        f" | grad {'not finite' if norm is None else f'{norm:.2f}'} | {record['time/step_s']:.1f} s"
        f" (roll {record['time/rollout_s']:.1f} score {record['time/teacher_s']:.1f}"
        f" train {record['time/update_s']:.1f}) | eta {eta_s / 60:.1f} min"
    )


class Clock:
    """The seconds that each phase of a step takes."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.last
        self.last = now

    @property
    def total_s(self) -> float:
        return self.last - self.started

    def times(self) -> dict[str, float]:
        """``time/PHASE_s`` for rollout, teacher and update, and ``time/step_s``."""
        phases = {f"time/{name}_s": round(self.phases.get(name, 0.0), 3) for name in ("rollout", "teacher", "update")}
        return phases | {"time/step_s": round(self.total_s, 3)}
