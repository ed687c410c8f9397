"""How often worthless contexts are promoted in ten rounds together: by simulation, and in real rounds.

    python -m benchmarks.null_rounds --runs 2000
    python -m benchmarks.null_rounds --real 40 --work null --model pocket-s --env frozen-lake-4x4

The first makes worlds in which no context helps: all arms win a task with the same probability, tasks differ (logits
with sd 1.3). Each world has ten rounds of the real code: --pool new contexts, halving, and the winner's confirmation on
the same --confirm tasks of that world. The second plays rounds of ten with contexts whose content is destroyed, made of
contexts of the model's own experience, in a store of their own every ten rounds. With --null words every word becomes
one of another subject; with --null placebo content words change places, which leaves some of what they say: "P right
Moves [right]." still pairs a move with what it does.

Printed is the share of ten rounds with at least one promotion, and the same if the empty context were the only rival.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
from collections.abc import Iterator, Sequence
from math import exp
from pathlib import Path

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import PlayConfig, ScoreConfig, pick
from agentopcd.core.stats import Rate
from agentopcd.core.types import MARKER, Context, Episode, Job, Task
from agentopcd.knowledge import ALPHA, Bench, Confirmation, Store, confirm, halving, placebo
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.experience.choose import choose
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session

ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class World:
    """A world in which every arm wins a task with the same probability."""

    seed: int
    base: float

    def play(self, label: str, jobs: Sequence[Job]) -> Iterator[Episode]:
        for job in jobs:
            logit = self.base + random.Random(f"{self.seed}/{job.task.key}").gauss(0, 1.3)
            won = random.Random(f"{self.seed}/{job.context.id}/{job.task.key}/{job.rep}").random() < 1 / (
                1 + exp(-logit)
            )
            yield Episode(
                env="world", task=job.task, rep=job.rep, context_id=job.context.id, turns=[], outcome=[], success=won,
                reward=float(won), stop_reason="solved" if won else "failed",
            )  # fmt: skip


def simulated(seed: int, args: argparse.Namespace) -> list[Confirmation]:
    """The confirmations of ten rounds in one world."""
    world = World(seed, args.base)
    select = [Task(i, f"select {i}") for i in range(200)]
    fresh = [Task(1000 + i, f"confirm {i}") for i in range(args.confirm)]
    with Store.open(":memory:") as store:
        store.add_model("m", "null")
        bench = Bench(
            store=store, env="world", setup="s", model_id="m", run_id=store.start("score", {}, seed), play=world.play
        )
        results = []
        for number in range(ROUNDS):
            contexts = [Context(f"{MARKER} Rule {i} of round {number} says go there.") for i in range(args.pool)]
            ranking = halving(bench, contexts, select, seed=number)
            results.append(confirm(bench, store.get_context(ranking.best.context_id), fresh))
        return results


WORDS = (
    "kettle", "violin", "harbour", "Tuesday", "carpet", "lemon", "senator", "pillow", "orchard", "invoice", "thunder",
    "biscuit", "librarian", "cathedral", "pepper", "stadium", "necklace", "trumpet", "blanket", "cousin", "velvet",
    "pudding", "sailor", "museum", "ribbon", "walnut", "dentist", "lantern",
)  # fmt: skip


def foreign(context: Context, rng: random.Random) -> Context:
    """A context of the same form in which every word and symbol is one of another subject."""
    lines = [re.sub(r"\[?[A-Za-z]+\]?", lambda _: rng.choice(WORDS), line) for line in context.lines]
    return Context("\n".join(f"{MARKER} {line}" for line in lines), context.placement)


def real(args: argparse.Namespace) -> list[list[Confirmation]]:
    """Real rounds with destroyed contexts, ten to a store."""
    families = []
    for family in range(args.real // ROUNDS):
        work = args.work / f"{family}"
        play = PlayConfig(env=args.env, model=args.model, episodes=60, chains=args.pool, chain_steps=6, seed=family)
        with Session(play, work, progress=progress) as session:
            run_id = session.ledger.stage("play")
            session.ledger.finish(run_id, gather(session, play, run_id=run_id).to_dict())
            sources = pool(session)
        results = []
        for number in range(ROUNDS):
            config = pick(play, ScoreConfig, confirm_tasks=args.confirm, candidates=args.pool)
            with Session(config, work, progress=progress) as session:
                rng = random.Random(f"{family}/{number}")
                chosen = rng.sample(sources, min(args.pool, len(sources)))
                nulls = [
                    placebo(context, seed=1 + number) if args.null == "placebo" else foreign(context, rng)
                    for context in chosen
                ]
                run_id = session.ledger.begin("score", null=number)
                _, outcome = choose(session, config, nulls, run_id=run_id)
                assert outcome is not None
                session.ledger.finish(run_id, outcome.to_dict())
            results.append(outcome)
        families.append(results)
    return families


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated worlds of ten rounds")
    parser.add_argument("--first", type=int, default=0, help="the first world's seed")
    parser.add_argument("--base", type=float, default=-1.1, help="logit of an average task: 0.25")
    parser.add_argument("--pool", type=int, default=8)
    parser.add_argument("--confirm", type=int, default=64)
    parser.add_argument("--real", type=int, default=0, help="real rounds instead, a multiple of ten")
    parser.add_argument("--null", choices=("words", "placebo"), default="words", help="how the content is destroyed")
    parser.add_argument("--work", type=Path, default=Path("null-work"))
    parser.add_argument("--env", default="frozen-lake-4x4")
    parser.add_argument("--model", default="pocket-s")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.real < 0 or args.real % ROUNDS:
        parser.error(f"--real must be a multiple of {ROUNDS}")
    if args.real:
        models.prepare_process()
        families = real(args)
    else:
        seeds = range(args.first, args.first + args.runs)
        families = [simulated(seed, args) for seed in progress("worlds", seeds, len(seeds))]
    promoted = Rate(sum(any(one.passed for one in ten) for ten in families), len(families))
    alone = Rate(sum(any(o.against["empty"].p < o.level for o in ten) for ten in families), len(families))
    at_alpha = Rate(sum(any(o.against["empty"].p < ALPHA for o in ten) for ten in families), len(families))
    rounds = sum(len(ten) for ten in families)
    print(f"{rounds} rounds in {len(families)} families of ten: at least one promotion in {promoted}")
    print(f"against the empty context alone, at the levels of the looks: {alone}; at {ALPHA} every time: {at_alpha}")
    if args.json:
        args.json.write_text(json.dumps([[one.verdict for one in ten] for ten in families]))


if __name__ == "__main__":
    main()
