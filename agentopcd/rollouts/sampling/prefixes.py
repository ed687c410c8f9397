"""Keys and values of token sequences that were read, kept as a tree, so that what prompts share is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor

Read = list[Tensor]
"""What a model keeps of some tokens: one tensor ``[layers, heads, tokens, width]`` for each shape of keys or values."""


@dataclasses.dataclass(eq=False)
class _Node:
    """A stretch of tokens after those of its parents."""

    ids: tuple[int, ...]
    read: Read
    parent: _Node | None
    children: dict[int, _Node] = dataclasses.field(default_factory=dict)
    used: int = 0
    """When it was last asked for; the node that waits longest goes first."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.nbytes for tensor in self.read)


class Prefixes:
    """A tree of what was read, by token ids, that stays within a bound: the stretch used longest ago goes first.

    Args:
        bound: the most bytes to keep.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.size = bound, 0
        self._root = _Node((), [], None)
        self._clock = 0

    def find(self, ids: Sequence[int]) -> list[tuple[Read, int]]:
        """What is kept of the beginning of ``ids``: pieces one after the other, and how many tokens of each count."""
        self._clock += 1
        found: list[tuple[Read, int]] = []
        node, at = self._root, 0
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            same = _same(child.ids, ids, at)
            found.append((child.read, same))
            child.used = self._clock
            at += same
            if same < len(child.ids):
                break
            node = child
        return found

    def add(self, ids: Sequence[int], take: Callable[[int, int], Read]) -> None:
        """Keep what was read of ``ids``.

        Args:
            take: returns a copy of what was read of the tokens from a start to an end.
        """
        self._clock += 1
        node, at = self._root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                child = _Node(tuple(ids[at:]), take(at, len(ids)), node)
                node.children[ids[at]] = child
                self.size += child.size
            elif (same := _same(child.ids, ids, at)) < len(child.ids):
                self._cut(child, same)
            child.used = self._clock
            at += len(child.ids)
            node = child
        self._shrink()

    def clear(self) -> None:
        """Forget everything: the weights have changed, or nobody will ask again."""
        self._root.children.clear()
        self.size = 0

    def _cut(self, node: _Node, n: int) -> None:
        """Let ``node`` end after its first ``n`` tokens; a new child holds the rest."""
        rest = _Node(node.ids[n:], [tensor[:, :, n:].clone() for tensor in node.read], node, node.children, node.used)
        for child in rest.children.values():
            child.parent = rest
        node.ids, node.read = node.ids[:n], [tensor[:, :, :n].clone() for tensor in node.read]
        node.children = {rest.ids[0]: rest}

    def _shrink(self) -> None:
        """Drop the leaves that wait longest until a tenth of the bound is free: not at every turn, then."""
        while self.size > self.bound:
            for node in sorted(self._leaves(), key=lambda node: node.used):
                if self.size <= 0.9 * self.bound:
                    break
                assert node.parent is not None
                del node.parent.children[node.ids[0]]
                self.size -= node.size

    def _leaves(self) -> list[_Node]:
        found, open_ = [], [*self._root.children.values()]
        while open_:
            node = open_.pop()
            open_ += node.children.values()
            if not node.children:
                found.append(node)
        return found


def _same(mine: tuple[int, ...], ids: Sequence[int], start: int) -> int:
    """How many tokens of ``mine`` are those of ``ids`` from ``start`` on."""
    theirs = tuple(ids[start : start + len(mine)])
    if mine[: len(theirs)] == theirs:
        return len(theirs)
    return next(i for i, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other)
