r"""The distance to the model that sees the context: a result where nothing can be right or wrong.

.. math:: d = \frac{\sum_i \sum_n D_{in}}{\sum_i N_i}, \qquad
    D_{in} = \mathrm{KL}\bigl(\pi(\cdot \mid x_i, y_{i,<n}) \,\|\, \pi_T(\cdot \mid c, x_i, y_{i,<n})\bigr)

over the tokens of the model's own replies :math:`y_i` to prompts :math:`x_i` without the context :math:`c`, in nats a
token, over the whole vocabulary. It is the quantity that training minimises (arXiv:2602.12275, eq. 2), measured on
other tasks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agentopcd.core.groups import mean_of_groups
from agentopcd.core.runs import Run
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import Context, Job, Mixture, Task
from agentopcd.distillation import losses
from agentopcd.distillation.checks import compare_shortcuts
from agentopcd.distillation.deal import deal
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import Method
from agentopcd.distillation.played import score_on
from agentopcd.distillation.positions import logits_of
from agentopcd.distillation.samples import Batch, Sample, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling import choices

DISTANCE = "distance"
"""The name by which ``--by`` and reports call it."""
ROWS = 128
"""The most reply tokens whose logits are in memory at once."""


def score_student(
    method: Method, tasks: Sequence[Task], by: str, context: Context | Mixture, learner: Learner,
    teacher: FrozenTeacher, run: Run | None = None, say: Callable[[str], None] = print,
) -> Rate | Mean:  # fmt: skip
    """How well the student does on ``tasks`` without the context: by success, reward, a metric or its distance.

    Args:
        run: compare the shortcuts of scoring before they are used, write what was found to this run's folder, and
            ``say`` it; None: they have been compared.
    """
    if by != DISTANCE:
        return score_on(method.player, tasks, Ranks.current(), by)
    compare = functools.partial(compare_shortcuts, learner, teacher, run=run, say=say) if run else None
    return distance_on(method, tasks, context, learner, teacher, compare)


def distance_on(
    method: Method, tasks: Sequence[Task], context: Context | Mixture, learner: Learner, teacher: FrozenTeacher,
    compare: Callable[[Sequence[Sample]], None] | None,
) -> Mean:  # fmt: skip
    """The student's distance on ``tasks``, in nats a token, over all processes; ``n`` counts replies.

    The interval takes tasks for independent, not their tokens.

    Args:
        compare: compares the shortcuts of scoring on samples before they are used.
    """
    ranks, player, config = Ranks.current(), method.player, method.config
    how: dict[str, Any] = {"items": config.turn_items, "fits": teacher.fits}
    mine = [
        (e.task.key, samples_of([e], player.chat, context, config.cut_replies, **how)[0])
        for e in player.play([Job(task) for task in ranks.mine(tasks)])
    ]
    player.sampler.rest()
    played = sorted(itertools.chain.from_iterable(ranks.everyone(mine)), key=lambda entry: entry[0])
    samples = [(key, sample) for key, some in played for sample in some]
    keys = {id(sample): key for key, sample in samples}
    if compare:
        compare([sample for _, sample in samples])
    found: list[tuple[str, float, int]] = []
    for batch in deal([sample for _, sample in samples], learner, teacher, ranks):
        with torch.no_grad():
            hidden_NH = learner.hidden(batch.samples)
        totals = totals_nats(batch, hidden_NH, learner.model, teacher, method.temperature, keys)
        if batch.counts:
            found += [(one.key, one.kl, one.tokens) for one in totals]
    return mean_of_groups([one for share in ranks.everyone(found) for one in share])


class Totals(NamedTuple):
    """The sums over the tokens of one reply."""

    key: str
    """Of its task."""
    kl: float
    """Divergence to the model that sees the context, in nats; 0 if there is nothing to compare."""
    entropy: float
    """Of the model that replied, in nats."""
    tokens: int
    sample: Sample | None = None
    """The reply and its prompts."""
    nats: tuple[float, ...] = ()
    """The divergence of each token."""


@torch.no_grad()
def totals_nats(
    batch: Batch, student_NH: Tensor | None, model: Any, teacher: FrozenTeacher, temperature: float,
    keys: Mapping[int, str],
) -> list[Totals]:  # fmt: skip
    """The sums of each sample of a batch.

    Args:
        student_NH: the student's last hidden states; None if the teacher itself replied.
        model: the student, for its output head.
        keys: the task key of each sample by its ``id()``.
    """
    teacher_NH = teacher.hidden(batch.samples, passes=batch.passes)
    bare_NH = teacher.hidden_without(batch.samples) if teacher.strength != 1 else None
    allowed = [ids for s in batch.samples for ids in choices.allowed_in(s.choices, s.response_ids)]
    kl, entropy = [], []
    for start in range(0, len(allowed), ROWS):
        where = slice(start, start + ROWS)
        bare_RH = None if bare_NH is None else bare_NH[where]
        teacher_RV = choices.keep(teacher.logits(teacher_NH[where], bare_RH)[:, : teacher.rows], allowed[where])
        own_RV = teacher_RV
        if student_NH is not None:
            own_RV = choices.keep(logits_of(model, student_NH[where])[:, : teacher.rows], allowed[where])
        kl.append(losses.full_kl(own_RV, teacher_RV, temperature=temperature).double().cpu())
        entropy.append(losses.entropy_nats(own_RV, temperature).double().cpu())
    lengths = [sample.num_tokens for sample in batch.samples]
    parts = zip(batch.samples, torch.cat(kl).split(lengths), torch.cat(entropy).split(lengths), strict=True)
    return [
        Totals(keys[id(s)], float(far.sum()), float(open_.sum()), s.num_tokens, s, tuple(far.tolist()))
        for s, far, open_ in parts
    ]
