"""How often an interval sees a difference between two arms that are equal, by what it takes for a random draw.

    python -m benchmarks.false_verdicts --trials 1000

Tasks differ in how hard they are (standard deviation 1.5 in logit). Each training seed of each arm has its own strength
(--sd, in logit), and no arm is better than the other. Four intervals at 95 %, so 5 % are to be wrong:

games     paired games as if all were independent, as verdicts were made at first
bootstrap percentiles of a bootstrap that draws seeds and tasks anew, both with replacement
spread    that bootstrap's standard deviation, with Student's t and the factor n / (n - 1) for seeds
crossed   :mod:`agentopcd.core.crossed`, which makes the verdicts now
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from agentopcd.core.crossed import contrast, spread
from agentopcd.core.quantiles import t_quantile
from agentopcd.core.stats import Rate, paired_difference

DRAWS = 400
Games = np.ndarray[Any, Any]
"""Success (0 or 1) by seed and task."""


def draw(rng: np.random.Generator, seeds: int, tasks: int, sd: float) -> tuple[Games, Games]:
    """The games of two arms that are equal but for their seeds."""
    hard = rng.normal(0, 1.5, tasks)
    arms = [1 / (1 + np.exp(-(hard + rng.normal(0, sd, (seeds, 1))))) for _ in range(2)]
    first, second = (rng.random((seeds, tasks)) < chance for chance in arms)
    return first, second


def intervals(a: Games, b: Games, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The interval of the difference by each way."""
    gains = a.astype(int) - b.astype(int)
    seeds, tasks = gains.shape
    cells = [int(((a == first) & (b == second)).sum()) for first in (1, 0) for second in (1, 0)]
    games = paired_difference(*cells)
    drawn = [rng.multinomial(count, [1 / count] * count, DRAWS) / count for count in (seeds, tasks)]
    means = (drawn[0] @ gains * drawn[1]).sum(1)
    freedom = spread([(s, t, float(gains[s, t])) for s in range(seeds) for t in range(tasks)])[1]
    half = t_quantile(freedom) * float(means.std()) * sqrt(seeds / (seeds - 1))
    first, second = ({(s, str(t), 0): bool(arm[s, t]) for s in range(seeds) for t in range(tasks)} for arm in (a, b))
    seen = contrast(first, second)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "games": (games.low, games.high), "bootstrap": (float(low), float(high)),
        "spread": (games.diff - half, games.diff + half), "crossed": (seen.low, seen.high),
    }  # fmt: skip


def false_verdicts(seeds: int, tasks: int, sd: float, trials: int, seed: int = 0) -> Mapping[str, Rate]:
    """The share of intervals without 0, by the way they are made."""
    rng, wrong = np.random.default_rng(seed), {}
    for _ in range(trials):
        for name, (low, high) in intervals(*draw(rng, seeds, tasks, sd), rng).items():
            wrong[name] = wrong.get(name, 0) + (low > 0 or high < 0)
    return {name: Rate(count, trials) for name, count in wrong.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=128)
    parser.add_argument("--sd", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args(arguments)
    if min(args.seeds) < 2:
        parser.error(f"--seeds {min(args.seeds)}: a spread over seeds takes two")
    for seeds in args.seeds:
        for sd in args.sd:
            found = false_verdicts(seeds, args.tasks, sd, args.trials)
            print(f"{seeds} seeds of sd {sd}:", ", ".join(f"{name} {rate}" for name, rate in found.items()), flush=True)


if __name__ == "__main__":
    main()
