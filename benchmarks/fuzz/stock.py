"""What the inputs are made of: a tiny model, workspaces and exports, built once for a run of the fuzzer."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from agentopcd import models
from agentopcd.core.types import EMPTY, MARKER, Episode, Task, Turn
from agentopcd.knowledge import Store
from agentopcd.knowledge.dump import dump, to_jsonl
from agentopcd.knowledge.plain import import_text
from agentopcd.models import find
from benchmarks.fuzz.harness import call

FIXTURE = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "workspace-0.1.0"
"""A tiny model, rows and a context, in the workspace of an older version."""

COMMAND = """consolidate --env rows.jsonl --model model --context context.txt --steps 4 --batch-size 3 --max-tokens 4
    --temperature 1 --learning-rate 0.001 --select-every 2 --save-every 1 --select-tasks 4 --test-tasks 6
    --compute float32 --work work""".split()  # noqa: SIM905
FINISHED, KILLED = COMMAND, [*COMMAND, "--seed", "1"]
"""Commands of the finished and of the killed run of :func:`runs`."""

_KILL = """
import os
from agentopcd.core.runs import Run
log = Run.log
Run.log = lambda self, record: os._exit(9) if record["step"] == 4 else log(self, record)
from agentopcd.cli import main
main()
"""


@functools.cache
def shelf() -> Path:
    """A folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-stock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def still() -> Iterator[None]:
    """Nothing is fetched, and numbers do not depend on the number of threads."""
    import torch

    before, threads = dict(os.environ), torch.get_num_threads()
    fetch, build = find._fetched, typer.main.get_command
    os.environ.update(HF_HUB_OFFLINE="1", COLUMNS="100", AGENTOPCD_CACHE=str(shelf() / "cache"))
    os.environ.pop("AGENTOPCD_WORK", None)
    models.prepare_process()
    torch.set_num_threads(1)

    def refuse(name: str, *_: object) -> Path:
        raise find.ModelError(f"{name} is not fetched by a fuzzer")

    find._fetched = refuse
    typer.main.get_command = functools.cache(build)  # else it is built again for every call
    try:
        yield
    finally:
        find._fetched, typer.main.get_command = fetch, build
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


MODEL, CONTEXT = FIXTURE / "model", FIXTURE / "context.txt"


@functools.cache
def runs() -> tuple[Path, Path, Path]:
    """A workspace's folder, its finished consolidation, and one killed after step 3 of 4, with two checkpoints."""
    home, folder = Path.cwd(), shelf() / "runs"
    folder.mkdir()
    shutil.copytree(MODEL, folder / "model")
    for file in (CONTEXT, FIXTURE / "rows.jsonl"):
        shutil.copy(file, folder)
    os.chdir(folder)
    try:
        call(*FINISHED)
        (finished,) = folder.glob("work/runs/consolidate-*")
        subprocess.run([sys.executable, "-c", _KILL, *KILLED], capture_output=True, check=False)
        (killed,) = set(folder.glob("work/runs/consolidate-*")) - {finished}
    finally:
        os.chdir(home)
    assert (killed / "checkpoint.old").is_dir() and not (killed / "result.json").exists()
    return folder, finished, killed


@functools.cache
def workspace() -> Path:
    """A workspace that has met its environment, one of few tasks, and that has a context for it."""
    work = shelf() / "work"
    call("play", "--env", "frozen-lake", "--model", str(MODEL), "--dry-run", "--work", str(work))
    call("knowledge", "import", str(CONTEXT), "--as", "frozen-lake/pool/00/01", "--work", str(work))
    return work


def _episode(seed: int) -> Episode:
    asked, won = f"What is {seed} + 1?", float(seed % 2)
    turn = Turn(
        parts=[("state", asked)], messages=[{"role": "user", "content": asked}], prompt_ids=(5, 6, 7),
        response_ids=(8, 2), logprobs=(-0.5, -0.25), reply=f"Answer: {seed + 1}", finish_reason="stop", reward=won,
        invalid=False,
    )  # fmt: skip
    return Episode(
        env="room", task=Task(seed, f"key{seed}"), rep=0, context_id=EMPTY.id, turns=[turn],
        outcome=[("outcome", "Over.")], success=bool(won), reward=won, stop_reason="solved",
    )  # fmt: skip


@functools.cache
def store() -> Path:
    """A workspace whose store has a little of everything."""
    work = shelf() / "store"
    work.mkdir()
    with Store.open(work / "store.db") as found:
        found.add_model("a" * 64, "tiny", None)
        run_id = found.start("play", {"env": "room", "model_id": "a" * 64}, 0)
        found.add_tasks("room", [Task(seed, f"key{seed}") for seed in range(8)], "extract")
        found.add_episodes(run_id, "a" * 64, "s" * 64, [_episode(seed) for seed in range(8)])
        for number, name in enumerate(("room/best", "room/pool/00/01", "room/pool/00/02")):
            items = "\n".join(f"{MARKER} item {number} of {part}" for part in ("ice", "water"))
            import_text(found, items, run_id=run_id, ref=name)
        import_text(found, "Free text.\n\nOf two parts.", run_id=run_id, placement="system", ref="room/mine")
        found.finish(run_id, {"episodes": 8})
    return work


@functools.cache
def export(episodes: bool) -> list[dict[str, object]]:
    """The rows of an export of :func:`store`."""
    with Store.open(store() / "store.db") as found:
        return [json.loads(line) for line in to_jsonl(dump(found, episodes=episodes))]


def copy(source: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(source, target)
    return target
