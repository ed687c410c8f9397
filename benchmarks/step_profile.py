"""Where the time of a consolidation step goes: ``python -m benchmarks.step_profile``.

A step of the arm ``ours`` of ``benchmarks.consolidate`` (the loop's own functions), first without a profiler, then
with torch's. For each phase: CPU seconds without the profiler, their share of the arithmetic limit, wall seconds under
the profiler, and the shares that these kinds of work have in those:

- ``layers``: products of the layers' weights, forward and backward; ``head``: those of the output head
- ``attention``: scores and sums over keys and values, forward and backward
- ``vocabulary``: what else has one value a token of the vocabulary: softmax, top-k, divergence, sampling, zeroing
- ``optimizer``: AdamW, the norm of the gradients, the check that the weights are finite
- ``copies``: casts between dtypes, concatenation, copies, packing of weights
- ``small``: norms, activations, rotations, sums and all other calls
- ``between``: Python and dispatch, the time outside of all calls, the profiler's own work included

A call counts its own time, without that of the calls in it. The profiler makes small calls look dearer than they are.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import torch

from agentopcd import models
from benchmarks.consolidate import PHASES, CpuClock, Step, limits_s

KINDS = ("layers", "head", "attention", "vocabulary", "optimizer", "copies", "small", "between")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "mkldnn::_linear_pointwise"}
COPIES = {
    "aten::copy_", "aten::_to_copy", "aten::to", "aten::cat", "aten::clone", "aten::contiguous", "aten::index_copy_",
    "aten::index", "aten::index_select", "mkldnn::_reorder_linear_weight",
}  # fmt: skip


def kind_of(name: str, shapes: list[Any], vocabulary: int) -> str:
    """The kind of one call, by its name and the shapes of its inputs."""
    whole = any(isinstance(shape, list) and vocabulary in shape for shape in shapes)
    if name in PRODUCTS:
        return "head" if whole else "layers"
    if "attention" in name or name in ("aten::bmm", "aten::baddbmm"):
        return "attention"
    if "adamw" in name or name == "aten::linalg_vector_norm":
        return "optimizer"
    if whole and "embedding" not in name:
        return "vocabulary"
    return "copies" if name in COPIES else "small"


class ProfiledClock(CpuClock):
    """A clock that profiles each lap and adds up its calls by kind, in wall seconds, which the profiler counts."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.kinds: dict[str, dict[str, float]] = {phase: defaultdict(float) for phase in PHASES}
        self.begin()

    def begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self.profiler.start()
        self.last = (time.process_time(), time.perf_counter())

    def lap(self, phase: str) -> None:
        before = self.phases.get(phase, (0.0, 0.0))[1]
        super().lap(phase)
        self.profiler.stop()
        spent: dict[str, float] = defaultdict(float)
        for event in self.profiler.events() or []:
            if not event.name.startswith("autograd::"):  # its own time is the engine's
                spent[kind_of(event.name, event.input_shapes, self.vocabulary)] += event.self_cpu_time_total / 1e6
        spent["between"] = max(0.0, self.phases[phase][1] - before - sum(spent.values()))
        for kind, seconds in spent.items():
            self.kinds[phase][kind] += seconds
        self.begin()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=192, help="tokens, about")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--reply", type=int, default=64, help="tokens a reply")
    parser.add_argument("--steps", type=int, default=2, help="steps without the profiler, and steps with it")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lora", action="store_true", help="a rank-16 adapter instead of all weights")
    args = parser.parse_args()
    if models.pick_device().type != "cpu":
        parser.error("it profiles a CPU; hide the GPU, say with CUDA_VISIBLE_DEVICES=''")
    args.arm, args.tokens_per_batch = "lora" if args.lora else "ours", 1 << 20
    step = Step(args)
    step.run()  # reads the shared beginning
    plain = [step.run() for _ in range(args.steps)]
    vocabulary, clocks = step.student.model.get_output_embeddings().weight.shape[0], []
    for _ in range(args.steps):
        clocks.append(ProfiledClock(vocabulary))
        step.run(clocks[-1])
        clocks[-1].profiler.stop()
    limits = limits_s(step, step.rollout())
    print(f"{args.model}, batch {args.batch}, reply {args.reply}, context {args.context}, {args.compute}, "
          f"{args.threads} thread(s), n = {args.steps} steps")  # fmt: skip
    print(f"{'phase':8}  CPU-s  limit  profiled  " + "  ".join(f"{kind:>10}" for kind in KINDS))
    for phase in PHASES:
        spent = sum(laps[phase][0] for laps in plain) / args.steps
        profiled = sum(clock.phases[phase][1] for clock in clocks)
        shares = [sum(clock.kinds[phase][kind] for clock in clocks) / profiled for kind in KINDS]
        print(f"{phase:8}  {spent:5.2f}  {limits[phase] / spent:5.0%}  {profiled / args.steps:8.2f}  "
              + "  ".join(f"{share:10.0%}" for share in shares))  # fmt: skip


if __name__ == "__main__":
    main()
