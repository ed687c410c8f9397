"""Which context is worth distilling: rank candidates on select tasks, and confirm the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from agentopcd.core.config import ConfirmConfig, ScoreConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.types import EMPTY, Context, Placement
from agentopcd.envs.manifest import FRESH
from agentopcd.knowledge import Arm, Confirmation, Ranking, confirm, halving, places_of, score
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.exchange import ELSEWHERE
from agentopcd.knowledge.extract import game_trace, single_trace
from agentopcd.workspace.session import Session


def choose(
    session: Session, config: ScoreConfig, candidates: Sequence[Context], *, run_id: int
) -> tuple[Ranking, Confirmation | None]:
    """Rank candidates on select tasks, then confirm the winner once on fresh tasks.

    Returns:
        The ranking, and the result of the confirmation; None if ``config.confirm`` asks for none.

    Raises:
        ConfigError: there is no candidate besides the raw traces.
    """
    ranking = _rank(session, config, list(candidates[: config.candidates]), run_id)
    if not config.confirm:
        return ranking, None
    best = session.store.get_context(ranking.best.context_id)
    return ranking, confirm_one(session, config, best, run_id=run_id)


def ranked_by(session: Session) -> str:
    """What contexts are chosen by: success, reward or a metric.

    Raises:
        ConfigError: nothing is right or wrong here; a distance is to the context itself, so it ranks none.
    """
    if session.by != "distance":
        return session.by
    if session.game.graded:
        raise ConfigError("--by distance chooses checkpoints; contexts are ranked by success, reward or a metric")
    rest = f"; or let people rate sessions that are served with it: `agentopcd serve --record {session.recording} " \
        f"--canary 0.1 --canary-context REF{work_flag(session.work)}`" if session.recording else ""  # fmt: skip
    raise ConfigError(
        f"nothing says what is right in {session.env}, so contexts cannot be ranked; add --grader FILE.py:FUNCTION or "
        f"--env-arg checks=..., or hand your context to `agentopcd consolidate --context FILE{work_flag(session.work)}`"
        f"{rest}"
    )


def result_of(ranking: Ranking, outcome: Confirmation | None) -> dict[str, Any]:
    """Ranking and confirmation as JSON, for ``--json`` and the ledger."""
    confirmed, shown = (None, None) if outcome is None else (outcome.passed, outcome.to_dict())
    return ranking.to_dict() | {"confirmed": confirmed, "confirmation": shown}


def _rank(session: Session, config: ScoreConfig, candidates: list[Context], run_id: int) -> Ranking:
    """The ranking, without the raw traces (``config.traces``), which are ranked beside the candidates and never win."""
    bench, by = session.bench(run_id), ranked_by(session)
    if config.method == "halving":
        ranking = halving(bench, candidates, session.tasks("select"), by=by, seed=config.seed)
        session.say(str(ranking))
        return ranking
    placement = candidates[0].placement if candidates else "user"
    raw = raw_traces(session, config.traces, placement) if config.traces else EMPTY
    tasks = session.tasks("select", config.select_tasks)
    ranking = score(bench, [*candidates, raw], tasks, by=by)
    session.say(str(ranking))
    if raw.text:
        session.say(f"{raw.id[:12]} is the raw traces: a baseline, which is not confirmed")
        rows = [row for row in ranking.rows if row.context_id != raw.id]
        if not rows:
            raise ConfigError("nothing to score besides the raw traces; play and extract first")
        best, arena = Arm(bench.model_id, rows[0].context_id), bench.arena("select", places_of(tasks), by)
        ranking = dataclasses.replace(ranking, rows=rows, means=session.store.means(best, arena))
    return ranking


def confirm_one(
    session: Session, config: ScoreConfig | ConfirmConfig, context: Context, *, run_id: int
) -> Confirmation:
    """Confirm one context on confirm tasks, and say how it went."""
    tasks = session.tasks("confirm", config.confirm_tasks)
    first = session.manifest.first_rep("confirm")
    outcome = confirm(session.bench(run_id), context, tasks, by=ranked_by(session), first_rep=first)
    session.say(str(outcome))
    return outcome


def raw_traces(session: Session, budget: int, placement: Placement, run_id: int | None = None) -> Context:
    """The episodes that extraction reads, as a context: the newest ones of extract tasks that fit (paper, Table 6).

    Args:
        budget: the most tokens of the context.
        run_id: only episodes of this run of play; None: of all of this store.

    Raises:
        ConfigError: no such episode was played, or not even the newest one fits.
    """
    rows = traced(session, run_id)
    trace = single_trace if session.kind == "single" else game_trace
    text, shown = "", 0
    for row in reversed(rows):
        longer = "\n\n".join(part for part in (trace(session.store.transcript(row["id"])), text) if part)
        if session.player.chat.count_tokens(longer) > budget:
            break
        text, shown = longer, shown + 1
    if not text:
        raise ConfigError(f"the newest episode alone has more than {budget} tokens; raise --traces")
    tokens = session.player.chat.count_tokens(text)
    session.say(f"raw traces: the newest {shown} of {len(rows)} episodes, {tokens} tokens")
    context = Context(text, placement)
    session.store.add_context(context, {"order": "traces", "budget": budget})
    return context


def traced(session: Session, run_id: int | None = None) -> list[Row]:
    """The episodes of extract tasks without a context that this store, or this run, has played itself, oldest first.

    Raises:
        ConfigError: there are none.
    """
    rows = session.store.episodes(env=session.env, context_id=EMPTY.id, run_id=run_id)
    rows = [row for row in may_teach(session, rows, "extract") if not row["setup"].startswith(ELSEWHERE)]
    if not rows:
        raise ConfigError(f"no episode of {session.env} on extract tasks, so there are no raw traces; play first")
    return rows


def may_teach(session: Session, rows: Iterable[Row], *splits: str) -> list[Row]:
    """The episodes of tasks of these splits; where splits share their tasks, none that confirms or reports."""
    keys = {task.key for split in splits for task in session.tasks(split)}
    return [row for row in rows if row["task_key"] in keys and row["rep"] < FRESH["confirm"]]
