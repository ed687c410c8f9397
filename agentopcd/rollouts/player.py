"""Play episodes: many at once, each at its own pace.

An episode steps its environment as soon as its reply arrives and then asks for the next reply, so no episode waits
for a slow one. An episode that ends makes room for the next job. Environments are stepped in this thread; one that
declares itself slow runs in a process of its own, one that waits for others in a thread.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

from agentopcd import envs
from agentopcd.core.calls import as_written
from agentopcd.core.errors import AgentOpcdError, ConfigError, EnvError, GameFault, TemplateError
from agentopcd.core.text import after_thinking
from agentopcd.core.types import Completion, Episode, Job, Message, Part, Request, Sampling, StopReason, Tool, Turn
from agentopcd.rollouts import chat as chats
from agentopcd.rollouts.fault_log import Fault, FaultLog
from agentopcd.rollouts.game import Game, told
from agentopcd.rollouts.history import turn_messages
from agentopcd.rollouts.sampling import Sampler, request_seed, shares
from agentopcd.rollouts.sampling.protocol import check_room

SLOW_AT_ONCE = 64
"""The most slow games that run at once, each in a process or a thread of its own."""
MAX_REPLY_IN_LOG = 300
"""The most characters of an earlier reply that a later prompt repeats, if the environment names no action."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Player:
    """Everything that turns a job into an episode: game, sampler, chat and sampling settings."""

    game: Game
    sampler: Sampler
    chat: chats.Chat
    sampling: Sampling
    seed: int = 0
    concurrency: int = 128
    """The most episodes in flight at each sampler; of slow games, no more than :data:`SLOW_AT_ONCE`."""
    retries: int = 2
    """How often an episode whose environment raised is restarted before it ends as ``env_error``."""
    faults: FaultLog | None = None
    """Where what breaks an episode is written down."""

    def setup(self) -> dict[str, Any]:
        """Everything that affects play besides model, context and task. Episodes of two setups are never pooled."""
        return {
            **self.game.describe(), "sampling": dataclasses.asdict(self.sampling), "engine": self.sampler.engine,
            "seed": self.seed, "template": chats.PROMPT_VERSION, "template_args": self.chat.template_args,
            **({"day": self.chat.day.isoformat()} if self.chat.says_day else {}),
        }  # fmt: skip

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        """See :func:`play`."""
        return play(self, jobs)


def play(player: Player, jobs: Sequence[Job]) -> Iterator[Episode]:
    """Play every job and yield the episodes as they finish.

    An environment that raises costs only its own episode. The episode is restarted up to ``player.retries`` times, and
    then yielded with ``stop_reason="env_error"`` and the traceback. It never counts as a lost game.

    Raises:
        EnvError: the environment cannot be built, or a task's content does not match its key.
    """
    samplers = [player.sampler] if player.game.steps_apart else player.sampler.split(len(jobs))
    tables = {
        id(sampler): _Table(dataclasses.replace(player, sampler=sampler), jobs[number :: len(samplers)])
        for number, sampler in enumerate(samplers)
    }
    try:
        while busy := [table.player.sampler for table in tables.values() if table.busy]:
            for sampler in shares.ready(busy):
                yield from tables[id(sampler)].go_on()
    finally:  # the caller may stop early
        for table in tables.values():
            table.close()


class _Table:
    """The episodes of one sampler."""

    def __init__(self, player: Player, jobs: Sequence[Job]) -> None:
        self.player = player
        self._waiting = deque((job, 0) for job in jobs)
        self._live: dict[int, _Live] = {}
        apart = player.game.steps_apart
        self._most = min(player.concurrency, SLOW_AT_ONCE) if apart else player.concurrency
        self._steps = _InThreads(self._most) if apart else _Inline()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._live or self._steps.under_way)

    def go_on(self) -> Iterator[Episode]:
        """Hand out the replies that are there, fill empty seats, and yield the episodes that have ended."""
        for ticket, reply in self.player.sampler.collect() if self._live else ():
            episode = self._live.pop(ticket)
            self._steps.take(episode, functools.partial(episode.step, reply))
            yield from self._settle()
        yield from self._settle(wait=not self._live)  # wait for an environment only if no reply is under way
        while self._waiting and len(self._live) + self._steps.under_way < self._most:
            episode = _Live(self.player, *self._waiting.popleft())
            self._steps.take(episode, episode.start)
            yield from self._settle()

    def _settle(self, *, wait: bool = False) -> Iterator[Episode]:
        """Yield the episodes that have ended, and ask for the next reply of the others."""
        for running, succeeded in self._steps.done(wait=wait):
            if not succeeded:
                yield from _retry(running, self._waiting)
            elif running.episode is not None or not self._ask(running):
                assert running.episode is not None
                yield running.episode

    def _ask(self, running: _Live) -> bool:
        """Ask for the next reply; False if there can be none, which ends the episode."""
        try:
            if (request := running.request()) is None:
                return False
            self._live[self.player.sampler.submit(request, self.player.sampling)] = running
        except BaseException:  # it ends the run, and nobody else has this episode now
            running.close()
            raise
        return True

    def close(self) -> None:
        self.player.sampler.drop(self._live)
        self._steps.close([*self._live.values()])


class _Inline:
    """Steps environments in this thread, as soon as they are taken."""

    def __init__(self) -> None:
        self._done: list[tuple[_Live, bool]] = []

    @property
    def under_way(self) -> int:
        return len(self._done)

    def take(self, episode: _Live, act: Callable[[], None]) -> None:
        self._done.append((episode, episode.guarded(act)))

    def done(self, *, wait: bool) -> Iterator[tuple[_Live, bool]]:
        """The episodes whose step is done, and whether it succeeded."""
        while self._done:
            yield self._done.pop(0)

    def close(self, others: Sequence[_Live]) -> None:
        """End everything, and episodes that wait for replies."""
        for episode in others:
            episode.close()


class _InThreads:
    """Steps slow environments: each runs in its own process, or elsewhere, and a thread waits for it."""

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(most)
        self._running: dict[Future[bool], _Live] = {}

    @property
    def under_way(self) -> int:
        return len(self._running)

    def take(self, episode: _Live, act: Callable[[], None]) -> None:
        self._running[self._threads.submit(episode.guarded, act)] = episode

    def done(self, *, wait: bool) -> Iterator[tuple[_Live, bool]]:
        """See :class:`_Inline`; with ``wait``, wait for at least one step if any is under way."""
        over, _ = wait_for(self._running, timeout=None if wait else 0, return_when=FIRST_COMPLETED)
        for future in over:  # one by one: whoever stops in between leaves the others to close()
            yield self._running.pop(future), future.result()

    def close(self, others: Sequence[_Live]) -> None:
        """See :class:`_Inline`; without waiting for steps that nobody needs any more."""
        every = [*self._running.values(), *others]
        with ThreadPoolExecutor(len(every) or 1) as closing:  # at once: one environment may take seconds
            # This ends the process or the connection, so the thread that waits for it returns.
            list(closing.map(lambda episode: episode.close(), every))
        self._threads.shutdown(cancel_futures=True)
        for episode in self._running.values():  # environments that were still being built the first time
            episode.close()


def _retry(broken: _Live, waiting: deque[tuple[Job, int]]) -> Iterator[Episode]:
    """Put a broken episode's job back into the queue or, after the last retry, yield the episode as ``env_error``."""
    if broken.attempt < broken.player.retries:
        waiting.append((broken.job, broken.attempt + 1))
    else:
        yield broken.finish("env_error", success=False)


class _Live:
    """One episode in flight: its environment and its turns so far."""

    def __init__(self, player: Player, job: Job, attempt: int) -> None:
        self.player, self.job, self.attempt = player, job, attempt
        self.env: Any = None
        self.parts: list[Part] = []
        self.choices: tuple[tuple[int, ...], ...] = ()
        self.past: list[tuple[list[Part], str]] = []
        self.given: list[Message] | None = None
        """The next prompt, if the environment writes it itself."""
        self.tools: list[Tool] = []
        self.turns: list[Turn] = []
        self.metrics: dict[str, float] = {}
        self.error: str | None = None
        self.reply: str | None = None
        """What the environment was given last."""
        self.episode: Episode | None = None
        self._messages: list[Message] = []
        self._asked = Request(prompt_ids=(), seed=0)

    def guarded(self, act: Any) -> bool:
        """Run ``act`` and return whether it succeeded. What the game does wrong becomes this episode's error."""
        try:
            act()
        except Exception as error:
            self.error = traceback.format_exc(limit=-8)
            self.close()
            if isinstance(error, AgentOpcdError) and not isinstance(error, GameFault):
                raise  # our own errors concern the whole run
            self._write_down(traceback.format_exc())
            return False
        return True

    def start(self) -> None:
        """Build the environment, reset it and check that the task is the one that the splits name."""
        self.env = self.player.game.make()
        obs, info = self.env.reset(seed=self.job.task.seed)
        key = envs.task_key(obs, info)
        if key != self.job.task.key:
            raise EnvError(
                f"seed {self.job.task.seed} of {self.player.game.ref} gave task {key}, the splits say "
                f"{self.job.task.key}; the environment changed, so make new splits (and a new workspace)"
            )
        self.parts = self._seen(obs, info)
        self._check_choices()  # which ends the run, before anything is played with these settings

    def request(self) -> Request | None:
        """The request for the next reply; None if there can be none, which ends the episode."""
        game = self.player.game
        if game.constrain and not self.choices:
            unlisted = EnvError(f"{game.ref} lists no legal actions to hold replies to; leave --constrain out")
            if not self.turns:  # it lists none at all
                raise unlisted
            return self._break_off(unlisted)
        self._messages = self.given or turn_messages(self.player.game.form, self.past, self.parts)
        task, rep = self.job.task, self.job.rep
        seed = request_seed(self.player.seed, task.key, task.seed, rep, len(self.turns))
        try:
            self._asked = self.player.chat.request(
                self._messages, self.job.context, seed=seed, choices=self.choices, tools=self.tools
            )
        except TemplateError as error:  # roles that do not alternate, for example; the template takes other episodes
            return self._break_off(error)
        sampler, sampling = self.player.sampler, self.player.sampling
        room = sampler.room  # if no server can say it, the run ends
        try:
            self._check_choices()
            check_room([self._asked], sampling, room, "the model")
        except ConfigError as error:  # the observations or the choices have grown too long; other episodes go on
            return self._break_off(error)
        return self._asked

    def _break_off(self, error: Exception) -> None:
        """End the episode: there can be no next reply."""
        self.error = f"{type(error).__name__}: {error}"
        self._write_down(self.error)
        self.episode = self.finish("env_error", success=False)

    def step(self, reply: Completion) -> None:
        """Give ``reply`` to the environment and record the turn; end the episode if the environment does."""
        if reply.error:
            raise RuntimeError(reply.error)  # costs this episode, not the run
        text = self.player.chat.reply(reply, begun=bool(self.choices))
        said = after_thinking(text)  # what a model tries out while it thinks is no move, whatever the game looks for
        calls = 0
        if self.tools:
            said, calls = self.player.chat.with_calls(reply, text, self.tools)
        self.reply = said
        obs, reward, terminated, truncated, info = self.env.step(said)
        self.turns.append(
            Turn(
                parts=self.parts, messages=self._messages, prompt_ids=self._asked.prompt_ids, choices=self.choices,
                response_ids=reply.token_ids, logprobs=reply.logprobs, reply=text,
                finish_reason=reply.finish_reason, reward=float(reward), invalid=bool(info.get("invalid", False)),
                usage=reply.usage, tools=self.tools, calls=calls,
            )
        )  # fmt: skip
        self.metrics |= {name: float(value) for name, value in info.get("metrics", {}).items()}
        did = str(info.get("action") or as_written(said).strip()[:MAX_REPLY_IN_LOG] or "(nothing)")
        self.past.append((self.parts, did))
        self.parts = self._seen(obs, info)
        if terminated or truncated:
            won = self.player.game.solved([turn.reward for turn in self.turns], bool(terminated), info)
            stop: StopReason = "solved" if won else "failed" if terminated else "max_steps"
            self.episode = self.finish(stop, success=won)

    def finish(self, stop: StopReason, *, success: bool) -> Episode:
        """Close the environment and return the episode."""
        self.close()
        return Episode(
            env=self.player.game.label, task=self.job.task, rep=self.job.rep, context_id=self.job.context.id,
            turns=self.turns, outcome=self.parts, success=success, reward=sum(t.reward for t in self.turns),
            stop_reason=stop, error=self.error, metrics=self.metrics,
        )  # fmt: skip

    def _write_down(self, told_in_full: str) -> None:
        if self.player.faults is not None:
            self.player.faults.add(
                Fault(
                    env=self.player.game.label, job=self.job, turn=0 if self.reply is None else len(self.turns) + 1,
                    reply=self.reply or "", traceback=told_in_full, attempt=self.attempt + 1,
                )
            )  # fmt: skip

    def _seen(self, obs: str, info: Mapping[str, Any]) -> list[Part]:
        """The parts of an observation that the view shows; also takes over what else the next prompt is made of."""
        game = self.player.game
        if game.constrain:
            self.choices = self.player.chat.choices(game.spec.moves(info))
        self.tools = info.get("tools", self.tools)
        self.given = told(info, game.view)
        return envs.apply_view(envs.parts_of(obs, info), game.view)

    def _check_choices(self) -> None:
        """Refuse listed replies that would be cut, so that they count as invalid."""
        longest, most = max(map(len, self.choices), default=0), self.player.sampling.max_tokens
        if longest > most:
            raise ConfigError(
                f"--constrain: a listed reply has {longest} tokens with its end, and a reply may have {most}; raise "
                f"--max-tokens to {longest}"
            )

    def close(self) -> None:
        """Close the environment, once: the thread that steps it and the one that stops all of them may both come."""
        env, self.env = self.env, None
        if env is not None:
            env.close()
