"""Several processes that train through vLLM's own server, which is killed: they do what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentopcd.models import find
from tests.processes import TWO
from tests.rollouts.sampling.vllm_server import VllmServer

TRAIN = """consolidate --env frozen-lake-4x4 --model pocket --compute float32 --steps 4 --select-every 2 --batch-size 8
    --select-tasks 16 --save-every 2 --test-tasks 0 --sample-batch 8"""
CONTEXT = "- EXPERIENCE ITEM: the goal is at the lower right; go right and down, around the holes\n"


def start(work: Path, *launcher: str, words: list[str]) -> subprocess.Popen[str]:
    work.mkdir()
    (work / "context.txt").write_text(CONTEXT)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "agentopcd", *TRAIN.split(), "--work", str(work), "--context",
         str(work / "context.txt"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def records(work: Path) -> list[dict[str, Any]]:
    lines = [line for file in work.glob("runs/*/metrics.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def best_step(run: subprocess.Popen[str], work: Path) -> int:
    said = run.communicate(timeout=900)[0]
    assert run.returncode == 0, said
    (file,) = work.glob("runs/*/result.json")
    return json.loads(file.read_text())["best_step"]


def alike(one: Path, *others: Path) -> None:
    for work in others:
        for a, b in zip(records(one), records(work), strict=True):
            for name in {"loss/value_nats", "train/grad_norm", "select/success", "rollout/turns"} & set(a):
                assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-5), (work, a["step"], name)
            assert b.get("engine/drift_nats", 0.0) < 1e-3


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_two_processes_learn_through_a_server_as_one_does_whole_or_sharded_and_though_it_is_killed(
    tmp_path: Path,
) -> None:
    with VllmServer(find.find_model("pocket"), "pocket", tmp_path / "log") as server:
        served = ["--server", server.url]
        one, two, shards = (tmp_path / name for name in ("one", "two", "shards"))
        found = [best_step(start(one, words=served), one), best_step(start(two, *TWO, words=served), two)]
        run = start(shards, *TWO, words=[*served, "--shard"])
        while not any(record["step"] == 1 for record in records(shards)):
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.05)
        server.kill()
        server.start(wait=False)
        found.append(best_step(run, shards))
    assert found[0] == found[1] == found[2]
    alike(one, two, shards)


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_an_engine_beside_each_of_two_processes_plays_as_one_in_the_process_does(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    words = ["--engine", "vllm"]
    assert best_step(start(one, words=words), one) == best_step(start(two, *TWO, words=words), two)
    alike(one, two)
