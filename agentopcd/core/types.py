"""The data types that all modules share: message, part, sampling, completion, turn, episode, task, context.

Plain data, standard library only. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from agentopcd.core.text import split_lines

PART_KINDS = ("rules", "feedback", "state", "actions", "outcome")
"""The kinds of text an observation is made of, in the order they are shown."""

SPLITS = ("test", "confirm", "select", "extract", "train")
"""The splits of an environment's tasks, in the order they are cut; a ``shared`` task is in all of them."""

MARKER = "- EXPERIENCE ITEM:"
"""Prefix of every line that the extractor writes (arXiv:2602.12275)."""

Part = tuple[str, str]
"""One piece of an observation: ``(kind, text)``, kind one of :data:`PART_KINDS`."""

Placement = Literal["system", "user"]
StopReason = Literal["solved", "failed", "max_steps", "env_error"]
FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message, in the form that chat templates take."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Of an assistant: its calls, each ``{"type": "function", "id": ..., "function": {"name": ..., "arguments":
    {...}}}``."""
    tool_call_id: NotRequired[str]
    """Of a tool: the call that it answers."""
    name: NotRequired[str]
    """Of a tool: its name."""


Tool = Mapping[str, Any]
"""A function that the model may call: ``{"type": "function", "function": {"name", "description", "parameters"}}``, the
parameters as JSON schema."""


class Task(NamedTuple):
    """A start state: the seed that produces it and the key that identifies its content."""

    seed: int
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How replies are drawn. Every field is explicit: no vendor default leaks in."""

    temperature: float = 0.7
    """Divides the logits before the softmax; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability mass; 1 keeps all. Training needs 1."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 keeps all. Training needs 0."""
    max_tokens: int = 256
    """Longest reply in tokens, end token included."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to answer. Its sampling noise depends only on ``seed`` and the token's position."""

    prompt_ids: tuple[int, ...]
    seed: int
    choices: tuple[tuple[int, ...], ...] = ()
    """Token ids of each allowed reply, end token included; if empty, every reply is allowed."""
    messages: tuple[Message, ...] = ()
    """The same prompt as messages, context included, for an API that takes only messages; no ``prompt_ids`` then."""
    tools: tuple[Tool, ...] = ()
    """For such an API: the tools of the prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One reply: the sampled ids (end token included when it was sampled) and their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log, under the sampling distribution (after temperature and truncation)."""
    finish_reason: FinishReason
    """``stop``: an end token was sampled; ``length``: ``max_tokens`` was reached."""
    text: str = ""
    """Reply text from an API, which returns no token ids."""
    usage: tuple[int, int] = (0, 0)
    """Tokens of prompt and reply, as the API counts them."""
    error: str = ""
    """Why the API withheld its reply. A withheld reply is not a move."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One prompt, one reply, and how the environment responded."""

    parts: list[Part]
    """The observation that the reply answers, after the view was applied."""
    messages: list[Message]
    """The whole prompt of this turn, without any context; the prompts of teacher and student are rendered from it."""
    prompt_ids: tuple[int, ...]
    """The prompt that the model answered (with the context, if the episode had one)."""
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reply: str
    """The response as text, for people and for the environment; never tokenised again for the loss."""
    finish_reason: FinishReason
    reward: float
    invalid: bool
    choices: tuple[tuple[int, ...], ...] = ()
    """The allowed replies, as in :class:`Request`."""
    usage: tuple[int, int] = (0, 0)
    """Tokens of prompt and reply, as an API counts them; used where there are no token ids."""
    tools: list[Tool] = dataclasses.field(default_factory=list)
    """The tools that the prompt names."""
    calls: int = 0
    """The calls of tools in the reply."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids) or self.usage[0]

    @property
    def output_tokens(self) -> int:
        return len(self.response_ids) or self.usage[1]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One finished episode, or one that an environment error cut short (``stop_reason == "env_error"``)."""

    env: str
    task: Task
    rep: int
    """Number of this repetition of the task; task and repetition together seed the replies."""
    context_id: str
    turns: list[Turn]
    outcome: list[Part]
    """The parts after the last reply: feedback and final reason. No reply follows; extraction reads them."""
    success: bool
    reward: float
    """Sum over turns; stored beside ``success``, never averaged in reports."""
    stop_reason: StopReason
    error: str | None = None
    """The traceback when ``stop_reason`` is ``env_error``; such an episode is never scored."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    first: int = 0
    """The number of its first turn: not 0 where one later turn of a stored episode was answered again."""

    @property
    def prompt_tokens(self) -> int:
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def output_tokens(self) -> int:
        return sum(turn.output_tokens for turn in self.turns)


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """Text that the teacher sees and the student does not, and where in the prompt it is placed.

    The text can be an agent's experience, a person's system prompt or any file. ``Context()`` is the
    empty context.
    """

    text: str = ""
    placement: Placement = "user"

    @property
    def id(self) -> str:
        """sha256 over placement and text; the empty context has the same id for every placement."""
        payload = f"{self.placement}\0{self.text}" if self.text else ""
        return hashlib.sha256(payload.encode()).hexdigest()

    @property
    def lines(self) -> list[str]:
        """The experience items in it, marker removed; empty for free text."""
        return [line[len(MARKER) :].strip() for line in split_lines(self.text) if line.startswith(MARKER)]

    @property
    def parts(self) -> tuple[Context, ...]:
        """The contexts in it: only itself; a :class:`Mixture` has several."""
        return (self,)

    def drawn(self, task: Task, rep: int) -> Context:
        """The context for one episode: always this one."""
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class Mixture:
    """Several contexts to distil at once: the teacher sees one of them in each episode."""

    parts: tuple[Context, ...]
    """Best first. None is empty, and all have the same placement."""
    weights: tuple[float, ...]
    """Relative frequency with which each context is drawn; above 0."""
    drawn_as: str = ""
    """The id of another mixture, whose draws this one takes; '': its own."""

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
        """The context for one episode, determined by the task, its repetition and the mixture."""
        return random.Random(f"{self.drawn_as or self.id}:{task.key}:{task.seed}:{rep}").choices(
            self.parts, self.weights
        )[0]


EMPTY = Context()
"""The empty context: the arm that every other arm is compared with."""


class Job(NamedTuple):
    """One episode to play: its task, context and repetition."""

    task: Task
    context: Context = EMPTY
    rep: int = 0
