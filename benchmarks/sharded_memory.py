"""What two processes hold of a student, at rest after a step: ``python -m benchmarks.sharded_memory --model NAME``.

``whole`` is without ``--shard``; ``shard`` with it and a student that plays in place; ``served`` with it and servers
that play. Each figure is the anonymous resident memory (``RssAnon``) of a process after one step of student, teacher
and optimizer on a short reply, without what it had before the model was loaded. ``served`` also writes the weights as
servers get them and the student as it is saved; ``written`` is how far the peak rose meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

WAYS = ("whole", "shard", "served")


def memory_mib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) // 1024


class Peak(threading.Thread):
    """The largest ``RssAnon`` between its beginning and :meth:`end`, looked at every two milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest, self.over = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.largest = max(self.largest, memory_mib("RssAnon"))

    def end(self) -> int:
        self.over.set()
        self.join()
        return self.largest


def one(name: str, way: str) -> dict[str, Any]:
    import torch

    from agentopcd import models
    from agentopcd.core.config import ConsolidateConfig
    from agentopcd.distillation import best
    from agentopcd.distillation.learner import Learner
    from agentopcd.distillation.samples import Sample
    from agentopcd.distillation.teacher import FrozenTeacher
    from agentopcd.models.parallel import sharding
    from agentopcd.models.parallel.ranks import Ranks
    from agentopcd.models.process import give_back_memory

    models.prepare_process()
    ranks = Ranks.current()
    ranks.wait()  # gloo's own memory is not the model's
    before = memory_mib("RssAnon")
    student = models.load_model(name)
    weights = sum(p.numel() for p in student.model.parameters()) * 4 // 2**20
    config = ConsolidateConfig(env="math", model=name, shard=way != "whole")
    teacher = FrozenTeacher(student, student, compute=torch.float32, shard=config.shard)
    if config.shard:
        student = sharding.sharded(student, plays=way == "shard")
    learner = Learner(student, config, torch.float32)
    ids = tuple(range(50, 90))
    sample = Sample(student_ids=ids, teacher_ids=ids, response_ids=ids[:16], logprobs=(0.0,) * 16, turn=0)
    teacher.hidden([sample])
    learner.hidden([sample]).square().mean().backward()
    learner.step(ranks, 1, learned=True)
    give_back_memory()
    found = {"way": way, "process": ranks.index, "weights_mib": weights, "held_mib": memory_mib("RssAnon") - before}
    if way == "served":
        with tempfile.TemporaryDirectory() as folder:
            place, peak = Path(ranks.from_main(folder)), Peak()
            best.save_student(learner, "", 1, place / "student")  # as for servers, and then as a folder
            ranks.wait()
            found["written_mib"] = peak.end() - before - found["held_mib"]
            ranks.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args.model, args.way)), flush=True)
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
    for way in WAYS:
        words = [*launch, "-m", "benchmarks.sharded_memory", "--model", args.model, "--way", way]
        subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
