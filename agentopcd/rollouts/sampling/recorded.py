"""Steps of one token a row, recorded once and played again.

On a GPU, a step that reads one token for each row takes its time in calls: hundreds of them, each longer than the sums
that it starts. A CUDA graph starts all of them in one call. It reads and writes the same memory each time, so it is
recorded for a number of rows and for the rows' full width, with free rows to fill up.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agentopcd.core.text import first_line

AFTER = 4
"""A number of rows is recorded when it was asked for so many times: to record costs as much as a few steps."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Given a step, returns what plays it again, and where its result lies each time."""


@dataclasses.dataclass
class _Recording:
    """A step for a number of rows."""

    ids: Tensor
    """``[1, B]``"""
    columns: Tensor
    """``[B]``"""
    replay: Callable[[], object]
    out: Tensor
    """``[B, H]``"""


class Recorded:
    """Steps that read one token for each of the first rows.

    Args:
        step: given token ids ``[1, B]`` and their columns ``[B]``, the last hidden states ``[B, H]``.
        record: see :data:`Record`.
        device: of all tensors.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], record: Record, device: torch.device) -> None:
        self._step, self._record, self._device = step, record, device
        self._known: dict[int, _Recording] = {}
        self._asked: collections.Counter[int] = collections.Counter()
        self.works = True

    def forget(self) -> None:
        """Drop all recordings: the memory that they read was replaced."""
        self._known.clear()

    def read(self, ids: Sequence[int], columns: Sequence[int], most: int) -> Tensor | None:
        """The last hidden states ``[B, H]`` until the next call; None if no recording fits, now or ever.

        Args:
            ids: a token for each of the first rows.
            columns: where each of them stands.
            most: rows that there are; those behind the first B are free.
        """
        n = min(1 << (len(ids) - 1).bit_length(), most)
        self._asked[n] += 1
        if not self.works or (n not in self._known and self._asked[n] <= AFTER):
            return None
        filled = [[*numbers, *[0] * (n - len(ids))] for numbers in (ids, columns)]
        if n not in self._known:
            made = [torch.tensor(numbers, device=self._device) for numbers in filled]
            ids_1B, columns_B = made[0][None], made[1]
            try:
                self._known[n] = _Recording(ids_1B, columns_B, *self._record(lambda: self._step(ids_1B, columns_B)))
            except RuntimeError as error:
                self.works = False
                warnings.warn(f"steps are not recorded, so replies take longer: {first_line(error)}", stacklevel=2)
                return None
        one = self._known[n]
        one.ids.copy_(torch.tensor([filled[0]]))
        one.columns.copy_(torch.tensor(filled[1]))
        one.replay()
        return one.out[: len(ids)]


def cuda_graph(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A step as a CUDA graph. Recording runs nothing, so the step is run once before, to set libraries up."""
    on = torch.is_autocast_enabled("cuda")
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    # What autocast kept from one call to the next would be memory of the recording.
    with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=on, cache_enabled=False):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            out = step()
    return graph.replay, out
