"""What a step of the loop plays: train tasks to learn from, and select tasks to choose a checkpoint by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from agentopcd.core.config import TrainConfig
from agentopcd.core.types import Context, Episode, Job, Mixture, Task
from agentopcd.distillation.methods import Method
from agentopcd.distillation.samples import Sample, read_apart, samples_of
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player


def draw(train: Sequence[Task], step: int, config: TrainConfig) -> list[Job]:
    """The jobs of one step. Every task comes once per epoch, in an order that the seed and the epoch fix.

    The epoch number is the repetition, so a task that comes twice in one step is sampled with different noise.
    """
    picked = []
    for place in range((step - 1) * config.batch_size, step * config.batch_size):
        epoch, index = divmod(place, len(train))
        order = list(range(len(train)))
        random.Random(f"{config.seed}:{epoch}").shuffle(order)
        picked.append(Job(train[order[index]], rep=epoch))
    return picked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Played:
    """What all processes together played in one step."""

    episodes: Sequence[Episode]
    samples: Sequence[Sample]
    dropped: int
    """Turns left out of the loss: those with an empty reply and, if ``cut_replies`` says so, with a cut one."""
    apart: int
    """Later turns of a growing chat that cannot be read in one pass with the turns before them."""


def play_step(
    method: Method, jobs: Sequence[Job], context: Context | Mixture, ranks: Ranks, fits: Callable[[Sample], bool]
) -> Played:
    """Play this process's share of ``jobs`` and gather the episodes of all processes.

    Args:
        fits: whether the teacher can score a sample.
    """
    chat, cut = method.player.chat, method.config.cut_replies
    mine = []
    for episode in method.play(ranks.mine(jobs)):
        mine.append((episode, *samples_of([episode], chat, context, cut, by_teacher=method.by_teacher, fits=fits)))
    played = [result for share in ranks.everyone(mine) for result in share]
    # Sort by job, not by who finished first: a sum of floats depends on the order of its terms.
    played.sort(key=lambda result: (result[0].task, result[0].rep))
    samples = [sample for _, of_episode, _ in played for sample in of_episode]
    return Played(
        episodes=[episode for episode, _, _ in played],
        samples=samples,
        dropped=sum(dropped for _, _, dropped in played),
        apart=read_apart(samples) if method.player.game.form == "chat" else 0,
    )


def say_read_apart(played: Played, say: Callable[[str], None]) -> bool:
    """Say if turns of a growing chat cost more than they need to, and return whether there were any."""
    if played.apart:
        why = "the template, or how earlier replies are shown, changes the earlier turns"
        say(f"note: {played.apart} later turns are not read in one pass with the turns before: {why}")
    return bool(played.apart)


def success_on(player: Player, tasks: Sequence[Task], ranks: Ranks) -> list[int]:
    """``[wins, n]`` of the student without the context. Episodes that the environment broke do not count."""
    jobs = [Job(task) for task in ranks.mine(tasks)]
    scored = [e.success for e in player.play(jobs) if e.stop_reason != "env_error"]
    return [sum(column) for column in zip(*ranks.everyone((sum(scored), len(scored))), strict=True)]
