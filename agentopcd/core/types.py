"""The words everyone uses: message, part, sampling, completion, turn, episode, task, context.

Plain data, standard library only. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import Literal, NamedTuple, TypedDict

PART_KINDS = ("rules", "feedback", "state", "actions", "outcome")
"""The kinds of text an observation is made of, in the order they are shown."""

SPLITS = ("test", "confirm", "select", "extract", "train")
"""The splits of an environment's tasks, in the order they are cut; ``shared`` stands for all at once."""

MARKER = "- EXPERIENCE ITEM:"
"""What a line written by the extractor starts with (arXiv:2602.12275)."""

Part = tuple[str, str]
"""One piece of an observation: ``(kind, text)``, kind one of :data:`PART_KINDS`."""

Placement = Literal["system", "user"]
StopReason = Literal["solved", "failed", "max_steps", "env_error"]
FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Task(NamedTuple):
    """A start state: the seed that makes it and the key that identifies its content."""

    seed: int
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How replies are drawn. Every field is explicit: no vendor default leaks in."""

    temperature: float = 0.7
    """Divides the logits before the softmax; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Smallest set of tokens with this much mass; 1 keeps all. Training needs 1."""
    top_k: int = 0
    """Keep this many tokens; 0 keeps all. Training needs 0."""
    max_tokens: int = 256
    """Longest reply, end token included."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to answer. Its noise depends on ``seed`` and the token's position alone."""

    prompt_ids: tuple[int, ...]
    seed: int
    choices: tuple[tuple[int, ...], ...] = ()
    """Token ids of the replies that are allowed, end token included; none: all are."""
    messages: tuple[Message, ...] = ()
    """The same prompt as messages, context included, for an API that takes nothing else; then there are no ids."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One reply: the sampled ids (end token included when it was sampled) and their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log, under the sampling distribution (after temperature and truncation)."""
    finish_reason: FinishReason
    """``stop``: an end token was sampled; ``length``: ``max_tokens`` was reached."""
    text: str = ""
    """What an API said, which gives no ids."""
    usage: tuple[int, int] = (0, 0)
    """Tokens of prompt and reply by an API's own count."""
    error: str = ""
    """Why there is no reply: the API kept it back. That is nobody's move."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One prompt, one reply, and what the environment made of it."""

    parts: list[Part]
    """The observation that the reply answers, after the view was applied."""
    messages: list[Message]
    """The whole prompt of this turn, without any context; teacher and student render from it."""
    prompt_ids: tuple[int, ...]
    """The prompt that was really answered (with the context, if the episode had one)."""
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reply: str
    """The response as text, for people and for the environment; never tokenised again for the loss."""
    finish_reason: FinishReason
    reward: float
    invalid: bool
    choices: tuple[tuple[int, ...], ...] = ()
    """The replies that were allowed, as in the request."""
    usage: tuple[int, int] = (0, 0)
    """Tokens of prompt and reply by an API's own count, where there are no ids."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids) or self.usage[0]

    @property
    def output_tokens(self) -> int:
        return len(self.response_ids) or self.usage[1]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One finished game, or one that the environment broke (``stop_reason == "env_error"``)."""

    env: str
    task: Task
    rep: int
    """Which repetition of this task it is; with the task it seeds the replies."""
    context_id: str
    turns: list[Turn]
    outcome: list[Part]
    """The parts after the last reply: feedback and final reason. No reply follows; extraction reads it."""
    success: bool
    reward: float
    """Sum over turns; kept beside ``success`` and never averaged in reports."""
    stop_reason: StopReason
    error: str | None = None
    """The traceback when ``stop_reason`` is ``env_error``; such an episode is never scored."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def output_tokens(self) -> int:
        return sum(turn.output_tokens for turn in self.turns)


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """Text the teacher sees and the student does not, and where it is put.

    Whoever wrote it: an agent's experience, a person's system prompt, a file. ``Context()`` is the
    empty context.
    """

    text: str = ""
    placement: Placement = "user"

    @property
    def id(self) -> str:
        """sha256 over placement and text; the empty context has one id whatever its placement."""
        payload = f"{self.placement}\0{self.text}" if self.text else ""
        return hashlib.sha256(payload.encode()).hexdigest()

    @property
    def lines(self) -> list[str]:
        """The experience items in it, marker removed; empty for free text."""
        return [line[len(MARKER) :].strip() for line in self.text.splitlines() if line.startswith(MARKER)]

    @property
    def parts(self) -> tuple[Context, ...]:
        """What a :class:`Mixture` has several of."""
        return (self,)

    def drawn(self, task: Task, rep: int) -> Context:
        """The context of one episode."""
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class Mixture:
    """Several contexts to distil at once: the teacher sees one of them in each episode."""

    parts: tuple[Context, ...]
    """The best first; none is empty, all are placed alike."""
    weights: tuple[float, ...]
    """How often each is drawn, in relation to the others; above 0."""

    @property
    def id(self) -> str:
        """sha256 over the ids of the contexts and their weights."""
        payload = [(part.id, weight) for part, weight in zip(self.parts, self.weights, strict=True)]
        return hashlib.sha256(repr(payload).encode()).hexdigest()

    @property
    def text(self) -> str:
        return "\n\n".join(context.text for context in self.parts)

    @property
    def placement(self) -> Placement:
        return self.parts[0].placement

    def drawn(self, task: Task, rep: int) -> Context:
        """The context of one episode; which one is a function of the task, its repetition and the mixture."""
        return random.Random(f"{self.id}:{task.key}:{task.seed}:{rep}").choices(self.parts, self.weights)[0]


EMPTY = Context()
"""The empty context: the arm every other one is compared with."""


class Job(NamedTuple):
    """One episode to be played: which task, under which context, which repetition."""

    task: Task
    context: Context = EMPTY
    rep: int = 0
