"""The API engine: a model behind any OpenAI-compatible chat endpoint, whose tokens and weights are not visible here.

Messages go out and text comes back. That is enough to play, to score contexts and to extract experience. Such a model
cannot be the student, which must be scored on the very tokens that were sampled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai
import torch

from agentopcd.core.api import as_api
from agentopcd.core.calls import calls_from, unread, written
from agentopcd.core.errors import CallError, EngineError
from agentopcd.core.types import Completion, Message, Request, Sampling
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.sampling.protocol import Sampler, all_of
from agentopcd.rollouts.sampling.requests import Endpoint, arrived, at_one_of, in_background, patience, refused

SEED_MASK = (1 << 31) - 1
"""Cuts a seed to 31 bits, because some APIs take 32-bit integers only."""

TOO_LONG = (
    "context length", "context_length", "context size", "context_size", "context window",
    "maximum model length", "prompt is too long", "maximum number of tokens allowed",
)  # fmt: skip
"""What APIs say, in small letters, of a prompt for which the model has no room."""

KEPT = ("content_filter", "safety", "refusal", "recitation", "abort", "error")
"""Why a reply ended that the API keeps back, or that it broke off."""
CUT = ("length", "max_tokens", "model_length")
"""Why a reply ended that is as long as it may be."""
ENDED = ("stop", *CUT)
"""Why a reply may have ended that says nothing."""


class ApiServer(Endpoint):
    """One chat endpoint. An address with a path is used unchanged, since not every API lives under ``/v1``."""

    def __init__(self, url: str) -> None:
        root = url.rstrip("/")
        super().__init__(root, root if urlsplit(root).path.strip("/") else f"{root}/v1")
        self.limit = "max_tokens"
        """The API's name for the length limit. Newer models of some vendors take only ``max_completion_tokens``."""

    async def look_up(self) -> None:
        """Check that the API answers and accepts the key.

        Raises:
            EngineError: nothing answers, what answers is no such API, or the key is refused.
        """
        try:
            with as_api(self.url):
                await self.replies.models.list()
        except openai.APIConnectionError as error:
            raise EngineError(
                f"no API answers at {self.url}; is that its address? (--server URL, --extractor URL#NAME)"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise refused(self, error) from error
        except openai.APIStatusError:
            pass  # not every API lists its models; if something is wrong, the first request will show it

    async def chat(self, model: str, request: Request, sampling: Sampling, template_args: dict[str, Any]) -> Completion:
        """One reply. If the API withholds it or the prompt is too long, the :class:`Completion` has an ``error``."""
        limit = self.limit
        extra: dict[str, Any] = {limit: sampling.max_tokens} | ({"top_k": sampling.top_k} if sampling.top_k else {})
        if template_args:
            extra["chat_template_kwargs"] = template_args
        if request.tools:
            extra["tools"] = [dict(tool) for tool in request.tools]
        messages = _as_api(request.messages)
        self.busy += 1
        try:
            with as_api(self.url):
                answer: Any = await self.replies.chat.completions.create(
                    model=model, messages=messages, seed=request.seed & SEED_MASK, extra_body=extra,
                    temperature=sampling.temperature, top_p=sampling.top_p, timeout=patience(sampling.max_tokens),
                )  # fmt: skip
                return _read(self.url, answer.choices[0], answer.usage)
        except openai.BadRequestError as error:
            if any(words in f"{error} {error.body}".lower() for words in TOO_LONG):
                return Completion(token_ids=(), logprobs=(), finish_reason="stop", error=str(refused(self, error)))
            if limit != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
            self.limit = "max_completion_tokens"
            return await self.chat(model, request, sampling, template_args)
        finally:
            self.busy -= 1


def _read(url: str, choice: Any, used: Any) -> Completion:
    """A reply of the API. Servers have many words for its end, so what is neither cut nor kept back is complete."""
    text, why = choice.message.content or "", str(choice.finish_reason or "").lower()
    if choice.message.tool_calls:
        text = _with_calls(text, choice.message.tool_calls)
    if why in KEPT or not (text or why in ENDED):
        return Completion(
            token_ids=(), logprobs=(), finish_reason="stop", error=f"{url} kept a reply: {why or 'it is empty'}"
        )
    return Completion(
        token_ids=(), logprobs=(), finish_reason="length" if why in CUT else "stop", text=text,
        usage=(used.prompt_tokens, used.completion_tokens) if used else (0, 0),
    )  # fmt: skip


def _as_api(messages: Sequence[Message]) -> list[Any]:
    """Messages as the API takes them: the arguments of calls as JSON text."""
    out: list[Any] = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        out.append({**message, "tool_calls": calls} if calls else dict(message))
    return out


def _with_calls(text: str, made: Sequence[Any]) -> str:
    """A reply with the calls that the API has read from it, as text."""
    try:
        return written(text, calls_from((call.function.name, call.function.arguments, call.id) for call in made))
    except CallError as error:
        return unread(text, error)


class ApiSampler:
    """Samples from one API or several. Each request goes to the least busy API.

    Args:
        loaded: the result of :func:`agentopcd.models.load.behind_api`.
        urls: the addresses of the APIs.
        batch_size: the most requests in flight at each API.
        template_args: sent as ``chat_template_kwargs``, which vLLM's server, for example, understands.
    """

    engine = "api"
    room = 0
    """Unknown: the API refuses what is too long, which costs that episode."""

    def __init__(
        self, loaded: LoadedModel, *, urls: Sequence[str], batch_size: int = 32, compute: torch.dtype | None = None,
        template_args: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.loaded, self.template_args = loaded, dict(template_args or {})
        self.servers = [ApiServer(url) for url in urls]
        self._seats = asyncio.Semaphore(batch_size * len(urls))
        self._tickets = itertools.count()
        self._running: dict[concurrent.futures.Future[Completion], int] = {}
        self._looked = False

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """See :class:`agentopcd.rollouts.sampling.Sampler`.

        Raises:
            EngineError: the API cannot answer, or refuses to.
        """
        return all_of(self, [self.submit(request, sampling) for request in requests])

    def submit(self, request: Request, sampling: Sampling) -> int:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        if not self._looked:
            for server in self.servers:
                in_background(server.look_up()).result()
            self._looked = True
        ticket = next(self._tickets)
        self._running[in_background(self._ask(request, sampling))] = ticket
        return ticket

    def collect(self) -> list[tuple[int, Completion]]:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        return arrived(self._running)

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        unwanted = set(tickets)
        for future in [future for future, ticket in self._running.items() if ticket in unwanted]:
            future.cancel()
            del self._running[future]

    def split(self, jobs: int) -> Sequence[Sampler]:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        return [self]

    def rest(self) -> None:
        """Do nothing: the machine is not ours."""

    def update(self) -> float | None:
        """Refuse: an API cannot take weights.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"{self.loaded.name!r} behind an API cannot take weights, so it cannot be the student")

    async def _ask(self, request: Request, sampling: Sampling) -> Completion:
        async with self._seats:
            return await at_one_of(
                self.servers,
                lambda server: server.chat(self.loaded.name, request, sampling, self.template_args),
            )
