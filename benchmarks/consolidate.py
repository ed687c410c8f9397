"""One consolidation step beside the plain path: ``python -m benchmarks.consolidate --model smollm2-135m``.

``ours`` is what the loop does: the teacher reads the shared beginning of its prompts once, and the loss is computed
in chunks of rows. ``plain`` is the reference of the tests: every prompt read whole, all logits at once. Every figure
comes from a process of its own (so that peak memory is its own); the two arms alternate, and medians are printed. CPU
seconds vary less than wall time on a shared machine. The first step of a process, in which ours also reads the shared
beginning, is timed apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

ARMS = ("plain", "ours")
PHASES = ("rollout", "teacher", "update")


def one(args: argparse.Namespace) -> dict[str, Any]:
    """A warm-up step and ``args.steps`` timed ones of one arm, in this process."""
    import torch

    from agentopcd import losses, models
    from agentopcd.chat import Chat
    from agentopcd.sampling.transformers import TransformersSampler
    from agentopcd.teacher import FrozenTeacher, Sample, response_hidden, response_logits
    from agentopcd.types import Context, Message, Request, Sampling

    torch.set_num_threads(args.threads)
    compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.compute]
    student = models.load_model(args.model)
    student.end_ids = (len(student.tokenizer) - 1,)  # never sampled in practice: every reply has full length
    chat = Chat(student.tokenizer)
    lesson = "- EXPERIENCE ITEM: read the question twice, work the sum out, and write only the result.\n"
    context = Context(lesson * max(1, args.context // chat.count_tokens(lesson)))
    prefix = chat.prefix(context) if args.arm == "ours" else ()
    teacher = FrozenTeacher(student, student, compute=compute, prefix_ids=prefix)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-6)
    sampler = TransformersSampler(student, compute=compute)
    sampling = Sampling(temperature=0.7, max_tokens=args.reply)
    asked = [[Message(role="user", content=f"What is {n} * 7 + {n * n}? Explain.")] for n in range(11, 11 + args.batch)]
    pad, device = student.tokenizer.pad_token_id, torch.device("cpu")

    def step(number: int) -> dict[str, tuple[float, float]]:
        spent, last = {}, (time.process_time(), time.perf_counter())

        def lap(phase: str) -> None:
            nonlocal last
            now = (time.process_time(), time.perf_counter())
            spent[phase] = (now[0] - last[0], now[1] - last[1])
            last = now

        views = [chat.views(messages, context) for messages in asked]
        requests = [Request(prompt_ids=one, seed=100 * number + i) for i, (one, _) in enumerate(views)]
        replies = sampler.sample(requests, sampling)
        samples = [
            Sample(student_ids=one, teacher_ids=other, response_ids=r.token_ids, logprobs=r.logprobs, turn=0)
            for (one, other), r in zip(views, replies, strict=True)
        ]
        weights = losses.token_weights([s.num_tokens for s in samples], "seq_mean")
        weights_N = torch.tensor([w for s, w in zip(samples, weights, strict=True) for _ in s.response_ids])
        pairs = [(s.student_ids, s.response_ids) for s in samples]
        lap("rollout")
        scored = teacher.hidden(samples) if args.arm == "ours" else teacher.score(samples)
        lap("teacher")
        with models.autocast(device, compute):
            find = response_hidden if args.arm == "ours" else response_logits
            mine = find(student.model, pairs, pad)
        if args.arm == "ours":
            head = student.model.get_output_embeddings()

            def loss_of(rows: Any, where: slice) -> Any:
                return losses.divergence(models.scaled(student.model, rows), teacher.logits(scored[where])).loss_N

            loss = losses.in_chunks(loss_of, mine, weights_N, head)
        else:
            loss = losses.weighted_sum(losses.divergence(mine, scored).loss_N, weights_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap("update")
        return spent

    first = step(0)
    timed = [step(number) for number in range(1, args.steps + 1)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = chat.count_tokens(context.text)
    return {"arm": args.arm, "context": tokens, "first": first, "steps": timed, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--contexts", type=int, nargs="+", default=[192, 1024, 4096], help="tokens, about")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--reply", type=int, default=64, help="tokens a reply")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each arm, alternating")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # set in the processes that measure
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(one(args)))
        return
    shared = ["--model", args.model, "--batch", args.batch, "--reply", args.reply, "--steps", args.steps,
              "--compute", args.compute, "--threads", args.threads]  # fmt: skip
    print("context  arm     " + "  ".join(f"{phase:>8}" for phase in (*PHASES, "step")) + "  wall  first  peak MiB")
    for context in args.contexts:
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for _ in range(args.repeats):
            for arm in ARMS:
                words = [*shared, "--arm", arm, "--context", context]
                command = [sys.executable, "-m", "benchmarks.consolidate", *map(str, words)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                found[arm].append(json.loads(done.stdout.splitlines()[-1]))
        totals = {}
        for arm, runs in found.items():
            steps = [step for run in runs for step in run["steps"]]
            cpu = {phase: statistics.median(step[phase][0] for step in steps) for phase in PHASES}
            totals[arm] = statistics.median(sum(step[phase][0] for phase in PHASES) for step in steps)
            wall = statistics.median(sum(step[phase][1] for phase in PHASES) for step in steps)
            first = statistics.median(run["first"]["teacher"][0] for run in runs)
            peak = statistics.median(run["peak_mib"] for run in runs)
            figures = "  ".join(f"{value:8.2f}" for value in (*cpu.values(), totals[arm]))
            print(f"{runs[0]['context']:7}  {arm:6}  {figures}  {wall:4.1f}  {first:5.2f}  {peak:8.0f}", flush=True)
        print(f"{'':9}plain / ours: {totals['plain'] / totals['ours']:.2f} (CPU seconds of a step)", flush=True)


if __name__ == "__main__":
    main()
