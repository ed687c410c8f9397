"""Accumulation chains: the model extracts items from episodes, and each chain of items grows a context in the pool."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentopcd.core.config import GatherConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Rate
from agentopcd.core.text import after_thinking, counted, still_thinking
from agentopcd.core.types import EMPTY, MARKER, Completion, Context, Sampling
from agentopcd.knowledge import (
    Origin,
    PoolStep,
    Store,
    add_to_pool,
    assemble,
    extraction_messages,
    ingest,
    pool_prefix,
)
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import request_seed
from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """What one play run has left in the store."""

    run_id: int
    rate: Rate
    """Of the episodes with a result."""
    items: list[str]
    """Ids of the extracted items, each once."""
    flagged: int
    """The number of items that wait for a person."""
    unparsed: int
    """The number of extractor replies without an item."""
    candidates: list[Context]
    """The chains' contexts, each once: first the latest of each chain, then the earlier ones."""
    unrated: int = 0
    """Recorded sessions without a result, besides."""
    graded: bool = True
    """Whether success means anything."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON, for the ledger."""
        return {
            "run": self.run_id, "episodes": self.rate.n + self.unrated, "wins": self.rate.wins,
            "success": self.rate.rate, "low": self.rate.low, "high": self.rate.high, "items": self.items,
            "flagged": self.flagged, "replies_without_item": self.unparsed,
            "candidates": [c.id for c in self.candidates], **({"unrated": self.unrated} if self.unrated else {}),
            **({} if self.graded else {"graded": False}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, done: Mapping[str, Any], store: Store) -> Gathered:
        """The result that :meth:`to_dict` wrote, with the contexts read from the store."""
        rate = Rate(done["wins"], done["episodes"] - done.get("unrated", 0))
        if (rate.low, rate.high) != (done["low"], done["high"]):  # tasks were played more than once
            rate = dataclasses.replace(rate, interval=(done["low"], done["high"]))
        return cls(
            run_id=done["run"], rate=rate,
            unrated=done.get("unrated", 0), graded=done.get("graded", True), items=done["items"],
            flagged=done["flagged"], unparsed=done["replies_without_item"],
            candidates=[store.get_context(id_) for id_ in done["candidates"]],
        )  # fmt: skip


def extract(
    session: Session, config: GatherConfig, run_id: int, gathered: Gathered, start: Sequence[Context] = ()
) -> Gathered:
    """Run the accumulation chains over the run's episodes, and add the context of every step to the pool.

    Each chain reads the episodes of its own seeded draw. Each step reads one episode and appends that episode's items
    to the chain's context. Whoever extracts, the player reads the items: its tokenizer counts and guards them.

    Args:
        start: what each chain begins with; a chain without it begins empty.

    Raises:
        ConfigError: the run has no finished episode.
    """
    store, chat = session.store, session.player.chat
    ids = _in_order(session, run_id)
    if not ids:
        raise ConfigError("no finished episode to extract from: the environment broke every one of them")
    first = _take_chains(session, config, run_id)
    depth = min(config.chain_steps, len(ids))
    readings = {c: random.Random(f"{config.seed}:chain:{c}").sample(ids, depth) for c in range(config.chains)}
    chains = dict.fromkeys(range(config.chains), EMPTY) | dict(enumerate(start[: config.chains]))
    for c, context in chains.items():
        if context.text:
            made = {"order": "chain", "budget": config.budget_tokens, "chain": first + c, "step": 0}
            add_to_pool(store, PoolStep(session.env, first + c, 0), context, run_id=run_id, origin=made)
    items: dict[str, None] = {}
    flagged, unparsed = set(), 0
    for step, replies in enumerate(_replies(session, config, readings, chains), start=1):
        for c, reply in replies.items():
            id_ = readings[c][step - 1]
            shown = chains[c] if config.show_earlier and chains[c].text else None
            origin = Origin(
                run_id=run_id, episode=store.transcript(id_), episode_id=id_, shown=shown, first_line=c * 1000
            )
            ingested = ingest(
                store, reply, origin, special=chat.special, count_tokens=chat.count_tokens, gate=config.gate
            )
            unparsed += not ingested.parsed
            flagged |= set(ingested.flagged)
            items |= dict.fromkeys(ingested.ids)
            texts = [item.text for item in store.items(ids=ingested.accepted)]
            chains[c] = assemble(
                [*chains[c].lines, *texts], budget=config.budget_tokens,
                count_tokens=chat.count_tokens, placement=config.placement,
            )  # fmt: skip
            if chains[c].text:
                made = {"order": "chain", "budget": config.budget_tokens, "chain": first + c, "step": step}
                add_to_pool(store, PoolStep(session.env, first + c, step), chains[c], run_id=run_id, origin=made)
    return dataclasses.replace(
        gathered, items=list(items), flagged=len(flagged), unparsed=unparsed, candidates=pool(session, run_id)
    )


def _in_order(session: Session, run_id: int) -> list[int]:
    """The run's episodes, shorter ones first, and those of one length as they were planned.

    That is the order in which episodes that are played at once end. Their order in the store is another one if the
    run was killed, and so is what a chain would read.
    """
    place = {task.key: number for number, task in enumerate(session.tasks("extract"))}
    rows = session.store.episodes(run_id=run_id)
    rows.sort(key=lambda row: (row["turns"], row["rep"], place.get(row["task_key"], 0)))
    return [row["id"] for row in rows]


def _replies(
    session: Session, config: GatherConfig, readings: dict[int, list[int]], chains: dict[int, Context]
) -> Iterator[dict[int, str]]:
    """Yield the extractor's replies of each step, by chain.

    If the extractor sees the chain's earlier items, each step waits for the step before. Otherwise all steps of all
    chains are asked at once, which is much faster.
    """
    steps, extractor = range(len(readings[0])), session.extractor()
    if not config.show_earlier:
        places = [(c, s) for s in steps for c in readings]
        replies = _ask(session, extractor, config, places, readings, chains)
        for s in steps:
            yield {c: replies[c, s] for c in readings}
        return
    for s in steps:
        replies = _ask(session, extractor, config, [(c, s) for c in readings], readings, chains)
        yield {c: replies[c, s] for c in readings}


def _ask(
    session: Session, extractor: Player, config: GatherConfig, places: Sequence[tuple[int, int]],
    readings: dict[int, list[int]], chains: dict[int, Context],
) -> dict[tuple[int, int], str]:  # fmt: skip
    """The extractor's replies at these ``(chain, step)`` places."""
    requests = []
    for c, s in places:
        episode = session.store.transcript(readings[c][s])
        earlier = chains[c] if config.show_earlier else None
        messages = extraction_messages(
            episode, kind=session.kind_of(episode), earlier=earlier, template=session.extraction.template
        )
        requests.append(extractor.chat.request(messages, seed=request_seed(config.seed, "extract", c, s)))
    sampling = Sampling(
        temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, max_tokens=config.extract_tokens
    )
    session.say(f"extracting from {counted(len(requests), 'episode')}")
    # A reply that is not in the format is asked for again, with the marker as its first words. Small models need this.
    # If the first reply of no chain is in the format, all later ones are asked that way at once. An empty reply is in
    # the format.
    first = len(readings)
    prompted = [extractor.chat.opened(request, MARKER) for request in requests]
    replies = _texts(session, extractor, extractor.sampler.sample(requests[:first], sampling))
    if any(_in_format(reply) for reply in replies) or prompted[0] is None:
        replies += _texts(session, extractor, extractor.sampler.sample(requests[first:], sampling))
    else:
        replies += ["?"] * (len(requests) - first)  # never in the format, so each of them is asked below
    again = {i: request for i, request in enumerate(prompted) if request is not None and not _in_format(replies[i])}
    for i, reply in zip(again, extractor.sampler.sample(list(again.values()), sampling), strict=True):
        replies[i] = MARKER + extractor.chat.reply(reply, begun=True)
    if again:
        session.say(f"asked again for {len(again)} of {len(requests)} replies, with {MARKER!r} as their first words")
    return dict(zip(places, replies, strict=True))


def _texts(session: Session, extractor: Player, replies: Sequence[Completion]) -> list[str]:
    """The replies as text. A reply that an API withheld is reported, and is not taken for an empty one."""
    if kept := [reply.error for reply in replies if reply.error]:
        session.say(f"warning: {len(kept)} of {len(replies)} lessons are missing ({kept[0]})")
    return [extractor.chat.reply(reply) or reply.error for reply in replies]


def _in_format(reply: str) -> bool:
    """Whether an extractor's reply is in the format: it holds an item or is empty, since no lesson is an answer too.

    One that never came out of its thinking is no answer.
    """
    said = after_thinking(reply)
    return MARKER in said or not (said.strip() or still_thinking(reply))


def _take_chains(session: Session, config: GatherConfig, run_id: int) -> int:
    """Take the numbers of all chains of this run at once, and return the first: another play may run beside this one.

    A number is taken by a move of the chain's step 0 to nothing.
    """
    with session.store.write():
        first, owners = _first_chain(session, run_id), _owners(session)
        for chain in range(first, first + config.chains):
            if chain not in owners:
                ref = PoolStep(session.env, chain, 0).ref
                session.store.move(ref, None, "extract", "takes the chain's number", run_id)
    return first


def _first_chain(session: Session, run_id: int) -> int:
    """The number of this run's first chain: the same as before a kill, else the next free number.

    In stores of version 0.1, a chain without an item has no name. So this run's first chain comes right after the last
    chain of earlier runs, whichever of this run's chains have names.
    """
    owners = _owners(session)
    named = min((chain for chain, owner in owners.items() if owner == run_id), default=max(owners, default=-1) + 1)
    return max((chain for chain in owners if chain < named), default=-1) + 1


def _owners(session: Session) -> dict[int, int | None]:
    """The run that named each chain of this environment first; None for a person."""
    owners: dict[int, int | None] = {}
    for move in session.store.moves(pool_prefix(session.env)):
        name = move["name"].split("/")[-2]
        if name.isdecimal():  # a person may name refs freely
            owners.setdefault(int(name), move["run_id"])
    return owners


def pool(session: Session, run_id: int | None = None, prefix: str = "") -> list[Context]:
    """The distinct contexts of the pool: the latest step of each chain, newest chain first; then the steps before.

    Args:
        run_id: only contexts that this run has put there; None: of all runs.
        prefix: the prefix of the pool's refs; '': that of the session's environment.
    """
    store = session.store
    names = store.refs(prefix or pool_prefix(session.env))
    if run_id is not None:
        moved = {move["name"]: move["context_id"] for move in store.moves(run_id=run_id)}
        names = {name: moved[name] for name in names if moved.get(name)}
    chains: dict[str, list[str]] = {}
    for name, id_ in names.items():
        chains.setdefault(name.rpartition("/")[0], []).append(id_)
    newest_first = reversed(list(chains.values()))
    layers = itertools.zip_longest(*(reversed(ids) for ids in newest_first))
    ordered = dict.fromkeys(id_ for layer in layers for id_ in layer if id_ is not None)
    return [store.get_context(id_) for id_ in ordered]


def chains_of(store: Store, run: Mapping[str, Any]) -> list[list[str]]:
    """For every chain of a finished play run, the context id after every step, step 0 included.

    A step without a ref keeps the context of the step before, because a chain has no ref until its first item.

    Args:
        store: holds the chains' refs.
        run: the run's row, with ``config`` already parsed.
    """
    config, played = run["config"], json.loads(run["result"])["episodes"]
    reached: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in store.refs(pool_prefix(config["env"])):
        chain, _, step = name.rpartition("/")
        for move in store.log(name):
            if move["run_id"] == run["id"] and move["actor"] == "extract" and move["context_id"]:
                reached[chain][int(step)] = move["context_id"]
    depth, silent = min(config["chain_steps"], played), [{}] * (config["chains"] - len(reached))
    chains = []
    for steps in [*reached.values(), *silent]:
        steps = {0: EMPTY.id} | steps
        chains.append([steps[max(known for known in steps if known <= step)] for step in range(depth + 1)])
    return chains
