"""What a step reads: tokens of rows, where they stand, and what each of them sees."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd.rollouts.sampling.shared import Group, Shared, groups


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens of one row that are read in a step."""

    row: int
    start: int
    """How many tokens of the request were read before."""
    ids: Sequence[int]
    shared: Shared | None = None
    """What the row does not hold, since other rows begin with it, too."""

    @property
    def column(self) -> int:
        """Where the first of the tokens stands in the row."""
        return self.start - (len(self.shared) if self.shared else 0)

    @property
    def end(self) -> int:
        """The column after the last of the tokens."""
        return self.column + len(self.ids)


class Step:
    """Where the tokens of a step stand; what is the same in all layers is computed once."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.device, self.rows = device, len(parts)
        self.width = max(part.end for part in parts)
        starts = list(itertools.accumulate((len(part.ids) for part in parts), initial=0))
        self.long = [(start, part) for start, part in zip(starts, parts, strict=False) if len(part.ids) > 1]
        self.last = torch.tensor(starts[1:], device=device) - 1
        self.columns = torch.tensor([at for part in parts for at in range(part.column, part.end)], device=device)
        self.positions = self.columns
        self.groups: Sequence[Group] = ()
        self.alone = any(part.shared is None for part in parts)
        """Whether a row shares nothing."""
        if any(part.shared is not None for part in parts):
            self.groups = list(groups([(part.shared, len(part.ids)) for part in parts]))
            before = [part.start - part.column for part in parts for _ in part.ids]
            self.positions = self.columns + torch.tensor(before, device=device)
        self._row = torch.tensor([part.row for part in parts for _ in part.ids], device=device)
        self._known: dict[Any, Tensor] = {}

    def places(self, groups: int, width: int) -> Tensor:
        """The index ``[N * groups]`` of each token's keys among all rows, groups and tokens of a layer."""
        key = ("places", groups, width)
        if key not in self._known:
            group = torch.arange(groups, device=self.device)
            found = (self._row[:, None] * groups + group) * width + self.columns[:, None]
            self._known[key] = found.flatten()
        return self._known[key]

    def mask(self, window: int | None) -> Tensor:
        """What the last token of each row sees, ``[rows, 1, 1, width]``."""
        key = ("mask", window)
        if key not in self._known:
            self._known[key] = sees(self.columns[self.last], self.width, window)[:, None, None]
        return self._known[key]

    def part_mask(self, part: Part, window: int | None) -> Tensor | None:
        """What each token of a part sees, ``[n, end]``; None: all before it, from the row's first token on."""
        if part.column == 0 and (window is None or part.end <= window):
            return None
        key = ("part", part.row, window)
        if key not in self._known:
            self._known[key] = sees(torch.arange(part.column, part.end, device=self.device), part.end, window)
        return self._known[key]

    def added(self, part: Part | None, heads: int, dtype: torch.dtype) -> Tensor:
        """0 for what is seen and -inf for the rest, to be added to scores ``[B, 1, n * heads, width]`` of ``heads``
        that share keys: those of the rows' last tokens, or of the tokens of a part."""
        key = ("added", part.row if part else None, heads, dtype)
        if key not in self._known:
            if part is None:
                seen = self.mask(None)
            else:
                seen = sees(torch.arange(part.column, part.end, device=self.device), part.end, None).repeat(heads, 1)
            zeros = torch.zeros(seen.shape, dtype=dtype, device=self.device)
            self._known[key] = zeros.masked_fill_(~seen, -torch.inf).view(-1, 1, *seen.shape[-2:])
        return self._known[key]


class Single(Step):
    """One token for each row, at places that a tensor holds, so that a recording reads them anew; rows of one width."""

    def __init__(self, columns: Tensor, width: int) -> None:
        self.device, self.rows, self.width, self.columns = columns.device, len(columns), width, columns
        self.positions, self.groups = columns, ()
        self.last = self._row = torch.arange(self.rows, device=self.device)
        self.long, self._known = [], {}


def sees(at: Tensor, width: int, window: int | None) -> Tensor:
    """Whether a token at position ``at[i]`` sees that at ``j``, ``[len(at), width]``."""
    columns = torch.arange(width, device=at.device)
    seen = columns <= at[:, None]
    return seen & (columns > at[:, None] - window) if window else seen
