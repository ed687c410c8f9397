"""What a result on few tasks is worth: intervals of means, and games that have chosen what they report.

    python -m benchmarks.few_tasks

The first table: how often a 95 % interval of a mean holds the true mean, of tasks whose scores are normal, with the
quantile of the normal distribution and with Student's. The second: in worlds in which no context helps, halving ranks
--contexts of them on --tasks tasks that every split shares, and the winner is compared with no context, on the games
that have ranked it and on new games of the same tasks. Its true lead is 0.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from statistics import fmean

from agentopcd.core.quantiles import Z95, t_quantile
from agentopcd.core.stats import Difference, mean_of
from agentopcd.core.types import EMPTY, MARKER, Context, Job, Task
from agentopcd.envs.manifest import FRESH
from agentopcd.knowledge import Arm, Bench, Store, halving, places_of
from benchmarks.null_rounds import World


def covered(tasks: int, trials: int) -> tuple[float, float]:
    """The share of intervals that hold the true mean: with the normal quantile, and Student's."""
    rng, held = random.Random(tasks), [0, 0]
    names = {number: str(number) for number in range(tasks)}
    for _ in range(trials):
        found = mean_of({number: rng.gauss(0, 1) for number in names}, names)
        half = found.high - found.rate
        held[0] += abs(found.rate) <= half / t_quantile(tasks - 1) * Z95
        held[1] += abs(found.rate) <= half
    return held[0] / trials, held[1] / trials


def leads(seed: int, contexts: int, tasks: int) -> tuple[Difference, Difference]:
    """The winner's lead over no context: on the games that have ranked it, and on new games of the same tasks."""
    world, shared = World(seed, 0.0), [Task(number, f"task {number}") for number in range(tasks)]
    with Store.open(":memory:") as store:
        store.add_model("m", "null")
        store.add_tasks("world", shared, "shared")
        run_id = store.start("score", {}, seed)
        bench = Bench(store=store, env="world", setup="s", model_id="m", run_id=run_id, play=world.play)
        given = [Context(f"{MARKER} Rule {number} of world {seed}.") for number in range(contexts)]
        best = store.get_context(halving(bench, given, shared).best.context_id)
        found = []
        for first in (0, FRESH["test"]):
            bench.play_missing("test", [Job(task, arm, first) for task in shared for arm in (EMPTY, best)])
            arena = bench.arena("test", places_of(shared, first=first))
            found.append(store.compare(Arm("m", best.id), Arm("m"), arena).difference)
        return found[0], found[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000, help="means of each number of tasks (default 4000)")
    parser.add_argument("--worlds", type=int, default=200, help="worlds of the second table (default 200)")
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--tasks", type=int, default=19)
    args = parser.parse_args(arguments)
    print("tasks  normal  Student's")
    for tasks in (2, 3, 5, 10, 20, 64):
        print("{:5d}  {:6.3f}  {:9.3f}".format(tasks, *covered(tasks, args.trials)))
    found = [leads(seed, args.contexts, args.tasks) for seed in range(args.worlds)]
    for name, place in (("that ranked it", 0), ("of the same tasks, new", 1)):
        some = [pair[place] for pair in found]
        above = sum(one.low > 0 for one in some)
        print(f"games {name}: lead {fmean(one.diff for one in some):+.3f}, above 0 in {above} of {len(some)} worlds")


if __name__ == "__main__":
    main()
