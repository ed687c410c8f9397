"""Several processes that train one student: how work is shared, and the few values they exchange.

``torchrun`` starts them; with a single process every call is trivial. Gradients are summed once a step, and
the loss is weighted over the whole step, so N processes compute what one does, up to rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ConfigError

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=1)
"""How long the others wait while the first process plays, scores and evaluates."""


def launched() -> int:
    """Number of processes this one was started with."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """The processes of this run, connected by gloo on CPUs and by NCCL on GPUs, one process per GPU."""

    def __init__(self) -> None:
        self.count, self.index = 1, 0
        self._led = False
        """Whether the others take part in something that the main process does, and hear nothing else."""
        if launched() > 1:
            on_cpu = torch.accelerator.current_accelerator(check_available=True) is None
            self.state = PartialState(cpu=on_cpu, timeout=PATIENCE)
            self.count, self.index = self.state.num_processes, self.state.process_index
            if self.count != launched():
                raise ConfigError(f"{launched()} processes were launched, {self.count} found; launch with torchrun")

    @classmethod
    @functools.cache
    def current(cls) -> Self:
        """The one object that this process shares."""
        return cls()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.index == 0

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share of ``items``; every item belongs to exactly one process."""
        return list(items[self.index :: self.count])

    def deal(self, batches: Sequence[T], *, even: bool) -> Iterator[tuple[T, bool, Sequence[T]]]:
        """This process's share of ``batches``, a list that all processes have.

        Args:
            even: every process gets equally many; the last round is padded with batches that do not count.

        Yields:
            The batch, whether it counts, and the batches of this round, one for each process or fewer.
        """
        for start in range(0, len(batches), self.count):
            round_ = batches[start : start + self.count]
            counts = self.index < len(round_)
            if counts or even:
                yield round_[self.index if counts else 0], counts, round_

    def everyone(self, value: T) -> list[T]:
        """The ``value`` of each process, in order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def from_main(self, value: T) -> T:
        """The ``value`` of the main process; those of the others are ignored."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def led(self, assignment: object) -> Iterator[None]:
        """Let the other processes take part in what the main one does in this block.

        They get ``assignment`` from :meth:`from_main`. After an error in the block they wait for the main process in
        the middle of their work, where no word reaches them: the launcher ends them.
        """
        self._led = True
        self.from_main(assignment)
        yield
        self._led = False

    def dismiss(self) -> None:
        """Let the processes that wait for an assignment end."""
        if not self._led:
            self.from_main(None)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; a missing one counts as zero.

        Gradients of sharded parameters are summed already, in the backward pass.
        """
        if self.count > 1:
            for parameter in parameters:
                if isinstance(parameter, DTensor):
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.count > 1:
            self.state.wait_for_everyone()
