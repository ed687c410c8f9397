"""The server engine: sampling from vLLM servers, on this machine or others, through their OpenAI-compatible API.

A server can restart with its first weights, or somebody else can change them. So the weights that we load carry a
label, and a reply counts only if the label is still there when it arrives. Otherwise the server gets the weights again,
and the request is repeated with the same seed. This needs vLLM's development endpoints. A server without them is
frozen: its log-probabilities are compared with the model's, and it can play, but it cannot be the student.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import openai
import torch
from safetensors.torch import save_file

from agentopcd import models
from agentopcd.core.errors import AlignmentError, EngineError
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling.protocol import check_room
from agentopcd.rollouts.sampling.requests import (
    RETRIED,
    Endpoint,
    at_one_of,
    client_options,
    in_background,
    patiently,
    refused,
)
from agentopcd.rollouts.sampling.same_weights import GAP_NATS, gap_nats, named_weights
from agentopcd.rollouts.sampling.vllm_command import start_line


class Server(Endpoint):
    """One vLLM server: the model that it serves, and the state of its weights."""

    def __init__(self, url: str) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        super().__init__(root, f"{root}/v1")
        self.control = openai.OpenAI(base_url=root, **client_options())
        self.serves, self.room = "", 0
        self.takeovers = 0
        """How often the server got weights from us. A reply requested before the last time does not count."""
        self.keeps: Any = None
        """The folder of the server's adapter, which must exist while the adapter is in use."""
        self.doubtful = False
        """Whether the server has failed since its weights were last checked."""

    def look(self, wanted: str) -> None:
        """Find out which model the server serves, and with how many positions.

        Raises:
            EngineError: the server serves no model or several, and none is named ``wanted``.
        """
        served = self._get("/v1/models").get("data") or []
        names = [str(model.get("id")) for model in served]
        if len(names) != 1 and wanted not in names:
            raise EngineError(
                f"{self.url} serves {', '.join(names) or 'no model'} and nothing named {wanted!r}; start it with "
                f"--served-model-name {wanted}"
            )
        self.serves = wanted if wanted in names else names[0]
        self.room = int(served[names.index(self.serves)].get("max_model_len") or 0)

    async def complete(
        self, model: str, request: Request, sampling: Sampling, end_ids: Sequence[int]
    ) -> Completion | None:
        """One reply; None if the request was aborted because somebody paused the server.

        Every setting is sent, so that no default of the server or of the model's vendor applies.
        """
        self.busy += 1
        try:
            answer = await self.replies.completions.create(
                model=model, prompt=list(request.prompt_ids), max_tokens=sampling.max_tokens, seed=request.seed,
                temperature=sampling.temperature, top_p=sampling.top_p, logprobs=0,
                extra_body={
                    "top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
                    "stop_token_ids": list(end_ids), "ignore_eos": True, "return_token_ids": True,
                },
            )  # fmt: skip
        finally:
            self.busy -= 1
        choice: Any = answer.choices[0]
        if choice.finish_reason == "abort":
            return None
        ids = getattr(choice, "token_ids", None)
        if ids is None or choice.logprobs is None or len(choice.logprobs.token_logprobs or ()) != len(ids):
            raise EngineError(
                f"{self.url} answers without token ids and their log-probabilities; replies are never tokenised again "
                "here, so take a server that has them, such as vLLM's, or only play with it (--engine api)"
            )
        return Completion(
            token_ids=tuple(ids), logprobs=tuple(choice.logprobs.token_logprobs),
            finish_reason="stop" if ids and ids[-1] in end_ids else "length",
        )  # fmt: skip

    def failed(self) -> float:
        """See :class:`agentopcd.rollouts.sampling.requests.Endpoint`. After a failure the weights are in doubt."""
        self.doubtful = True
        return super().failed()

    # -- weights: vLLM's development endpoints ------------------------------------------------------

    def label(self) -> str | None:
        """The label of the server's weights; None for a server without labels."""
        try:
            return str(self._get("/weight_info").get("weight_version") or "")
        except openai.NotFoundError:
            return None

    def name_weights(self, label: str) -> None:
        self._post("/update_weight_version", {"new_version": label})

    def load(self, folder: Path) -> None:
        """Let the server read all weights from ``folder``, which it must be able to see."""
        self._post("/pause?mode=abort")  # no reply may mix old and new weights
        try:
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            if not self._post("/reset_prefix_cache").get("success"):
                raise EngineError(f"{self.url} cannot reset its prefix cache while others use it; use it alone")
        finally:
            self._post("/resume")

    def load_adapter(self, name: str, folder: Path) -> None:
        self.unload_adapter(name)
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        with contextlib.suppress(openai.NotFoundError):  # the server no longer has the adapter
            self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def _get(self, path: str) -> dict[str, Any]:
        answer: Any = self.control.get(path, cast_to=object)
        return answer if isinstance(answer, dict) else {}

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: Any = self.control.post(path, body=body or {}, cast_to=object)
        return answer if isinstance(answer, dict) else {}


def sampler_of(
    loaded: models.LoadedModel, *, compute: torch.dtype, urls: Sequence[str], batch_size: int = 64
) -> ServerSampler:
    """The current sampler if the servers already have the weights of ``loaded``, else a new one."""
    last = ServerSampler.current
    if last is not None and last.loaded is loaded and last.kind == (compute, tuple(urls), batch_size, loaded.adapter):
        return last
    return ServerSampler(loaded, compute=compute, urls=urls, batch_size=batch_size)


class ServerSampler:
    """Samples from one server or several. Each request goes to the least busy server.

    Args:
        loaded: the model. Servers that can take weights get the model's weights in memory.
        compute: the dtype that the servers compute in. It sets how far their log-probabilities may be off.
        urls: the servers' addresses, with or without ``/v1``.
        batch_size: the most requests in flight at each server.
    """

    current: ClassVar[ServerSampler | None] = None
    """The sampler whose weights the servers have, as far as this process knows."""

    def __init__(
        self, loaded: models.LoadedModel, *, compute: torch.dtype, urls: Sequence[str], batch_size: int = 64
    ) -> None:
        self.loaded, self.compute, self.batch_size = loaded, compute, batch_size
        self.engine = f"server-{str(compute).removeprefix('torch.')}"
        self.kind = (compute, tuple(urls), batch_size, loaded.adapter)
        self.servers = [Server(url) for url in urls]
        self.label = ""
        self._tickets = itertools.count()
        self._asked: dict[int, tuple[Request, Sampling]] = {}
        self._running: dict[concurrent.futures.Future[Any], int] = {}
        self._seats = asyncio.Semaphore(batch_size * len(urls))

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            ConfigError: a prompt and its longest reply do not fit into the positions of model or server.
            EngineError: the servers cannot answer, or refuse to.
        """
        self._begin()
        check_room(requests, sampling, self.room, self.loaded.name)
        tickets = [self.submit(request, sampling) for request in requests]
        replies: dict[int, Completion] = {}
        while len(replies) < len(tickets):
            replies |= self.collect()
        return [replies[ticket] for ticket in tickets]

    def submit(self, request: Request, sampling: Sampling) -> int:
        """See :class:`.protocol.Sampler`."""
        if request.choices:
            raise EngineError("a server cannot hold replies to a list; leave out --constrain or --server")
        self._begin()
        check_room([request], sampling, self.room, self.loaded.name)
        ticket = next(self._tickets)
        self._asked[ticket] = (request, sampling)
        self._send(ticket)
        return ticket

    def collect(self) -> list[tuple[int, Completion]]:
        """See :class:`.protocol.Sampler`."""
        ready: list[tuple[int, Completion]] = []
        while not ready:
            done, _ = concurrent.futures.wait(self._running, return_when=concurrent.futures.FIRST_COMPLETED)
            arrived = [(self._running.pop(future), *future.result()) for future in done]
            # Check each server's weights after its replies have arrived, and only then count the replies.
            unreachable = set()
            for server in {server for _, server, _, _ in arrived}:
                aborted = any(reply is None for _, other, _, reply in arrived if other is server)
                try:
                    unchanged = not aborted and self._as_it_was(server)
                except RETRIED:  # the replies cannot be trusted; the server is checked once it is back
                    server.failed()
                    unreachable.add(server)
                    continue
                if not unchanged:
                    self._take_over(server)
            for ticket, server, takeovers, reply in arrived:
                if reply is not None and takeovers == server.takeovers and server not in unreachable:
                    del self._asked[ticket]
                    ready.append((ticket, reply))
                else:
                    self._send(ticket)
        return ready

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`.protocol.Sampler`."""
        unwanted = set(tickets)
        for future, ticket in list(self._running.items()):
            if ticket in unwanted:
                future.cancel()
                del self._running[future], self._asked[ticket]

    def rest(self) -> None:
        """Do nothing: others may be using the servers."""

    def update(self) -> float | None:
        """Give all servers the model's weights and compare log-probabilities; see :class:`.protocol.Sampler`.

        Returns:
            The largest difference of any server, in nats.

        Raises:
            EngineError: a server cannot take weights.
            AlignmentError: a server does not sample with the model's weights.
        """
        self._begin()
        before, self.label = self.label, f"agentopcd-{uuid.uuid4().hex[:12]}"
        gap = max(self._take_over(server, must=True) for server in self.servers)
        if self.loaded.adapter is not None:
            for server in self.servers:
                with one_line(server, self):
                    server.unload_adapter(before)
        return gap

    # -- requests -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give the servers the model's weights before the first request and after another model has used them."""
        if ServerSampler.current is self:
            return
        for server in self.servers:
            with one_line(server, self):
                server.look(self.loaded.name)
        self.label = f"agentopcd-{uuid.uuid4().hex[:12]}"
        for server in self.servers:
            self._take_over(server)
        ServerSampler.current = self

    @property
    def room(self) -> int:
        """See :class:`.protocol.Sampler`."""
        positions = models.positions(self.loaded.model)
        return min((room for room in (positions, *(server.room for server in self.servers)) if room), default=0)

    def _send(self, ticket: int) -> None:
        self._running[in_background(self._ask(*self._asked[ticket]))] = ticket

    async def _ask(self, request: Request, sampling: Sampling) -> tuple[Server, int, Completion | None]:
        """The server that answered, its takeovers when it was asked, and the reply; None if it has lost the adapter."""

        async def ask(server: Server) -> tuple[Server, int, Completion | None]:
            takeovers = server.takeovers
            try:
                reply = await server.complete(self._model(server), request, sampling, self.loaded.end_ids)
            except openai.NotFoundError:
                if self.loaded.adapter is None:
                    raise
                reply = None
            return server, takeovers, reply

        async with self._seats:
            return await at_one_of(self.servers, ask)

    def _model(self, server: Server) -> str:
        return server.serves if self.loaded.adapter is None else self.label

    # -- weights ------------------------------------------------------------------------------------

    def _as_it_was(self, server: Server) -> bool:
        """Whether the server's replies so far come from the weights that we loaded."""
        with one_line(server, self, away=False):
            label = server.label()
        return not server.doubtful if label is None else label == self.label

    def _take_over(self, server: Server, *, must: bool = False) -> float:
        """Give ``server`` the model's weights, and return how far its log-probabilities are off, in nats.

        A server that takes weights always gets them, because in bfloat16 log-probabilities cannot tell apart weights
        that are a few steps from each other. A frozen server is only compared; with ``must`` it is refused.
        """
        server.takeovers += 1
        with one_line(server, self):
            frozen = patiently(server.label) is None
            if not frozen:
                self._push(server)
            elif must or self.loaded.adapter is not None:
                raise EngineError(
                    f"{server.url} cannot take weights (no development endpoints): it can play and write experience "
                    f"down, but not be the student; {start_line(self.loaded, self.compute, server.url)}"
                )
            gap = gap_nats(self.loaded, self.compute, functools.partial(self._sample_at, server))
            if not gap <= GAP_NATS[self.compute]:  # also refuses NaN
                raise AlignmentError(
                    f"{server.url} serves {server.serves!r} and is off by {gap:.3g} nats a token from "
                    f"{self.loaded.name!r} (more than {GAP_NATS[self.compute]}), so its replies would not be that "
                    f"model's; {start_line(self.loaded, self.compute, server.url)}"
                )
            if not frozen:
                server.name_weights(self.label)
        server.doubtful = False
        return gap

    def _push(self, server: Server) -> None:
        folder = tempfile.TemporaryDirectory()
        if self.loaded.adapter is not None:
            self.loaded.adapter.save_pretrained(folder.name)
            server.load_adapter(self.label, Path(folder.name))
            server.keeps = folder  # vLLM reads an evicted adapter again, and crashes if its folder is gone
            return
        with folder:
            weights = {name: p.cpu().contiguous().clone() for name, p in named_weights(self.loaded).items()}
            save_file(weights, Path(folder.name) / "model.safetensors")
            server.load(Path(folder.name))

    def _sample_at(self, server: Server, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        async def ask() -> list[Completion]:
            model = self._model(server)
            found = await asyncio.gather(*(server.complete(model, r, sampling, self.loaded.end_ids) for r in requests))
            if None in found:
                raise EngineError(f"{server.url} is paused by somebody while its weights are checked; use it alone")
            return [reply for reply in found if reply is not None]

        return patiently(lambda: in_background(ask()).result())


@contextlib.contextmanager
def one_line(server: Server, sampler: ServerSampler, *, away: bool = True) -> Iterator[None]:
    """Turn the client's errors about ``server`` into one line; without ``away``, temporary errors pass unchanged."""
    try:
        yield
    except openai.APIConnectionError as error:
        if not away:
            raise
        raise EngineError(
            f"no server answers at {server.url}; {start_line(sampler.loaded, sampler.compute, server.url)}"
        ) from error
    except openai.APIStatusError as error:
        if isinstance(error, RETRIED) and not away:
            raise
        raise refused(server, error) from error
