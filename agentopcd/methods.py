"""What a consolidation learns from, and by which divergence: a small class for each method.

``opcd`` is the method of the paper, the others are what it is compared with. All else is the same for all of them:
tasks, teacher, masks, temperature, reduction, steps.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from agentopcd import losses
from agentopcd.config import TrainConfig
from agentopcd.errors import ConfigError
from agentopcd.knowledge import transcript
from agentopcd.ranks import Ranks
from agentopcd.rollouts import Player
from agentopcd.sampling import request_seed
from agentopcd.types import EMPTY, Context, Episode, Job, Mixture, Task, Turn


class Opcd:
    """On-policy context distillation (arXiv:2602.12275, Algorithm 1): the student's own answers, reverse KL.

    Args:
        player: plays with the student's weights as they change.
    """

    direction, support_of = "reverse", "student"
    by_teacher = False
    """Whether the teacher answered, with the context in its prompt."""

    def __init__(self, config: TrainConfig, player: Player) -> None:
        self.config, self.player = config, player
        self.temperature = config.loss_temperature or config.temperature

    @property
    def name(self) -> str:
        """Of the loss, for logs."""
        form, k = self.config.divergence, self.config.support
        kl = "kl" if self.direction == "reverse" else "forward_kl"
        return f"{kl}_full" if form == "full" else f"{kl}_topk{k}_{form}"

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        """The episodes to learn from; ``jobs`` come without the context."""
        return self.player.play(jobs)

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        """The loss of each token, from both models' logits before softmax and the token itself."""
        return losses.divergence(
            student_NV, teacher_NV, form=self.config.divergence, k=self.config.support, temperature=self.temperature
        )

    def measured(self, figures: dict[str, float | int]) -> dict[str, float | int]:
        """What of the figures of a step's episodes means anything."""
        return figures


class PrefixReplay(Opcd):
    """The student's own reply to a turn of a stored episode, one for each job; the environment is not asked again.

    As OEL trains: whoever played gathers the prompts, and training needs no environment.

    Args:
        episodes: stored ones, of the train tasks that jobs name.
    """

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player)
        self.turns: dict[Task, list[Turn]] = {}
        for episode in episodes:
            self.turns.setdefault(episode.task, []).extend(episode.turns)

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        player = self.player
        places = [(job.task.key, job.task.seed, job.rep) for job in jobs]
        turns = [
            random.Random(f"{self.config.seed}:{place}").choice(self.turns[job.task])
            for job, place in zip(jobs, places, strict=True)
        ]
        seeds = [request_seed(self.config.seed, "replay", *place) for place in places]
        asked = [
            player.chat.request(turn.messages, seed=seed, choices=turn.choices)
            for turn, seed in zip(turns, seeds, strict=True)
        ]
        replies = player.sampler.sample(asked, player.sampling)
        for job, turn, request, reply in zip(jobs, turns, asked, replies, strict=True):
            answered = dataclasses.replace(
                turn, prompt_ids=request.prompt_ids, response_ids=reply.token_ids, logprobs=reply.logprobs,
                reply=player.chat.reply(reply), finish_reason=reply.finish_reason, reward=0.0, invalid=False,
            )  # fmt: skip
            yield Episode(
                env=player.game.label, task=job.task, rep=job.rep, context_id=EMPTY.id, turns=[answered], outcome=[],
                success=False, reward=0.0, stop_reason="max_steps",
            )  # fmt: skip

    def measured(self, figures: dict[str, float | int]) -> dict[str, float | int]:
        """No environment has judged the replies."""
        judged = ("rollout/success", "rollout/invalid_share")
        return {name: value for name, value in figures.items() if name not in judged}


class ContextDistillation(Opcd):
    """Off-policy context distillation: the teacher's answers, given with the context; forward KL on its top-k.

    Args:
        episodes: what :func:`answers` wrote.
    """

    direction, support_of = "forward", "teacher"
    by_teacher = True

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player)
        self.episodes = {(e.task, e.rep): e for e in episodes}

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        for job in jobs:
            yield self.episodes[job.task, answered_as(job, self.config)]

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        form, k = self.config.divergence, self.config.support
        assert form != "stopgrad"  # refused with the settings
        return losses.forward_divergence(student_NV, teacher_NV, form=form, k=k, temperature=self.temperature)


class SeqKd(ContextDistillation):
    """Sequence-level distillation: cross-entropy on the teacher's answers. Masses are those of its top-k."""

    @property
    def name(self) -> str:
        return "cross_entropy"

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        seen = super().divergence(student_NV.detach(), teacher_NV, ids_N)
        loss_N = -losses.token_logprobs(student_NV, ids_N.to(student_NV.device), self.temperature)
        return seen._replace(loss_N=loss_N, value_N=loss_N.detach())


def answered_as(job: Job, config: TrainConfig) -> int:
    """The repetition under which the teacher answers the task of ``job``."""
    return 0 if config.answers == "once" else job.rep


def make(config: TrainConfig, player: Player, episodes: Sequence[Episode] = ()) -> Opcd:
    """The method of these settings; ``episodes`` are the teacher's, or stored ones, for those that learn from them."""
    if config.method == "opcd":
        return Opcd(config, player)
    known = {"prefix-replay": PrefixReplay, "context-distillation": ContextDistillation, "seqkd": SeqKd}
    return known[config.method](config, player, episodes)


def answers(
    config: TrainConfig, teacher: Player, context: Context | Mixture, jobs: Sequence[Job], folder: Path, ranks: Ranks
) -> list[Episode]:
    """The teacher's episodes with the context, for all ``jobs`` of a run, each played once and written to ``folder``.

    A killed call goes on from what is written there.

    Raises:
        ConfigError: the environment broke every one of them.
    """
    asked = dict.fromkeys((job.task, answered_as(job, config)) for job in jobs)
    wanted = [Job(task, context.drawn(task, rep), rep) for task, rep in asked]
    found = [episode for file in sorted(folder.glob("answers-*.jsonl")) for episode in _read(file)]
    have = {(e.task, e.rep) for e in found}
    ranks.wait()  # everybody has read before anybody writes
    missing = ranks.mine([job for job in wanted if (job.task, job.rep) not in have])
    own: list[Episode] = []
    with (folder / f"answers-{ranks.index}.jsonl").open("a") as file:
        for episode in teacher.play(missing):
            own.append(episode)
            file.write(json.dumps(transcript.to_json(episode)) + "\n")
            file.flush()
    found += [episode for share in ranks.everyone(own) for episode in share]
    if all(episode.stop_reason == "env_error" for episode in found):
        raise ConfigError(f"the environment broke all {len(found)} episodes of the teacher: {found[0].error}")
    return found


def _read(file: Path) -> Iterator[Episode]:
    """Complete lines; one that a kill has cut is dropped, from the file too."""
    lines = file.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        file.write_text("".join(whole))
    return (transcript.from_json(json.loads(line)) for line in whole)
