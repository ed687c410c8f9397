"""How a model's own replies have changed: how sure it is of each token, and how far that is from the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.types import Task, Turn
from agentopcd.distillation import losses
from agentopcd.distillation.positions import logits_of, response_hidden
from agentopcd.rollouts.sampling import choices
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.session import Session

EPISODES = 64
"""Episodes of each contestant that are looked at: hundreds of replies, thousands of tokens."""
BATCH_TOKENS = 4096
"""Tokens of prompts and replies in one forward pass."""
ROWS = 256
"""Reply tokens whose logits are in memory at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """Means over the tokens of a contestant's own replies, at the temperature that it played with."""

    entropy_nats: float
    """Of the next token, as the contestant sees it."""
    kl_nats: float
    """Reverse KL of a token to the base, which is shown no context; 0 for the base itself."""
    tokens: int
    episodes: int


def drifts(
    session: Session, contestants: Sequence[Contestant], tasks: Sequence[Task], *, setup: str
) -> Mapping[str, Drift]:
    """The drift of each contestant from the first one."""
    base, *_ = contestants
    return {one.label: drift(session, one, base, tasks, setup=setup) for one in contestants}


def drift(session: Session, one: Contestant, base: Contestant, tasks: Sequence[Task], *, setup: str) -> Drift:
    """The drift of a contestant from ``base``, on the replies that the store has of the first of ``tasks``."""
    arm, wanted = one.arm, {(task.key, task.seed, 0) for task in tasks[:EPISODES]}
    rows = session.store.episodes(model_id=arm.model_id, context_id=arm.context_id, env=session.env, setup=setup)
    ids = [row["id"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in wanted]
    turns = [turn for id_ in ids for turn in session.store.transcript(id_).turns if turn.response_ids]
    temperature = session.config.temperature or 1.0  # the likeliest token is drawn from the untempered distribution
    chat, pad_id = session.player_for(base.model).chat, base.model.tokenizer.pad_token_id
    entropy = kl = 0.0
    for batch in _batches(turns):
        asked = [(turn.prompt_ids, turn.response_ids) for turn in batch]
        plain = [(chat.render(turn.messages), turn.response_ids) for turn in batch]
        allowed = [ids for turn in batch for ids in choices.allowed_in(turn.choices, turn.response_ids)]
        with torch.inference_mode(), models.autocast(session.device, session.compute):
            own_NH = response_hidden(one.model.model, asked, pad_id)
            same = one.model is base.model and asked == plain
            base_NH = own_NH if same else response_hidden(base.model.model, plain, pad_id)
            for start in range(0, len(own_NH), ROWS):
                where = slice(start, start + ROWS)
                own_RV = choices.keep(logits_of(one.model.model, own_NH[where]), allowed[where])
                base_RV = own_RV if same else choices.keep(logits_of(base.model.model, base_NH[where]), allowed[where])
                entropy += float(losses.entropy_nats(own_RV, temperature).sum())
                kl += float(losses.full_kl(own_RV, base_RV, temperature=temperature).sum())
    tokens = sum(len(turn.response_ids) for turn in turns)
    return Drift(entropy_nats=entropy / max(tokens, 1), kl_nats=kl / max(tokens, 1), tokens=tokens, episodes=len(ids))


def _batches(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Turns of similar length together, as many as :data:`BATCH_TOKENS` hold with padding, at least one."""
    found: list[list[Turn]] = []
    for turn in sorted(turns, key=_length, reverse=True):
        if found and (len(found[-1]) + 1) * _length(found[-1][0]) <= BATCH_TOKENS:
            found[-1].append(turn)
        else:
            found.append([turn])
    return found


def _length(turn: Turn) -> int:
    return len(turn.prompt_ids) + len(turn.response_ids)


def drift_dict(found: Mapping[str, Drift]) -> dict[str, Any]:
    """JSON beside that of an evaluation."""
    return {"drift": {label: dataclasses.asdict(one) for label, one in found.items()}}


def drift_lines(found: Mapping[str, Drift]) -> list[str]:
    """The drifts as text, one contestant a line."""
    return [
        f"{label}: entropy {one.entropy_nats:.3f} nats a token, KL to the base {one.kl_nats:.3f} "
        f"({one.tokens} tokens of {one.episodes} episodes)"
        for label, one in found.items()
    ]
