"""What a consolidation learns from, and by which divergence: a small class for each method.

``opcd`` is the method of the paper, the others are what it is compared with. All else is the same for all of them:
tasks, teacher, masks, temperature, reduction, steps. A new method is a class here and its name in
:data:`METHODS` and in the settings (``TrainConfig.method``).
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from agentopcd.core import transcript
from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context, Episode, Job, Mixture, Task, Turn
from agentopcd.distillation import losses
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import request_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method may use to prepare the episodes that it learns from."""

    config: TrainConfig
    context: Context | Mixture
    jobs: Callable[[], Sequence[Job]]
    """Draws all jobs of the run, in order, without the context."""
    teacher: Callable[[], Player]
    """Makes a player with the teacher's weights."""
    stored: Sequence[Episode]
    """Stored episodes of train tasks, for methods that replay them."""
    folder: Path
    """Of the run; what is written here survives a kill."""
    ranks: Ranks
    say: Callable[[str], None]


class Method:
    """Whose answers are learned from, and by which divergence.

    Args:
        player: plays with the student's weights as they change.
        episodes: what :meth:`prepare` returned.
    """

    direction: losses.Direction = "reverse"
    support_of = "student"
    """Whose likeliest tokens are the support of the divergence."""

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode] = ()) -> None:
        self.config, self.player = config, player
        self.temperature = config.loss_temperature or config.temperature

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        """The episodes that the method learns from, where it needs any before training begins."""
        return []

    @property
    def by_teacher(self) -> bool:
        """Whether the teacher answered, with the context in its prompt."""
        return self.config.by_teacher

    @property
    def name(self) -> str:
        """Of the loss, for logs."""
        form, k = self.config.divergence, self.config.support
        kl = "kl" if self.direction == "reverse" else "forward_kl"
        return f"{kl}_full" if form == "full" else f"{kl}_topk{k}_{form}"

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        """The episodes to learn from; ``jobs`` come without the context."""
        raise NotImplementedError

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        """The loss of each token, from both models' logits before softmax and the token itself."""
        return losses.divergence(
            student_NV,
            teacher_NV,
            direction=self.direction,
            form=self.config.divergence,
            k=self.config.support,
            temperature=self.temperature,
        )

    def measured(self, figures: dict[str, float | int]) -> dict[str, float | int]:
        """Drop rollout figures that this method cannot measure."""
        return figures


class Opcd(Method):
    """On-policy context distillation (arXiv:2602.12275, Algorithm 1): the student's own answers, reverse KL."""

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        return self.player.play(jobs)


class PrefixReplay(Method):
    """The student's own reply to a turn of a stored episode, one for each job; the environment is not asked again.

    As OEL trains: whoever played gathers the prompts, and training needs no environment.
    """

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player, episodes)
        self.turns: dict[Task, list[Turn]] = {}
        for episode in episodes:
            self.turns.setdefault(episode.task, []).extend(episode.turns)

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        return list(needs.stored)

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


class ContextDistillation(Method):
    """Off-policy context distillation: the teacher's answers, given with the context; forward KL on its top-k."""

    direction, support_of = "forward", "teacher"

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player, episodes)
        self.episodes = {(e.task, e.rep): e for e in episodes}

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        needs.say("the teacher answers, with the context")
        found = answers(needs.config, needs.teacher(), needs.context, needs.jobs(), needs.folder, needs.ranks)
        needs.say(f"it won {sum(e.success for e in found)} of {len(found)} train episodes")
        return found

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        for job in jobs:
            yield self.episodes[job.task, answered_as(job, self.config)]


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


METHODS: Mapping[str, type[Method]] = {
    "opcd": Opcd,
    "prefix-replay": PrefixReplay,
    "context-distillation": ContextDistillation,
    "seqkd": SeqKd,
}
"""Every method by the name that settings give it."""


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
