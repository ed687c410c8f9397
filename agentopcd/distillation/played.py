"""What a step of the loop plays: train tasks to learn from, and select tasks to choose a checkpoint by."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, TypeVar

from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Mean, Rate, mean_of
from agentopcd.core.types import EMPTY, Context, Episode, Job, Mixture, Task
from agentopcd.distillation.anchor import anchors
from agentopcd.distillation.methods import Method
from agentopcd.distillation.samples import Sample, read_apart, samples_of
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player

T = TypeVar("T")


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
    policy_step: int
    """The step after which the student had the weights that played: the step before, or with ``async_steps`` the one
    before that."""

    @property
    def teaches(self) -> bool:
        """Whether a reply was scored with a context: replies to neutral prompts alone teach nothing."""
        return any(sample.context != EMPTY.id for sample in self.samples)


class _Share(NamedTuple):
    """What one process played in one step."""

    played: list[tuple[Episode, list[Sample], int]]
    """Episodes, each with its samples and the number of turns left out."""
    neutral: dict[int, Sample]
    """Replies to neutral prompts, see :mod:`agentopcd.distillation.anchor`."""


class Batches:
    """What the steps of a training play, one batch after the other.

    With ``async_steps``, the next batch is played in a thread while this one is learned from. A whole batch comes from
    the weights of one step: :meth:`settle` waits for it before the weights change.

    Args:
        fits: whether the teacher can score a sample.
        say: takes lines for people.
    """

    def __init__(
        self,
        method: Method,
        train: Sequence[Task],
        context: Context | Mixture,
        fits: Callable[[Sample], bool],
        say: Callable[[str], None],
    ) -> None:
        self.method, self.train, self.context, self.fits, self.say = method, train, context, fits, say
        self.ranks, self._noted, self._told = Ranks.current(), False, False
        self._next: Future[_Share] | None = None

    def take(self, step: int) -> Played:
        """What all processes together played for ``step``. With ``async_steps``, begin to play for the step after.

        The first batch after a start or a resume is not played ahead.
        """
        ahead, self._next = self._next, None
        mine = ahead.result() if ahead else self._play(step)
        shares = self.ranks.everyone(mine)
        played = [result for share in shares for result in share.played]
        neutral = {place: sample for share in shares for place, sample in share.neutral.items()}
        # Sort by job, not by who finished first: a sum of floats depends on the order of its terms.
        played.sort(key=lambda result: (result[0].task, result[0].rep))
        if self.method.config.async_steps and step < self.method.config.steps:
            self._next = _in_a_thread(functools.partial(self._play, step + 1))
        samples = [sample for _, of_episode, _ in played for sample in of_episode]
        whole = not any(episode.first for episode, _, _ in played)  # a turn that was drawn alone follows none
        apart = read_apart(samples) if whole and self.method.player.game.form == "chat" else 0
        if apart and not self._noted:
            why = "the template, or how earlier replies are shown, changes the earlier turns"
            if self.method.config.turn_items:
                why = "the teacher sees other items at each turn"
            self.say(f"note: {apart} later turns are not read in one pass with the turns before: {why}")
            self._noted = True
        broken = sum(result[0].stop_reason == "env_error" for result in played)
        if broken and (faults := self.method.player.faults) is not None and not self._told:
            self.say(f"warning: {broken} of {len(played)} episodes of step {step} broke off; in full: {faults.file}")
            self._told = True
        return Played(
            episodes=[episode for episode, _, _ in played],
            samples=[*samples, *(neutral[place] for place in sorted(neutral))],
            dropped=sum(dropped for _, _, dropped in played),
            apart=apart,
            policy_step=step - 2 if ahead else step - 1,
        )

    def settle(self, lap: Callable[[str], None]) -> None:
        """Wait until nothing is being played, so that the weights may change; ``lap`` counts the wait as rollout."""
        lap("update")
        if self._next is not None:
            wait([self._next])
        lap("rollout")

    def _play(self, step: int) -> _Share:
        """This process's share of ``step``."""
        method, chat, items = self.method, self.method.player.chat, self.method.config.turn_items
        cut, shares = method.config.cut_replies, method.shares(draw(self.train, step, method.config))
        played = [
            (e, *samples_of([e], chat, self.context, cut, by_teacher=part.by_teacher, items=items, fits=self.fits))
            for part, jobs in shares
            for e in part.play(self.ranks.mine(jobs))
        ]
        neutral = anchors(method.player, step, method.config, self.ranks)
        return _Share(played, {place: sample for place, sample in neutral.items() if self.fits(sample)})


def _in_a_thread(work: Callable[[], T]) -> Future[T]:
    """Start ``work`` in a thread of its own. A process that ends does not wait for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="agentopcd-ahead", daemon=True).start()
    return future


def score_on(player: Player, tasks: Sequence[Task], ranks: Ranks, by: str) -> Rate | Mean:
    """The student's success rate without the context, or its mean reward or metric, over all processes' tasks.

    Episodes that the environment broke do not count, nor those that do not report the metric.

    Raises:
        ConfigError: episodes were played, and none reports the metric.
    """
    jobs = [Job(task) for task in ranks.mine(tasks)]
    whole = [e for e in player.play(jobs) if e.stop_reason != "env_error"]
    mine = [(e.task.key, value) for e in whole if (value := score_of(e, by)) is not None]
    scores = list(itertools.chain.from_iterable(ranks.everyone(mine)))
    if by == "success":
        return Rate(sum(value > 0 for _, value in scores), len(scores))
    if not scores and whole:
        known = ", ".join(dict.fromkeys(["success", "reward", *(name for e in whole for name in e.metrics)]))
        raise ConfigError(f"no episode reports {by!r}; wanted one of: {known}")
    return mean_of({i: value for i, (_, value) in enumerate(scores)}, {i: key for i, (key, _) in enumerate(scores)})


def score_of(episode: Episode, by: str) -> float | None:
    """Success, reward or a metric of an episode; None if it does not report the metric."""
    if by in ("success", "reward"):
        return float(getattr(episode, by))
    return episode.metrics.get(by)
