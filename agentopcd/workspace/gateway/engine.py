"""The thread that samples: requests of all clients in one batch that changes from token to token.

The event loop hands requests over and gets tokens and replies back. A request that nobody waits for any more is dropped
from the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling.protocol import Stepwise

Pieces = tuple[list[int], list[float]]
"""Tokens and their log-probabilities."""


class Handle:
    """One request under way. Belongs to the event loop.

    Args:
        heard: tell tokens as they are sampled.
    """

    def __init__(self, request: Request, sampling: Sampling, *, heard: bool) -> None:
        self.request, self.sampling, self.heard = request, sampling, heard
        self.reply: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._told: Pieces = ([], [])
        self._more = asyncio.Event()

    def tell(self, ids: list[int], logprobs: list[float]) -> None:
        self._told[0].extend(ids)
        self._told[1].extend(logprobs)
        self._more.set()

    def end(self, reply: Completion | BaseException) -> None:
        if not self.reply.done():
            if isinstance(reply, BaseException):
                self.reply.set_exception(reply)
            else:
                self.reply.set_result(reply)
        self._more.set()

    async def pieces(self) -> AsyncIterator[Pieces]:
        """The tokens as they come, several at once if the reader is slower than the model."""
        ended = False
        while not ended:
            await self._more.wait()
            self._more.clear()
            told, self._told = self._told, ([], [])
            ended = self.reply.done()
            if told[0]:
                yield told


class Engine:
    """Samples in a thread of its own.

    Args:
        sampler: used by that thread alone from now on.
        failed: told, in that thread, what went wrong with the sampler.
    """

    def __init__(self, sampler: Stepwise, failed: Callable[[BaseException], None]) -> None:
        self._sampler, self._failed = sampler, failed
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[tuple[str, Handle | None]] = queue.SimpleQueue()
        self._live: dict[int, Handle] = {}
        self._news: dict[int, Pieces] = {}
        self._thread = threading.Thread(target=self._run, name="agentopcd-engine", daemon=True)
        self._thread.start()

    @contextlib.asynccontextmanager
    async def asked(self, request: Request, sampling: Sampling, *, heard: bool) -> AsyncIterator[Handle]:
        """Ask for a reply; whoever leaves this block before it is complete does not want it any more."""
        handle = Handle(request, sampling, heard=heard)
        self._orders.put(("ask", handle))
        try:
            yield handle
        finally:
            handle.reply.cancel()
            if handle.reply.cancelled():  # by this line, or with whoever waited for it
                self._orders.put(("drop", handle))

    def close(self) -> None:
        """End the thread, with whatever is under way."""
        self._orders.put(("close", None))
        self._thread.join()

    # -- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._sampler.heard = self._hear
        while self._take_orders():
            if not self._live:
                continue
            try:
                found = self._sampler.advance()
            except Exception as error:  # of an engine, or of its library: it costs those who wait, not the server
                self._failed(error)
                self._fail(error)
                continue
            self._deliver([(self._live[ticket], reply) for ticket, reply in found if ticket in self._live])
            for ticket, _ in found:
                self._live.pop(ticket, None)

    def _take_orders(self) -> bool:
        """Take what is new, and wait for it if nothing is under way; False: it is time to end."""
        while not self._live or not self._orders.empty():
            what, handle = self._orders.get()
            if handle is None:
                return False
            if what == "drop":
                gone = [ticket for ticket, live in self._live.items() if live is handle]
                for ticket in gone:
                    del self._live[ticket]
                    self._sampler.drop([ticket])
                continue
            try:
                self._live[self._sampler.submit(handle.request, handle.sampling)] = handle
            except Exception as error:  # this request cannot be taken; others can
                self._deliver([(handle, error)])
        return True

    def _hear(self, ticket: int, ids: Any, logprobs: Any) -> None:
        handle = self._live.get(ticket)
        if handle is not None and handle.heard:
            told = self._news.setdefault(ticket, ([], []))
            told[0].extend(ids)
            told[1].extend(logprobs)

    def _deliver(self, ended: list[tuple[Handle, Completion | BaseException]]) -> None:
        """Give what is new to the event loop, all at once."""
        news = [(self._live[ticket], *told) for ticket, told in self._news.items() if ticket in self._live]
        self._news = {}
        if news or ended:
            with contextlib.suppress(RuntimeError):  # the loop has ended; nobody waits any more
                self._loop.call_soon_threadsafe(_hand_out, news, ended)

    def _fail(self, error: BaseException) -> None:
        """End the request that failed or, if the error does not say which, all of them."""
        ticket = getattr(error, "ticket", None)
        gone = {at: handle for at, handle in self._live.items() if ticket is None or at == ticket}
        self._live = {at: handle for at, handle in self._live.items() if at not in gone}
        with contextlib.suppress(Exception):
            self._sampler.drop(list(gone))
        self._deliver([(handle, error) for handle in gone.values()])


def _hand_out(news: list[tuple[Handle, Any, Any]], ended: list[tuple[Handle, Completion | BaseException]]) -> None:
    for handle, ids, logprobs in news:
        handle.tell(ids, logprobs)
    for handle, reply in ended:
        handle.end(reply)
