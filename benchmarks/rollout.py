"""Multi-turn play beside the bare engine: ``python -m benchmarks.rollout`` (vLLM installed, see docs/engines.md).

``play`` is what ``agentopcd play`` does: environments step, prompts are rendered, replies kept in episodes. ``bare``
gives every prompt that came up in it to ``LLM.generate`` at once, with the same seeds and lengths; its prefix cache is
emptied before. ``transformers`` plays the same tasks with the other engine. One after the other, ``--repeats`` times;
medians of reply tokens a CPU second and a second. Then ``--flight`` episodes are played at once, twice, and the
memory of the process is read after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agentopcd import models
from agentopcd.core.types import Job, Request, Sampling
from agentopcd.envs.splits import build_splits
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from agentopcd.rollouts.sampling.vllm_engine import VllmSampler, _quiet

Timed = tuple[int, float, float]
"""Tokens, CPU seconds and seconds."""


def rss_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def timed(do: Callable[[], int]) -> Timed:
    """Tokens, CPU seconds and seconds of ``do``, which returns the tokens it made."""
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = do()
    return tokens, time.process_time() - cpu, time.perf_counter() - wall


def play(player: Player, jobs: Sequence[Job]) -> int:
    """Reply tokens of a game each."""
    return sum(len(turn.response_ids) for episode in player.play(jobs) for turn in episode.turns)


def requests_of(player: Player, fast: VllmSampler, jobs: Sequence[Job]) -> list[Request]:
    """What ``player`` asks its sampler ``fast`` for while it plays ``jobs``."""
    asked: list[Request] = []
    submit = fast.submit

    def noted(request: Request, how: Sampling) -> int:
        asked.append(request)
        return submit(request, how)

    fast.submit = noted  # type: ignore[method-assign]
    play(player, jobs)
    fast.submit = submit  # type: ignore[method-assign]
    return asked


def bare(fast: VllmSampler, asked: Sequence[Request], max_tokens: int) -> int:
    """Reply tokens of the engine alone, given all requests at once."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.7, max_tokens=max_tokens, seed=request.seed, logprobs=0, detokenize=False,
            ignore_eos=True, stop_token_ids=list(fast.loaded.end_ids),
        )
        for request in asked
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in asked]
    with _quiet():
        outputs = fast._llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def report(found: dict[str, list[Timed]], hits: tuple[int, int]) -> None:
    """Print each arm's tokens and medians, what play costs beside the others, and what the prefix cache found."""
    rates = {}
    for arm, runs in found.items():
        rates[arm] = [statistics.median(tokens / run[i] for tokens, *run in runs) for i in (0, 1)]
        print(f"{arm:12}  {runs[0][0]:6} tokens  {rates[arm][0]:8.1f} a CPU-s  {rates[arm][1]:8.1f} a second")
    for other in ("bare", "transformers"):
        cpu, wall = (rates["play"][i] / rates[other][i] for i in (0, 1))
        print(f"play / {other}: {cpu:.2f} by CPU, {wall:.2f} by wall")
    print(f"prefix cache: {hits[0]} of {hits[1]} prompt tokens found ({hits[0] / hits[1]:.0%})")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="sokoban")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--flight", type=int, default=1000, help="episodes at once for the memory; 0: leave out")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    compute = getattr(torch, args.compute)
    models.prepare_process()
    loaded = models.load_model(args.model)
    sampling = Sampling(temperature=0.7, max_tokens=args.max_tokens)
    tasks = build_splits(args.env, {}).tasks("train")
    jobs = [Job(tasks[i % len(tasks)], rep=i // len(tasks)) for i in range(max(args.episodes, args.flight))]
    some = jobs[: args.episodes]
    fast = VllmSampler(loaded, compute=compute)
    player = Player(game=Game(ref=args.env), sampler=fast, chat=Chat(loaded.tokenizer), sampling=sampling)
    slow = dataclasses.replace(player, sampler=TransformersSampler(loaded, compute=compute, batch_size=64))
    asked = requests_of(player, fast, some)  # a warm-up, too
    play(slow, some)
    found: dict[str, list[Timed]] = {"play": [], "bare": [], "transformers": []}
    hits = (0, 0)
    for _ in range(args.repeats):
        fast._llm.reset_prefix_cache()
        before = fast.cache_hits()
        found["play"].append(timed(lambda: play(player, some)))
        after = fast.cache_hits()
        hits = (after[0] - before[0], after[1] - before[1])
        fast._llm.reset_prefix_cache()
        found["bare"].append(timed(lambda: bare(fast, asked, args.max_tokens)))
        found["transformers"].append(timed(lambda: play(slow, some)))
    print(f"{args.model}, {args.env}, {args.episodes} episodes, {len(asked)} replies, {args.compute}, "
          f"{args.threads} thread(s), n = {args.repeats}")  # fmt: skip
    report(found, hits)
    if args.flight:
        many = dataclasses.replace(player, concurrency=args.flight)
        for number in (1, 2):
            played = sum(1 for _ in many.play(jobs[: args.flight]))
            print(f"{played} episodes in flight, time {number}: {rss_mib():.0f} MiB")


if __name__ == "__main__":
    main()
