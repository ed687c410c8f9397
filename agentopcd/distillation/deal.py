"""The batches of a step, dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentopcd.distillation.learner import Learner
from agentopcd.distillation.positions import can_branch
from agentopcd.distillation.samples import Batch, Sample, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.distillation.weights import token_weights
from agentopcd.models.parallel.ranks import Ranks


def deal(samples: Sequence[Sample], learner: Learner, teacher: FrozenTeacher, ranks: Ranks) -> Iterator[Batch]:
    """Yield this process's batches of a step.

    Token weights are those of the whole step, so the split into batches and processes does not change the loss.
    """
    config, branch = learner.config, can_branch(learner.model) and can_branch(teacher.model)
    lengths, turns = [sample.num_tokens for sample in samples], [sample.turn for sample in samples]
    weights = token_weights(lengths, config.reduction, turns=turns, fade=config.turn_fade)
    batches = list(micro_batches(samples, weights, learner.tokens_per_batch, teacher.reads, branch=branch))
    for (chunk, weights_N), counts, round_ in ranks.deal(batches, even=config.shard):
        # A forward pass of sharded weights is a collective operation, so every process must make equally many.
        passes = max(teacher.passes(other) for other, _ in round_) if config.shard else 0
        yield Batch(samples=chunk, weights_N=weights_N, counts=counts, passes=passes)
