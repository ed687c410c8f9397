"""The recording gateway under load: is anything lost or doubled when its process is killed, and what does it cost?

    python -m benchmarks.gateway --clients 32 --requests 2000 --kills 20

1. `kills`: --clients clients send --requests requests (every second one streamed, every fourth with a tool), rate one
   in ten, and repeat what was cut off under the same name. Meanwhile the server is killed by SIGKILL at --kills random
   moments and started again. Afterwards the store must hold every request once, with the reply that its client got.
   The recorded log-probabilities of 50 requests are compared with the model's own forward pass.
2. `speed`: a player plays --episodes games, --clients at a time. Then as many clients send the prompts of the same
   turns, with the same seeds, to a server that records them. Both sample the same tokens with the same engine; the
   figures are tokens a second, in turns, --repeats times each, and the processor's time of both processes, which other
   work on the machine does not change much. The memory of the server is read on the way.

Run it with OMP_NUM_THREADS=1: a player with more threads divides a small model among processes, a server does not.
Add --json FILE for the figures, --only kills or --only speed for one of the two.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from agentopcd import models
from agentopcd.core.config import PlayConfig, ServeConfig
from agentopcd.core.types import Job
from agentopcd.knowledge import Store
from agentopcd.knowledge.care import problems
from agentopcd.knowledge.recordings import Answered, sessions
from agentopcd.rollouts.sampling import request_seed
from agentopcd.workspace.gateway.connection import address
from agentopcd.workspace.gateway.serve import serve
from agentopcd.workspace.session import Session

NAME = "load"
TOOL = {"type": "function", "function": {"name": "price", "description": "Looks up a price.", "parameters": {
    "type": "object", "properties": {"item": {"type": "string"}}}}}  # fmt: skip
CHECKED = 50
"""Recorded requests that are scored again."""


class Rate(NamedTuple):
    """How fast something was sampled, and what it took."""

    tokens_per_s: float
    cpu_s: float


class Served:
    """A server in a process of its own, which can be killed and started again at the same address."""

    def __init__(self, work: Path, model: str, max_tokens: int) -> None:
        with address("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        self.work = work
        self._config = ServeConfig(
            model=model, record=NAME, port=self.port, max_tokens=max_tokens, compute="float32", engine="transformers"
        )
        self.process: Any = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.process = multiprocessing.get_context("fork").Process(
            target=serve, args=(self._config, self.work, lambda line: None)
        )
        self.process.start()
        while True:
            assert self.process.is_alive(), "the server ended by itself"
            with contextlib.suppress(OSError, http.client.HTTPException):
                if Client(self.port).get("/health") == 200:
                    return
            time.sleep(0.02)

    def end(self, sig: int) -> None:
        os.kill(self.process.pid, sig)
        self.process.join()

    def cpu_s(self) -> float:
        """The processor's time that its process has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """What its process holds of the machine's memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def get(self, path: str) -> int:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def post(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        """The status and the whole body of the answer.

        Raises:
            OSError, HTTPException: the server was killed on the way.
        """
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self._connection.close()
            raise

    def until_done(self, path: str, body: Any, headers: dict[str, str]) -> bytes:
        """The whole answer, asked for again while the server is away."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, answer = self.post(path, body, headers)
                if status == 200 and (not body.get("stream") or answer.endswith(b"data: [DONE]\n\n")):
                    return answer
                assert status in (200, 429, 503), answer
            time.sleep(0.02)


def parsed(answer: bytes, *, stream: bool) -> tuple[str, str]:
    """The id and the text of an answer."""
    if not stream:
        whole = json.loads(answer)
        return whole["id"], whole["choices"][0]["message"]["content"] or ""
    events = [json.loads(line[6:]) for line in answer.decode().split("\n\n") if line and not line.endswith("[DONE]")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return events[0]["id"], "".join(delta.get("content") or "" for delta in deltas)


def in_parallel(clients: int, count: int, port: int, act: Callable[[Client, int], None]) -> None:
    """Let clients take the numbers from 0 to ``count`` one after another."""
    numbers, lock = iter(range(count)), threading.Lock()

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            act(client, number)

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()


def kills(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Part 1: requests while the server is killed again and again, then a look into the store."""
    rng, served, got = random.Random(args.seed), Served(work, args.model, 64), dict[int, tuple[str, str]]()
    moments = sorted(rng.sample(range(args.requests), args.kills))
    served.start()
    over = threading.Event()

    def killer() -> None:
        for moment in moments:
            while len(got) < moment and not over.is_set():
                time.sleep(0.001)
            time.sleep(rng.random() * 0.2)
            served.end(signal.SIGKILL)
            served.start()

    def ask(client: Client, number: int) -> None:
        stream = number % 2 == 1
        body = {"model": args.model, "messages": [{"role": "user", "content": f"Move {number}?"}], "stream": stream,
                "max_tokens": 16, "seed": number, **({"tools": [TOOL]} if number % 4 == 0 else {})}  # fmt: skip
        answer = client.until_done("/v1/chat/completions", body, {"Idempotency-Key": f"r{number}"})
        name, text = parsed(answer, stream=stream)
        if number % 10 == 0:
            client.until_done("/v1/feedback", {"session": name, "reward": number}, {})
        got[number] = name, text

    killing = threading.Thread(target=killer)
    killing.start()
    began = time.monotonic()
    in_parallel(args.clients, args.requests, served.port, ask)
    over.set()
    killing.join()
    seconds = time.monotonic() - began
    served.end(signal.SIGTERM)
    return {"requests": args.requests, "kills": args.kills, "seconds": round(seconds, 1), **looked_up(args, work, got)}


def looked_up(args: argparse.Namespace, work: Path, got: dict[int, tuple[str, str]]) -> dict[str, Any]:
    """What the store holds, compared with what the clients got."""
    with Store.open(work / "store.db") as store:
        found = list(sessions(store, NAME))
        wrong = problems(store)
    requests = [request for session in found for request in session.requests]
    by_key: dict[str, list[Answered]] = {}
    for request in requests:
        by_key.setdefault(request.key, []).append(request)
    rewards = {session.requests[0].key: session.rating.reward for session in found if session.requests}
    loaded = models.load_model(args.model)
    checked = random.Random(0).sample(requests, min(CHECKED, len(requests)))
    return {
        "lost": sum(f"r{number}" not in by_key for number in got),
        "doubled": sum(len(same) - 1 for same in by_key.values()),
        "other_reply": sum(
            (by_key[f"r{number}"][0].name, by_key[f"r{number}"][0].message["content"]) != answer
            for number, answer in got.items()
            if f"r{number}" in by_key
        ),
        "ratings_lost": sum(rewards.get(f"r{number}") != number for number in got if number % 10 == 0),
        "store_problems": len(wrong),
        "largest_drift_nats": max(off_nats(loaded, request) for request in checked),
    }


@torch.no_grad()
def off_nats(loaded: models.LoadedModel, one: Answered) -> float:
    """How far recorded log-probabilities are from the model's own forward pass, in nats a token."""
    own = models.own_logits(loaded.model, one.prompt_ids, one.response_ids).log_softmax(-1)
    own = own.gather(1, torch.tensor(one.response_ids)[:, None])[:, 0]
    return float((own - torch.tensor(one.logprobs)).abs().mean())


def speed(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Part 2: the tokens a second of a player, and of a server that is sent the same prompts."""
    config = PlayConfig(
        env=args.env, model=args.model, temperature=1.0, max_tokens=args.max_tokens, compute="float32",
        engine="transformers",
    )  # fmt: skip
    played, answered, memory, asked = list[Rate](), list[Rate](), list[float](), []
    for repeat in range(args.repeats):
        with Session(config, work / f"play-{repeat}", say=lambda line: None) as session:
            asked, rate = play(session, args)
        played.append(rate)
        served = Served(work / f"serve-{repeat}", args.model, args.max_tokens)
        (work / f"serve-{repeat}").mkdir()
        served.start()
        rate, read = answer(served, args, asked)
        answered.append(rate)
        memory = memory or read
        served.end(signal.SIGTERM)
    by_clock = [one.tokens_per_s / other.tokens_per_s for one, other in zip(answered, played, strict=True)]
    by_cpu = [other.cpu_s / one.cpu_s for one, other in zip(answered, played, strict=True)]
    third = max(1, len(memory) // 3)
    return {
        "turns": len(asked), "tokens": sum(tokens for *_, tokens in asked), "repeats": args.repeats,
        "player": [rate._asdict() for rate in played], "server": [rate._asdict() for rate in answered],
        "ratio_by_clock": [round(ratio, 3) for ratio in by_clock],
        "ratio_by_cpu": [round(ratio, 3) for ratio in by_cpu],
        "median_ratio_by_clock": round(statistics.median(by_clock), 3),
        "median_ratio_by_cpu": round(statistics.median(by_cpu), 3),
        "memory_mb": {"middle_third": round(statistics.median(memory[third : 2 * third])),
                      "last_third": round(statistics.median(memory[-third:]))},
    }  # fmt: skip


def play(session: Session, args: argparse.Namespace) -> tuple[list[tuple[Any, int, int]], Rate]:
    """Play, and return the messages, the seed and the number of reply tokens of every turn, and how fast it went."""
    player = dataclasses.replace(session.player, concurrency=args.clients)
    tasks = itertools.islice(itertools.cycle(session.tasks("extract")), args.episodes)
    jobs = [Job(task, rep=number) for number, task in enumerate(tasks)]
    list(player.play(jobs[:4]))  # the engine has been compared with the model, and is warm
    began, cpu = time.monotonic(), time.process_time()
    episodes = list(player.play(jobs))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    asked = []
    for depth in range(max(len(episode.turns) for episode in episodes)):  # about the order in which they were asked
        for episode in (episode for episode in episodes if depth < len(episode.turns)):
            turn, task = episode.turns[depth], episode.task
            seed = request_seed(player.seed, task.key, task.seed, episode.rep, depth)
            asked.append((turn.messages, seed, len(turn.response_ids)))
    return asked, Rate(round(sum(tokens for *_, tokens in asked) / seconds, 1), round(cpu, 2))


def answer(served: Served, args: argparse.Namespace, asked: Sequence[tuple[Any, int, int]]) -> tuple[Rate, list[float]]:
    """Send the same prompts; return how fast it went, and the memory of the server on the way."""
    memory: list[float] = []

    def ask(client: Client, number: int) -> None:
        messages, seed, tokens = asked[number]
        body = {
            "model": args.model,
            "messages": messages,
            "seed": seed,
            "temperature": 1.0,
            "max_tokens": args.max_tokens,
        }
        got = json.loads(client.until_done("/v1/chat/completions", body, {"X-Agentopcd-Session": f"s{number}"}))
        assert got["usage"]["completion_tokens"] == tokens, "the server did not sample what the player did"
        if number % max(1, len(asked) // 60) == 0:
            memory.append(served.memory_mb())

    began, cpu = time.monotonic(), served.cpu_s()
    in_parallel(args.clients, len(asked), served.port, ask)
    seconds, cpu = time.monotonic() - began, served.cpu_s() - cpu
    return Rate(round(sum(tokens for *_, tokens in asked) / seconds, 1), round(cpu, 2)), memory


@contextlib.contextmanager
def workspace(given: str) -> Iterator[Path]:
    if given:
        Path(given).mkdir(parents=True)
        yield Path(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--env", default="frozen-lake-4x4")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["kills", "speed"])
    parser.add_argument("--work", default="", help="a new folder; default: a temporary one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    models.prepare_process()
    found: dict[str, Any] = {"args": {name: value for name, value in vars(args).items() if name != "json"}}
    with workspace(args.work) as work:
        for part in (kills, speed):
            if args.only in (None, part.__name__):
                (work / part.__name__).mkdir()
                found[part.__name__] = part(args, work / part.__name__)
                print(part.__name__, json.dumps(found[part.__name__]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
