"""How long the knowledge commands take on a store with very many episodes.

    python benchmarks/million_episodes.py --episodes 1000000 --items 10000

makes a store of so many short episodes and items in a temporary folder (0.9 GB for a million, a minute), then times
each command in a process of its own, start of Python included (the first row is the start alone), and the query in one
process: by the clock and as time of the processor. The median of --repeat.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agentopcd.cli import look_up, store_views
from agentopcd.core.transcript import pack, to_json
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Task
from agentopcd.knowledge import Found, Origin, Store, identify, ingest
from agentopcd.knowledge.changes import changes, score_differences
from agentopcd.knowledge.database import now
from agentopcd.workspace.overview import overview

STATUS = "(agentopcd status)"
ENVS, MODELS, CONTEXTS, TASKS = ("room", "hall"), 5, 300, 2000
ITEM = identify("Rule 7: the door on the left opens if 5568 is shown.")[:12]
ROWS = """INSERT INTO episode (run_id, model_id, context_id, setup, env, task_key, seed, rep, success, reward, stop,
    turns, prompt_tokens, output_tokens, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'failed', 1, 3, 2, ?)"""


def build(path: Path, episodes: int, items: int) -> None:
    """A store with ``episodes`` episodes: two environments, and as many arms as a study of 300 contexts has.

    Each of ``items`` items was found twice and is active. Context n holds item n, and two contexts hold 100 each.
    """
    with Store.open(path) as store:
        run_id = store.start("play", {"env": ENVS[0]}, 0)
        models = [f"{number:064x}" for number in range(1, MODELS + 1)]
        for model in models:
            store.add_model(model, "pocket")
        texts = [
            f"Rule {number}: the door on the left opens if {number * 7919 % 9973} is shown." for number in range(items)
        ]
        contexts = [EMPTY, *(context_of(texts[number : number + 1]) for number in range(CONTEXTS - 3))]
        contexts += [context_of(texts[:100]), context_of([*texts[50:100], *texts[:50], *texts[100:150]])]
        for env in ENVS:
            store.add_tasks(env, [f"task-{number:060d}" for number in range(TASKS)], "extract")
        with store.write():
            for number, text in enumerate(texts):
                for task in (number % TASKS, (number + 1) % TASKS):
                    store.add_items(run_id, [Found(text)], env=ENVS[0], task_key=f"task-{task:060d}")
                store.event(identify(text), "approve", "gate:auto")
            for context in contexts:
                store.add_context(context)
        for number, context in enumerate(contexts[1:]):
            store.move(f"{ENVS[0]}/pool/{number:02d}/01", context.id, "extract", run_id=run_id)
        connection = store._connection
        with store.write():
            connection.executemany(ROWS, _rows(run_id, models, contexts, episodes))
            body = pack(to_json(_episode()))
            connection.execute("INSERT INTO transcript SELECT id, ? FROM episode", (body,))
        origin = Origin(run_id=run_id, episode=_episode(), episode_id=1)
        ingest(store, f"{MARKER} The door on the left opens.", origin)


def context_of(texts: list[str]) -> Context:
    return Context("\n".join(f"{MARKER} {text}" for text in texts))


def _rows(run_id: int, models: list[str], contexts: list[Context], episodes: int) -> Iterator[tuple[object, ...]]:
    arms = [(model, context.id) for model in models for context in contexts]
    at = now()
    for number in range(episodes):
        model, context = arms[number % len(arms)]
        turn = number // len(arms)
        env = ENVS[number % 10 == 9]  # a tenth is played in the second environment
        key = f"task-{turn % TASKS:060d}"
        yield run_id, model, context, "s" * 64, env, key, turn, 0, number % 3 == 0, float(number % 3 == 0), at


def _episode() -> Episode:
    return Episode(
        env=ENVS[0], task=Task(0, f"task-{0:060d}"), rep=0, context_id=EMPTY.id, turns=[],
        outcome=[("outcome", "Over.")], success=True, reward=1.0, stop_reason="failed",
    )  # fmt: skip


def compare(store: Store) -> object:
    """What ``diff`` asks the store for the two long contexts."""
    a, b = (store.resolve(f"{ENVS[0]}/pool/{number}/01") for number in (CONTEXTS - 3, CONTEXTS - 2))
    return changes(store, a, b), score_differences(store, a, b)


COMMANDS: dict[str, Callable[[Store], object]] = {
    "--help": lambda store: None,
    "show 5": lambda store: store_views.describe(store, "5"),
    "list episodes --limit 5": lambda store: store.newest_episodes(5),
    "list episodes --limit 5 --env room": lambda store: store.newest_episodes(5, "room"),
    "list contexts --env hall": lambda store: store_views.context_rows(store, "hall"),
    "list contexts --env nowhere": lambda store: store_views.context_rows(store, "nowhere"),
    "list refs": store_views.ref_rows,
    "show room/pool/07/01": lambda store: store_views.describe(store, "room/pool/07/01"),
    "list items": lambda store: store.newest_items(50),
    "list items --status pending": lambda store: store.newest_items(50, "pending"),
    f"show {ITEM}": lambda store: store_views.describe(store, ITEM),
    "search door 9967": lambda store: look_up.find(store, ["door", "9967"]),
    f"diff room/pool/{CONTEXTS - 3}/01 room/pool/{CONTEXTS - 2}/01": compare,
    STATUS: lambda store: overview(store, Path(store.path).parent),
}


def main() -> None:
    """Build the store and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--store", type=Path, help="a store to keep, and to use again; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = options.store or Path(folder) / "store.db"
        if not path.exists():
            build(path, options.episodes, options.items)
        with Store.open(path) as store:
            episodes = store.newest_episodes(1)[1]
        print(f"{episodes} episodes, {path.stat().st_size / 1e9:.2f} GB", flush=True)
        print(f"{'agentopcd knowledge ...':40s} {'command':>9s} {'query':>9s} {'processor':>10s}")
        for words, query in COMMANDS.items():
            measure(words, query, path, options.repeat)


def measure(words: str, query: Callable[[Store], object], path: Path, repeat: int) -> None:
    """Print one row of the table."""
    where = [] if words == "--help" else ["--work", str(path.parent)]
    named = ["status"] if words == STATUS else ["knowledge", *words.split()]
    command = [sys.executable, "-m", "agentopcd", *named, *where]
    whole, clock, processor = [], [], []
    with Store.open(path) as store:
        for _ in range(repeat):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            whole.append(time.perf_counter() - began)
            began, used = time.perf_counter(), time.process_time()
            query(store)
            clock.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
    figures = [statistics.median(times) for times in (whole, clock, processor)]
    print("{:40s} {:7.2f} s {:7.3f} s {:8.3f} s".format(words, *figures), flush=True)


if __name__ == "__main__":
    main()
