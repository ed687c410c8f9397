"""A scene of ``python -m benchmarks.rollout``, played by the in-process engine of whatever tree this runs in.

``python benchmarks/rollout_scene.py SCENE`` prints JSON: reply tokens and CPU seconds of each repetition. With
``PYTHONPATH`` at a checkout of an older commit, that commit's engine plays; so this file uses only what both have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.types import MARKER, Context, Job, Sampling
from agentopcd.envs.splits import build_splits
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is played."""

    model: str
    env: str
    games: int
    max_tokens: int
    max_steps: int = 0
    constrain: bool = False
    """The model may only give a reply that the game lists, so games go on and their transcripts grow."""
    context_tokens: int = 0
    """The length of each of eight contexts; 0: no context."""


SCENES = {
    "lake": Scene("pocket", "frozen-lake-4x4", 128, 128),
    "text-game": Scene("smollm2-135m", "gym-frozen-lake", 16, 24, max_steps=16, constrain=True),
    "contexts": Scene("smollm2-135m", "math", 64, 16, context_tokens=1000),
}


def contexts(tokenizer: Any, tokens: int) -> list[Context]:
    """Eight contexts of about so many tokens, of which no two begin alike."""
    found = []
    for number in range(8):
        lines = [f"{MARKER} Rule {number}: number the steps."]
        while len(tokenizer("\n".join(lines))["input_ids"]) < tokens:
            lines.append(f"{MARKER} In case {number}-{len(lines)}, add the larger number first and check the sign.")
        found.append(Context("\n".join(lines)))
    return found


def jobs_of(scene: Scene, loaded: models.LoadedModel, n: int) -> list[Job]:
    tasks = build_splits(scene.env, {}).tasks("train")
    shown = contexts(loaded.tokenizer, scene.context_tokens) if scene.context_tokens else [Context("")]
    return [
        Job(tasks[i // len(shown) % len(tasks)], context=shown[i % len(shown)], rep=i // len(shown) // len(tasks))
        for i in range(n)
    ]


def player_of(scene: Scene, loaded: models.LoadedModel, compute: torch.dtype) -> Player:
    """A player by the in-process engine."""
    return Player(
        game=Game(ref=scene.env, max_steps=scene.max_steps, constrain=scene.constrain), chat=Chat(loaded.tokenizer),
        sampler=TransformersSampler(loaded, compute=compute),
        sampling=Sampling(temperature=0.7, max_tokens=scene.max_tokens),
    )  # fmt: skip


def timed(do: Callable[[], int]) -> tuple[int, float]:
    """Reply tokens and CPU seconds of ``do``, which returns the tokens."""
    began = cpu_s()
    tokens = do()
    return tokens, cpu_s() - began


def cpu_s() -> float:
    """CPU seconds of this process and of those it has ended: with several threads, shares of a play are processes."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def play(player: Player, jobs: Sequence[Job]) -> int:
    """Reply tokens of a game each."""
    return sum(len(turn.response_ids) for episode in player.play(jobs) for turn in episode.turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", choices=[*SCENES])
    parser.add_argument("--games", type=int, default=0)
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--of", type=Path, help="the tree that must be the one that plays")
    args = parser.parse_args()
    tree = Path(models.__file__).resolve().parent.parent.parent
    if args.of and tree != args.of.resolve():
        sys.exit(f"the engine of {tree} would play, not that of {args.of}")
    torch.set_num_threads(args.threads)
    models.prepare_process()
    scene = SCENES[args.scene]
    loaded = models.load_model(scene.model)
    player = player_of(scene, loaded, getattr(torch, args.compute))
    jobs = jobs_of(scene, loaded, args.games or scene.games)
    play(player, jobs)  # a warm-up
    json.dump([timed(lambda: play(player, jobs)) for _ in range(args.repeats)], sys.stdout)


if __name__ == "__main__":
    main()
