"""A run-book for a machine with a GPU: ``bash benchmarks/gpu.sh``.

One part after the other, each in a time of its own; one that fails is told and the next one begins. The last line is
everything as JSON; ``--out`` writes it to a file as well. ``--tiny`` is the same at a tiny size, for a CPU.

machine    the card, the versions, and the rate of a large product
tests      the tests marked ``gpu``
attention  how far packed and shared-prefix scoring are off the model's own forward pass, by attention
step       a step of a random model of the shape of Qwen3-1.7B, in full and with LoRA: rollout, teacher, update, their
           share of the rate, and peak memory
teacher    the teacher at 4,096 tokens of context, beside the plain path
trl        TRL's trainer on the same step, if it is installed
rollout    reply tokens a second of pocket on Frozen Lake, by our engine and by transformers' ``generate``
recorded   a step of one token a row of the large model, in milliseconds, as a recorded CUDA graph and without one
pocket     one consolidation from the context to the student's table
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agentopcd import models

PACKAGES = ("torch", "transformers", "agentopcd", "peft", "trl", "flash-attn")
ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
BUDGET_S = 480.0


def words_of(command: list[str], limit_s: float) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it fails; the message is its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    return done.stdout


class Book:
    """The parts of the run-book, at one size."""

    def __init__(self, tiny: bool, scratch: Path) -> None:
        self.tiny, self.scratch = tiny, scratch
        self.device = models.pick_device()
        self.compute = "float32" if self.device.type == "cpu" else "bfloat16"
        self.began = time.monotonic()
        self.rate = 0.0
        self.threads = 1 if self.device.type == "cpu" else min(8, os.cpu_count() or 1)

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left; a part gets at least some."""
        return max(20.0, BUDGET_S - (time.monotonic() - self.began))

    def machine(self) -> dict[str, Any]:
        """The card, the versions, and the rate of a product of 4,096 (tiny: 512) rows and columns."""
        n, dtype = 512 if self.tiny else 4096, getattr(torch, self.compute)
        one, other = (torch.randn(n, n, dtype=dtype, device=self.device) for _ in range(2))
        for _ in range(3):
            one @ other
        self.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            one @ other
        self.synchronize()
        self.rate = 20 * 2 * n**3 / (time.perf_counter() - began)
        cuda = self.device.type == "cuda"
        return {
            "card": torch.cuda.get_device_name() if cuda else "none", "python": sys.version.split()[0],
            "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
            "versions": {name: version(name) for name in PACKAGES}, "tflops": round(self.rate / 1e12, 3),
            "compute": self.compute,
        }  # fmt: skip

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tests(self) -> dict[str, Any]:
        """The tests marked ``gpu``."""
        if self.device.type != "cuda":
            return {"left out": "no CUDA device"}
        said = words_of(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/models/test_gpu.py"],
            min(150.0, self.left_s),
        )
        return {"pytest": said.strip().splitlines()[-1]}

    def attention(self) -> dict[str, Any]:
        """For each attention, the distance in nats a token of each shortcut, or why it cannot run."""
        from agentopcd.distillation.compare import compare
        from benchmarks import random_model

        folder, found = self.scratch / "qwen3", {}
        random_model.write("qwen3", folder)
        dtype = getattr(torch, self.compute)
        pairs = [(list(range(20, 20 + n)), list(range(300, 330))) for n in (200, 700, 320)]
        for kind in ATTENTIONS if self.device.type == "cuda" else ATTENTIONS[:2]:  # flex ends the process on a CPU
            loaded = models.load_model(str(folder), device=self.device)
            try:
                loaded.model.set_attn_implementation(kind)
                with torch.no_grad(), models.autocast(self.device, dtype):
                    compare(loaded.model, pairs, 0, dtype, prefix="flash" not in kind)
                found[kind] = models.shortcuts_of(loaded.model).to_dict()
            except Exception as error:  # not installed, or not for this device
                found[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        return found

    def pocket(self) -> dict[str, Any]:
        """A consolidation from the context to the student's table."""
        model, steps, tasks, batch = ("pocket-s", 2, 4, 4) if self.tiny else ("pocket", 4, 32, 32)
        command = [
            sys.executable, "-m", "agentopcd", "consolidate", "--env", "frozen-lake-4x4", "--model", model, "--context",
            "recipes/pocket/contexts/frozen-lake.txt", "--steps", str(steps), "--batch-size", str(batch),
            "--select-every", str(steps), "--select-tasks", str(tasks), "--test-tasks", str(tasks), "--gate-tasks", "0",
            "--json", "--work", str(self.scratch / "work"),
        ]  # fmt: skip
        result = json.loads(words_of(command, self.left_s))
        rows = result["evaluation"]["rows"]
        return {"rows": {row["label"]: [row["success"], row["n"]] for row in rows}, "best_step": result["best_step"]}

    def step(self) -> dict[str, Any]:
        """A step in full and with LoRA, its phases and peak memory."""
        weights, folder = self.large()
        return {
            arm: self.shares(weights, self.consolidate(folder, arm, 192), lora=arm == "lora")
            for arm in ("ours", "lora")
        }

    def teacher(self) -> dict[str, Any]:
        """The teacher's seconds at 4,096 tokens of context, ours and plain."""
        _, folder = self.large()
        found = {arm: self.consolidate(folder, arm, 256 if self.tiny else 4096) for arm in ("ours", "plain")}
        seconds = {arm: round(run["steps"][0]["teacher"][1], 3) for arm, run in found.items()}
        return {**seconds, "tokens": found["ours"]["teacher_tokens"]}

    def trl(self) -> dict[str, Any]:
        """TRL's step on the same model."""
        if importlib.util.find_spec("trl") is None:
            return {"left out": "TRL is not installed"}
        weights, folder = self.large()
        return self.shares(weights, self.consolidate(folder, "trl", 192))

    def rollout(self) -> dict[str, Any]:
        """Reply tokens a second of our engine and of transformers' ``generate``; the second of two runs counts."""
        from benchmarks.rollout import engines
        from benchmarks.rollout_scene import SCENES, jobs_of, play

        scene = SCENES["lake"]
        loaded = models.load_model(scene.model, device=self.device)
        jobs, found = jobs_of(scene, loaded, 4 if self.tiny else 128), {}
        for name, player in engines(scene, loaded, getattr(torch, self.compute)).items():
            for _ in range(2):
                began = time.perf_counter()
                tokens = play(player, jobs)
                found[name] = round(tokens / (time.perf_counter() - began), 1)
        return {"games": len(jobs), "tokens_a_second": found}

    def recorded(self) -> dict[str, Any]:
        """Milliseconds of a step, those that read prompts included; the second of two runs counts."""
        from agentopcd.core.types import Request, Sampling
        from agentopcd.rollouts.sampling import recorded
        from agentopcd.rollouts.sampling.continuous import Continuous

        loaded = models.load_model(str(self.large()[1]), device=self.device)
        rows, new = (2, 8) if self.tiny else (32, 128)
        asked = [Request(prompt_ids=tuple(range(20, 220 + i % 7)), seed=i) for i in range(rows)]
        found, usual = {}, recorded.AFTER
        for name, after in (("recorded", usual), ("not", 1 << 30)):
            recorded.AFTER = after
            for _ in range(2):
                self.synchronize()
                began = time.perf_counter()
                engine = Continuous(loaded, getattr(torch, self.compute), rows)
                replies = engine.sample(asked, Sampling(temperature=1.0, max_tokens=new))
                self.synchronize()
                found[name] = round(1000 * (time.perf_counter() - began) / engine.steps, 2)
        recorded.AFTER = usual
        return {"ms_a_step": found, "rows": rows, "tokens": sum(len(reply.token_ids) for reply in replies)}

    def large(self) -> tuple[int, Path]:
        """The number of weights of the model of steps, and its folder."""
        from benchmarks import random_model

        folder = self.scratch / "large"
        if not folder.is_dir():
            self.weights = random_model.write("qwen3" if self.tiny else "qwen3-1.7b", folder)
        return self.weights, folder

    def consolidate(self, folder: Path, arm: str, context: int) -> dict[str, Any]:
        from benchmarks.consolidate import measured

        args = argparse.Namespace(
            model=str(folder), batch=2 if self.tiny else 32, reply=8 if self.tiny else 128, steps=1,
            threads=self.threads, compute=self.compute, tokens_per_batch=1 << 20, trl=sys.executable,
        )  # fmt: skip
        found = measured(args, arm, context, self.left_s)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found

    def shares(self, weights: int, run: dict[str, Any], *, lora: bool = False) -> dict[str, Any]:
        """Seconds of each phase, and peak memory; of the rate of a large product, the share that each phase reaches."""
        (phases,) = run["steps"]
        seconds = {phase: round(wall, 4) for phase, (_, wall) in phases.items()}
        found = {"seconds": seconds, "peak_mib": round(run["peak_mib"])}
        if "reads" not in run:  # TRL does not say
            return found
        student, teacher = run["reads"]
        # To read a token takes two operations a weight, to go back through it four, or two if the weights stand still.
        back = 2 if lora else 4
        needed = {"rollout": 2 * student, "teacher": 2 * teacher, "update": (2 + back) * student}
        shares = {phase: round(n * weights / (seconds[phase] * self.rate), 3) for phase, n in needed.items()}
        return {**found, "share_of_rate": shares}


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny size, for a CPU")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    parser.add_argument("--part", action="append", help="only this part; repeat for more")
    args = parser.parse_args()
    models.prepare_process()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        book = Book(args.tiny, Path(scratch))
        parts: list[Callable[[], dict[str, Any]]] = [
            book.machine, book.tests, book.attention, book.step, book.teacher, book.trl, book.rollout,
            book.recorded, book.pocket,
        ]  # fmt: skip
        for part in parts:
            if args.part and part.__name__ not in (*args.part, "machine"):
                continue
            began = time.monotonic()
            try:
                found[part.__name__] = part()
            except Exception as error:  # the next part may run
                found[part.__name__] = {"failed": f"{type(error).__name__}: {error}"}
            spent = time.monotonic() - began
            print(f"{part.__name__:9} {spent:6.1f} s  {json.dumps(found[part.__name__])}", flush=True)
    text = json.dumps(found)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    sys.exit(any("failed" in part for part in found.values()))


if __name__ == "__main__":
    main()
