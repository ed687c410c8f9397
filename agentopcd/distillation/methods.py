"""The training methods: whose answers a consolidation learns from, and by which divergence.

``opcd`` is the method of the paper; the others are its baselines, but for ``mixed``, which has a share of both.
Everything else is the same for all methods: tasks, teacher, masks, temperature, reduction, steps. To add a method,
write a class here and add its name to :data:`METHODS` and to the settings (``TrainConfig.method``).
"""

from __future__ import annotations

import dataclasses
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from agentopcd.core import transcript
from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import write_text, writing
from agentopcd.core.text import counted, first_line
from agentopcd.core.types import EMPTY, Context, Episode, Job, Mixture, Request, Task, Turn
from agentopcd.distillation import losses
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.fault_log import Fault
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.protocol import check_room, request_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method may use in :meth:`Method.prepare`."""

    config: TrainConfig
    context: Context | Mixture
    jobs: Callable[[], Sequence[Job]]
    """Returns all jobs of the run, in order, without the context."""
    teacher: Callable[[], Player]
    """Returns a player with the teacher's weights."""
    stored: Sequence[Episode]
    """Stored episodes of train tasks, for methods that replay them."""
    folder: Path
    """The run's folder; files written here survive a kill."""
    ranks: Ranks
    say: Callable[[str], None]


class Method:
    """Whose answers the student learns from, and by which divergence.

    Args:
        player: plays with the student's current weights.
        episodes: the result of :meth:`prepare`.
    """

    own: losses.Direction | None = None
    """The direction of the divergence, where it is part of the method."""
    by_teacher = False
    """Whether the teacher gave the answers, with the context in its prompt."""

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode] = ()) -> None:
        self.config, self.player = config, player
        self.temperature = config.loss_temperature or config.temperature
        self.parts: tuple[Method, ...] = (self,)
        """The methods that share the episodes of a step."""

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        """The episodes that the method needs before training begins; none by default."""
        return []

    @property
    def direction(self) -> losses.Direction:
        return self.own or self.config.direction or "reverse"

    @property
    def support_of(self) -> str:
        """Whose likeliest tokens are the support of the divergence."""
        return {"reverse": "student", "forward": "teacher", "jensen-shannon": "student and teacher"}[self.direction]

    @property
    def name(self) -> str:
        """The name of the loss, for logs."""
        form, k = self.config.divergence, self.config.support
        kl = {"reverse": "kl", "forward": "forward_kl", "jensen-shannon": "js"}[self.direction]
        return f"{kl}_full" if form == "full" else f"{kl}_topk{k}_{form}"

    def shares(self, jobs: Sequence[Job]) -> Sequence[tuple[Method, Sequence[Job]]]:
        """Which method plays which of a step's jobs."""
        return [(self, jobs)]

    def part(self, *, by_teacher: bool) -> Method:
        """The method whose loss a reply takes, by who gave it."""
        return next((part for part in self.parts if part.by_teacher == by_teacher), self)

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        """Yield the episodes to learn from. ``jobs`` carry no context."""
        raise NotImplementedError

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        """The loss of each token, from the logits ``[N, V]`` of both models and the token ids ``[N]``."""
        return losses.divergence(
            student_NV,
            teacher_NV,
            direction=self.direction,
            form=self.config.divergence,
            k=self.config.support,
            temperature=self.temperature,
        )

    def measured(self, figures: dict[str, float | int]) -> dict[str, float | int]:
        """``figures`` of the rollouts, without those that this method cannot measure."""
        return figures


class Opcd(Method):
    """On-policy context distillation (arXiv:2602.12275, Algorithm 1): the student's own answers, reverse KL."""

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        return self.player.play(jobs)


class PrefixReplay(Method):
    """Prefix replay, as OEL trains: the student answers one turn of a stored episode for each job.

    The prompts come from earlier play, by whichever model, or from a log of conversations, so training needs no
    environment. With ``turn_decay`` d, turn t is drawn with weight (1 - d)^t, since what stands before a later turn
    is less and less what the student itself would have said (ReOPD, arXiv:2607.04763).
    """

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player, episodes)
        self.turns: dict[Task, list[tuple[int, Turn]]] = {}
        for episode in episodes:
            self.turns.setdefault(episode.task, []).extend(enumerate(episode.turns))
        held = (turn for episode in episodes for turn in episode.turns if turn.choices and turn.finish_reason == "stop")
        if (turn := next(held, None)) is not None and not _in_own_words(turn, player.chat):
            raise ConfigError(
                "the stored turns were held to token ids of another tokenizer, so this student cannot answer them; "
                "play train tasks with a model that has the student's tokenizer, or leave --constrain out"
            )

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        return list(needs.stored)

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        player = self.player
        # Turn and seed depend on the run's seed, the task and the repetition alone. So they are the same after a kill
        # and for any number of processes.
        places = [(job.task.key, job.task.seed, job.rep) for job in jobs]
        turns = [
            drawn(self.turns[job.task], random.Random(f"{self.config.seed}:{place}"), self.config.turn_decay)
            for job, place in zip(jobs, places, strict=True)
        ]
        seeds = [request_seed(self.config.seed, "replay", *place) for place in places]
        asked = [
            player.chat.request(turn.messages, seed=seed, choices=turn.choices, tools=turn.tools)
            for (_, turn), seed in zip(turns, seeds, strict=True)
        ]
        long = {number: why for number, request in enumerate(asked) if (why := self._too_long(request))}
        replies = iter(player.sampler.sample([r for i, r in enumerate(asked) if i not in long], player.sampling))
        for at, (job, (number, turn), request) in enumerate(zip(jobs, turns, asked, strict=True)):
            if at in long:  # costs this turn, not the run
                yield self._without(job, number, long[at])
                continue
            reply = next(replies)
            text = player.chat.reply(reply, begun=bool(turn.choices))
            answered = dataclasses.replace(
                turn, prompt_ids=request.prompt_ids, response_ids=reply.token_ids, logprobs=reply.logprobs,
                reply=text, finish_reason=reply.finish_reason, reward=0.0, invalid=False,
                calls=player.chat.with_calls(reply, text, turn.tools)[1] if turn.tools else 0,
            )  # fmt: skip
            yield Episode(
                env=player.game.label, task=job.task, rep=job.rep, context_id=EMPTY.id, turns=[answered], outcome=[],
                success=False, reward=0.0, stop_reason="max_steps", first=number,
            )  # fmt: skip

    def _too_long(self, request: Request) -> str:
        """Why a stored prompt leaves no room for a reply; '' if it does."""
        room = self.player.sampler.room  # if no server can say it, the run ends
        try:
            check_room([request], self.player.sampling, room, "the model")
        except ConfigError as error:
            return str(error)
        return ""

    def _without(self, job: Job, number: int, why: str) -> Episode:
        """An episode without a reply, since there was no room for one."""
        env = self.player.game.label
        if self.player.faults is not None:
            told = f"{why} (turn {number} of a stored episode)"
            self.player.faults.add(Fault(env=env, job=job, turn=number + 1, reply="", traceback=told, attempt=1))
        return Episode(
            env=env, task=job.task, rep=job.rep, context_id=EMPTY.id, turns=[], outcome=[], success=False, reward=0.0,
            stop_reason="env_error", error=why, first=number,
        )  # fmt: skip

    def measured(self, figures: dict[str, float | int]) -> dict[str, float | int]:
        """Drop success and invalid share: no environment has judged the replies."""
        judged = ("rollout/success", "rollout/invalid_share")
        return {name: value for name, value in figures.items() if name not in judged}


def _in_own_words(turn: Turn, chat: Chat) -> bool:
    """Whether the reply of a stored turn is one of those that it was held to, as this tokenizer reads their ids."""
    known = [ids[:-1] for ids in turn.choices if max(ids) < len(chat.tokenizer) and ids[-1] == chat.end]
    return turn.reply.strip() in {chat.tokenizer.decode(ids).strip() for ids in known}


def drawn(turns: Sequence[tuple[int, Turn]], rng: random.Random, decay: float) -> tuple[int, Turn]:
    """One of some turns, with its number in its episode."""
    if not decay:
        return rng.choice(turns)
    return rng.choices(turns, [(1 - decay) ** number for number, _ in turns])[0]


class ContextDistillation(Method):
    """Off-policy context distillation: the teacher answers with the context; forward KL on the teacher's top-k."""

    own = "forward"
    by_teacher = True

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player, episodes)
        self.episodes = {(e.task, e.rep): e for e in episodes}

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        needs.say("the teacher answers, with the context")
        found = answers(needs.config, needs.teacher(), needs.context, needs.jobs(), needs.folder, needs.ranks)
        needs.say(f"the teacher won {sum(e.success for e in found)} of {counted(len(found), 'train episode')}")
        return found

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        for job in jobs:
            yield self.episodes[job.task, answered_as(job, self.config)]


class SeqKd(ContextDistillation):
    """Sequence-level distillation: cross-entropy on the teacher's answers. Logged masses are on the teacher's top-k."""

    @property
    def name(self) -> str:
        return "cross_entropy"

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, ids_N: Tensor) -> losses.TokenDivergence:
        divergence = super().divergence(student_NV.detach(), teacher_NV, ids_N)  # for the masses alone
        loss_N = -losses.token_logprobs(student_NV, ids_N.to(student_NV.device), self.temperature)
        return divergence._replace(loss_N=loss_N, value_N=loss_N.detach())


class Mixed(Method):
    """In each step, half of the episodes as :class:`Opcd`, and half as :class:`ContextDistillation`.

    Every reply takes the loss of its half. Of an odd number of episodes, the student plays the one more.
    """

    def __init__(self, config: TrainConfig, player: Player, episodes: Sequence[Episode]) -> None:
        super().__init__(config, player, episodes)
        self.parts = (Opcd(config, player), ContextDistillation(config, player, episodes))

    @classmethod
    def prepare(cls, needs: Needs) -> list[Episode]:
        size, jobs = needs.config.batch_size, needs.jobs()
        theirs = [job for start in range(0, len(jobs), size) for job in halves(jobs[start : start + size])[1]]
        return ContextDistillation.prepare(dataclasses.replace(needs, jobs=lambda: theirs))

    def shares(self, jobs: Sequence[Job]) -> Sequence[tuple[Method, Sequence[Job]]]:
        return list(zip(self.parts, halves(jobs), strict=True))

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)


def halves(jobs: Sequence[Job]) -> tuple[Sequence[Job], Sequence[Job]]:
    """The student's and the teacher's jobs of a step. The order of a step is random, so a half is a random half."""
    mine = (len(jobs) + 1) // 2
    return jobs[:mine], jobs[mine:]


def answered_as(job: Job, config: TrainConfig) -> int:
    """The repetition under which the teacher has answered the task of ``job``."""
    return 0 if config.answers == "once" else job.rep


METHODS: Mapping[str, type[Method]] = {
    "opcd": Opcd,
    "prefix-replay": PrefixReplay,
    "context-distillation": ContextDistillation,
    "seqkd": SeqKd,
    "mixed": Mixed,
}
"""Every method by its name in the settings."""


def answers(
    config: TrainConfig, teacher: Player, context: Context | Mixture, jobs: Sequence[Job], folder: Path, ranks: Ranks
) -> list[Episode]:
    """The teacher's episodes with the context, for all ``jobs`` of a run, each played once and written to ``folder``.

    After a kill, the call resumes from the episodes written there. Those that the environment broke are played again.

    Raises:
        ConfigError: the environment broke every episode.
    """
    asked = dict.fromkeys((job.task, answered_as(job, config)) for job in jobs)
    wanted = [Job(task, context.drawn(task, rep), rep) for task, rep in asked]
    files = sorted(folder.glob("answers-*.jsonl"))
    if ranks.main:
        for file in files:
            _mend(file)
    ranks.wait()  # the main process alone writes here, and every process reads what it has written
    found = [episode for file in files for episode in _read(file)]
    found = [episode for episode in found if episode.stop_reason != "env_error"]
    have = {(e.task, e.rep) for e in found}
    ranks.wait()  # every process has read before any process writes
    missing = [job for job in wanted if (job.task, job.rep) not in have]
    played: list[Episode] = []
    path = folder / f"answers-{ranks.index}.jsonl"
    if missing and ranks.count > 1:
        teacher.sampler.update()  # servers get the teacher's weights once, from the main process
    for episode in teacher.play(ranks.mine(missing)):
        played.append(episode)
        with writing(path), path.open("a", encoding="utf-8") as file:  # at once: a kill loses no finished episode
            file.write(_line(transcript.to_json(episode)))
    found += [episode for share in ranks.everyone(played) for episode in share]
    if all(episode.stop_reason == "env_error" for episode in found):
        raise ConfigError(f"the environment broke all {len(found)} episodes of the teacher: {found[0].error}")
    return found


def _line(episode: dict[str, Any]) -> str:
    """One line of a file of answers: an episode as JSON, a tab, and the checksum of the JSON."""
    body = json.dumps(episode)
    return f"{body}\t{zlib.crc32(body.encode()):08x}\n"


def _mend(file: Path) -> None:
    """Remove a last line that a kill has cut."""
    *lines, cut = file.read_bytes().split(b"\n")
    if cut:
        write_text(file, b"".join(line + b"\n" for line in lines).decode("utf-8", "replace"))


def _read(file: Path) -> list[Episode]:
    """The episodes of the file's complete lines.

    Raises:
        ConfigError: a line is damaged. Lines of version 0.1 have no checksum.
    """
    lines = file.read_bytes().split(b"\n")[:-1]  # after the last newline is nothing, or what a kill has cut
    found = []
    for number, line in enumerate(lines, 1):
        body, _, checksum = line.partition(b"\t")
        try:
            if checksum and int(checksum, 16) != zlib.crc32(body):
                raise ValueError("its checksum is another")
            found.append(transcript.from_json(json.loads(body)))
        except transcript.UNREADABLE as error:
            raise ConfigError(
                f"line {number} of {file} is damaged ({first_line(error)}); remove that line, and the teacher answers "
                "again"
            ) from error
    return found
