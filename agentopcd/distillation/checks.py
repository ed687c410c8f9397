"""What a training checks as it goes: its shortcuts of scoring at the start, and the engine's replies at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AlignmentError, ModelError
from agentopcd.core.runs import Run, write_json
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.metrics import StepMeter
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling.same_weights import limit_nats


def compare_shortcuts(
    learner: Learner, teacher: FrozenTeacher, samples: Sequence[Sample], run: Run, say: Callable[[str], None]
) -> None:
    """On the first samples, set aside every shortcut of scoring that is off, say so, and write what was found to
    ``shortcuts.json`` in the run folder.

    Raises:
        ModelError: without the shortcut, the loss cannot be computed, or the weights cannot be sharded.
    """
    if not samples or "together" in models.shortcuts_of(teacher.model).off_nats:
        return
    with models.PASSES:  # a thread may play the next batch already, and compare it with a server's
        lines = [*learner.compare(samples), *teacher.compare(samples)]
    for line in lines:
        say(line)
    for who, model in (("student", learner.model), ("teacher", teacher.model)):
        known, kind = models.shortcuts_of(model), type(learner.whole.model).__name__.removeprefix("FSDP")
        if not known.head:
            raise ModelError(f"{kind}: the {who}'s loss needs logits from its hidden states; it cannot be trained here")
        if learner.config.shard and not known.together:
            raise ModelError(
                f"{kind}: the {who} reads each sequence alone, which sharding cannot do; leave out --shard"
            )
    if Ranks.current().main:
        found = {"student": models.shortcuts_of(learner.whole.model), "teacher": models.shortcuts_of(teacher.model)}
        write_json(run.folder / "shortcuts.json", {who: known.to_dict() for who, known in found.items()})


def check_sampler(meter: StepMeter, config: ConsolidateConfig, compute: torch.dtype, *, on_policy: bool) -> None:
    """Stop the run if the student did not give the replies of this step: their log-probabilities say so.

    Args:
        on_policy: whether the student still has the weights that gave the replies. Otherwise the gap is what it has
            learned since, and nothing is checked: the engine was compared when it took the weights.

    Raises:
        AlignmentError: the mean gap to the engine's log-probabilities is larger than rounding makes it.
    """
    if not on_policy:
        return
    gap, limit = meter.gap_nats(), limit_nats(compute, config.temperature)
    if not gap <= limit:  # also refuses NaN
        raise AlignmentError(
            f"the engine's log-probabilities of this step's replies are off by {gap:.3g} nats a token from the "
            f"student's (more than {limit:.3g}): the replies are not the student's own, so nothing is learned; "
            "take another --engine or --compute float32"
        )
