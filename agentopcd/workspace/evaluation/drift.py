"""Drift: how a model's own replies have changed, by the entropy of each token and its divergence from the base."""

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
"""The episodes per contestant that drift is measured on: hundreds of replies, thousands of tokens."""
BATCH_TOKENS = 4096
"""The most tokens of prompts and replies in one forward pass."""
ROWS = 256
"""The most reply tokens whose logits are in memory at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """Means over the tokens of a contestant's own replies, at the temperature that it played with."""

    entropy_nats: float
    """The entropy of the next token for the contestant."""
    kl_nats: float
    """The reverse KL per token from the contestant to the base, which is shown no context; 0 for the base itself."""
    tokens: int
    episodes: int


def drifts(
    session: Session, contestants: Sequence[Contestant], tasks: Sequence[Task], *, setup: str
) -> Mapping[str, Drift]:
    """The drift of each contestant from the first one, which is the base."""
    base, *_ = contestants
    return {contestant.label: drift(session, contestant, base, tasks, setup=setup) for contestant in contestants}


def drift(session: Session, contestant: Contestant, base: Contestant, tasks: Sequence[Task], *, setup: str) -> Drift:
    """The drift of a contestant from ``base``, on its stored replies to the first :data:`EPISODES` of ``tasks``."""
    arm, wanted = contestant.arm, {(task.key, task.seed, 0) for task in tasks[:EPISODES]}
    rows = session.store.episodes(model_id=arm.model_id, context_id=arm.context_id, env=session.env, setup=setup)
    ids = [row["id"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in wanted]
    turns = [turn for id_ in ids for turn in session.store.transcript(id_).turns if turn.response_ids]
    # A student with more tokens than its base (an adapter over a resized vocabulary) is compared on those of both.
    rows = models.shared_rows(contestant.model, base.model)
    turns = [turn for turn in turns if max(turn.response_ids) < rows]
    temperature = session.config.temperature or 1.0  # greedy play (0) is measured on the untempered distribution
    chat, pad_id = session.player_for(base.model).chat, base.model.tokenizer.pad_token_id
    entropy = kl = 0.0
    for batch in _batches(turns):
        asked = [(turn.prompt_ids, turn.response_ids) for turn in batch]
        plain = [(chat.render(turn.messages), turn.response_ids) for turn in batch]
        allowed = [ids for turn in batch for ids in choices.allowed_in(turn.choices, turn.response_ids)]
        with torch.inference_mode(), models.autocast(session.device, session.compute):
            own_NH = response_hidden(contestant.model.model, asked, pad_id)
            same = contestant.model is base.model and asked == plain  # the base without a context is not read twice
            base_NH = own_NH if same else response_hidden(base.model.model, plain, pad_id)
            for start in range(0, len(own_NH), ROWS):
                where = slice(start, start + ROWS)
                own_RV = choices.keep(logits_of(contestant.model.model, own_NH[where]), allowed[where])
                base_RV = own_RV if same else choices.keep(logits_of(base.model.model, base_NH[where]), allowed[where])
                entropy += float(losses.entropy_nats(own_RV, temperature).sum())
                kl += float(losses.full_kl(own_RV[:, :rows], base_RV[:, :rows], temperature=temperature).sum())
    tokens = sum(len(turn.response_ids) for turn in turns)
    return Drift(entropy_nats=entropy / max(tokens, 1), kl_nats=kl / max(tokens, 1), tokens=tokens, episodes=len(ids))


def _batches(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Batches of turns of similar length, each of at most :data:`BATCH_TOKENS` tokens with padding or of one turn."""
    batches: list[list[Turn]] = []
    for turn in sorted(turns, key=_length, reverse=True):
        if batches and (len(batches[-1]) + 1) * _length(batches[-1][0]) <= BATCH_TOKENS:
            batches[-1].append(turn)
        else:
            batches.append([turn])
    return batches


def _length(turn: Turn) -> int:
    return len(turn.prompt_ids) + len(turn.response_ids)


def drift_dict(found: Mapping[str, Drift]) -> dict[str, Any]:
    """The drifts as JSON, to stand beside the JSON of an evaluation."""
    return {"drift": {label: dataclasses.asdict(value) for label, value in found.items()}}


def drift_lines(found: Mapping[str, Drift]) -> list[str]:
    """The drifts as text, one line per contestant."""
    return [
        f"{label}: entropy {value.entropy_nats:.3f} nats a token, KL to the base {value.kl_nats:.3f} "
        f"({value.tokens} tokens of {value.episodes} episodes)"
        for label, value in found.items()
    ]
