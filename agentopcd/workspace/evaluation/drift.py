"""Drift: how a model's own replies have changed, by the entropy of each token and its divergence from the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Task, Turn
from agentopcd.distillation import losses
from agentopcd.distillation.compare import Pair, compare
from agentopcd.distillation.positions import logits_of, response_hidden
from agentopcd.distillation.samples import in_batches
from agentopcd.rollouts.sampling import choices
from agentopcd.rollouts.sampling.same_weights import limit_nats
from agentopcd.workspace.evaluation.table import Contestant, test_places
from agentopcd.workspace.session import Session

EPISODES = 64
"""The episodes per contestant that drift is measured on: hundreds of replies, thousands of tokens."""
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
    for contestant in contestants:
        _compare(session, contestant, tasks, setup=setup)
    return {contestant.label: drift(session, contestant, base, tasks, setup=setup) for contestant in contestants}


def drift(session: Session, contestant: Contestant, base: Contestant, tasks: Sequence[Task], *, setup: str) -> Drift:
    """The drift of a contestant from ``base``, on its stored replies to the first :data:`EPISODES` of the test
    ``tasks``.

    Raises:
        AlignmentError: the model does not give these replies the log-probabilities that they were sampled with.
    """
    ids, turns = _replies(session, contestant, tasks, setup=setup)
    # A student with more tokens than its base (an adapter over a resized vocabulary) is compared on those of both.
    rows = models.shared_rows(contestant.model, base.model)
    turns = [turn for turn in turns if max(turn.response_ids) < rows]
    temperature = session.config.temperature or 1.0  # greedy play (0) is measured on the untempered distribution
    chat, pad_id = session.player_for(base.model).chat, base.model.tokenizer.pad_token_id
    entropy = kl = gap = 0.0
    for places in in_batches([_length(turn) for turn in turns]):
        batch = [turns[place] for place in places]
        asked = [(turn.prompt_ids, turn.response_ids) for turn in batch]
        plain = [(chat.render(turn.messages, tools=turn.tools), turn.response_ids) for turn in batch]
        said = torch.tensor([token for turn in batch for token in turn.response_ids], device=session.device)
        sampled = torch.tensor([logprob for turn in batch for logprob in turn.logprobs], device=session.device)
        allowed = [ids for turn in batch for ids in choices.allowed_in(turn.choices, turn.response_ids)]
        with torch.inference_mode(), models.autocast(session.device, session.compute):
            own = _logits(contestant.model.model, asked, pad_id)
            same = contestant.model is base.model and asked == plain  # the base without a context is not read twice
            other = own if same else _logits(base.model.model, plain, pad_id)
            for start in range(0, len(allowed), ROWS):
                where = slice(start, start + ROWS)
                own_RV = choices.keep(own(where), allowed[where])
                base_RV = own_RV if same else choices.keep(other(where), allowed[where])
                if len(sampled) == len(said):
                    gap += float((losses.token_logprobs(own_RV, said[where], temperature) - sampled[where]).abs().sum())
                entropy += float(losses.entropy_nats(own_RV, temperature).sum())
                kl += float(losses.full_kl(own_RV[:, :rows], base_RV[:, :rows], temperature=temperature).sum())
    tokens = sum(len(turn.response_ids) for turn in turns)
    _check_sampler(session, contestant, gap / max(tokens, 1))
    return Drift(entropy_nats=entropy / max(tokens, 1), kl_nats=kl / max(tokens, 1), tokens=tokens, episodes=len(ids))


def _replies(
    session: Session, contestant: Contestant, tasks: Sequence[Task], *, setup: str
) -> tuple[list[int], list[Turn]]:
    """The stored episodes of a contestant on the first :data:`EPISODES` of the test ``tasks``; their turns with
    replies."""
    arm, wanted = contestant.arm, {*test_places(session, tasks[:EPISODES])}
    rows = session.store.episodes(model_id=arm.model_id, context_id=arm.context_id, env=session.env, setup=setup)
    ids = [row["id"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in wanted]
    return ids, [turn for id_ in ids for turn in session.store.transcript(id_).turns if turn.response_ids]


def _compare(session: Session, contestant: Contestant, tasks: Sequence[Task], *, setup: str) -> None:
    """Compare the shortcuts of scoring on a contestant's replies, and say which of them its model does without."""
    model, pad_id = contestant.model.model, contestant.model.tokenizer.pad_token_id
    if "head" in models.shortcuts_of(model).off_nats:
        return  # on the replies of another contestant with the same model
    turns = _replies(session, contestant, tasks[:4], setup=setup)[1]
    pairs = [(turn.prompt_ids, turn.response_ids) for turn in turns]
    with torch.inference_mode(), models.autocast(session.device, session.compute):
        for line in compare(model, pairs, pad_id, session.compute, name=contestant.model.name):
            session.say(line)


def _check_sampler(session: Session, contestant: Contestant, gap_nats: float) -> None:
    """Refuse replies that the contestant's model did not give: their log-probabilities say so."""
    limit = limit_nats(session.compute, session.config.temperature)
    cut = session.config.top_p < 1 or session.config.top_k > 0  # then replies were sampled from a part of the tokens
    if not gap_nats <= limit and not cut:  # also refuses NaN
        raise AlignmentError(
            f"the stored replies of {contestant.label} were sampled with log-probabilities {gap_nats:.3g} nats a token "
            f"off those of {contestant.model.name} (more than {limit:.3g}), so they are not its own; play them "
            "in a new workspace, with another --engine or --compute float32"
        )


def _logits(model: Any, pairs: Sequence[Pair], pad_id: int) -> Callable[[slice], Tensor]:
    """What gives the logits of some of the response tokens of ``pairs``."""
    if models.shortcuts_of(model).head:
        hidden_NH = response_hidden(model, pairs, pad_id)
        return lambda where: logits_of(model, hidden_NH[where])
    logits_NV = torch.cat([models.own_logits(model, *pair) for pair in pairs])
    return lambda where: logits_NV[where]


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
