"""How much each item of a context moves the model that reads it: found from stored replies, without playing."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.core.config import ScoreConfig, player_flags
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.stats import ratio
from agentopcd.core.types import EMPTY, MARKER, Context, Episode
from agentopcd.distillation import losses
from agentopcd.distillation.chunks import CHUNK_LOGITS
from agentopcd.distillation.prefix import prefix_of
from agentopcd.distillation.samples import Sample, in_batches, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge import check_leaks, own_best, without
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.sampling import choices
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.experience.choose import may_teach
from agentopcd.workspace.session import Session

TURNS = 64
"""Stored turns that are read if the settings name no number."""
INERT = 0.01
"""An item is inert if it moves the model by less than this share of what the whole context does, with confidence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Influence:
    """How far the model is from what it would be without one item; intervals are over turns."""

    item_id: str
    text: str
    kl_nats: float
    """Mean KL a token from the model with the whole context to the model with the context minus the item."""
    low_nats: float
    high_nats: float
    share: float
    """``kl_nats`` over the same figure for the whole context against none; can be above 1."""
    low: float
    high: float

    @property
    def inert(self) -> bool:
        """Whether the upper end of the share is below :data:`INERT`."""
        return self.high < INERT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Influences:
    """The influence of every item of a context."""

    context_id: str
    items: Sequence[Influence]
    """Most influential first."""
    kl_nats: float
    """Mean KL a token from the model with the whole context to the model without any."""
    low_nats: float
    high_nats: float
    turns: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON."""
        return dataclasses.asdict(self) | {
            "items": [dataclasses.asdict(one) | {"inert": one.inert} for one in self.items], "inert_below": INERT,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """A line for each item, between one on the context and one on what was found."""
        inert = sum(one.inert for one in self.items)
        return [
            f"context {self.context_id[:12]} against none: {self.kl_nats:.3g} nats a token [{self.low_nats:.3g}, "
            f"{self.high_nats:.3g}] ({self.tokens} tokens of {self.turns} stored turns)",
            *(
                f"{one.share:7.1%} [{one.low:.1%}, {one.high:.1%}] of it, {one.kl_nats:.2g} nats a token"
                f"{', inert' if one.inert else ''}: {one.text}"
                for one in self.items
            ),
            f"{inert} of {len(self.items)} items are inert: leaving one out moves the model by less than {INERT:.0%} "
            "of what the context does; take out one and look again, for what is said twice looks inert twice; and that "
            "an item moves the model does not say that it helps",
        ]


def shown_context(session: Session, config: ScoreConfig) -> Context:
    """The context whose items are compared: that of ``--context``, else the confirmed one, else the newest candidate.

    Raises:
        ConfigError: there is none, or it holds no items.
        TaskLeak: it holds an item of a held-out task.
    """
    best = own_best(session.store, session.env)
    if config.context:
        context, _ = session.context(config.context)
    elif best is not None:
        context = session.store.get_context(best)
    else:
        candidates = pool(session, prefix=config.pool)
        if not candidates:
            again = f"agentopcd play {player_flags(config)}{work_flag(session.work)}"
            raise ConfigError(f"no context of {session.env} in the store; run `{again}`, or name one with --context")
        context = candidates[0]
    if not session.store.items(context_id=context.id):
        raise ConfigError(f"context {context.id[:12]} holds no items ({MARKER!r} lines), so none can be left out of it")
    check_leaks(session.store, context.id)
    return context


def influence(session: Session, config: ScoreConfig, context: Context) -> Influences:
    """How much each item of ``context`` moves the model, on replies that it gave without any context.

    The model reads stored replies as a teacher does in training: behind their prompts with the whole context, with the
    context minus each item, and without one. Training can hand over only what moves the teacher, so an item that moves
    nothing can be left out of what is distilled. An item is inert if the upper end of its share of the context's own
    KL is below :data:`INERT`. There is no other noise floor: a context against itself is exactly 0. In bfloat16,
    rounding adds about a thousandth of a nat, which can only hide that an item is inert.

    What is said twice looks inert twice: with one of two equal sentences gone, the other still speaks. Leave out one
    item, then look again. And an item that matters in rare turns alone can be missed by few turns.

    Raises:
        ConfigError: fewer than two stored turns fit, or the context moves nothing.
        ModelError: this model's logits cannot be computed from hidden states and output head.
    """
    loaded, chat = session.loaded, session.player.chat
    with models.autocast(session.device, session.compute):
        models.check_head(loaded.model)
    teacher = FrozenTeacher(loaded, loaded, compute=session.compute)
    items = {item.id: item.text for item in session.store.items(context_id=context.id)}
    arms = {item_id: without(context, [item_id]) for item_id in items} | {EMPTY.id: EMPTY}
    turns = _turns(session, teacher, context, config)
    if len(turns) < 2:
        raise ConfigError(
            f"influence wants two or more turns of {session.env} that {loaded.name} has answered without a context on "
            f"extract or train tasks, got {len(turns)}; run `agentopcd play {player_flags(config)}"
            f"{work_flag(session.work)}`"
        )
    _show(teacher, chat, turns, context)
    for line in teacher.compare(_samples(chat, turns, context)):
        session.say(line)
    temperature = config.temperature or 1.0  # greedy play (0) is compared on the untempered distribution
    found = divergences(teacher, chat, turns, context, arms, temperature=temperature, progress=session.progress)
    tokens, own = [len(one.turns[0].response_ids) for one in turns], found.pop(EMPTY.id)
    if not sum(own) > 0:
        raise ConfigError(f"context {context.id[:12]} does not move {loaded.name} at all, so no share can be told")
    rated = [Influence(id_, items[id_], *ratio(kl, tokens), *ratio(kl, own)) for id_, kl in found.items()]
    kl, low, high = ratio(own, tokens)
    return Influences(
        context_id=context.id, items=sorted(rated, key=lambda one: -one.share), kl_nats=kl, low_nats=low,
        high_nats=high, turns=len(turns), tokens=sum(tokens),
    )  # fmt: skip


def divergences(
    teacher: FrozenTeacher, chat: Chat, turns: Sequence[Episode], whole: Context, arms: Mapping[str, Context], *,
    temperature: float, progress: Progress = no_progress,
) -> dict[str, list[float]]:  # fmt: skip
    r"""How far the model is with ``whole`` from what it is with each of ``arms``, on the same replies.

    .. math:: D = \sum_t \sum_v p_{tv} (\log p_{tv} - \log q_{tv})

    over the tokens of one reply, with :math:`p` the model with the whole context and :math:`q` with the arm's.

    Args:
        turns: episodes of one turn each, played without a context.
        temperature: divides the logits of both.

    Returns:
        For each arm, :math:`D` of each turn, in nats.
    """
    samples = _samples(chat, turns, whole)
    batches = in_batches([len(one.teacher_ids) + one.num_tokens for one in samples])
    allowed = [choices.allowed_in(one.choices, one.response_ids) for one in samples]
    rows = max(1, CHUNK_LOGITS // teacher.rows)

    def hidden(context: Context, samples: Sequence[Sample]) -> list[Tensor]:
        _show(teacher, chat, turns, context)
        return [teacher.hidden([samples[place] for place in batch]) for batch in batches]

    own = hidden(whole, samples)
    found = {}
    for key, arm in progress("influence", arms.items(), len(arms)):
        other = hidden(arm, _samples(chat, turns, arm))
        sums = [0.0] * len(samples)
        for batch, own_NH, other_NH in zip(batches, own, other, strict=True):
            may = [ids for place in batch for ids in allowed[place]]
            kl = []
            for start in range(0, len(may), rows):
                where = slice(start, start + rows)
                own_RV, other_RV = (choices.keep(teacher.logits(h[where]), may[where]) for h in (own_NH, other_NH))
                kl.append(losses.full_kl(own_RV, other_RV, temperature=temperature))
            for place, of_turn in zip(batch, torch.cat(kl).split([samples[i].num_tokens for i in batch]), strict=True):
                sums[place] = float(of_turn.sum())
        found[key] = sums
    return found


def _samples(chat: Chat, turns: Sequence[Episode], context: Context) -> list[Sample]:
    return samples_of(turns, chat, context, "keep")[0]


def _show(teacher: FrozenTeacher, chat: Chat, turns: Sequence[Episode], context: Context) -> None:
    """Let the teacher read once what all prompts with this context begin with, as the first of them does."""
    first = turns[0].turns[0]
    teacher.prefixes = [prefix_of(teacher.model, chat.prefix(context, first.messages, first.tools))]


def _turns(session: Session, teacher: FrozenTeacher, context: Context, config: ScoreConfig) -> list[Episode]:
    """Stored turns that this model has answered without a context, drawn by the seed, each as an episode of its own.

    Only turns of extract and train tasks, with a reply, and only those that fit with the whole context.
    """
    store, chat = session.store, session.player.chat
    rows = store.episodes(model_id=session.loaded.id, context_id=EMPTY.id, env=session.env, setup=session.setup())
    rows = may_teach(session, rows, "extract", "train")
    places = [(row["id"], turn) for row in rows for turn in range(row["turns"])]
    random.Random(f"{config.seed}:influence").shuffle(places)
    kept: list[Episode] = []
    for episode_id, turn in places:
        episode = store.transcript(episode_id)
        one = dataclasses.replace(episode, turns=[episode.turns[turn]])
        if samples_of([one], chat, context, "keep", fits=teacher.fits)[0]:
            kept.append(one)
        if len(kept) == (config.turns or TURNS):
            break
    return kept
