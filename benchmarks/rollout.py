"""Play by engine: ``python -m benchmarks.rollout``.

Three scenes: ``pocket`` plays Frozen Lake; SmolLM2-135M plays a game of up to sixteen turns whose transcript grows;
SmolLM2-135M answers questions with eight contexts of 1,000 tokens. ``ours`` is the in-process engine, ``padded`` is
transformers' ``generate`` on padded batches with the same weights and noise and the model's own linears, ``vllm`` is
vLLM in the same process, if it is installed (docs/engines.md), with as many sequences at once as ``ours``, and ``old``
is the in-process engine of another checkout (``--old``), in a process of its own. ``ours all`` and ``vllm all`` are the
two engines without play: given all prompts of a scene at once. Each arm begins with nothing read before. The arms take
turns, ``--repeats`` times; medians of reply tokens a CPU second and of CPU seconds a game. ``limit`` is the share of
the arithmetic limit: what the products of the tokens that ``ours`` needs to read would take at the rate of a large
product on this machine; wrong guesses at the next tokens are not needed.

``--flight`` plays so many games at once, twice, and prints the memory of the process after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.types import Job, Request, Sampling
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import vllm_engine
from agentopcd.rollouts.sampling.drafts import Drafts
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from benchmarks.rollout_scene import SCENES, Scene, jobs_of, play, player_of, timed

PADDED_ROWS = 32
VLLM_ROWS = 128  # as many as ours has


class Padded(TransformersSampler):
    """The in-process engine, held to transformers' own decoding with the model's own linears."""

    def way(self, requests: Sequence[Request], sampling: Sampling) -> str:
        return "generate"  # none of the engine's ways: ``padded`` is the same with linears that the engine has packed


def engines(scene: Scene, loaded: models.LoadedModel, compute: torch.dtype) -> dict[str, Player]:
    """A player by our engine, and one by transformers' ``generate``."""
    ours = player_of(scene, loaded, compute)
    padded = Padded(loaded, compute=compute, batch_size=PADDED_ROWS)
    return {"ours": ours, "padded": dataclasses.replace(ours, sampler=padded)}


def old(tree: Path, name: str, args: argparse.Namespace) -> tuple[int, float]:
    """Reply tokens and CPU seconds of the engine in another checkout, measured in a process of its own."""
    script = Path(__file__).with_name("rollout_scene.py")
    command = [
        sys.executable, str(script), name, "--repeats", "1", "--games", str(args.games), "--compute", args.compute,
        "--threads", str(args.threads), "--of", str(tree),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tree)}, cwd=tree, stdout=subprocess.PIPE, text=True, check=True
    )
    tokens, spent = json.loads(done.stdout.splitlines()[-1])[0]
    return tokens, spent


def counted(player: Player, jobs: Sequence[Job]) -> tuple[int, list[Request], tuple[int, int]]:
    """How many tokens the engine needs to read while it plays ``jobs``, what it is asked, and how many of the next
    tokens it guessed, in all and right; with one thread, so that all of it is in this process. What the engine reads to
    choose its way is not counted as needed, and neither is what it guessed wrong."""
    read, asked, drafts = [], [], set()
    usual, guess, submit, threads = Rows.read, Drafts.guess, player.sampler.submit, torch.get_num_threads()
    torch.set_num_threads(1)
    play(player, jobs[:1])

    def note(self: Rows, parts: Any) -> torch.Tensor:
        read.append(sum(len(part.ids) for part in parts))
        return usual(self, parts)

    def guessed(self: Drafts, *args: Any) -> list[int]:
        drafts.add(self)
        return guess(self, *args)

    def noted(request: Request, how: Sampling) -> int:
        asked.append(request)
        return submit(request, how)

    Rows.read, Drafts.guess = note, guessed  # type: ignore[method-assign]
    player.sampler.submit = noted  # type: ignore[method-assign]
    try:
        play(player, jobs)
    finally:
        Rows.read, Drafts.guess = usual, guess  # type: ignore[method-assign]
        player.sampler.submit = submit  # type: ignore[method-assign]
        torch.set_num_threads(threads)
    made, right = sum(one.made for one in drafts), sum(one.right for one in drafts)
    return sum(read) - made + right, asked, (made, right)


def vllm_arms(
    ours: Player, loaded: models.LoadedModel, compute: torch.dtype, jobs: Sequence[Job], asked: Sequence[Request],
    max_tokens: int,
) -> dict[str, Callable[[], int]]:  # fmt: skip
    """vLLM's arms, both after a warm-up and with as many sequences at once as ``ours``, and what they compare with."""
    fast: Any = vllm_engine.VllmSampler(loaded, compute=compute, batch_size=VLLM_ROWS)
    vllm = dataclasses.replace(ours, sampler=fast)
    play(vllm, jobs)

    def fresh(do: Callable[[], int]) -> int:
        fast._forget_prefixes()
        return do()

    return {
        "vllm": lambda: fresh(lambda: play(vllm, jobs)),
        "ours all": lambda: all_at_once(ours, asked),
        "vllm all": lambda: fresh(lambda: bare(fast, asked, max_tokens)),
    }


def all_at_once(player: Player, asked: Sequence[Request]) -> int:
    """Reply tokens of the in-process engine alone, given all requests at once."""
    player.sampler.rest()
    left = {player.sampler.submit(request, player.sampling) for request in asked}
    tokens = 0
    while left:
        for ticket, reply in player.sampler.collect():
            left.remove(ticket)
            tokens += len(reply.token_ids)
    player.sampler.rest()
    return tokens


def bare(fast: Any, asked: Sequence[Request], max_tokens: int) -> int:
    """Reply tokens of vLLM alone, given all requests at once."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.7, max_tokens=max_tokens, seed=request.seed, logprobs=0, detokenize=False,
            ignore_eos=True, stop_token_ids=list(fast.loaded.end_ids),
            extra_args={"agentopcd_choices": request.choices} if request.choices else None,
        )
        for request in asked
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in asked]
    outputs = fast._llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def rate(compute: torch.dtype) -> float:
    """Floating-point operations a CPU second in a product of 1,024 rows and columns."""
    one, other = (torch.randn(1024, 1024, dtype=compute) for _ in range(2))
    one @ other
    return max(2 * 1024**3 / timed(lambda: (one @ other).shape[0])[1] for _ in range(10))


def products_flop(model: Any, read: int, said: int) -> tuple[int, int]:
    """Operations of the products that read so many tokens, two a weight: those of the body, and those of the output
    head, which reads only the tokens whose next one is asked for, and in float32."""
    head = model.get_output_embeddings().weight
    tables = {id(p): p.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    body = sum(p.numel() for p in model.parameters()) - sum((tables | {id(head): head.numel()}).values())
    return 2 * body * read, 2 * head.numel() * said


def run(name: str, scene: Scene, args: argparse.Namespace, compute: torch.dtype) -> None:
    """Play one scene with every engine and print a table."""
    loaded = models.load_model(scene.model)
    jobs = jobs_of(scene, loaded, args.games or scene.games)
    ours, padded = engines(scene, loaded, compute).values()
    read, asked, (made, right) = counted(ours, jobs)  # a warm-up, too
    arms: dict[str, Callable[[], int]] = {"ours": lambda: play(ours, jobs), "padded": lambda: play(padded, jobs)}
    if args.vllm:
        arms |= vllm_arms(ours, loaded, compute, jobs, asked, scene.max_tokens)
    how = {arm: functools.partial(timed, do) for arm, do in arms.items()}
    if args.old:
        how["old"] = functools.partial(old, args.old.resolve(), name, args)
    found: dict[str, list[tuple[int, float]]] = {arm: [] for arm in how}
    for _ in range(args.repeats):
        for arm, measure in how.items():
            found[arm].append(measure())
    said = found["ours"][0][0]
    body, head = products_flop(loaded.model, read, said)
    limit_s = body / rate(compute) + head / rate(torch.float32)
    prompts = sum(len(request.prompt_ids) for request in asked)
    print(f"{name}: {scene.model}, {scene.env}, {len(jobs)} games, {len(asked)} replies, {prompts} prompt tokens, "
          f"{read} read by ours and {made} guessed, of which {right} right, {args.compute}, {args.threads} thread(s), "
          f"n = {args.repeats}"
          + (f", vLLM with {VLLM_ROWS} sequences at once" if args.vllm else ""))  # fmt: skip
    seconds = {arm: statistics.median(spent for _, spent in runs) for arm, runs in found.items()}
    for arm, runs in found.items():
        tokens = statistics.median(tokens / spent for tokens, spent in runs)
        share = (
            f"  limit {limit_s / seconds[arm]:.0%}"
            if arm == "ours"
            else f"  ours: {seconds[arm] / seconds['ours']:.2f} x"
        )
        print(f"  {arm:8} {tokens:8.1f} tokens a CPU-s {seconds[arm] / len(jobs):8.3f} CPU-s a game  {share}")
    if args.flight:
        many = dataclasses.replace(ours, concurrency=args.flight)
        for number in (1, 2):
            played = sum(1 for _ in many.play(jobs_of(scene, loaded, args.flight)))
            print(f"  {played} games at once, time {number}: {rss_mib():.0f} MiB")


def rss_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", action="append", choices=[*SCENES], help="only this scene; repeat for more")
    parser.add_argument("--games", type=int, default=0, help="another number of games")
    parser.add_argument("--flight", type=int, default=0, help="games at once for the memory")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm", action="store_true", help="vLLM beside them")
    parser.add_argument("--old", type=Path, help="a checkout of another commit, whose engine plays beside them")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    if args.old and not (args.old / "agentopcd").is_dir():
        parser.error(f"--old {args.old}: no checkout of agentopcd")
    if args.vllm and not vllm_engine.installed():
        parser.error("--vllm: vLLM is not installed (docs/engines.md)")
    torch.set_num_threads(args.threads)
    models.prepare_process()
    for name in args.scene or SCENES:
        run(name, SCENES[name], args, getattr(torch, args.compute))


if __name__ == "__main__":
    main()
