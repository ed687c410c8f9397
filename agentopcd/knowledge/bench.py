"""The bench on which contexts are tried: a store, a model that plays one environment, and the run it plays for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from agentopcd.core.errors import ConfigError, EnvError, TaskLeak
from agentopcd.core.types import EMPTY, Context, Episode, Job, Task
from agentopcd.knowledge.episodes import Arena, Arm, Place
from agentopcd.knowledge.store import Store

Play = Callable[[str, Sequence[Job]], Iterable[Episode]]
"""Plays jobs and yields each episode as it finishes; retries after environment errors. The string is a label for
people: what the episodes are played for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything needed to try a context, besides the context and the tasks."""

    store: Store
    env: str
    setup: str
    """From :func:`~agentopcd.knowledge.store.setup_id`: all that affects play besides model, context and task."""
    model_id: str
    """Id of the model that ``play`` uses."""
    run_id: int
    """The run that new episodes belong to."""
    play: Play

    def arm(self, context: Context = EMPTY) -> Arm:
        """This model with a context."""
        return Arm(self.model_id, context.id)

    def arena(self, split: str | None = None, places: Collection[Place] | None = None, by: str = "success") -> Arena:
        """Episodes of this environment and setup."""
        return Arena(self.env, self.setup, split, places, by)

    def prepare(
        self, contexts: Iterable[Context], tasks: Sequence[Task], split: str, origin: Mapping[str, Any] | None = None
    ) -> None:
        """Register tasks and contexts, and refuse contexts that know what they must not.

        Raises:
            ConfigError: there is no task.
            TaskLeak: a context holds an item from a held-out task, or a task is in another split.
        """
        if not tasks:
            raise ConfigError(f"nothing to play: no {split} task of {self.env}")
        with self.store.write():
            self.store.add_tasks(self.env, tasks, split)
            for context in contexts:
                self.store.add_context(context, origin)
                check_leaks(self.store, context.id)

    def play_missing(self, label: str, jobs: Sequence[Job]) -> int:
        """Play the jobs that the store lacks and store each episode as it finishes; return the number of
        environment errors.

        Raises:
            EnvError: the environment broke every one of the jobs.
        """
        contexts = {job.context.id: job.context for job in jobs}
        done = {id_: self.store.outcomes(self.arm(context), self.arena()) for id_, context in contexts.items()}
        missing = [job for job in dict.fromkeys(jobs) if _place(job) not in done[job.context.id]]
        errors = 0
        if missing:
            for episode in self.play(label, missing):
                errors += self.store.add_episodes(self.run_id, self.model_id, self.setup, [episode])[0] is None
        if errors and errors == len(dict.fromkeys(jobs)):
            raise EnvError(
                f"all {errors} episodes broke off, so there is nothing to go on with; see the warning above, and try "
                "`agentopcd envs check`"
            )
        return errors


def check_scores(bench: Bench, arm: Arm, arena: Arena, errors: int) -> None:
    """Refuse to compare by what nobody has reported.

    Args:
        arm: one that has played in the arena.
        errors: environment errors of the play.

    Raises:
        ConfigError: no episode could be played, or none reports the arena's metric.
    """
    means = bench.store.means(arm, arena)
    if not means["reward"].n:
        raise ConfigError(f"no episode of {bench.env} could be played ({errors} environment errors)")
    if arena.by not in ("success", *means):
        known = ", ".join(["success", *means])
        raise ConfigError(f"no episode of {bench.env} reports {arena.by!r}; wanted one of: {known}")


def places_of(tasks: Iterable[Task], reps: int = 1, *, first: int = 0) -> list[Place]:
    """The places of tasks that are each played ``reps`` times, with the repetitions from ``first`` on."""
    return [(task.key, task.seed, rep) for rep in range(first, first + reps) for task in tasks]


def _place(job: Job) -> Place:
    return job.task.key, job.task.seed, job.rep


def check_leaks(store: Store, context_id: str) -> None:
    """Refuse a context with an item that came from a select, confirm or test task.

    Raises:
        TaskLeak: there is such an item; the message names item and task.
    """
    leaks = store.leaks(context_id)
    if leaks:
        leak = leaks[0]
        raise TaskLeak(
            f"context {context_id[:12]} holds item {leak.item_id[:12]}, which came from {leak.split} task "
            f"{leak.key[:12]} of {leak.env} ({len(leaks)} in all); extract from 'extract' tasks only"
        )
