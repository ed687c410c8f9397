"""What ``agentopcd play`` does with a recording: its sessions were played already, so they become stored episodes.

Each keeps the model and the context that answered, and its token ids. They have a setup of their own: no score of
anything that was played is made of them. A session that nobody rated as success or failure is stored without a
success, and no rate counts it; a reward and metrics are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.config import PlayConfig
from agentopcd.core.crossed import rate_of
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Rate
from agentopcd.core.types import Episode, Part, StopReason, Task, Turn
from agentopcd.envs.chats.env import shown
from agentopcd.envs.questions.files import Raw
from agentopcd.knowledge import setup_id
from agentopcd.knowledge.recordings import Answered, requests_named
from agentopcd.workspace.session import Session


def read_sessions(session: Session, config: PlayConfig, run_id: int) -> tuple[Rate, int]:
    """Store sessions of ``config.split`` as episodes: those that no run has read first, the newest first.

    Returns:
        The success rate of those that were rated as success or failure, and the number of the others.

    Raises:
        ConfigError: the split has no session.
    """
    store = session.store
    setup = setup_id({"recorded": session.recording})
    for row, rep in next_sessions(session, config, run_id):
        answered = requests_named(store, row["requests"])
        store.add_episodes(run_id, row["model"], setup, [episode_of(session.env, row, answered, rep)])
    rows = store.episodes(run_id=run_id)
    rated = [row for row in rows if row["stop"] != "max_steps"]
    rate = rate_of(("", row["task_key"], bool(row["success"])) for row in rated)
    return rate, len(rows) - len(rated)


def next_sessions(session: Session, config: PlayConfig, run_id: int) -> list[tuple[Raw, int]]:
    """The conversations that this run reads, each with how often other runs have read it.

    Raises:
        ConfigError: the split has none.
    """
    rows = {row["seed"]: row for row in session.recorded_rows()}
    seeds = [task.seed for task in session.tasks(config.split)]
    if not seeds:
        raise ConfigError(
            f"none of the {len(rows)} recorded conversations is in {config.split}: {session.env} needs more sessions"
        )
    read: dict[int, int] = dict.fromkeys(seeds, 0)
    for context in {rows[seed]["context"] for seed in seeds}:
        for seed, rep in session.store.used(session.env, context, besides=run_id):
            if seed in read and rows[seed]["context"] == context:
                read[seed] = max(read[seed], rep + 1)
    order = sorted(seeds, key=lambda seed: (read[seed], -seed))[: config.episodes]
    again = sum(read[seed] > 0 for seed in order)
    if again:
        session.say(f"{again} of {len(order)} sessions were read before: there are no others in {config.split}")
    return [(rows[seed], read[seed]) for seed in order]


def episode_of(env: str, row: Raw, answered: Sequence[Answered], rep: int) -> Episode:
    """A recorded conversation as an episode.

    Args:
        row: of the snapshot, see :func:`agentopcd.workspace.recorded.snapshot_rows`.
        answered: its requests, in order.
    """
    starts = (0, *row["places"])
    turns = [
        _turn(one, [("state", shown(one.messages[start:]))]) for start, one in zip(starts, answered, strict=False)
    ]  # fmt: skip
    success, reward = row["success"], row["reward"]
    stop: StopReason = "max_steps" if success is None else "solved" if success else "failed"
    return Episode(
        env=env, task=Task(row["seed"], row["task"]), rep=rep, context_id=row["context"], turns=turns,
        outcome=[("feedback", said)] if (said := rating_text(row)) else [], success=bool(success),
        reward=float(bool(success)) if reward is None else reward, stop_reason=stop, metrics=dict(row["metrics"]),
    )  # fmt: skip


def _turn(one: Answered, parts: list[Part]) -> Turn:
    return Turn(
        parts=parts, messages=one.messages, prompt_ids=one.prompt_ids, response_ids=one.response_ids,
        logprobs=one.logprobs, reply=one.reply, finish_reason="length" if one.finish_reason == "length" else "stop",
        reward=0.0, invalid=False, usage=(one.prompt_tokens, one.output_tokens), tools=list(one.tools),
        calls=len(one.message.get("tool_calls", ())),
    )  # fmt: skip


def rating_text(row: Mapping[str, Any]) -> str:
    """How a session was rated, in words; '' if it was not."""
    said = [] if row["success"] is None else ["it succeeded" if row["success"] else "it failed"]
    said += [] if row["reward"] is None else [f"reward {row['reward']:g}"]
    said += [f"{name} {value:g}" for name, value in sorted(row["metrics"].items())]
    return f"Rating of the session: {', '.join(said)}." if said else ""
