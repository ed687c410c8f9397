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
0, and what the test calls helpful or harmful at a false-discovery rate of 10 %. Every episode is stored, so a killed
call goes on when it is given again, and a repeated one plays nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.runs import workspace, write_json
from agentopcd.core.stats import ratio
from agentopcd.knowledge import Found, Item, ItemValue, identify, subsets
from agentopcd.workspace.experience.gather import gather
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
    precision: float
    auc: float
    harmful_below_0: float
    named: dict[str, int]
    """Items that were named, by kind: ``helpful good``, ``harmful inert``, ..."""

    def __str__(self) -> str:
        named = ", ".join(f"{n} {what}" for what, n in sorted(self.named.items())) or "none"
        own = ", ".join(f"{n} {kind}" for kind, n in sorted(self.own.items()))
        return (
            f"seed {self.seed}: precision at {PLANTED} {self.precision:.2f}, AUC {self.auc:.3f}, planted harmful below "
            f"0 {self.harmful_below_0:.2f}; named: {named} ({self.episodes} episodes, {len(self.items)} items; "
            f"own: {own})"
        )


def measured(
    seed: int, values: Sequence[ItemValue], items: Mapping[str, Item], mine: set[str], episodes: int
) -> Result:
    """The figures of one seed.

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
        precision=sum(row["kind"] == "good" for row in counted[:PLANTED]) / PLANTED,
        auc=wins / (len(good) * len(other)), harmful_below_0=sum(harmful) / len(harmful),
        named={what: named.count(what) for what in named},
    )  # fmt: skip


def run(seed: int, work: Path, model: str, episodes: int, play: int) -> Result:
    """Play, extract, plant and value, all in the workspace of one seed."""
    config = PlayConfig(env=ENV, model=model, episodes=play, chain_steps=4, chains=8, seed=seed)
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
        pairs = (episodes - play) // 2
        values = subsets(session.bench(run_id), list(items.values()), session.tasks("select"), pairs=pairs, seed=seed)
        result = measured(seed, values, items, set(mine), len(store.episodes()))
        session.ledger.finish(run_id, dataclasses.asdict(result))
        return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("planted-work"), help="folder of the workspaces")
    parser.add_argument("--model", default="pocket", help="who plays (default pocket)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one workspace each")
    parser.add_argument("--episodes", type=int, default=2000, help="played for each seed, notes included")
    parser.add_argument("--play", type=int, default=32, help="of these, played to take notes from")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(arguments)
    models.prepare_process()
    try:
        results = []
        for seed in args.seeds:
            work = workspace(args.work / f"seed-{seed}")
            results.append(run(seed, work, args.model, args.episodes, args.play))
            print(results[-1], flush=True)
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    means = {
        name: ratio([getattr(one, name) for one in results], [1] * len(results))
        for name in ("precision", "auc", "harmful_below_0")
    }
    for name, (value, low, high) in means.items():
        print(f"{name}: {value:.3f} [{low:.3f}, {high:.3f}] over {len(results)} seeds")
    print(f"precision at {PLANTED} {'reaches' if means['precision'][0] >= GOAL else 'misses'} {GOAL}")
    if args.json:
        settings = {"model": args.model, "env": ENV, "episodes": args.episodes, "play": args.play, "seeds": args.seeds}
        write_json(
            args.json, {"settings": settings, "means": means, "results": [dataclasses.asdict(r) for r in results]}
        )
        print(f"figures: {args.json}")


if __name__ == "__main__":
    main()
