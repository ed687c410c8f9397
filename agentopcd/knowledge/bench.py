"""The bench on which contexts are tried: a store, a model that plays one environment, and the run it plays for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from agentopcd.core.errors import EnvError
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

    def arena(self, split: str | None = None, places: Collection[Place] | None = None) -> Arena:
        """Episodes of this environment and setup."""
        return Arena(self.env, self.setup, split, places)

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


def places_of(tasks: Iterable[Task], reps: int = 1) -> list[Place]:
    """The places of tasks that are each played ``reps`` times."""
    return [(task.key, task.seed, rep) for rep in range(reps) for task in tasks]


def _place(job: Job) -> Place:
    return job.task.key, job.task.seed, job.rep
