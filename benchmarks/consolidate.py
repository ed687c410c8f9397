"""One consolidation step beside others': ``python -m benchmarks.consolidate --trl .venv-trl/bin/python``.

``ours`` is what the loop does, by its own functions (``deal``, ``learn_from``, ``Learner.step``) and with its meter:
the teacher reads the shared beginning of its prompts once, and the loss is computed in chunks of rows; ``lora`` is the
same with a rank-16 adapter, ``lora-less`` that with gradient checkpointing, ``vllm`` is ours with vLLM's rollouts
(docs/engines.md), its weight update counted with them.
``plain`` is the reference of the tests: every prompt read whole, all logits at once. ``trl`` is TRL's ``SDFTTrainer``
(see ``benchmarks/trl_sdft.py``), with the same weights, prompts, context, reply length, float32 masters and AdamW.

Every figure comes from a process of its own (so that peak memory is its own); the arms alternate, and medians are
printed: CPU seconds, which vary less than wall time on a shared machine, then wall seconds, and peak resident memory.
``extra`` is peak memory above weights, gradients, optimizer state and a separate teacher. The first step of a
process, in which ours also reads the shared beginning, is timed apart (``first``: its teacher). With ``--parity`` the
token losses of one real batch are compared with TRL's instead. ``benchmarks.random_model`` writes models with windows
or states for ``--model``. ``of the limit`` is the share of each phase that its products would take at the rate of a
large product on this machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentopcd.core.types import Message

PHASES = ("rollout", "teacher", "update")
LESSON = "- EXPERIENCE ITEM: read the question twice, work the sum out, and write only the result.\n"
RANK = 16
ARMS = ("plain", "ours", "lora", "lora-less", "vllm")


def questions(batch: int) -> list[list[Message]]:
    return [[{"role": "user", "content": f"What is {n} * 7 + {n * n}? Explain."}] for n in range(11, 11 + batch)]


def context_of(tokenizer: Any, tokens: int) -> str:
    """About so many tokens of advice."""
    return (LESSON * max(1, round(tokens / len(tokenizer(LESSON)["input_ids"])))).strip()


class CpuClock:
    """The loop's clock, counting CPU seconds beside wall seconds."""

    def __init__(self) -> None:
        self.last = (time.process_time(), time.perf_counter())
        self.phases: dict[str, tuple[float, float]] = {}

    def lap(self, phase: str) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU works on after a call has returned
        now = (time.process_time(), time.perf_counter())
        cpu, wall = self.phases.get(phase, (0.0, 0.0))
        self.phases[phase] = (cpu + now[0] - self.last[0], wall + now[1] - self.last[1])
        self.last = now


class Step:
    """What one arm does in one step, and its phases in CPU and wall seconds."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from agentopcd import models
        from agentopcd.core.config import ConsolidateConfig
        from agentopcd.core.types import Context
        from agentopcd.distillation.learner import Learner
        from agentopcd.distillation.methods import METHODS
        from agentopcd.distillation.teacher import FrozenTeacher
        from agentopcd.rollouts.chat import Chat
        from agentopcd.rollouts.game import Game
        from agentopcd.rollouts.player import Player
        from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler

        torch.set_num_threads(args.threads)
        self.args = args
        compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.compute]
        self.config = ConsolidateConfig(
            env="math",
            learning_rate=1e-6,
            tokens_per_batch=args.tokens_per_batch,
            max_tokens=args.reply,
            gradient_checkpointing=args.arm == "lora-less",
            lora_rank=RANK * args.arm.startswith("lora"),
        )
        models.prepare_process()
        self.student = models.load_model(args.model, device=models.pick_device())
        self.student.end_ids = (len(self.student.tokenizer) - 1,)  # never sampled in practice: replies have full length
        self.chat = Chat(self.student.tokenizer)
        self.context = Context(context_of(self.student.tokenizer, args.context))
        if self.config.lora_rank:
            models.add_adapter(self.student, RANK, compute, 0)
        prefixes = [] if args.arm == "plain" else [self.chat.prefix(self.context)]
        self.teacher = FrozenTeacher(self.student, self.student, compute=compute, prefixes=prefixes)
        if args.arm == "plain":
            for model in (self.student.model, self.teacher.model):  # nothing compares shortcuts here
                known = models.shortcuts_of(model)
                known.branch = known.prefix = False
        self.learner = Learner(self.student, self.config, compute)
        self.sampler: Any = TransformersSampler(self.student, compute=compute)
        if args.arm == "vllm":
            from agentopcd.rollouts.sampling.vllm_engine import VllmSampler

            self.sampler = VllmSampler(self.student, compute=compute)
        player = Player(game=Game(ref="math"), sampler=self.sampler, chat=self.chat, sampling=self.config.sampling)
        self.method = METHODS["opcd"](self.config, player)
        self.number = 0

    def rollout(self) -> list[Any]:
        from agentopcd.core.types import Request
        from agentopcd.distillation.samples import Sample

        views = [self.chat.prompts(messages, self.context) for messages in questions(self.args.batch)]
        self.number += 1
        requests = [Request(prompt_ids=one, seed=100 * self.number + i) for i, (one, _) in enumerate(views)]
        replies = self.sampler.sample(requests, self.config.sampling)
        return [
            Sample(student_ids=one, teacher_ids=other, response_ids=r.token_ids, logprobs=r.logprobs, turn=0)
            for (one, other), r in zip(views, replies, strict=True)
        ]

    def run(self, timed: CpuClock | None = None) -> dict[str, tuple[float, float]]:
        """One step; every arm but ``plain`` calls the loop's own functions, its meter included."""
        from agentopcd.consolidate import deal, learn_from
        from agentopcd.distillation.metrics import StepMeter
        from agentopcd.models.parallel.ranks import Ranks

        config, ranks = self.config, Ranks.current()
        clock: Any = timed or CpuClock()
        samples = self.rollout()
        clock.lap("rollout")
        meter = StepMeter(self.method.temperature, config.temperature, config.importance_cap)
        for batch in deal(samples, self.learner, self.teacher, ranks):
            if self.args.arm == "plain":
                self.learn_plainly(batch, clock)
            else:
                learn_from(batch, self.learner, self.teacher, self.method, meter, clock)
        self.learner.step(ranks, 1, learned=True)
        if self.args.arm != "plain":
            meter.result()
        clock.lap("update")
        if self.args.arm == "vllm":
            self.sampler.update()
            clock.lap("rollout")
        return clock.phases

    def learn_plainly(self, batch: Any, clock: CpuClock) -> None:
        """The reference of the tests: each prompt read whole, all logits at once, no figures."""
        from agentopcd.distillation import losses
        from agentopcd.distillation.positions import logits_of

        scored = self.teacher.score(batch.samples)
        clock.lap("teacher")
        mine = logits_of(self.learner.model, self.learner.hidden(batch.samples))
        loss_N = losses.divergence(mine, scored, temperature=self.method.temperature).loss_N
        losses.weighted_sum(loss_N, batch.weights_N).backward()
        clock.lap("update")

    def needed_mib(self) -> float:
        """Weights, gradients and optimizer state of the student, and a teacher of its own."""
        held = {id(p): p for m in (self.student.model, self.teacher.model) for p in m.parameters()}
        total = sum(p.numel() * p.element_size() for p in held.values())
        return (total + sum(3 * p.numel() * 4 for p in self.learner.trained.values())) / 2**20


def one(args: argparse.Namespace) -> dict[str, Any]:
    """A warm-up step and ``args.steps`` timed ones of one arm of ours, in this process."""
    step = Step(args)
    first, timed = step.run(), [step.run() for _ in range(args.steps)]
    peak = peak_mib()
    samples = step.rollout()
    tokens = max(len(sample.teacher_ids) + sample.num_tokens for sample in samples)
    return {"first": first, "steps": timed, "peak_mib": peak, "teacher_tokens": tokens, "needed_mib": step.needed_mib(),
            "reads": reads_of(step, samples), "limits_s": limits_s(step, samples)}  # fmt: skip


def reads_of(step: Step, samples: Sequence[Any]) -> list[int]:
    """How many tokens the student and the teacher read."""
    return [sum(len(s.student_ids) + s.num_tokens for s in samples), sum(map(step.teacher.reads, samples))]


def limits_s(step: Step, samples: Sequence[Any]) -> dict[str, float]:
    """CPU seconds that the products of each phase take at the rate of a large one; empty on a GPU.

    To read a token takes two operations a weight, to go back through it four, or two if the weights stand still. The
    output head reads the rows of replies alone, in float32.
    """
    import torch

    from benchmarks.rollout import products_flop, rate

    if torch.cuda.is_available():
        return {}
    said = sum(sample.num_tokens for sample in samples)
    of_body, of_head = rate(getattr(torch, step.args.compute)), rate(torch.float32)
    flop = [products_flop(step.student.model, tokens, said) for tokens in reads_of(step, samples)]
    student, teacher = (body / of_body + head / of_head for body, head in flop)
    back = 2 if step.config.lora_rank else 3
    return {"rollout": student, "teacher": teacher, "update": back * student}


def peak_mib() -> float:
    """Peak memory of the GPU, if there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trl_job(args: argparse.Namespace) -> dict[str, Any]:
    from agentopcd import models
    from agentopcd.core.types import Context
    from agentopcd.rollouts.chat import framed

    models.prepare_process()
    loaded = models.load_model(args.model)
    return {
        "model": str(loaded.folder), "asked": questions(args.batch), "reply": args.reply, "steps": args.steps,
        "context": framed(Context(context_of(loaded.tokenizer, args.context))), "compute": args.compute,
        "threads": args.threads,
    }  # fmt: skip


def call(command: list[str], job: dict[str, Any] | None = None, limit_s: float | None = None) -> dict[str, Any]:
    text = "" if job is None else json.dumps(job)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {limit_s:.0f} s"}
    if done.returncode:
        how = "killed, out of memory?" if done.returncode < 0 else done.stderr.strip().splitlines()[-1]
        return {"failed": f"{how} (exit {done.returncode})"}
    return json.loads(done.stdout.splitlines()[-1])


def measured(args: argparse.Namespace, arm: str, context: int, limit_s: float | None = None) -> dict[str, Any]:
    """One process of one arm, stopped after ``limit_s`` seconds."""
    if arm == "trl":
        args.context = context
        return call([args.trl, str(Path(__file__).with_name("trl_sdft.py"))], trl_job(args), limit_s)
    shared = ["--model", args.model, "--batch", args.batch, "--reply", args.reply, "--steps", args.steps,
              "--compute", args.compute, "--threads", args.threads,
              "--tokens-per-batch", args.tokens_per_batch]  # fmt: skip
    words = [*shared, "--arm", arm, "--context", context]
    return call([sys.executable, "-m", "benchmarks.consolidate", *map(str, words)], limit_s=limit_s)


def parity(args: argparse.Namespace) -> None:
    """Our token losses and TRL's on the logits of one real batch."""
    import torch
    from safetensors.torch import save_file

    from agentopcd.distillation import losses
    from agentopcd.distillation.positions import response_logits

    args.arm, args.context = "plain", args.contexts[0]
    step = Step(args)
    samples = step.rollout()
    pairs = [(s.student_ids, s.response_ids) for s in samples]
    student = response_logits(step.student.model, pairs, step.student.tokenizer.pad_token_id).detach()
    logits = {"student": student / 0.7, "teacher": step.teacher.score(samples) / 0.7}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits.safetensors"
        save_file(logits, file)
        theirs = call([args.trl, str(Path(__file__).with_name("trl_sdft.py"))], {"logits": str(file)})
    if "failed" in theirs:
        sys.exit(theirs["failed"])
    found: Any = theirs  # form to token losses
    for form, values in found.items():
        ours = losses.divergence(logits["student"], logits["teacher"], form=form).loss_N
        apart = (ours - torch.tensor(values)).abs().max().item()
        print(f"{form}: {len(values)} tokens, mean {ours.mean():.4f} nats, largest difference from TRL {apart:.1e}")


def report(context: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians of one context, a line for each arm, and the ratios to ours."""
    totals, teacher = {}, {}
    full = [run["needed_mib"] for arm in ("ours", "plain") for run in found.get(arm, []) if "needed_mib" in run]
    for arm, runs in found.items():
        if failed := [run["failed"] for run in runs if "failed" in run]:
            print(f"{context:7}  {arm:9}  failed: {failed[0]}", flush=True)
            continue
        steps = [step for run in runs for step in run["steps"]]
        cpu = {phase: statistics.median(step[phase][0] for step in steps) for phase in PHASES}
        teacher[arm] = cpu["teacher"]
        totals[arm] = statistics.median(sum(step[phase][0] for phase in PHASES) for step in steps)
        wall = statistics.median(sum(step[phase][1] for phase in PHASES) for step in steps)
        first = statistics.median(run["first"]["teacher"][0] for run in runs)
        peak = statistics.median(run["peak_mib"] for run in runs)
        needed = runs[0].get("needed_mib", next(iter(full), None))  # TRL trains all weights, and does not say
        extra = "" if needed is None else f"{peak - needed:.0f}"
        figures = "  ".join(f"{value:8.2f}" for value in (*cpu.values(), totals[arm]))
        tokens = runs[0]["teacher_tokens"]
        print(f"{tokens:7}  {arm:9}  {figures}  {wall:6.1f}  {first:6.2f}  {peak:8.0f}  {extra:>6}", flush=True)
        if limits := [run["limits_s"] for run in runs if run.get("limits_s")]:
            shares = {phase: statistics.median(one[phase] for one in limits) / cpu[phase] for phase in PHASES}
            print(f"{'':9}of the limit: " + ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items()))
    if "ours" not in totals:
        return
    ratios = [f"{arm} / ours: step {totals[arm] / totals['ours']:.2f}, teacher {teacher[arm] / teacher['ours']:.1f}"
              for arm in totals if arm != "ours"]  # fmt: skip
    print(f"{'':9}" + "; ".join(ratios), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--contexts", type=int, nargs="+", default=[192, 1024, 4096], help="tokens, about")
    parser.add_argument("--arms", nargs="+", default=["plain", "ours"], choices=ARMS)
    parser.add_argument("--trl", default="", help="python of an environment with TRL 1.16: adds the arm trl")
    parser.add_argument("--parity", action="store_true", help="compare token losses with TRL's and stop")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--reply", type=int, default=64, help="tokens a reply")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--tokens-per-batch", type=int, default=1 << 20, help="of ours; the default is one batch")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each arm, alternating")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # set in the processes that measure
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(one(args)))
        return
    if args.parity and not args.trl:
        parser.error("--parity compares with TRL: give --trl")
    if args.trl and shutil.which(args.trl) is None:
        parser.error(f"--trl {args.trl}: no such program")
    if args.parity:
        return parity(args)
    arms = [*args.arms, *(["trl"] if args.trl else [])]
    print(f"{args.model}, batch {args.batch}, reply {args.reply}, {args.compute}, {args.threads} thread(s), "
          f"n = {args.repeats} x {args.steps} steps")  # fmt: skip
    columns = "  ".join(f"{phase:>8}" for phase in (*PHASES, "step"))
    print(f" tokens  arm        {columns}    wall   first  peak MiB   extra")
    for context in args.contexts:
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for _ in range(args.repeats):
            for arm in arms:
                found[arm].append(measured(args, arm, context))
        report(context, found)


if __name__ == "__main__":
    main()
