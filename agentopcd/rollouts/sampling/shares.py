"""Play with a small model on several cores: each core answers a share of the requests, in a process of its own.

A step of a small model takes its time in calls and not in sums, and threads that divide a short call gain little. So
every thread that torch may use becomes a process: a fork, which has the weights as they are, without a copy. Games stay
in this process. A share waits for its games after each reply, so what it computes depends on its own requests alone: a
play that is repeated gives the same replies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from multiprocessing import connection
from typing import Any

import torch

from agentopcd.core.errors import EngineError
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.decoding import is_small
from agentopcd.rollouts.sampling.protocol import InBatches, Sampler, check_room

LEAST_JOBS = 32
"""So many jobs are worth a process."""
LOOK_S = 5.0
"""How often a process that waits looks whether the one that started it is still there, in seconds."""


def number(model: Any, jobs: int) -> int:
    """How many processes should answer for so many jobs; 1: this one alone.

    A process that has threads can be forked safely on Linux only, and only while none of them works for us.
    """
    forks = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if not (forks and alone and is_small(model)) or multiprocessing.current_process().daemon:
        return 1
    return max(1, min(torch.get_num_threads(), jobs // LEAST_JOBS))


def ready(samplers: Sequence[Sampler]) -> list[Sampler]:
    """Those samplers of one play that nobody needs to wait for. Waits for at least one."""
    shares = [sampler for sampler in samplers if isinstance(sampler, Share)]
    if not shares:
        return [*samplers]
    if idle := [share for share in shares if not share.asked]:
        return [*idle]
    if not shares[0].group.forked():
        return [*shares]
    for share in shares:
        share.ask()
    heard = connection.wait([share.line for share in shares])
    return [share for share in shares if share.line in heard]


class Group:
    """The shares of one play.

    Args:
        sampler: the :class:`~agentopcd.rollouts.sampling.transformers_engine.TransformersSampler` of this process,
            which says how the model is sampled.
        count: the number of shares.
    """

    def __init__(self, sampler: Any, count: int) -> None:
        self.sampler = sampler
        self.shares = [Share(self) for _ in range(count)]
        self._begun = self._forked = False

    def forked(self) -> bool:
        """Start the processes, unless the model is sampled in a slower way, which this process then does itself."""
        if not self._begun:
            self._begun = True
            asked = [entry for share in self.shares for entry in share.asked.values()]
            way = self.sampler.way([request for request, _ in asked], asked[0][1])
            self._forked = way == "fast"
            for number, share in enumerate(self.shares if self._forked else ()):
                share.start([other.line for other in self.shares[:number]])
        return self._forked


class Share(InBatches):
    """Answers a part of the requests of a play. A player asks :func:`ready` before it collects."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group, self.engine = group, group.sampler.engine
        self.line: Any = None
        """The connection to the process."""
        self._process: Any = None
        self._new: list[int] = []
        """The tickets that the process has not been told of."""
        self._waits = False
        """Whether the process has been asked, and has not answered."""

    @property
    def asked(self) -> dict[int, tuple[Request, Sampling]]:
        """What was submitted and not collected, by ticket."""
        return self._asked

    @property
    def room(self) -> int:
        return self.group.sampler.room

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return self.group.sampler.sample(requests, sampling)

    def submit(self, request: Request, sampling: Sampling) -> int:
        ticket = super().submit(request, sampling)
        self._new.append(ticket)
        return ticket

    def start(self, others: Sequence[Any]) -> None:
        """Start the process; ``others`` are this process's connections to those started before."""
        sampler, context = self.group.sampler, multiprocessing.get_context("fork")
        self.line, theirs = context.Pipe()
        count = len(self.group.shares)
        args = (theirs, [*others, self.line], sampler.loaded, sampler.compute, sampler.rows, count)
        self._process = context.Process(target=_answer, args=args, daemon=True)
        with warnings.catch_warnings():  # of threads that exist; the new process does not need them
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def ask(self) -> None:
        """Tell the process what is new, and ask for its next replies."""
        if self._waits:
            return
        new = [(ticket, *self._asked[ticket]) for ticket in self._new]
        for _, request, sampling in new:
            check_room([request], sampling, self.room, self.group.sampler.loaded.name)
        self._new = []
        with contextlib.suppress(OSError):  # it has ended; what it has said last is still to be read
            self.line.send(new)
        self._waits = True

    def collect(self) -> list[tuple[int, Completion]]:
        if not self.group.forked():
            self._new = []
            return super().collect()
        self.ask()
        try:
            found = self.line.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        self._waits = False
        if isinstance(found, BaseException):
            raise found
        for ticket, _ in found:
            del self._asked[ticket]
        return found

    def _ended(self) -> EngineError:
        self._process.join(LOOK_S)
        code = self._process.exitcode
        why = f"signal {-code}; out of memory?" if code and code < 0 else f"exit code {code}"
        return EngineError(
            f"a process that answered a share of the requests has ended ({why}); what was played is kept: run the same "
            "command again, with OMP_NUM_THREADS=1 if it happens again"
        )

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`Sampler`. With the last request goes the process."""
        super().drop(tickets)
        if not self._asked and self._process is not None:
            self._process.kill()
            self._process.join()
            self.line.close()
            self._process = None


def _answer(line: Any, others: Sequence[Any], loaded: Any, compute: torch.dtype, rows: int, count: int) -> None:
    """What the process does: answer until the one that started it ends or hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that plays
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    parent = os.getppid()
    with contextlib.suppress(EOFError, OSError):  # nobody listens any more
        try:
            engine = Continuous(loaded, compute, rows, count)
            while True:
                while not line.poll(LOOK_S):
                    if os.getppid() != parent:
                        return
                for entry in line.recv():
                    engine.submit(*entry)
                line.send(engine.collect())
        except (EOFError, OSError):
            raise
        except Exception as error:
            line.send(EngineError(f"a share of the requests cannot be answered: {type(error).__name__}: {error}"))
