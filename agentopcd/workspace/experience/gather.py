"""What ``agentopcd play`` does: play tasks, store every turn, and let the model extract items into candidate contexts.

Everything is stored as it happens, and every seed follows from what it is for. So a killed call resumes when it is
repeated, and nothing is stored twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from agentopcd.core.config import PlayConfig
from agentopcd.core.crossed import rate_of
from agentopcd.core.stats import Rate
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.workspace.experience.chains import Gathered, extract
from agentopcd.workspace.experience.reading import read_sessions
from agentopcd.workspace.session import Session


def gather(session: Session, config: PlayConfig, *, run_id: int, start: Sequence[Context] = ()) -> Gathered:
    """Play ``config.episodes`` episodes, store them and, with ``config.extract``, let the model extract items.

    The sessions of a recording are read in place of play. A finished run is read back, not repeated.

    Args:
        start: what each chain begins with; a chain without it begins empty.
    """
    if (done := session.ledger.result(run_id)) is not None:
        return Gathered.from_dict(done, session.store)
    session.extraction.check()  # an extractor that cannot reply is told of before anything is played
    rate, unrated = read_sessions(session, config, run_id) if session.recording else _play(session, config, run_id)
    graded = session.game.graded or session.recording != ""  # people may rate a recording's sessions
    result = Gathered(
        run_id=run_id, rate=rate, unrated=unrated, graded=graded, items=[], flagged=0, unparsed=0, candidates=[]
    )
    return extract(session, config, run_id, result, start) if config.extract else result


def _play(session: Session, config: PlayConfig, run_id: int) -> tuple[Rate, int]:
    context = session.context(config.context, config.placement)[0] if config.context else EMPTY
    planned, played = next_tasks(session, config, run_id, context), None
    if again := sum(rep > 0 for _, rep in planned):
        tasks = len(session.needed(config.split))
        session.say(f"{again} of {len(planned)} episodes repeat a task: all {tasks} of {config.split} were played")
    while planned != played:  # a play that runs beside this one may have stored some of its tasks first
        session.bench(run_id).play_missing("play", [Job(task, context, rep) for task, rep in planned])
        planned, played = next_tasks(session, config, run_id, context), planned
    rows = session.store.episodes(run_id=run_id)
    return rate_of(("", row["task_key"], bool(row["success"])) for row in rows), 0


def next_tasks(session: Session, config: PlayConfig, run_id: int, context: Context) -> list[tuple[Task, int]]:
    """The tasks that this run plays, each with its repetition: unused tasks first, then used ones with fresh noise.

    Episodes that this run itself has stored do not count as used, so that a resumed run plans the same tasks.

    Raises:
        ConfigError: the split has no tasks.
    """
    tasks = session.needed(config.split)
    used = session.store.used(session.env, context.id, besides=run_id)
    endless = ((task, rep) for rep in itertools.count() for task in tasks)
    return list(itertools.islice((job for job in endless if (job[0].seed, job[1]) not in used), config.episodes))
