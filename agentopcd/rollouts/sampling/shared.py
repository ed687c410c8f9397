"""What requests begin with alike: read once, kept once, and attended to by all of them at once.

Episodes that see one context have its tokens in common. Their rows hold what comes after it, and a token's attention is
that to the shared tokens mixed with that to its row, by how much weight each of the two has. So memory and time do not
grow with the number of episodes times the length of the context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from agentopcd.rollouts.sampling.prefixes import Read

BLOCK = 16
"""Beginnings are compared by blocks of so many tokens."""
WORTH_BYTES = 1 << 21
"""Bytes of one layer's keys and values that are not read again at each step; below it, more calls take more time."""


@dataclasses.dataclass(eq=False)
class Shared:
    """Tokens that several requests begin with."""

    ids: tuple[int, ...]
    read: Read

    def __len__(self) -> int:
        return len(self.ids)


class Beginnings:
    """Counts how many requests under way begin alike, and keeps what they share.

    Args:
        least: tokens that sharing must save at each step, summed over the requests.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self._count: dict[int, int] = {}
        self._kept: dict[int, Shared] = {}

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(map(len, self._kept.values()))

    def enter(self, ids: Sequence[int]) -> list[int]:
        """Count a request; returns a number for each beginning of whole blocks that leaves a token to read."""
        marks: list[int] = []
        for end in range(BLOCK, len(ids), BLOCK):
            marks.append(hash((marks[-1] if marks else 0, tuple(ids[end - BLOCK : end]))))
            self._count[marks[-1]] = self._count.get(marks[-1], 0) + 1
        return marks

    def leave(self, marks: Sequence[int]) -> None:
        """Take back what :meth:`enter` counted."""
        for mark in marks:
            self._count[mark] -= 1
            if not self._count[mark]:
                del self._count[mark]

    def cut(self, marks: Sequence[int]) -> int:
        """How many of its first tokens a request that is counted should share, to save the most; 0: none."""
        saved = {(i + 1) * BLOCK: (i + 1) * BLOCK * (self._count[mark] - 1) for i, mark in enumerate(marks)}
        best = max(saved, key=saved.__getitem__, default=0)
        return best if best and saved[best] >= max(1, self.least) else 0

    def find(self, ids: Sequence[int], marks: Sequence[int]) -> Shared | None:
        """The longest kept beginning of a request."""
        for mark in reversed(marks):
            if (kept := self._kept.get(mark)) is not None and kept.ids == tuple(ids[: len(kept)]):
                return kept
        return None

    def keep(self, shared: Shared, marks: Sequence[int]) -> None:
        """Keep what a request with these marks begins with."""
        self._kept[marks[len(shared) // BLOCK - 1]] = shared

    def forget(self, used: Sequence[Shared]) -> None:
        """Drop what is not among ``used``."""
        self._kept = {mark: kept for mark, kept in self._kept.items() if any(kept is one for one in used)}


@dataclasses.dataclass(frozen=True)
class Group:
    """The requests of a step that share their beginning."""

    shared: Shared
    tokens: Tensor
    """Where their tokens stand among all tokens of the step."""
    wanted: Tensor
    """Where those whose hidden states are wanted stand among all that are."""


def groups(parts: Sequence[tuple[Shared | None, int, int]]) -> Iterator[Group]:
    """The groups of a step, given what each row shares, how many tokens it reads, and of how many the hidden state is
    wanted."""
    found: dict[int, tuple[Shared, list[int], list[int]]] = {}
    at = at_wanted = 0
    for shared, n, n_wanted in parts:
        if shared is not None:
            _, tokens, wanted = found.setdefault(id(shared), (shared, [], []))
            tokens += range(at, at + n)
            wanted += range(at_wanted, at_wanted + n_wanted)
        at, at_wanted = at + n, at_wanted + n_wanted
    for shared, tokens, wanted in found.values():
        yield Group(shared, torch.tensor(tokens), torch.tensor(wanted))


def weighed(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention ``[B, heads, n, D]`` of ``query``, and the logarithm of its weights' sum ``[B, heads, n]``.

    Heads that share keys become tokens of one head, so that no keys are copied.

    Args:
        query: ``[B, heads, n, D]``.
        keys: ``[B, groups, m, D]``.
        values: as the keys.
        mask: 0 or -inf ``[B or 1, 1, 1 or n * heads / groups, m]`` in the dtype of ``query``; None: all is seen.
        scaling: of the scores.
    """
    batch, heads, n, size = query.shape
    together = query.reshape(batch, keys.shape[1], heads // keys.shape[1] * n, size)
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        together, keys, values, 0.0, False, attn_mask=mask, scale=scaling
    )
    return out.reshape(batch, heads, n, size), weight.reshape(batch, heads, n)


def mixed(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The attention to the tokens of both, of which each is an attention and the logarithm of its weights' sum."""
    share = torch.sigmoid(other[1] - one[1])[..., None]
    return torch.lerp(one[0].float(), other[0].float(), share.float()).to(one[0].dtype)
