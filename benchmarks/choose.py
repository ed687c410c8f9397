"""Halving against uniform scoring, on contexts of a model's own experience, in games that were really played.

    python -m benchmarks.choose --work choose --model pocket-s --env frozen-lake-4x4 --contexts 100 --tasks 600

1. plays and extracts until the pool has --contexts distinct contexts, and plays all of them and the empty one on
   --tasks tasks, once each: the matrix. Everything is stored, so a call that was stopped goes on.
2. draws, --repetitions times, an order of the tasks. The real code ranks the contexts on the first ones, by halving and
   (in --uniform of the repetitions, it is slower) by playing --uniform-tasks tasks with every context; the games are
   read from the matrix. What the chosen context is worth is its rate on the tasks that neither has seen: regret is what
   the best context has more there. Its confirmation on --confirm other tasks gives the coverage of the 95 % interval
   (its placebo is not in the matrix and loses every game, which does not touch that interval). What it should cover,
   the rate on the held-out tasks, is an estimate itself: a perfect interval covers less than 95 % of these, and how
   much is printed beside it.

Add --json FILE for the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, stdev

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import PlayConfig
from agentopcd.core.stats import Z95, Rate
from agentopcd.core.types import EMPTY, SPLITS, Context, Episode, Job, Task
from agentopcd.knowledge import Bench, Store, confirm, halving, score
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session

Cell = tuple[str, str]
"""Context id and task key."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Who won what."""

    env: str
    contexts: list[Context]
    tasks: list[Task]
    won: dict[Cell, bool]

    def rate(self, context: Context, tasks: Iterable[Task]) -> float:
        return fmean(self.won[context.id, task.key] for task in tasks)

    def play(self, label: str, jobs: Sequence[Job]) -> Iterator[Episode]:
        """A player that reads the matrix; it has no second repetition of anything."""
        for job in jobs:
            won = self.won.get((job.context.id, job.task.key), False)
            yield Episode(
                env=self.env, task=job.task, rep=job.rep, context_id=job.context.id, turns=[], outcome=[], success=won,
                reward=float(won), stop_reason="solved" if won else "failed",
            )  # fmt: skip


def played(args: argparse.Namespace) -> Matrix:
    """The matrix, played as far as it was not played before."""
    for seed in itertools.count():  # one play run after another, until the pool is large enough
        config = PlayConfig(
            env=args.env, model=args.model, episodes=args.episodes, chains=10, chain_steps=6, seed=seed,
            sample_batch=args.sample_batch,
        )  # fmt: skip
        with Session(config, args.work, progress=progress) as session:
            run_id = session.ledger.stage("play")
            session.ledger.finish(run_id, gather(session, config, run_id=run_id).to_dict())
            if len(found := pool(session)) >= args.contexts:
                break
            print(f"{len(found)} contexts", flush=True)
    with Session(dataclasses.replace(config, seed=0), args.work, progress=progress) as session:
        contexts = pool(session)[: args.contexts]
        # All splits: nothing is trained here, and the tasks are dealt anew in each repetition.
        tasks = [task for split in ("select", "train", *SPLITS) for task in session.tasks(split)]
        tasks = list(dict.fromkeys(tasks))[: args.tasks]
        bench = session.bench(session.ledger.stage("matrix"))
        arms = [EMPTY, *contexts]
        for start in range(0, len(tasks), 20):  # in pieces, so that little is lost by a kill
            bench.play_missing(
                f"tasks {start} on", [Job(task, arm) for task in tasks[start : start + 20] for arm in arms]
            )
        won = {
            (arm.id, place[0]): bool(success)
            for arm in arms
            for place, success in session.store.outcomes(bench.arm(arm), bench.arena()).items()
        }
        return Matrix(session.env, contexts, [t for t in tasks if all((a.id, t.key) in won for a in arms)], won)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What one method chose in one repetition."""

    episodes: int
    regret: float
    confirmed: Rate
    truth: float

    @property
    def covered(self) -> bool:
        return self.confirmed.low <= self.truth <= self.confirmed.high


def repetition(matrix: Matrix, number: int, args: argparse.Namespace, method: Callable[..., object]) -> Chosen:
    """Choose by one method on tasks in a new order, and see what that is worth on all other tasks."""
    tasks = random.Random(f"order {number}").sample(matrix.tasks, len(matrix.tasks))
    used = args.select if method is halving else args.uniform_tasks
    select, fresh = tasks[:used], tasks[max(args.select, args.uniform_tasks) :]
    others, held_out = fresh[: args.confirm], fresh[args.confirm :]
    with Store.open(":memory:") as store:
        store.add_model("m", args.model)
        run_id = store.start("score", {}, number)
        bench = Bench(store=store, env=matrix.env, setup="s", model_id="m", run_id=run_id, play=matrix.play)
        ranking = method(bench, matrix.contexts, select)
        best = store.get_context(ranking.best.context_id)  # type: ignore[attr-defined]
        result = confirm(bench, best, others).comparison.first
    worth = {context.id: matrix.rate(context, held_out) for context in matrix.contexts}
    assert isinstance(result, Rate)
    return Chosen(ranking.episodes, max(worth.values()) - worth[best.id], result, worth[best.id])  # type: ignore[attr-defined]


def expected_coverage(n: int, held_out: int) -> float:
    """How often a perfect 95 % interval of ``n`` tasks covers the rate on so many other tasks, which is noisy, too."""
    return 2 * NormalDist().cdf(Z95 / sqrt(1 + n / held_out)) - 1


def mean(values: Sequence[float]) -> str:
    half = Z95 * stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{fmean(values):.4f} ± {half:.4f}"


def summary(name: str, chosen: Sequence[Chosen], first: int, perfect: float) -> str:
    """A method's line; ``first`` is the number of repetitions that both methods have, 0 if uniform was left out."""
    regrets = [one.regret for one in chosen]
    both = f"{mean(regrets[:first])} (first {first} repetitions), " if first else ""
    return (
        f"{name:8s} {fmean(one.episodes for one in chosen):8.0f} episodes  regret {both}{mean(regrets)} (all "
        f"{len(chosen)})  confirmed interval covers {Rate(sum(one.covered for one in chosen), len(chosen))} (a perfect "
        f"one: {perfect:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("choose-work"))
    parser.add_argument("--env", default="frozen-lake-4x4")
    parser.add_argument("--model", default="pocket-s")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=600, help="tasks of the matrix, of all splits")
    parser.add_argument("--episodes", type=int, default=60, help="episodes of each play run")
    parser.add_argument("--select", type=int, default=240, help="tasks that halving may use")
    parser.add_argument("--uniform-tasks", type=int, default=128)
    parser.add_argument("--confirm", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--uniform", type=int, default=10, help="repetitions with uniform scoring, too")
    parser.add_argument("--sample-batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.repetitions < 1:
        parser.error(f"--repetitions {args.repetitions}: at least one")
    models.prepare_process()
    matrix = played(args)
    rates = [matrix.rate(context, matrix.tasks) for context in matrix.contexts]
    print(f"{len(rates)} contexts on {len(matrix.tasks)} tasks: rates {min(rates):.3f} to {max(rates):.3f}, mean "
          f"{fmean(rates):.3f}, sd {stdev(rates):.3f}; empty {matrix.rate(EMPTY, matrix.tasks):.3f}")  # fmt: skip
    found: dict[str, list[Chosen]] = {"halving": [], "uniform": []}
    for number in range(args.repetitions):
        found["halving"].append(repetition(matrix, number, args, halving))
        if number < args.uniform:
            found["uniform"].append(repetition(matrix, number, args, score))
    held_out = len(matrix.tasks) - max(args.select, args.uniform_tasks) - args.confirm
    perfect = expected_coverage(args.confirm, held_out)
    for name, chosen in found.items():
        if chosen:
            print(summary(name, chosen, len(found["uniform"]), perfect))
    if args.json:
        rows = {
            name: [{**dataclasses.asdict(one), "covered": one.covered} for one in some] for name, some in found.items()
        }
        args.json.write_text(json.dumps({"rates": rates, **rows}))


if __name__ == "__main__":
    main()
