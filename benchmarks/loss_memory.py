"""Peak memory of the loss as response tokens and vocabulary grow: ``python -m benchmarks.loss_memory``.

``chunks`` is what the loop does (``chunks.in_chunks``), without the loop's meter, ``dense`` all logits at once. Each
figure is the peak resident memory of a process of its own above what was there before the loss was computed: hidden
states, output head and the models' own memory are not in it, the gradients of hidden states and head are (``kept``).
The hidden size is small, so that the vocabulary counts; ``dense`` is left out where its estimate is above
``--dense-limit``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any


def one(tokens: int, vocabulary: int, hidden: int, way: str, threads: int) -> dict[str, Any]:
    import torch

    from agentopcd.distillation import chunks, losses

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    head = torch.nn.Linear(hidden, vocabulary, bias=False)
    teacher_head = torch.randn(vocabulary, hidden).div_(hidden**0.5)  # no copy: the peak before counts
    mine, theirs = torch.randn(tokens, hidden, requires_grad=True), torch.randn(tokens, hidden)
    weights = torch.full((tokens,), 1 / tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    if way == "chunks":

        def loss_of(rows: torch.Tensor, where: slice) -> torch.Tensor:
            return losses.divergence(rows, theirs[where] @ teacher_head.T).loss_N

        loss = chunks.in_chunks(loss_of, mine, weights, head)
    else:
        loss = losses.weighted_sum(losses.divergence(head(mine), theirs @ teacher_head.T).loss_N, weights)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = (mine.numel() + head.weight.numel()) * 4 / 2**20
    return {"peak_mib": (peak - before) / 1024, "kept_mib": kept, "cpu_s": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--dense-limit", type=float, default=8.0, help="GiB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # in the processes that measure
    args = parser.parse_args()
    if args.one:
        tokens, vocabulary, way = args.one
        print(json.dumps(one(int(tokens), int(vocabulary), args.hidden, way, args.threads)))
        return
    print("vocabulary  tokens  way     MiB above the start   of that kept   CPU-s")
    for vocabulary in args.vocabularies:
        for tokens in args.tokens:
            for way in ("chunks", "dense"):
                if way == "dense" and 8 * tokens * vocabulary * 4 / 2**30 > args.dense_limit:  # about 8 copies
                    continue
                words = ["--one", tokens, vocabulary, way, "--hidden", args.hidden, "--threads", args.threads]
                command = [sys.executable, "-m", "benchmarks.loss_memory", *map(str, words)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"{vocabulary:10}  {tokens:6}  {way:6}  {found['peak_mib']:19.0f}   {found['kept_mib']:12.0f}   "
                      f"{found['cpu_s']:5.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
