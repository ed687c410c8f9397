"""The server engine: sampling from vLLM servers, on this machine or others, through their OpenAI-compatible API.

A server can restart with its first weights, or somebody else can change them. So the weights that we load carry a
label, and a reply counts only if the label is still there when it arrives. Otherwise the server gets the weights again,
and the request is repeated with the same seed. This needs vLLM's development endpoints. A server without them is
frozen: its log-probabilities are compared with the model's, and it can play, but it cannot be the student.

Several processes that train together play through the same servers. The main one alone gives them new weights. A server
that has lost them gets them again from the process that sees it first. Each time the label has another ending, so that
the other processes know that replies they asked for before do not count.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import openai
import torch

from agentopcd import models
from agentopcd.core.errors import AlignmentError, EngineError
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling.protocol import Heard, Sampler, all_of, check_room
from agentopcd.rollouts.sampling.requests import (
    RETRIED,
    arrived,
    at_one_of,
    in_background,
    patiently,
    refused,
    took_too_long,
)
from agentopcd.rollouts.sampling.same_weights import GAP_NATS, gap_nats, named_weights
from agentopcd.rollouts.sampling.vllm_command import start_line
from agentopcd.rollouts.sampling.vllm_endpoints import Server

SOON_S = 0.02
"""How long :meth:`ServerSampler.advance` waits for a reply."""
RESTARTS = 3
"""So many times a server may lose its weights while they are checked."""


def sampler_of(
    loaded: models.LoadedModel,
    *,
    compute: torch.dtype,
    urls: Sequence[str],
    batch_size: int = 64,
    together: bool = False,
) -> ServerSampler:
    """The current sampler if the servers already have the weights of ``loaded``, else a new one."""
    last, ranks = ServerSampler.current, Ranks.current() if together else Ranks(alone=True)
    kind = (compute, tuple(urls), batch_size, loaded.adapter, ranks.count)
    if last is not None and last.loaded is loaded and last.kind == kind:
        return last
    return ServerSampler(loaded, compute=compute, urls=urls, batch_size=batch_size, ranks=ranks)


class ServerSampler:
    """Samples from one server or several. Each request goes to the least busy server.

    Args:
        loaded: the model. Servers that can take weights get the model's weights in memory.
        compute: the dtype that the servers compute in. It sets how far their log-probabilities may be off.
        urls: the servers' addresses, with or without ``/v1``.
        batch_size: the most requests in flight at each server.
        ranks: the processes that play together, each with a sampler like this one; None: this one alone. All of them
            must call :meth:`update` before the first request.
    """

    current: ClassVar[ServerSampler | None] = None
    """The sampler whose weights the servers have, as far as this process knows."""

    def __init__(
        self,
        loaded: models.LoadedModel,
        *,
        compute: torch.dtype,
        urls: Sequence[str],
        batch_size: int = 64,
        ranks: Ranks | None = None,
    ) -> None:
        self.loaded, self.compute, self.batch_size = loaded, compute, batch_size
        self.ranks = ranks or Ranks(alone=True)
        self.engine = f"server-{str(compute).removeprefix('torch.')}"
        self.kind = (compute, tuple(urls), batch_size, loaded.adapter, self.ranks.count)
        self.servers = [Server(url) for url in urls]
        self.label = ""
        self._written = ""
        """The folder with the weights of a sharded model, from which a server that lost them reads them again."""
        self._keeps: tempfile.TemporaryDirectory[str] | None = None
        """That folder, in the main process."""
        self._tickets = itertools.count()
        self._asked: dict[int, tuple[Request, Sampling]] = {}
        self._running: dict[concurrent.futures.Future[Any], int] = {}
        self.heard: Heard | None = None
        """See :class:`.protocol.Stepwise`."""
        self._seats = asyncio.Semaphore(batch_size * len(urls))

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            ConfigError: a prompt and its longest reply do not fit into the positions of model or server.
            EngineError: the servers cannot answer, or refuse to.
        """
        self._begin()
        check_room(requests, sampling, self.room, self.loaded.name)
        return all_of(self, [self.submit(request, sampling) for request in requests])

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
            ready = self._arrived(None)
        return ready

    def advance(self) -> list[tuple[int, Completion]]:
        """See :class:`.protocol.Stepwise`. A reply counts once its weights are known, so no part of it is heard."""
        return self._arrived(SOON_S)

    def _arrived(self, wait_s: float | None) -> list[tuple[int, Completion]]:
        """The replies that have arrived from servers that still have our weights; others are asked for again."""
        ready: list[tuple[int, Completion]] = []
        found = [(ticket, *answer) for ticket, answer in arrived(self._running, wait_s)]
        # Check each server's weights after its replies have arrived, and only then count the replies.
        unreachable = set()
        for server in {server for _, server, _, _ in found}:
            aborted = any(reply is None for _, other, _, reply in found if other is server)
            try:
                unchanged = not aborted and self._as_it_was(server)
            except RETRIED:  # the replies cannot be trusted; the server is checked once it is back
                server.failed()
                unreachable.add(server)
                continue
            if not unchanged:
                self._give_back(server)
        for ticket, server, takeovers, reply in found:
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
                del self._running[future]
        for ticket in unwanted:  # also those that have failed
            self._asked.pop(ticket, None)

    def split(self, jobs: int) -> Sequence[Sampler]:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        return [self]

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
        if ServerSampler.current is not self:
            self._look_up()
        before, self.label = self.label, self.ranks.from_main(f"agentopcd-{uuid.uuid4().hex[:12]}")
        if sharding.is_sharded(self.loaded.model):
            self._write_whole()
        gap = max(self._take_over(server, must=True, together=True) for server in self.servers)
        ServerSampler.current = self
        if self.loaded.adapter is not None and before and self.ranks.main:
            for server in self.servers:
                with one_line(server, self):
                    server.unload_adapter(before)
        return gap

    # -- requests -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give the servers the model's weights before the first request and after another model has used them."""
        if ServerSampler.current is self:
            return
        assert self.ranks.count == 1, "processes that play together call update() before the first request"
        self._look_up()
        self.label = f"agentopcd-{uuid.uuid4().hex[:12]}"
        for server in self.servers:
            self._take_over(server)
        ServerSampler.current = self

    def _look_up(self) -> None:
        """Find out what the servers serve."""
        for server in self.servers:
            look = functools.partial(server.look, self.loaded.name)
            with one_line(server, self):
                # While others wait in the middle of a training, a server may be on its way back.
                look() if self.ranks.count == 1 else patiently(look)

    @property
    def room(self) -> int:
        """See :class:`.protocol.Sampler`."""
        if not all(server.serves for server in self.servers):
            self._look_up()
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
        return not server.doubtful if label is None else label == server.holds

    def _give_back(self, server: Server) -> None:
        """Give ``server`` our weights again, unless another process of this run has just done so."""
        with self.ranks.one_at_a_time():
            with one_line(server, self):
                label = patiently(server.label) or ""
            if label != server.holds and label.startswith(self.label):
                server.holds, server.doubtful = label, False
                server.takeovers += 1  # what we asked it for before, it may have answered with other weights
            else:
                self._take_over(server)

    def _take_over(self, server: Server, *, must: bool = False, together: bool = False) -> float:
        """Give ``server`` the model's weights, and return how far its log-probabilities are off, in nats.

        A server that takes weights always gets them, because in bfloat16 log-probabilities cannot tell apart weights
        that are a few steps from each other. A frozen server is only compared; with ``must`` it is refused. If all
        processes call this ``together``, the main one talks to the server, and all compare.
        """
        acts = self.ranks.main or not together
        server.takeovers += 1
        with one_line(server, self):
            for _ in range(RESTARTS):
                with models.PASSES:  # an adapter that is written must be as it is, not as a comparison has it
                    frozen = acts and self._load(server, must=must)
                gap = self._gap(server, together=together)
                kept = frozen or not acts or patiently(server.label) == self._unchecked(server)
                if self.ranks.from_main(kept) if together else kept:
                    break
            else:
                raise EngineError(f"{server.url} lost its weights {RESTARTS} times during their check; see its log")
            if not gap <= GAP_NATS[self.compute]:  # also refuses NaN
                raise AlignmentError(
                    f"{server.url} serves {server.serves!r} and is off by {gap:.3g} nats a token from "
                    f"{self.loaded.name!r} (more than {GAP_NATS[self.compute]}), so its replies would not be that "
                    f"model's; {start_line(self.loaded, self.compute, server.url)}"
                )
            if acts and not frozen:
                server.holds = f"{self.label}.{self.ranks.index}.{server.takeovers}"
                server.name_weights(server.holds)
        if together:
            server.holds = self.ranks.from_main(server.holds)
        server.doubtful = False
        return gap

    def _gap(self, server: Server, *, together: bool) -> float:
        """How far the server's log-probabilities are off the model's, in nats."""
        ask = functools.partial(self._sample_at, server)
        if together:
            return gap_nats(self.loaded, self.compute, lambda *asked: self._from_main(ask, *asked))
        if sharding.is_sharded(self.loaded.model):
            return 0.0  # a pass would need all processes; the same file was compared when it was new
        with models.PASSES:  # the trainer may learn meanwhile
            return gap_nats(self.loaded, self.compute, ask)

    def _unchecked(self, server: Server) -> str:
        """The label of weights that the server has just read: a server that comes back has it no more.

        It does not begin as :attr:`label` does, so no other process takes these weights for checked ones.
        """
        return f"unchecked-{self.label}.{self.ranks.index}.{server.takeovers}"

    def _load(self, server: Server, *, must: bool) -> bool:
        """Let ``server`` read the model's weights, and return whether it is frozen.

        Raises:
            EngineError: it is frozen, and must not be.
        """
        label = patiently(server.label)
        frozen = label is None
        if not frozen:
            self._push(server, base=not server.holds or label != server.holds)
            server.name_weights(self._unchecked(server))
        elif must or self.loaded.adapter is not None:
            raise EngineError(
                f"{server.url} cannot take weights (no development endpoints): it can play and write experience "
                f"down, but not be the student; {start_line(self.loaded, self.compute, server.url)}"
            )
        return frozen

    def _push(self, server: Server, *, base: bool) -> None:
        """Send the weights; those below an adapter only with ``base``, if the server may have others."""
        if self._written:
            server.load(Path(self._written))
        elif self.loaded.adapter is None or base:
            server.load_all(named_weights(self.loaded))
        if self.loaded.adapter is not None:
            folder = tempfile.TemporaryDirectory()
            self.loaded.adapter.save_pretrained(folder.name)
            server.load_adapter(self.label, Path(folder.name))
            server.keeps = folder  # vLLM reads an evicted adapter again, and crashes if its folder is gone

    def _write_whole(self) -> None:
        """Write the weights of a sharded model where the servers read them, and remove those of the step before."""
        before, self._keeps = self._keeps, tempfile.TemporaryDirectory() if self.ranks.main else None
        self._written = self.ranks.from_main(self._keeps.name if self._keeps else "")
        sharding.write_whole(self.loaded.model, Path(self._written) / "model.safetensors")
        if before is not None:
            before.cleanup()

    def _from_main(self, ask: Callable[..., list[Completion]], *asked: Any) -> list[Completion]:
        """What the main process is answered."""
        return self.ranks.from_main(ask(*asked) if self.ranks.main else [])

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
        if took_too_long(error):
            raise EngineError(
                f"{server.url} was reached, but its answer was not there in time; is it stuck?"
            ) from error
        raise EngineError(
            f"no server answers at {server.url}; {start_line(sampler.loaded, sampler.compute, server.url)}"
        ) from error
    except openai.APIStatusError as error:
        if isinstance(error, RETRIED) and not away:
            raise
        raise refused(server, error) from error
