"""Which context is worth distilling: rank candidates on select tasks, and confirm the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agentopcd.core.config import ScoringConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context, Placement
from agentopcd.knowledge import Confirmation, Ranking, confirm, score
from agentopcd.knowledge.extract import game_trace, single_trace
from agentopcd.workspace.session import Session


def choose(
    session: Session, config: ScoringConfig, candidates: Sequence[Context], *, run_id: int, gate: bool = True,
    traces: int = 0,
) -> tuple[Ranking, Confirmation | None]:  # fmt: skip
    """Rank candidates on select tasks. Confirm the winner once, against the empty context, on fresh tasks.

    Args:
        gate: whether to confirm the winner.
        traces: the most tokens of the :func:`raw_traces` that are ranked beside the candidates and never win; 0: none.

    Returns:
        The ranking, and the result of the confirmation; None if there was none.

    Raises:
        ConfigError: there is no candidate besides the raw traces.
    """
    bench = session.bench(run_id)
    ranked = list(candidates[: config.candidates])
    raw = raw_traces(session, traces, ranked[0].placement if ranked else "user") if traces else EMPTY
    ranking = score(bench, [*ranked, raw], session.tasks("select", config.select_tasks))
    session.say(str(ranking))
    if raw.text:
        session.say(f"{raw.id[:12]} is the raw traces: a baseline, which is not confirmed")
        ranking = dataclasses.replace(ranking, rows=[row for row in ranking.rows if row.context_id != raw.id])
        if not ranking.rows:
            raise ConfigError("nothing to score besides the raw traces; play and extract first")
    if not gate:
        return ranking, None
    best = session.store.get_context(ranking.best.context_id)
    outcome = confirm(bench, best, session.tasks("confirm", config.confirm_tasks))
    session.say(str(outcome))
    return ranking, outcome


def raw_traces(session: Session, budget: int, placement: Placement) -> Context:
    """The episodes that extraction reads, as a context: the newest ones of extract tasks that fit (paper, Table 6).

    Args:
        budget: the most tokens of the context.

    Raises:
        ConfigError: no such episode was played, or not even the newest one fits.
    """
    split = "extract" if session.manifest.protocol == "disjoint" else "shared"
    rows = session.store.episodes(env=session.env, split=split, context_id=EMPTY.id)
    if not rows:
        raise ConfigError(f"no episode of {session.env} on extract tasks, so there are no raw traces; play first")
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
