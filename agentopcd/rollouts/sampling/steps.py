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
    wanted: int = 1
    """Of how many of the last tokens the hidden state is wanted."""

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
        self.most = max(part.wanted for part in parts)
        """The most hidden states that are wanted of a row. So many of each row's last tokens attend at once."""
        ends = list(itertools.accumulate(len(part.ids) for part in parts))
        self.long = [
            (end - len(part.ids), part) for end, part in zip(ends, parts, strict=True) if len(part.ids) > self.most
        ]
        self.last = self._last([len(part.ids) for part in parts])
        """Where the last tokens of each row stand, ``[rows, most]``; a row of fewer tokens has its first one again."""
        self.last_wanted = self._last([part.wanted for part in parts])
        """The same, if there were no tokens but those whose hidden states are wanted."""
        places = [at for end, part in zip(ends, parts, strict=True) for at in range(end - part.wanted, end)]
        self.wanted = torch.tensor(places, device=device)
        """Where the tokens stand whose hidden states are wanted, ``[M]``."""
        self.columns = torch.tensor([at for part in parts for at in range(part.column, part.end)], device=device)
        self.positions = self.columns
        self.groups: Sequence[Group] = ()
        self.alone = any(part.shared is None for part in parts)
        """Whether a row shares nothing."""
        if any(part.shared is not None for part in parts):
            self.groups = list(groups([(part.shared, len(part.ids), part.wanted) for part in parts]))
            before = [part.start - part.column for part in parts for _ in part.ids]
            self.positions = self.columns + torch.tensor(before, device=device)
        self._row = torch.tensor([part.row for part in parts for _ in part.ids], device=device)
        self._known: dict[Any, Tensor] = {}

    def _last(self, sizes: Sequence[int]) -> Tensor:
        """Where the last of so many tokens a row stand, if those of one row stand after those of another."""
        ends = itertools.accumulate(sizes)
        found = [
            [max(end - size, end - n) for n in range(self.most, 0, -1)] for end, size in zip(ends, sizes, strict=True)
        ]
        return torch.tensor(found, device=self.device)

    def places(self, groups: int, width: int) -> Tensor:
        """The index ``[N * groups]`` of each token's keys among all rows, groups and tokens of a layer."""
        key = ("places", groups, width)
        if key not in self._known:
            group = torch.arange(groups, device=self.device)
            found = (self._row[:, None] * groups + group) * width + self.columns[:, None]
            self._known[key] = found.flatten()
        return self._known[key]

    def mask(self, window: int | None, heads: int = 1, dtype: torch.dtype | None = None) -> Tensor:
        """What the last tokens of each row see, ``[rows, 1, heads * most, width]``, for ``heads`` that share keys; if
        each row has one token, one line serves all heads, ``[rows, 1, 1, width]``. With ``dtype`` as numbers, see
        :meth:`added`."""
        key = ("mask", window, heads, dtype)
        if key not in self._known:
            seen = sees(self.columns[self.last].flatten(), self.width, window).view(self.rows, 1, self.most, -1)
            if self.most > 1:
                seen = seen.repeat(1, 1, heads, 1)
            self._known[key] = seen if dtype is None else numbers(seen, dtype)
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
        """0 for what is seen and -inf for the rest, to be added to scores ``[B, 1, heads * n, width]`` of ``heads``
        that share keys: those of the rows' last tokens, or of the tokens of a part."""
        if part is None:
            return self.mask(None, heads, dtype)
        key = ("added", part.row, heads, dtype)
        if key not in self._known:
            seen = sees(torch.arange(part.column, part.end, device=self.device), part.end, None).repeat(heads, 1)
            self._known[key] = numbers(seen, dtype)[None, None]
        return self._known[key]


class Single(Step):
    """One token for each row, at places that a tensor holds, so that a recording reads them anew; rows of one width."""

    def __init__(self, columns: Tensor, width: int) -> None:
        self.device, self.rows, self.width, self.columns = columns.device, len(columns), width, columns
        self.positions, self.groups, self.most = columns, (), 1
        self.wanted = self._row = torch.arange(self.rows, device=self.device)
        self.last = self.last_wanted = self.wanted[:, None]
        self.long, self._known = [], {}


def numbers(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``seen`` is true, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def sees(at: Tensor, width: int, window: int | None) -> Tensor:
    """Whether a token at position ``at[i]`` sees that at ``j``, ``[len(at), width]``."""
    columns = torch.arange(width, device=at.device)
    seen = columns <= at[:, None]
    return seen & (columns > at[:, None] - window) if window else seen
