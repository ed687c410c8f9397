"""Rounds that alternate between two environments, with the ratchet and without it.

    python -m benchmarks.ratchet --work W --seeds 4 [--processes 4]
    python -m benchmarks.ratchet --read W

Each seed plays two loops of ``learn --rounds 1 --force`` (a context is distilled whether it was confirmed or not), the
lake and Sokoban in turn, each from the model that the loop has reached: ``ratchet`` is what ``agentopcd learn`` does,
``plain`` takes every student (``--gate-tasks 0 --one-method``), as earlier versions did. Until the ratchet first
refuses a student, both are one loop, which is played once; from there ``plain`` goes on in a copy of the workspace as
it was before that round. After every round the model plays the same test tasks of both environments, without a context.
A call that was killed goes on where it was. The result is W/ratchet.json; ``--read W`` makes it of what there is, and
``--read FILE`` prints one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.core.config import LearnConfig, PlayConfig
from agentopcd.core.crossed import Outcomes, contrast, rate_of
from agentopcd.core.runs import read_json, write_json
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


def tested(env: str, model: str, work: Path, n: int, engine: dict[str, Any]) -> dict[str, bool]:
    """Which test tasks a model solves, by task key."""
    with Session(PlayConfig(env=env, model=model, **engine), work, say=lambda line: None) as session:
        run_id = session.ledger.stage("test", tested=model)
        bench, tasks = session.bench(run_id), session.tasks("test", n)
        bench.prepare([EMPTY], tasks, "test")
        bench.play_missing("test", [Job(task) for task in tasks])
        session.ledger.finish(run_id, {})
        won = session.store.outcomes(Arm(bench.model_id), bench.arena("test", places_of(tasks)))
        return {place[0]: bool(value) for place, value in won.items()}


def played(seed: int, loop: str, number: int, model: str, given: argparse.Namespace) -> dict[str, Any]:
    """One round of a loop, and what the model then wins; round 0 is the model before the first."""
    folder, engine = given.work / f"{loop}-{seed}", {"compute": given.compute, "sample_batch": given.sample_batch}
    file = folder / f"round-{number}.json"
    if file.is_file():
        return read_json(file, f"remove {file} to play that round again")
    done: dict[str, Any] = {"seed": seed, "loop": loop, "round": number, "model": model}
    if number:
        env = ENVS[(number - 1) % 2]
        config = LearnConfig(env=env, model=model, seed=seed * 100 + number, **SIZE, **LOOPS[loop], **engine)
        (one,) = learn(config, folder, say=lambda line: None)
        trained = one.distilled
        done |= {
            "env": env, "model": one.player, "tried": [*one.tried], "confirmed": one.confirmed,
            "promoted": trained.promoted if trained else None,
            "verdict": trained.promotion["verdict"] if trained and trained.promotion else None,
        }  # fmt: skip
    done["test"] = {env: tested(env, done["model"], folder, given.tasks, engine) for env in ENVS}
    write_json(file, done)
    return done


def ratchet(seed: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rounds of the loop with the ratchet; the workspace is kept as it was before a round that does not agree."""
    model, folder = "pocket", given.work / f"ratchet-{seed}"
    for number in range(given.rounds + 1):
        before = given.work / f"before-{number}-{seed}"
        if number and not before.is_dir():
            copied(folder, before)
        yield (done := played(seed, "ratchet", number, model, given))
        model = done["model"]
        if number and agreed(done):
            shutil.rmtree(before)


def plain(seed: int, given: argparse.Namespace, theirs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rounds of the loop without it, given those of the loop with it."""
    alike = list(itertools.takewhile(agreed, theirs))
    yield from ({**record, "loop": "plain"} for record in alike)
    folder, model = given.work / f"plain-{seed}", alike[-1]["model"]
    if len(alike) <= given.rounds and not folder.is_dir():
        copied(given.work / f"before-{len(alike)}-{seed}", folder)
        for file in folder.glob("round-*.json"):
            file.unlink()
    for number in range(len(alike), given.rounds + 1):
        yield (done := played(seed, "plain", number, model, given))
        model = done["model"]


def agreed(record: dict[str, Any]) -> bool:
    """Whether both loops go on from the same model after a round of the ratchet."""
    return not record["round"] or bool(record["promoted"] and len(record["tried"]) == 1)


def copied(folder: Path, to: Path) -> None:
    """Copy a folder, wholly or not at all."""
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    part.rename(to)


def show(record: dict[str, Any]) -> None:
    """Print a round: success on the test tasks of both environments, what was taught, and what the gate said."""
    shown = ", ".join(f"{env} {sum(won.values()) / len(won):.3f}" for env, won in record["test"].items())
    what = f"{record.get('env', '')} {record.get('verdict') or ''}".strip()
    print(f"seed {record['seed']} {record['loop']:8s} round {record['round']}  {shown}  {what}", flush=True)


def rates(records: list[dict[str, Any]]) -> None:
    """Print success by round, over seeds and tasks, and what each loop has lost: the last round against the best."""
    for record in records:
        show(record)
    for loop in LOOPS:
        mine = [record for record in records if record["loop"] == loop]
        seeds = {record["seed"] for record in mine}
        last = min((max(r["round"] for r in mine if r["seed"] == seed) for seed in seeds), default=-1)
        for env in ENVS:
            won = [outcomes(mine, env, number) for number in range(last + 1)]
            for number, of_round in enumerate(won):
                games = [(seed, key, ok) for (seed, key, _), ok in of_round.items()]
                print(f"{loop:8s} {env:16s} round {number}: {rate_of(games)} over {len(seeds)} seeds")
            if won:
                best = max(won, key=lambda of_round: sum(of_round.values()))
                print(f"{loop:8s} {env:16s} {kept(won[-1], best)}")


def kept(last: Outcomes, best: Outcomes) -> str:
    """What was lost from the best round to the last; a round is not compared with its own games."""
    if last == best:
        return "the last round is the best"
    lost = contrast(last, best)
    verdict = "not inferior" if lost.low > -MARGIN else "may be inferior"
    return f"last against best {lost}, n={lost.n}: {verdict} by {MARGIN}"


def outcomes(records: list[dict[str, Any]], env: str, number: int) -> Outcomes:
    """Who won what after a round, by seed and task."""
    return {
        (record["seed"], key, 0): won
        for record in records if record["round"] == number for key, won in record["test"][env].items()
    }  # fmt: skip


def packed(records: list[dict[str, Any]]) -> dict[str, Any]:
    """All records as one result: the tasks once, and for each record a 1 for each task that was won."""
    tasks = {env: sorted({key for record in records for key in record["test"][env]}) for env in ENVS}
    short = [
        {name: value for name, value in record.items() if name != "model"}  # a path of this machine
        | {"test": {env: "".join(str(int(record["test"][env][key])) for key in tasks[env]) for env in ENVS}}
        for record in records
    ]
    return {"size": SIZE, "tasks": tasks, "records": short}


def unpacked(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a result."""
    return [
        record
        | {
            "test": {
                env: {key: won == "1" for key, won in zip(result["tasks"][env], record["test"][env], strict=True)}
                for env in ENVS
            }
        }
        for record in result["records"]
    ]


def both(seed: int, given: argparse.Namespace) -> None:
    """Play both loops of a seed; each record is printed and written down when its round ends."""
    models.prepare_process()
    theirs: list[dict[str, Any]] = []
    for loop in LOOPS:
        records: list[dict[str, Any]] = []
        for record in ratchet(seed, given) if loop == "ratchet" else plain(seed, given, theirs):
            records.append(record)
            show(record)
            write_json(given.work / f"records-{loop}-{seed}.json", records)
        theirs = records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ratchet-work"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--processes", type=int, default=1, help="seeds at once, each in a process of its own")
    parser.add_argument("--compute", default="float32", help="float32 or bfloat16")
    parser.add_argument("--sample-batch", type=int, default=32)
    parser.add_argument("--read", type=Path, help="print the table of a result or of a work folder; play nothing")
    given = parser.parse_args(arguments)
    if given.read is not None and not (given.read.is_file() or [*given.read.glob("records-*.json")]):
        parser.error(f"--read {given.read}: no result, and no folder in which the loops have run")
    if given.read is None:
        with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(both, seed, given) for seed in range(given.seeds)]
            for one in running:
                one.result()
    if given.read is None or given.read.is_dir():
        work, how = given.read or given.work, "name a folder in which the loops have run"
        records = [record for file in sorted(work.glob("records-*.json")) for record in read_json(file, how)]
        write_json(work / "ratchet.json", packed(records))
    else:
        records = unpacked(read_json(given.read, "name the file that a run has written"))
    rates(records)


if __name__ == "__main__":
    main()
