"""One run of the loop on the tiny model, for every test that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import consolidate as loop
from agentopcd import envs, models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.runs import Run
from agentopcd.core.types import Context, Episode, Job, Mixture, Sampling, Task
from agentopcd.distillation.methods import METHODS, Needs
from agentopcd.distillation.played import draw
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher, teacher_of
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import Sampler
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny

LESSONS = Context("- EXPERIENCE ITEM: always go left\n- EXPERIENCE ITEM: the goal is down")
ENDS = (tiny.END, *range(20, 50))
"""A random model hardly ever stops; with this many end tokens replies have all lengths."""
SMALL: dict[str, Any] = {
    "env": "math", "steps": 4, "batch_size": 3, "tokens_per_batch": 420, "max_tokens": 4, "temperature": 1.0,
    "learning_rate": 3e-4, "select_every": 2, "save_every": 2, "compute": "float32",
}  # fmt: skip


class Killed(BaseException):
    """Not an Exception, as a kill is not one either."""


def tasks(first: int, n: int) -> list[Task]:
    env = envs.make("math")
    return [Task(seed, envs.task_key(*env.reset(seed=seed))) for seed in range(first, first + n)]


TRAIN, SELECT = tasks(0, 5), tasks(100, 3)


@dataclasses.dataclass
class Trained:
    result: loop.Consolidated
    run: Run
    student: models.LoadedModel
    teacher: FrozenTeacher
    lines: list[str]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [record for record in self.run.records() if record["step"] > 0]

    @property
    def weights(self) -> bytes:
        return (self.result.folder / "model.safetensors").read_bytes()


def train(
    model_dir: Path, work: Path, *, context: Context | Mixture = LESSONS, kill_at: int = 0,
    ends: tuple[int, ...] = ENDS,
    share: bool = False, game: dict[str, Any] | None = None, by: str = "success", **changes: Any,
) -> Trained:  # fmt: skip
    """One run of the loop; with ``kill_at`` it dies while it says its so-many-th line."""
    config = ConsolidateConfig(**SMALL | changes)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.compute]
    student = models.load_model(str(model_dir))
    student.end_ids = ends
    if config.lora_rank:
        models.add_adapter(student, config.lora_rank, dtype, config.seed)
    prefixes = [Chat(student.tokenizer).prefix(part) for part in context.parts] if share else []
    teacher = teacher_of(config, student, student, compute=dtype, prefixes=prefixes)
    sampler: Sampler = TransformersSampler(student, compute=dtype)
    if config.server:
        sampler = ServerSampler(student, compute=dtype, urls=config.servers)
    player = Player(
        game=Game(ref="math", **(game or {})), sampler=sampler, chat=Chat(student.tokenizer),
        sampling=config.sampling, seed=config.seed,
    )  # fmt: skip
    run = Run(work, "consolidate", {"env": "math", "settings": config.to_dict()})
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == kill_at:
            raise Killed

    episodes = METHODS[config.method].prepare(needs(config, context, player, run.folder)) if config.asks_teacher else []
    public: Any = loop  # the module, called as `from agentopcd import consolidate` gives it
    result = public(
        loop.Training(config=config, context=context, train=TRAIN, select=SELECT, by=by), student=student,
        teacher=teacher, method=METHODS[config.method](config, player, episodes), run=run, say=say,
    )  # fmt: skip
    return Trained(result, run, student, teacher, lines)


def needs(config: ConsolidateConfig, context: Context | Mixture, teacher: Player, folder: Path) -> Needs:
    """What ``distil.train_student`` gives to a method, with these train tasks."""
    return Needs(
        config=config, context=context, teacher=lambda: teacher, stored=[], folder=folder, ranks=Ranks(),
        jobs=lambda: [job for step in range(1, config.steps + 1) for job in draw(TRAIN, step, config)],
        say=lambda line: None,
    )  # fmt: skip


def play_some(model_dir: Path, **sampling: Any) -> tuple[list[Episode], Chat]:
    student = models.load_model(str(model_dir))
    student.end_ids = ENDS
    sampler, chat = TransformersSampler(student, compute=torch.float32), Chat(student.tokenizer)
    player = Player(game=Game(ref="math"), sampler=sampler, chat=chat, sampling=Sampling(max_tokens=3, **sampling))
    return list(player.play([Job(task) for task in TRAIN])), chat


def turn_sample(student_ids: Sequence[int], teacher_ids: Sequence[int], response_ids: Sequence[int]) -> Sample:
    return Sample(
        student_ids=tuple(student_ids), teacher_ids=tuple(teacher_ids), response_ids=tuple(response_ids),
        logprobs=(0.0,) * len(response_ids), turn=0,
    )  # fmt: skip


@torch.no_grad()
def plain_logits(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """The logits ``[N, V]`` of a response's tokens, from one whole forward pass."""
    return model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
