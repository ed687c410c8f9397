"""The processes that train one student: how they share work, and the values they exchange.

``torchrun`` starts the processes; with a single process every call is trivial. Gradients are summed once per step, and
the loss is weighted over the whole step. So N processes compute what one process computes, up to rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.launch import launched
from agentopcd.core.text import first_line

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=1)
"""How long the other processes wait while the first one plays, scores and evaluates."""
TURN = "agentopcd/turn"
"""The key of the launcher's store that says whose turn it is in :meth:`Ranks.one_at_a_time`."""
LOOK_EVERY_S = 0.05


class Ranks:
    """The processes of this run, connected by gloo on CPUs and by NCCL on GPUs, with one process per GPU.

    Args:
        alone: this process by itself, however many were launched: for work that the others do not take part in.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self.count, self.index = 1, 0
        self._led = False
        """Whether the other processes take part in the main one's work, and so cannot receive an assignment."""
        if launched() > 1 and not alone:
            on_cpu = torch.accelerator.current_accelerator(check_available=True) is None
            try:
                self.state = PartialState(cpu=on_cpu, timeout=PATIENCE)
            except (ValueError, KeyError, RuntimeError, OSError) as error:  # torchrun sets what they need of each other
                why = first_line(error, type(error).__name__)
                raise ConfigError(
                    f"WORLD_SIZE says {launched()} processes, which do not find each other ({why}); launch with "
                    "torchrun, or unset WORLD_SIZE"
                ) from error
            self.count, self.index = self.state.num_processes, self.state.process_index
            if self.count != launched():
                raise ConfigError(f"{launched()} processes were launched, {self.count} found; launch with torchrun")

    @classmethod
    @functools.cache
    def current(cls) -> Self:
        """The one instance of this process."""
        return cls()

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.index == 0

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share of ``items``. Each item belongs to exactly one process."""
        return list(items[self.index :: self.count])

    def deal(self, batches: Sequence[T], *, even: bool) -> Iterator[tuple[T, bool, Sequence[T]]]:
        """Yield this process's share of ``batches``, a list that is the same in all processes.

        Args:
            even: give every process equally many batches, and pad the last round with batches that do not count.

        Yields:
            A batch, whether it counts, and all batches of the round: one per process, or fewer in the last round.
        """
        for start in range(0, len(batches), self.count):
            round_ = batches[start : start + self.count]
            counts = self.index < len(round_)
            if counts or even:
                yield round_[self.index if counts else 0], counts, round_

    def everyone(self, value: T) -> list[T]:
        """The ``value`` of each process, in the order of the processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """The ``value`` of the main process; the values of the other processes are ignored."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def led(self, assignment: object) -> Iterator[None]:
        """Let the other processes take part in the main one's work in this block.

        The other processes get ``assignment`` from :meth:`from_main`. After an error in the block, they keep waiting
        for the main process in the middle of their work, where no message reaches them. The launcher ends them. A
        ``TrainingError`` is raised in all processes alike, so after one they wait for the next assignment.
        """
        self._led = True
        self.from_main(assignment)
        try:
            yield
        except TrainingError:
            self._led = False
            raise
        self._led = False  # not in a ``finally``: after another error, ``dismiss`` must not send anything

    def dismiss(self) -> None:
        """Let the processes that wait for an assignment end: they receive None."""
        if not self._led:
            self.from_main(None)

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one process after the other run this block. A process that does not come to it is not waited for."""
        if self.count == 1:
            yield
            return
        store: Any = dist.distributed_c10d._get_default_store()
        while store.compare_set(TURN, "", str(self.index)) != str(self.index).encode():
            time.sleep(LOOK_EVERY_S)
        try:
            yield
        finally:
            store.set(TURN, "")

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes. A missing gradient counts as zero.

        The sum is right because the loss weights are those of the whole step. Gradients of sharded parameters are
        summed in the backward pass already.
        """
        if self.count > 1:
            for parameter in parameters:
                if isinstance(parameter, DTensor):
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.count > 1:
            self.state.wait_for_everyone()
