"""Rows of keys and values for requests under way, and the attention that reads and writes them.

All tokens of a step stand in one line, whatever request they belong to: a request that is being answered brings one
token and guesses at the next, one whose prompt is being read brings many. So everything but attention is computed
without padding.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentopcd import models
from agentopcd.rollouts.sampling.lean import Lean
from agentopcd.rollouts.sampling.prefixes import Read
from agentopcd.rollouts.sampling.recorded import Record, Recorded, cuda_graph
from agentopcd.rollouts.sampling.shared import Shared, mixed, weighed
from agentopcd.rollouts.sampling.steps import Part, Single, Step

NAME = "agentopcd-rows"
"""What transformers knows this attention as, with a number for each object: two models may answer at once."""
GROWTH = 64
"""Rows get longer by a multiple of so many tokens."""
MASKED = ("sliding_attention", "chunked_attention")
"""Kinds of layers that see no more than a part of what is before a token."""
STATES = ("linear", "mamba", "conv", "recurrent")
"""Words in the kinds of layers that keep a state, which rows do not hold."""
IGNORED = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
"""Arguments of an attention call that change nothing here."""


class Rows:
    """Keys and values of up to ``most`` requests, for all layers of a model.

    Args:
        model: its layers must call transformers' attention functions, and the position ids alone must say where a token
            stands. Others end in an error, or differ from the model's own forward pass, which is compared.
        most: rows.
        bound: bytes that all rows together should not exceed; there is always one row.
        lean: a forward pass to use instead of the model's modules.
        record: records steps of the lean pass that read one token a row; None: on a GPU, as a CUDA graph.
    """

    def __init__(
        self, model: Any, *, most: int, bound: int, lean: Lean | None = None, record: Record | None = None
    ) -> None:
        self.model, self.most, self.bound, self.lean = model, most, bound, lean
        self.device = next(model.parameters()).device
        if record is None and self.device.type == "cuda":
            record = cuda_graph
        self.recorded = Recorded(self._single, record, self.device) if lean is not None and record else None
        """Steps that read one token a row, where they are recorded."""
        self._step: Step | None = None
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._stores: list[Tensor] = []
        self._probe()

    def room(self, width: int, beside: int = 0) -> int:
        """How many rows there may be if each holds ``width`` tokens; rows under way never get shorter.

        Args:
            width: tokens.
            beside: tokens to be kept elsewhere, which get no more than half of the bound.
        """
        wide = max(_rounded(width), self._stores[0].shape[3])
        return max(1, min(self.most, self._left(beside) // (self.each * wide)))

    def _left(self, beside: int) -> int:
        return self.bound - min(self.each * beside, self.bound // 2)

    def fits(self, beside: int) -> bool:
        """Whether so many tokens may be kept elsewhere, so that rows as they are have at least half of the bound."""
        have = self._stores[0].shape[1] * self._stores[0].shape[3]
        return max(have * self.each, self.bound // 2) + self.each * beside <= self.bound

    @property
    def records(self) -> bool:
        """Whether steps of one token a row are recorded, so that one which reads guesses, too, would take longer."""
        return self.recorded is not None and self.recorded.works

    @property
    def layers(self) -> int:
        """How many layers have keys and values."""
        return len(self._places)

    @property
    def each(self) -> int:
        """Bytes of a token's keys and values, in all layers."""
        return sum(store.nbytes // (store.shape[1] * store.shape[3]) for store in self._stores)

    def grow(self, rows: int, width: int, held: int, beside: int = 0) -> None:
        """Make room for so many rows of so many tokens. What the first ``held`` rows hold stays; see :meth:`room`."""
        have, wide = self._stores[0].shape[1], self._stores[0].shape[3]
        if rows <= have and width <= wide:
            return
        if width > wide:  # more than is needed, since a game goes on and its prompts grow
            # Wider rows are fewer: those that were there for shorter requests would take more than the bound.
            have, width = held, max(_rounded(width), min(2 * wide, self._left(beside) // (self.each * self.most)))
        self._replace(max(rows, have), max(wide, width), held)

    def narrow(self, width: int) -> None:
        """Where no row is held and so many tokens are enough, give up wider rows, so that there may be more; with 0,
        all but one."""
        if self._stores[0].shape[3] > 2 * _rounded(width) or not width:
            self._replace(1, max(GROWTH, _rounded(width)), 0)

    def _replace(self, rows: int, width: int, held: int) -> None:
        for i in range(len(self._stores)):
            if not held:  # nothing is copied, so the old one and the new one need not be there at once
                self._stores[i] = self._stores[i][:, :0].clone()
            old = self._stores[i]
            # Zeros, since what is masked is still multiplied, by 0.
            new = old.new_zeros(old.shape[0], rows, old.shape[2], width, old.shape[4])
            if held:
                new[:, :held, :, : old.shape[3]] = old[:, :held]
            self._stores[i] = new
        if self.recorded is not None:
            self.recorded.forget()  # they read the old ones

    def put(self, row: int, column: int, read: Read, start: int, end: int) -> None:
        """Write the tokens from ``start`` to ``end`` of what was read before into a row."""
        for store, tensor in zip(self._stores, read, strict=True):
            store[:, row, :, column : column + end - start] = tensor[:, :, start:end]

    def first(self, n: int) -> Read:
        """The first ``n`` tokens of the first row, not copied."""
        return [store[:, 0, :, :n] for store in self._stores]

    def take(self, row: int, start: int, end: int, shared: Shared | None = None) -> Read:
        """A copy of what was read of some tokens of a request, of which the first ones may be shared."""
        before = len(shared) if shared else 0
        own = [store[:, row, :, max(0, start - before) : max(0, end - before)] for store in self._stores]
        if shared is None or start >= before:
            return [tensor.clone() for tensor in own]
        return [
            torch.cat([both[:, :, start:end], tensor], dim=2) for both, tensor in zip(shared.read, own, strict=True)
        ]

    def move(self, source: int, target: int, n: int) -> None:
        """Copy the first ``n`` tokens of one row to another."""
        for store in self._stores:
            store[:, target, :, :n] = store[:, source, :, :n]

    def read(self, parts: Sequence[Part]) -> Tensor:
        """Read the tokens of a part for each row, in order from row 0 on.

        Returns:
            The hidden states that are wanted ``[M, H]``, those of one part after those of another.
        """
        if self.recorded is not None and all(len(part.ids) == 1 for part in parts):
            asked = [part.ids[0] for part in parts], [part.start for part in parts]
            if (hidden_BH := self.recorded.read(*asked, most=self._stores[0].shape[1])) is not None:
                return hidden_BH
        self._step = step = Step(parts, self.device)
        ids = [token for part in parts for token in part.ids]
        tokens = torch.tensor([ids], device=self.device)
        if self.lean is not None:
            return self.lean(tokens, step.positions[None], step.wanted, self.attend)
        with self._attending(self._attend):
            out = models.decoder(self.model)(input_ids=tokens, position_ids=step.positions[None], use_cache=False)
        return out.last_hidden_state[0, step.wanted]

    def _single(self, ids: Tensor, columns: Tensor) -> Tensor:
        """Read one token for each of the first rows: ``ids [1, B]`` at ``columns [B]``; see :meth:`read`."""
        assert self.lean is not None
        self._step = step = Single(columns, self._stores[0].shape[3])
        return self.lean(ids, columns[None], step.wanted, self.attend)

    def _probe(self) -> None:
        """Read one token, to learn the shapes of all layers' keys and values."""
        seen: list[tuple[int, Tensor, Tensor]] = []
        windows: dict[int, int | None] = {}
        plain: list[bool] = []

        def note(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append((module.layer_idx, key, value))
            windows[module.layer_idx] = kwargs.get("sliding_window")
            plain.append(all(kwargs.get(name) is None for name in ("sliding_window", "softcap", "s_aux")))
            return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None

        start = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        with self._attending(note):
            models.decoder(self.model)(input_ids=start, position_ids=start, use_cache=False)
        config = models.decoder(self.model).config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention" if _has_window(config) else ""] * len(seen)
        if any(kind in MASKED and windows.get(layer) is None for layer, kind in enumerate(kinds)):
            raise ValueError("it has windows that nothing but the mask of its layers tells")
        counts: dict[tuple[int, int], int] = {}
        for layer, *both in seen:
            self._places[layer] = places = []
            for shape in ((tensor.shape[1], tensor.shape[3]) for tensor in both):
                places.append((list({**counts, shape: 0}).index(shape), counts.get(shape, 0)))
                counts[shape] = counts.get(shape, 0) + 1
        if states := {kind for kind in kinds if any(word in kind for word in STATES)}:
            raise ValueError(f"it has layers that keep a state ({', '.join(sorted(states))})")
        if len(self._places) != len(seen) or not seen:
            raise ValueError("its layers do not call one attention each")
        dtype, kind = seen[0][1].dtype, self.device.type
        if torch.is_autocast_enabled(kind):  # as in the model's own attention; half the memory to read at each step
            dtype = torch.get_autocast_dtype(kind)
        self.can_share = (
            kind == "cpu" and self.recorded is None and all(plain) and len(counts) == 1
            and not any(name in MASKED for name in kinds)
        )  # fmt: skip
        self._stores = [
            torch.zeros(n, 1, heads, GROWTH, width, dtype=dtype, device=self.device)
            for (heads, width), n in counts.items()
        ]

    @contextlib.contextmanager
    def _attending(self, attend: Any) -> Iterator[None]:
        """Inside this block the model's layers call ``attend``."""
        config = models.decoder(self.model).config
        usual = config._attn_implementation
        name = f"{NAME}-{id(self)}"
        ALL_ATTENTION_FUNCTIONS[name] = attend
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = usual
            del ALL_ATTENTION_FUNCTIONS[name]

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *,
        scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
        s_aux: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """:meth:`attend` as transformers calls it. The mask is None: what a token sees follows from its row."""
        if unknown := kwargs.keys() - IGNORED:
            raise TypeError(f"its attention takes {', '.join(sorted(unknown))}")
        how = {"scaling": scaling, "window": sliding_window, "softcap": softcap, "sinks": s_aux}
        return self.attend(module.layer_idx, query, key, value, **how), None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None = None,
        window: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attention of the tokens of a step to their rows.

        Args:
            layer: the layer's number.
            query: ``[1, heads, N, D]``, or ``[1, heads, M, D]``, those of the tokens whose hidden states are wanted.
            key: ``[1, groups, N, D]``; each group serves as many heads.
            value: ``[1, groups, N, E]``.
            scaling: of the scores; None: one over the root of D.
            window: how many tokens a token sees, itself included; None: all before it.
            softcap: the bound of the scores, by a tanh.
            sinks: scores ``[heads]`` that take a share of each token's weights.

        Returns:
            ``[1, N, heads, E]``, or of those tokens alone.
        """
        step, how = self._step, _How(scaling or query.shape[-1] ** -0.5, softcap, sinks)
        assert step is not None
        keys, values = (
            self._write(place, new, step) for place, new in zip(self._places[layer], (key, value), strict=True)
        )
        query = query.to(keys.dtype)
        with torch.autocast(query.device.type, enabled=False):
            # The last tokens of each row, all rows at once: of a prompt's other tokens, most steps read none.
            only = query.shape[2] == len(step.wanted)
            if step.groups:
                return self._attend_shared(layer, query, keys, values, step, only, how.scaling).transpose(1, 2)
            few, where = _by_rows(query, step, only)
            ratio = query.shape[1] // keys.shape[1]
            rows = (few, keys[: step.rows, :, : step.width], values[: step.rows, :, : step.width])
            plain = softcap is None and sinks is None
            # In float32 on a CPU with AVX-512, two products take half the time of the fused call for one token a row.
            fused = query.device.type != "cpu" or query.dtype != torch.float32 or step.most > 1
            seen = step.mask(window, ratio if plain else 1, query.dtype if plain and fused else None)
            out = _in_line(_attention(*rows, seen, how), where, query.shape[2])
            if not only:
                for at, part in step.long:
                    row = slice(part.row, part.row + 1)
                    out[:, :, at : at + len(part.ids)] = _attention(
                        query[:, :, at : at + len(part.ids)], keys[row, :, : part.end], values[row, :, : part.end],
                        step.part_mask(part, window), how,
                    )  # fmt: skip
        return out.transpose(1, 2)

    def _attend_shared(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, step: Step, only: bool, scaling: float
    ) -> Tensor:
        """:meth:`attend` where rows hold only what comes after the tokens they share."""
        ratio = query.shape[1] // keys.shape[1]
        rows = (keys[: step.rows, :, : step.width], values[: step.rows, :, : step.width])
        few, where = _by_rows(query, step, only)
        out, weight = weighed(few, *rows, step.added(None, ratio, query.dtype), scaling)
        own, own_weight = (
            _in_line(out, where, query.shape[2]),
            _in_line(weight[..., None], where, query.shape[2])[..., 0],
        )
        for at, part in () if only else step.long:
            row, of = slice(part.row, part.row + 1), slice(at, at + len(part.ids))
            own[:, :, of], own_weight[:, :, of] = weighed(
                query[:, :, of], keys[row, :, : part.end], values[row, :, : part.end],
                step.added(part, ratio, query.dtype), scaling,
            )  # fmt: skip
        both, both_weight = torch.empty_like(own), torch.empty_like(own_weight)
        if step.alone:
            both.zero_(), both_weight.fill_(-torch.inf)
        (kind, number), (_, second) = self._places[layer]
        for group in step.groups:
            of_all = group.wanted if only else group.tokens
            store = group.shared.read[kind]
            both[:, :, of_all], both_weight[:, :, of_all] = weighed(
                query[:, :, of_all], store[None, number], store[None, second], None, scaling
            )
        return mixed((own, own_weight), (both, both_weight))

    def _write(self, place: tuple[int, int], new: Tensor, step: Step) -> Tensor:
        """Write new keys or values of a layer; return the layer's rows ``[rows, groups, width, D]``."""
        store = self._stores[place[0]][place[1]]
        _, groups, width, size = store.shape
        flat = new.transpose(1, 2).reshape(-1, size).to(store.dtype)
        store.view(-1, size).index_copy_(0, step.places(groups, width), flat)
        return store


@dataclasses.dataclass(frozen=True)
class _How:
    """What a layer's attention does besides."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None


def _by_rows(query: Tensor, step: Step, only: bool) -> tuple[Tensor, Tensor | None]:
    """Of queries in one line ``[1, heads, N, D]`` the last ones of each row ``[rows, heads, most, D]``, and where they
    stand; None: each row has one, in order."""
    where = step.last_wanted if only else step.last
    if where.numel() == query.shape[2] and step.most == 1:
        return query.transpose(0, 2), None
    return query[0][:, where].transpose(0, 1), where


def _in_line(out: Tensor, where: Tensor | None, n: int) -> Tensor:
    """What was computed by rows ``[rows, heads, most, E]`` at its places in one line ``[1, heads, n, E]``."""
    if where is None:
        return out.transpose(0, 2)
    line = out.new_empty(1, out.shape[1], n, out.shape[3])
    line[:, :, where.flatten()] = out.transpose(0, 1).flatten(1, 2)[None]
    return line


def _has_window(config: Any) -> bool:
    """Whether a config without kinds of layers says that they have a window."""
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


def _attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, how: _How) -> Tensor:
    """Attention ``[B, heads, n, E]`` of queries ``[B, heads, n, D]``; without ``seen``, each sees what is before it."""
    batch, heads, n, size = query.shape
    groups = keys.shape[1]
    if how.softcap is None and how.sinks is None:
        if seen is not None and seen.dim() == 4:
            # The last tokens of all rows: heads that share keys become queries of one, so no keys are copied.
            return _few_tokens(query.reshape(batch, groups, -1, size), keys, values, seen, how).reshape(
                batch, heads, n, -1
            )
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=seen, is_causal=seen is None, scale=how.scaling, enable_gqa=groups < heads
        )
    if seen is None:
        seen = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()
    together = query.reshape(batch, groups, heads // groups * n, size)
    scores = (together @ keys.transpose(2, 3) * how.scaling).view(batch, heads, n, -1)
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if how.sinks is not None:
        sinks = how.sinks.to(scores.dtype).view(1, heads, 1, 1).expand(batch, -1, n, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].reshape(batch, groups, heads // groups * n, -1)
    return (weights @ values).view(batch, heads, n, -1)


def _few_tokens(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, how: _How) -> Tensor:
    if seen.dtype != torch.bool:
        return scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=how.scaling)
    scores = torch.bmm(query.flatten(0, 1) * how.scaling, keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:3], -1)
    weights = scores.masked_fill_(~seen, -torch.inf).softmax(-1)
    return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(*query.shape[:3], -1)


def _rounded(width: int) -> int:
    return -(-width // GROWTH) * GROWTH
