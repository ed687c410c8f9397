"""Rounds that alternate between two environments, with the ratchet and without it.

    python -m benchmarks.ratchet --work W --seeds 4
    python -m benchmarks.ratchet --read W/ratchet.json

Each seed plays two loops of ``learn --rounds 1 --force`` (a context is distilled whether it was confirmed or not), the
lake and Sokoban in turn, each from the model that the loop has reached: ``ratchet`` is what ``agentopcd learn`` does,
``plain`` takes every student (``--gate-tasks 0 --one-method``), as earlier versions did. After every round the model
plays the same test tasks of both environments, without a context. A call that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.core.config import LearnConfig, PlayConfig
from agentopcd.core.runs import read_json, write_json
from agentopcd.core.stats import compare
from agentopcd.core.types import EMPTY, Job
from agentopcd.knowledge import Arm, places_of
from agentopcd.learn import learn
from agentopcd.workspace.session import Session

ENVS = ("frozen-lake-4x4", "sokoban")
LOOPS: dict[str, dict[str, Any]] = {"ratchet": {}, "plain": {"gate_tasks": 0, "one_method": True}}
SIZE: dict[str, Any] = {
    "episodes_per_round": 32, "chains": 2, "chain_steps": 4, "candidates": 8, "select_tasks": 32, "confirm_tasks": 128,
    "steps": 8, "batch_size": 16, "select_every": 4, "test_tasks": 0, "force": True, "rounds": 1,
}  # fmt: skip
MARGIN = 0.1


def tested(env: str, model: str, work: Path, n: int) -> dict[str, bool]:
    """Which test tasks a model solves, by task key."""
    with Session(PlayConfig(env=env, model=model), work, say=lambda line: None) as session:
        run_id = session.ledger.stage("test", tested=model)
        bench, tasks = session.bench(run_id), session.tasks("test", n)
        bench.prepare([EMPTY], tasks, "test")
        bench.play_missing("test", [Job(task) for task in tasks])
        session.ledger.finish(run_id, {})
        won = session.store.outcomes(Arm(bench.model_id), bench.arena("test", places_of(tasks)))
        return {place[0]: bool(value) for place, value in won.items()}


def play(seed: int, loop: str, work: Path, rounds: int, n: int) -> Iterator[dict[str, Any]]:
    """The rounds of one loop, the model before the first included."""
    folder, model = work / f"{loop}-{seed}", "pocket"
    yield {"seed": seed, "loop": loop, "round": 0, "test": {env: tested(env, model, folder, n) for env in ENVS}}
    for number in range(1, rounds + 1):
        file = folder / f"round-{number}.json"
        if file.is_file():
            done = read_json(file, f"remove {file} to play that round again")
        else:
            env = ENVS[(number - 1) % 2]
            config = LearnConfig(env=env, model=model, seed=seed * 100 + number, **SIZE, **LOOPS[loop])
            (one,) = learn(config, folder, say=lambda line: None)
            trained = one.distilled
            done = {
                "seed": seed, "loop": loop, "round": number, "env": env, "model": one.player, "tried": [*one.tried],
                "confirmed": one.confirmed, "promoted": trained.promoted if trained else None,
                "verdict": trained.promotion["verdict"] if trained and trained.promotion else None,
                "test": {env: tested(env, one.player, folder, n) for env in ENVS},
            }  # fmt: skip
            write_json(file, done)
        model = done["model"]
        yield {name: value for name, value in done.items() if name != "model"}


def rates(records: list[dict[str, Any]]) -> None:
    """Print success by round, and the largest loss of each loop: the last model against the best before it."""
    for record in records:
        shown = ", ".join(f"{env} {sum(won.values()) / len(won):.3f}" for env, won in record["test"].items())
        what = f"{record.get('env', '')} {record.get('verdict') or ''}".strip()
        print(f"seed {record['seed']} {record['loop']:8s} round {record['round']}  {shown}  {what}")
    for loop in LOOPS:
        for env in ENVS:
            worst = []
            for seed in dict.fromkeys(record["seed"] for record in records if record["loop"] == loop):
                mine = [r["test"][env] for r in records if r["loop"] == loop and r["seed"] == seed]
                best = max(mine, key=lambda won: sum(won.values()))
                worst.append(compare(mine[-1], best, {key: key for key in best}, z=2.576))
            if worst:
                kept = sum(pair.difference.low > -MARGIN for pair in worst)
                lost = ", ".join(f"{pair.difference.diff:+.3f}" for pair in worst)
                print(f"{loop:8s} {env}: last against best {lost}; not inferior by {MARGIN} in {kept} of {len(worst)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ratchet-work"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=128)
    parser.add_argument("--read", type=Path, help="print the table of a result, and play nothing")
    given = parser.parse_args()
    if given.read:
        rates(read_json(given.read, "name the file that a run has written")["records"])
        return
    models.prepare_process()
    records: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for loop in LOOPS:
            for record in play(seed, loop, given.work, given.rounds, given.tasks):
                records.append(record)
                rates(records[-1:])
                write_json(given.work / "ratchet.json", {"size": SIZE, "records": records})
    rates(records)


if __name__ == "__main__":
    main()
