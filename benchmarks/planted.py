"""Are planted rules found among what a player noted itself? ``python -m benchmarks.planted --work DIR``

Pocket plays Frozen Lake 4x4 with hidden rules and writes down items (``agentopcd play``). To these come planted ones:
ten sentences that state a rule of the game as it is (good), ten that state one as it is not (harmful), and ten that
state none (inert). ``subsets`` then values all items with what is left of ``--episodes``. Each of ``--seeds`` is a
workspace of its own, with other games, other notes, other planted sentences and other halves.

What an item is, is decided by its words and before anything is played: a sentence of ``recipes/pocket/wording.py``
that states one fact of the game is good if the fact is true and harmful if it is not; one of the asides there, or the
extractor's sentence about walls and invalid moves, is inert. Any other own item is left out of every count. The value
of an item plays no part in this.

Printed for each seed: the share of good items among the ten most valuable (precision at 10), the share of pairs of a
good and another item in which the good one is worth more (AUC), the share of planted harmful items with a value below
0, and what the test calls helpful or harmful at a false-discovery rate of 10 %. With ``--confirm-tasks``, the items
with a value above 0 are assembled and compared with no context on tasks that nothing was chosen on, and beside that all
items; these episodes come on top. With ``--turns``, the influence of each item of the context of all items is read
from so many stored turns, and counted by kind. Every episode is stored, so a killed call goes on when it is given
again, and a repeated one plays nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import GatherConfig, PlayConfig, ScoreConfig, pick
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.runs import workspace, write_json
from agentopcd.core.stats import finite, ratio
from agentopcd.core.types import EMPTY, Context, Job
from agentopcd.knowledge import (
    Bench,
    Found,
    Item,
    ItemValue,
    assemble_by_value,
    identify,
    places_of,
    render,
    subsets,
)
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.experience.influence import influence
from agentopcd.workspace.session import Session
from recipes.pocket.wording import ASIDES, ITEM, facts_of, opposite, sentences
from recipes.pocket.worlds import Rules

GAME, ENV, WORLD = "lake", "frozen-lake-4x4", Rules(first="G", second="H")
PLANTED = 10
"""Sentences of each kind; also the number of most valuable items that precision looks at."""
INERT = [*ASIDES, ITEM["wall"][GAME], *ITEM["invalid"]]
GOAL = 0.8
"""The precision at 10 that the method was asked for."""


def kinds() -> dict[str, str]:
    """What an item is, by its id: the rule above."""
    said = {sentence: "good" for fact in facts_of(GAME, WORLD) for sentence in sentences(fact)}
    for fact in facts_of(GAME, WORLD):
        said |= dict.fromkeys(sentences(opposite(GAME, fact, WORLD)), "harmful")
    return {identify(text): kind for text, kind in (said | dict.fromkeys(INERT, "inert")).items()}


def planted(rng: random.Random) -> dict[str, list[str]]:
    """Sentences to plant, by kind: those of each fact in turn, so that no fact is told much more often than another."""
    facts = facts_of(GAME, WORLD)
    return {
        "good": _dealt(rng, [sentences(fact) for fact in facts]),
        "harmful": _dealt(rng, [sentences(opposite(GAME, fact, WORLD)) for fact in facts]),
        "inert": rng.sample(list(dict.fromkeys(INERT)), PLANTED),
    }


def _dealt(rng: random.Random, stacks: Sequence[Sequence[str]]) -> list[str]:
    shuffled = [rng.sample(stack, len(stack)) for stack in stacks]
    rng.shuffle(shuffled)
    return [shuffled[number % len(shuffled)][number // len(shuffled)] for number in range(PLANTED)]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one seed gives."""

    seed: int
    episodes: int
    own: dict[str, int]
    """Own items by kind, those that are left out as ``unknown``."""
    items: list[dict[str, Any]]
    """All items, most valuable first."""
    chance: float
    """The share of good items among those that are counted: the precision of a random order."""
    precision: float
    auc: float
    harmful_below_0: float
    named: dict[str, int]
    """Items that were named, by kind: ``helpful good``, ``harmful inert``, ..."""
    confirm: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """The assembled context, and all items, against no context on confirm tasks."""
    inert: dict[str, str] = dataclasses.field(default_factory=dict)
    """By kind, how many of the items are inert among all items: ``9 of 10``."""

    def __str__(self) -> str:
        named = ", ".join(f"{n} {what}" for what, n in sorted(self.named.items())) or "none"
        own = ", ".join(f"{n} {kind}" for kind, n in sorted(self.own.items()))
        return (
            f"seed {self.seed}: precision at {PLANTED} {self.precision:.2f} (chance {self.chance:.2f}), AUC "
            f"{self.auc:.3f}, planted harmful below 0 {self.harmful_below_0:.2f}; named: {named} ({self.episodes} "
            f"episodes, {len(self.items)} items; own: {own})"
            + "".join(f"\n  {name}: {row['text']}" for name, row in self.confirm.items())
            + "".join(f"\n  inert: {many} {kind}" for kind, many in self.inert.items())
        )


def measured(
    seed: int, values: Sequence[ItemValue], items: Mapping[str, Item], mine: set[str], episodes: int
) -> Result:
    """The figures of one seed, without those on confirm tasks.

    Args:
        mine: ids of the planted items.
    """
    known = kinds()
    rows = [
        dataclasses.asdict(value) | {"text": items[value.item_id].text, "kind": known.get(value.item_id, "unknown"),
        "planted": value.item_id in mine, "verdict": value.verdict} for value in values
    ]  # fmt: skip
    counted = [row for row in rows if row["kind"] != "unknown"]
    good = [row["value"] for row in counted if row["kind"] == "good"]
    other = [row["value"] for row in counted if row["kind"] != "good"]
    wins = sum((one > two) + (one == two) / 2 for one in good for two in other)
    harmful = [row["value"] < 0 for row in counted if row["kind"] == "harmful" and row["planted"]]
    own = [row["kind"] for row in rows if not row["planted"]]
    named = [f"{row['verdict']} {row['kind']}" for row in counted if row["verdict"] != "not shown"]
    return Result(
        seed=seed, episodes=episodes, own={kind: own.count(kind) for kind in own}, items=rows,
        chance=len(good) / len(counted),
        precision=sum(row["kind"] == "good" for row in counted[:PLANTED]) / PLANTED,
        auc=wins / (len(good) * len(other)), harmful_below_0=sum(harmful) / len(harmful),
        named={what: named.count(what) for what in named},
    )  # fmt: skip


def compared(
    session: Session, bench: Bench, values: Sequence[ItemValue], items: Mapping[str, Item], n: int
) -> dict[str, dict[str, Any]]:
    """The context assembled by value, and all items, each against no context on ``n`` confirm tasks."""
    count, tasks = session.player.chat.count_tokens, session.tasks("confirm", n)
    best = {items[one.item_id].text: one.low for one in values if one.value > 0 and one.round == values[0].round}
    contexts = {
        "by value": assemble_by_value([], best, budget=GatherConfig.budget_tokens, count_tokens=count),
        "all items": Context(render([item.text for item in items.values()])),
    }
    bench.prepare(contexts.values(), tasks, "confirm")
    bench.play_missing("confirm", [Job(task, arm) for task in tasks for arm in (EMPTY, *contexts.values())])
    arena, found = bench.arena("confirm", places_of(tasks)), {}
    for name, context in contexts.items():
        comparison = bench.store.compare(bench.arm(context), bench.arm(), arena)
        kinds_shown = Counter(kinds().get(identify(line), "unknown") for line in context.lines)
        found[name] = comparison.to_dict() | {"text": str(comparison), "items": dict(kinds_shown)}
    return found


def found_inert(session: Session, config: PlayConfig, items: Mapping[str, Item], turns: int) -> dict[str, str]:
    """By kind, how many items are inert in the context of all items."""
    context = Context(render([item.text for item in items.values()]))
    session.store.add_context(context)
    found = influence(session, pick(config, ScoreConfig, method="influence", turns=turns), context).items
    of_kind = {one.item_id: kinds().get(one.item_id, "unknown") for one in found}
    many, inert = Counter(of_kind.values()), Counter(of_kind[one.item_id] for one in found if one.inert)
    return {kind: f"{inert[kind]} of {n}" for kind, n in sorted(many.items())}


def run(seed: int, work: Path, args: argparse.Namespace) -> Result:
    """Play, extract, plant and value, all in the workspace of one seed."""
    config = PlayConfig(env=ENV, model=args.model, episodes=args.play, chain_steps=4, chains=8, seed=seed)
    with Session(config, work, say=lambda line: print(line, file=sys.stderr), progress=progress) as session:
        store = session.store
        run_id = session.ledger.stage("play")
        found = gather(session, config, run_id=run_id)
        session.ledger.finish(run_id, found.to_dict())
        texts = [text for stack in planted(random.Random(seed)).values() for text in stack]
        run_id = session.ledger.stage("planted")
        mine = store.add_items(run_id, [Found(text) for text in texts], actor="benchmark")
        for item in store.items(ids=mine, status="pending"):
            store.event(item.id, "approve", "benchmark")
        ids = dict.fromkeys([*found.items, *mine])
        items = {item.id: item for item in store.items(ids=ids) if item.status in ("active", "pinned")}
        pairs = (args.episodes - args.play) // 2
        bench = session.bench(run_id)
        values = subsets(bench, list(items.values()), session.tasks("select"), pairs=pairs, seed=seed)
        result = measured(seed, values, items, set(mine), args.play + 2 * pairs)
        if args.confirm_tasks:
            result = dataclasses.replace(result, confirm=compared(session, bench, values, items, args.confirm_tasks))
        if args.turns:
            result = dataclasses.replace(result, inert=found_inert(session, config, items, args.turns))
        session.ledger.finish(run_id, dataclasses.asdict(result))
        return result


def means_of(results: Sequence[Result]) -> dict[str, tuple[float, float, float]]:
    """Mean over seeds and its interval, Student's, since seeds are few."""
    n = len(results)
    return {
        name: ratio([getattr(one, name) for one in results], [1] * n)
        for name in ("chance", "precision", "auc", "harmful_below_0")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("planted-work"), help="folder of the workspaces")
    parser.add_argument("--model", default="pocket", help="who plays (default pocket)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one workspace each")
    parser.add_argument("--episodes", type=int, default=2000, help="played for each seed, notes included")
    parser.add_argument("--play", type=int, default=32, help="of these, played to take notes from")
    parser.add_argument("--confirm-tasks", type=int, default=0, help="compare contexts on so many (default 0: do not)")
    parser.add_argument("--turns", type=int, default=0, help="read influence from so many (default 0: do not)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(arguments)
    if args.episodes < args.play + 4:
        parser.error(f"--episodes {args.episodes} leaves no two pairs of halves beside --play {args.play}; raise it")
    models.prepare_process()
    try:
        results = []
        for seed in args.seeds:
            results.append(run(seed, workspace(args.work / f"seed-{seed}"), args))
            print(results[-1], flush=True)
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    means = means_of(results)
    for name, (value, low, high) in means.items():
        print(f"{name}: {value:.3f} [{low:.3f}, {high:.3f}] over {len(results)} seeds")
    print(f"precision at {PLANTED} {'reaches' if means['precision'][0] >= GOAL else 'misses'} {GOAL}")
    named = sum((Counter(one.named) for one in results), Counter())
    right = named["helpful good"] + named["harmful harmful"]
    print(f"named in all: {named.total()}, of which {named.total() - right} falsely")
    if args.json:
        settings = {
            "model": args.model, "env": ENV, "episodes": args.episodes, "play": args.play, "seeds": args.seeds,
            "confirm_tasks": args.confirm_tasks, "turns": args.turns,
        }  # fmt: skip
        write_json(
            args.json,
            {
                "settings": settings, "means": {name: [*map(finite, ends)] for name, ends in means.items()},
                "results": [dataclasses.asdict(r) for r in results],
            },
        )  # fmt: skip
        print(f"figures: {args.json}")


if __name__ == "__main__":
    main()
