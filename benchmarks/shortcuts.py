"""What the comparison of shortcuts costs: ``python -m benchmarks.shortcuts``.

Runs the demo (``make demo``, or with other settings a part of it) in a temporary workspace and prints the share of its
time that went into comparing fast paths with the models' own forward passes, and what the comparisons found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentopcd import models
from agentopcd.core.config import LearnConfig
from agentopcd.knowledge import Store
from agentopcd.learn import learn
from agentopcd.models.shortcuts import Shortcuts


@contextmanager
def timed(spent_s: list[float]) -> Iterator[None]:
    """Collect the time of every comparison in this block."""
    usual = Shortcuts.timed

    @contextmanager
    def both(self: Shortcuts) -> Iterator[None]:
        started = time.perf_counter()
        with usual(self):
            yield
        spent_s.append(time.perf_counter() - started)

    Shortcuts.timed = both
    try:
        yield
    finally:
        Shortcuts.timed = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="frozen-lake-4x4")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    models.prepare_process()
    config = LearnConfig(
        env=args.env, model=args.model, rounds=args.rounds, steps=args.steps, select_every=min(4, args.steps)
    )
    spent_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, timed(spent_s):
        work, began = Path(folder), time.perf_counter()
        learn(config, work)
        total_s = time.perf_counter() - began
        with Store.open(work / "store.db") as store:
            found = [json.loads(row["result"] or "{}").get("shortcuts") for row in store.runs()]
        logged = [json.loads(file.read_text()) for file in sorted(work.glob("runs/*/shortcuts.json"))]
    print(f"in the store: {json.dumps([one for one in found if one])}")
    print(f"in the run folders: {json.dumps(logged)}")
    share = sum(spent_s) / total_s
    print(f"{len(spent_s)} comparisons, {sum(spent_s):.2f} s of {total_s:.1f} s: {100 * share:.2f} % of the demo")


if __name__ == "__main__":
    main()
