"""How far a student has drifted on neutral prompts: a change of its replies to them is a side effect."""

from __future__ import annotations

import torch

from agentopcd import models
from agentopcd.core.errors import ConfigError
from agentopcd.core.groups import mean_of_groups
from agentopcd.core.stats import Mean
from agentopcd.distillation.anchor import neutral_prompts, neutral_samples
from agentopcd.distillation.distance import totals_nats
from agentopcd.distillation.positions import response_hidden
from agentopcd.distillation.samples import BATCH_TOKENS, Batch, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models.load import LoadedModel
from agentopcd.workspace.session import Session

MAX_TOKENS = 48
"""Longest reply to a neutral prompt."""


@torch.no_grad()
def neutral_drift(session: Session, student: LoadedModel, base: LoadedModel) -> Mean:
    """The reverse KL from a student to its base on the student's replies to neutral prompts, in nats a token.

    Neither is shown a context. The interval takes prompts for independent.

    Raises:
        ConfigError: the student gives no reply that its base can score.
    """
    if student.id == base.id:
        return Mean(0.0, 0.0, 0.0, 0)
    temperature = session.config.temperature or 1.0  # greedy play (0) is measured on the untempered distribution
    replies = neutral_samples(
        session.player_for(student), dict(enumerate(neutral_prompts("test"))), seed=session.config.seed,
        what="neutral", max_tokens=MAX_TOKENS, temperature=temperature,
    )  # fmt: skip
    teacher = FrozenTeacher(base, student, compute=session.compute)
    samples = [sample for sample in replies.values() if teacher.fits(sample)]
    if not samples:
        raise ConfigError(f"{student.name} gave {len(replies)} replies to neutral prompts, and none that can be scored")
    teacher.compare(samples)
    keys = {id(sample): str(place) for place, sample in enumerate(samples)}
    found, pad_id = [], student.tokenizer.pad_token_id
    for chosen, weights in micro_batches(samples, [1.0] * len(samples), BATCH_TOKENS, teacher.reads):
        with models.autocast(session.device, session.compute):
            hidden_NH = response_hidden(student.model, [(s.student_ids, s.response_ids) for s in chosen], pad_id)
        batch = Batch(samples=chosen, weights_N=weights)
        found += totals_nats(batch, hidden_NH, student.model, teacher, temperature, keys)
    return mean_of_groups((one.key, one.kl, one.tokens) for one in found)
