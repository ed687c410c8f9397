"""Many prompts that share a beginning, as one sequence.

The turns of a game have prompts that repeat the game so far. They are laid out as a trunk (the longest
prompt with its reply) and branches (what another prompt adds after the part it shares, with its reply). A branch
sees its part of the trunk and itself, at the positions it would have alone, so logits are those of
separate sequences, from fewer tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Packed:
    """One sequence of ``n`` tokens."""

    ids: list[int]
    positions: list[int]
    sees: list[tuple[int, int, int]]
    """For each stretch, in order: where its trunk starts, tokens of the trunk it sees, its own length."""
    learned: list[tuple[int, int]]
    """``(index whose output predicts it, token id)`` for every reply token."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(turns: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Packed:
    """Lay out ``(prompt ids, reply ids)`` pairs of one game."""
    order = sorted(turns, key=lambda turn: -len(turn[0]))
    trunk, reply = list(order[0][0]), list(order[0][1])
    ids, positions = trunk + reply, list(range(len(trunk) + len(reply)))
    sees = [(0, 0, len(ids))]
    learned = [(len(trunk) - 1 + i, token) for i, token in enumerate(reply)]
    for prompt, reply in order[1:]:
        shared = 0
        while shared < len(prompt) - 1 and prompt[shared] == trunk[shared]:
            shared += 1
        own = [*prompt[shared:], *reply]
        first = len(ids) + len(prompt) - shared - 1
        learned += [(first + i, token) for i, token in enumerate(reply)]
        positions += range(shared, shared + len(own))
        ids += own
        sees.append((0, shared, len(own)))
    return Packed(ids, positions, sees, learned)


def joined(rows: Sequence[Packed]) -> Packed:
    """Several sequences in one row; none sees another."""
    ids: list[int] = []
    positions: list[int] = []
    sees: list[tuple[int, int, int]] = []
    learned: list[tuple[int, int]] = []
    for row in rows:
        start = len(ids)
        sees += [(trunk + start, shared, own) for trunk, shared, own in row.sees]
        learned += [(at + start, token) for at, token in row.learned]
        ids += row.ids
        positions += row.positions
    return Packed(ids, positions, sees, learned)


def collate(rows: Sequence[Packed], pad: int) -> dict[str, torch.Tensor]:
    """Tensors of a batch: ``ids`` and ``positions`` [B, T], additive ``mask`` [B, 1, T, T], and for the
    learned tokens ``rows``, ``places`` and ``targets`` [N].
    """
    size, width = len(rows), max(len(row) for row in rows)
    ids = torch.full((size, width), pad)
    positions = torch.zeros((size, width), dtype=torch.long)
    visible = torch.zeros((size, width, width), dtype=torch.bool)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    where, places, targets = [], [], []
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row.ids)
        positions[b, : len(row)] = torch.tensor(row.positions)
        start = 0
        for trunk, shared, own in row.sees:
            end = start + own
            visible[b, start:end, start:end] = causal[:own, :own]
            visible[b, start:end, trunk : trunk + shared] = True
            start = end
        where += [b] * len(row.learned)
        places += [at for at, _ in row.learned]
        targets += [token for _, token in row.learned]
    visible |= torch.eye(width, dtype=torch.bool)  # padding sees itself: a row of nothing is not a number
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, torch.finfo(torch.bfloat16).min)
    return {"ids": ids, "positions": positions, "mask": mask[:, None], "rows": torch.tensor(where),
            "places": torch.tensor(places), "targets": torch.tensor(targets)}  # fmt: skip
