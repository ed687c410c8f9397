"""Runs that are killed and repeated end like any other: ``python -m benchmarks.kills``.

Each of play, score, confirm, consolidate, learn and import runs once to its end. Then, again and again, the same
command is started on a fresh copy of the same workspace, killed (SIGKILL) at a random moment, and given once more.
What it leaves must be what the straight run left: the rows of the store without their times, the refs, the weights,
what was logged for every step. Exit code 1 if anything differs.

The kills are noted in ``--work``, so that a call that was stopped goes on, with the same seed, model and commands;
remove the folder after a change of the code. The commands run in forks of this process, which has imported what they
need, so that a kill falls into the work and not into the imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENV = ("--env", "frozen-lake-4x4", "--compute", "float32", "--max-steps", "2", "--max-tokens", "48")
GATHER = ("--chains", "2", "--chain-steps", "2")
CHOOSE = ("--candidates", "2", "--select-tasks", "3", "--confirm-tasks", "4")
TRAIN = ("--steps", "2", "--batch-size", "2", "--select-every", "1", "--save-every", "1", "--test-tasks", "2")

COMMANDS = {
    "play": ("play", *ENV, *GATHER, "--episodes", "6"),
    "score": ("knowledge", "score", *ENV, *CHOOSE),
    "confirm": ("knowledge", "confirm", *ENV, "--confirm-tasks", "8", "--context", "context.txt"),
    "consolidate": ("consolidate", *ENV, *TRAIN, "--select-tasks", "3", "--context", "context.txt"),
    "learn": ("learn", *ENV, *GATHER, *CHOOSE, *TRAIN, "--episodes-per-round", "4", "--force"),
    "import": ("knowledge", "import", "all.jsonl"),
}

CONTEXT = "- EXPERIENCE ITEM: Do not step on a hole.\n- EXPERIENCE ITEM: The goal is at the lower right.\n"
TIMES = {"created_at", "started_at", "finished_at", "at"}


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended, and how long it took."""

    code: int
    """Exit code; negative: the signal that ended it."""
    seconds: float
    last: str
    """The last line that it printed."""


def start(words: Sequence[str], folder: Path) -> int:
    """Run a command in a fork, in ``folder``; its output goes to ``said.txt`` there. Returns the process's id."""
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from agentopcd.cli import main

        sys.argv = ["agentopcd", *words]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(words: Sequence[str], folder: Path, *, kill_after_s: float | None = None) -> Ended:
    """Run a command to its end, or kill it after some time."""
    began = time.perf_counter()
    pid = start(words, folder)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)  # nobody has waited for it, so its id is still its own
    _, status = os.waitpid(pid, 0)
    lines = (folder / "said.txt").read_text(errors="replace").splitlines() if (folder / "said.txt").exists() else []
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, time.perf_counter() - began, lines[-1] if lines else "")


# -- what a command leaves -----------------------------------------------------------------------------


def left(folder: Path) -> dict[str, str]:
    """Everything that a command left in ``folder/work``, as text by name, without times and paths."""
    work = folder / "work"
    found: dict[str, str] = {}
    if (work / "store.db").exists():
        for table, rows in _tables(work / "store.db").items():
            found[table] = json.dumps(rows, indent=0)
    for file in sorted(work.glob("runs/**/*")):
        name = str(file.relative_to(work))
        if file.suffix == ".safetensors":
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            timeless = [{key: v for key, v in line.items() if not key.startswith("time/")} for line in lines]
            found[name] = json.dumps(timeless, indent=0)
    return {name: text.replace(str(folder), "") for name, text in found.items()}


def _tables(file: Path) -> dict[str, list[Any]]:
    """The rows of each table. An episode is named by its key and not by its number: a resumed run counts in another
    order."""
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}
    connection.close()
    keys = {
        row["id"]: [row[name] for name in ("model_id", "context_id", "env", "setup", "seed", "rep")]
        for row in rows.get("episode", [])
    }
    return {name: _timeless(name, found, keys) for name, found in rows.items()}


def _timeless(table: str, rows: list[dict[str, Any]], keys: dict[int, list[Any]]) -> list[Any]:
    out = []
    for row in rows:
        row = {name: value for name, value in row.items() if name not in TIMES}
        if table == "episode":
            del row["id"]
        if row.get("episode_id") is not None:
            row["episode_id"] = keys[row["episode_id"]]
        if table == "transcript":
            row["body"] = _said(json.loads(zlib.decompress(row["body"])))
        if table in ("item_event", "ref_move"):  # their order counts for each item and each ref alone
            number = sum(
                other.get("name", other.get("item_id")) == row.get("name", row.get("item_id")) for other in out
            )
            row["id"] = number
        out.append(row)
    return sorted(out, key=lambda row: json.dumps(row, sort_keys=True))


def _said(transcript: dict[str, Any]) -> dict[str, Any]:
    """A transcript without log-probabilities, whose last digit follows the shape of the batch."""
    turns = [{name: value for name, value in turn.items() if name != "logprobs"} for turn in transcript["turns"]]
    return {**transcript, "turns": turns}


def differences(wanted: dict[str, str], got: dict[str, str]) -> str:
    """The first few differences, in words; empty if there are none."""
    words = []
    for name in sorted({*wanted, *got}):
        if wanted.get(name) != got.get(name):
            old, new = Counter(wanted.get(name, "").splitlines()), Counter(got.get(name, "").splitlines())
            words.append(f"{name}: {list(old - new)[:2]!r:.150} became {list(new - old)[:2]!r:.150}")
    return "; ".join(words[:4])


# -- the kills -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the straight runs and the killed ones lie."""

    work: Path
    model: str

    def words(self, verb: str) -> list[str]:
        words = [*COMMANDS[verb], "--work", "work"]
        return words if verb == "import" else [*words, "--model", self.model]

    def prepare(self, verb: str, folder: Path) -> Path:
        """A fresh folder with what the command begins with."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "context.txt").write_text(CONTEXT)
        if verb == "score":
            shutil.copytree(self.straight("play")[0] / "work", folder / "work")
        if verb == "import":
            shutil.copy(self.exported(), folder / "all.jsonl")
        return folder

    def straight(self, verb: str) -> tuple[Path, float]:
        """The folder in which the command ran to its end, and the seconds it took; it runs only once."""
        folder, note = self.work / f"straight-{verb}", self.work / f"straight-{verb}.json"
        if not note.is_file():
            ended = run(self.words(verb), self.prepare(verb, folder))
            if ended.code:
                raise SystemExit(f"{verb} ended with code {ended.code} without a kill: {ended.last}")
            note.write_text(json.dumps({"seconds": ended.seconds}))
        return folder, json.loads(note.read_text())["seconds"]

    def exported(self) -> Path:
        """An export of what ``learn`` left."""
        folder = self.straight("learn")[0]
        file = folder / "all.jsonl"
        if not file.is_file():
            ended = run(("knowledge", "export", "--all", "--episodes", "-o", file.name, "--work", "work"), folder)
            assert ended.code == 0, ended.last
        return file

    def kill(self, number: int, verb: str, seed: int) -> dict[str, Any]:
        """One kill and the run that follows it, compared with the straight run."""
        before, seconds = self.straight(verb)
        wanted, words, rng = left(before), self.words(verb), random.Random(f"{seed}:{number}")
        folder, moment = self.work / f"kill-{number:03d}", rng.uniform(0.0, seconds)
        for _ in range(8):
            self.prepare(verb, folder)
            if run(words, folder, kill_after_s=moment).code == -signal.SIGKILL:
                break
            moment *= rng.uniform(0.3, 1.0)  # it had ended: the machine is faster now
        else:
            return {"number": number, "verb": verb, "at_s": moment, "wrong": "it always ended before the kill"}
        wrong = ""
        if differences(wanted, left(folder)):  # else the kill fell between the last row and the end of the process
            ended = run(words, folder)
            wrong = differences(wanted, left(folder))
            if ended.code:
                wrong = f"the repeated command ended with code {ended.code}: {ended.last}"
        if not wrong:
            shutil.rmtree(folder)
        return {"number": number, "verb": verb, "at_s": round(moment, 3), "of_s": round(seconds, 3), "wrong": wrong}


def table(noted: Sequence[dict[str, Any]], seed: int) -> list[str]:
    """A line for each command, and one for each difference."""
    lines = [f"{'command':<14}{'kills':>7}{'equal':>7}{'different':>11}"]
    for verb in [*COMMANDS, "all"]:
        mine = [one for one in noted if verb in (one["verb"], "all")]
        wrong = sum(bool(one["wrong"]) for one in mine)
        lines.append(f"{verb:<14}{len(mine):>7}{len(mine) - wrong:>7}{wrong:>11}")
    lines.append(f"seed {seed}")
    lines += [
        f"kill {one['number']} of {one['verb']} at {one['at_s']} s: {one['wrong']}" for one in noted if one["wrong"]
    ]
    return lines


def same_call(work: Path, call: dict[str, Any]) -> None:
    """Note the call in ``work``, and refuse to go on with the runs and notes of another one."""
    note = work / "call.json"
    before = json.loads(note.read_text()) if note.is_file() else None
    if before != call and (before or any(work.glob("straight-*"))):
        which = json.dumps(before) if before else "it does not say which"
        raise SystemExit(f"{work} is of another call ({which}): remove it, or take another --work")
    note.write_text(json.dumps(call))


def kills(work: Path, n: int, seed: int, model: str, verbs: Sequence[str]) -> list[dict[str, Any]]:
    """Kill ``n`` times, in turn in each of the commands; kills that ``work`` has noted are not repeated."""
    bench, notes = Bench(work.resolve(), model), work / "kills.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    same_call(work, {"seed": seed, "model": model, "verbs": [*verbs]})
    noted = [json.loads(line) for line in notes.read_text().splitlines()] if notes.is_file() else []
    for number in range(n):
        if number in {one["number"] for one in noted}:
            continue
        noted.append(bench.kill(number, verbs[number % len(verbs)], seed))
        with notes.open("a") as file:
            file.write(json.dumps(noted[-1]) + "\n")
        print(f"{len(noted)}/{n} {noted[-1]['verb']}: {noted[-1]['wrong'] or 'equal'}", file=sys.stderr, flush=True)
    return noted


def warm() -> None:
    """Import what the commands need, and start no thread: a fork must have one thread only."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.pop("AGENTOPCD_WORK", None)
    import agentopcd.cli
    import agentopcd.distil
    import agentopcd.envs.games.textarena
    import agentopcd.learn  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="pocket-s")
    parser.add_argument("--work", type=Path, default=Path("kills-work"))
    parser.add_argument("--only", action="append", choices=[*COMMANDS], help="only this command; repeat for more")
    args = parser.parse_args()
    warm()
    noted = kills(args.work, args.kills, args.seed, args.model, args.only or [*COMMANDS])
    for line in table(noted, args.seed):
        print(line)
    sys.exit(any(one["wrong"] for one in noted))


if __name__ == "__main__":
    main()
