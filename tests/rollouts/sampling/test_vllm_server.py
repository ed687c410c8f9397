"""vLLM's own server, for real: it is killed, it gets weights, it gets an adapter."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.models import find
from agentopcd.rollouts.sampling import requests
from agentopcd.rollouts.sampling.requests import KEY
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny
from tests.rollouts.sampling.served import COLD, move, own, replies
from tests.rollouts.sampling.vllm_server import VllmServer

LEARN = """learn --env frozen-lake-4x4 --model pocket --compute float32 --episodes-per-round 48 --chains 1
    --chain-steps 2 --candidates 2 --select-tasks 8 --confirm-tasks 8 --steps 3 --select-every 3 --batch-size 8
    --test-tasks 8 --gate-tasks 0 --sample-batch 4 --force --json"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(ServerSampler, "current", None)
    yield


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not true():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.05)


def episodes(work: Path, verb: str) -> list[tuple[Any, ...]]:
    """(task, repetition, context) of every episode of the runs of a verb."""
    if not (work / "store.db").is_file():
        return []
    with sqlite3.connect(f"file:{work / 'store.db'}?mode=ro", uri=True) as db:
        told = "SELECT task_key, episode.seed, rep, context_id FROM episode JOIN run ON run.id = run_id WHERE verb = ?"
        try:
            return db.execute(told, (verb,)).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # the store is being made
                return []
            raise


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_learning_goes_on_when_the_server_is_killed_in_play_and_in_consolidation(tmp_path: Path) -> None:
    work, log = tmp_path / "work", tmp_path / "log"
    server = VllmServer(find.find_model("pocket"), "pocket", log)

    def metrics() -> list[dict[str, Any]]:
        return [json.loads(line) for file in work.glob("runs/consolidate-*/metrics.jsonl")
                for line in file.read_text().splitlines()]  # fmt: skip

    with server:
        words = [sys.executable, "-m", "agentopcd", *LEARN.split(), "--server", server.url, "--work", str(work)]
        learn = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        try:
            until(lambda: len(episodes(work, "play")) >= 4, learn)
            server.kill()
            assert len(episodes(work, "play")) < 48
            server.start()
            until(lambda: any(record["step"] == 1 for record in metrics()), learn)
            server.kill()
            server.start(wait=False)
            out, told = learn.communicate(timeout=400)
        finally:
            learn.kill()
    assert learn.returncode == 0, told
    assert f"engine: server ({server.url})" in told
    played = episodes(work, "play")
    assert len(played) == len(set(played)) == 48
    steps = [record for record in metrics() if record["step"]]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert all(record["engine/drift_nats"] < 1e-3 for record in steps)
    assert all(record["engine/logprob_gap_mean_nats"] < 1e-3 for record in steps)
    assert json.loads(out)[0]["distilled"]["folder"]


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_an_adapter_and_a_tied_head_reach_vllms_server(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "model", tie=True, hearing=4.0, head_dim=32)
    loaded = models.load_model(str(folder))
    with VllmServer(folder, "tiny", tmp_path / "log", "--enable-lora", "--max-lora-rank", "8") as server:
        plain = ServerSampler(loaded, compute=torch.float32, urls=[server.url])
        start = own(loaded, COLD)
        move(loaded)
        assert replies(plain, COLD) == own(loaded, COLD) != start  # the tied head, too
        models.add_adapter(loaded, 4, torch.float32, seed=0)  # on weights that the server was not started with
        sampler = ServerSampler(loaded, compute=torch.float32, urls=[server.url])
        before = replies(sampler, COLD)
        assert before == own(loaded, COLD) != start
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        assert (sampler.update() or 0.0) < 1e-3
        assert replies(sampler, COLD) == own(loaded, COLD) != before
        sampler.servers[0].name_weights("somebody else's")
        assert replies(sampler, COLD) == own(loaded, COLD)
        sampler.servers[0].unload_adapter(sampler.label)
        assert replies(sampler, COLD) == own(loaded, COLD)
