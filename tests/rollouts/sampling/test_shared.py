"""Shared beginnings: read once, kept once, and no reply differs by it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling import continuous
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.shared import BLOCK, Beginnings, Shared, mixed, weighed
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.models import architectures
from tests.rollouts.sampling.test_continuous import HOT, load, off_nats

CONTEXTS = tuple(range(20, 120)), tuple(range(60, 200))


def asked(n: int, contexts: tuple[tuple[int, ...], ...] = (*CONTEXTS, ())) -> list[Request]:
    """Requests that begin with a context each, in turn, and then differ."""
    rng = random.Random(1)
    return [
        Request(
            prompt_ids=(*contexts[i % len(contexts)], *(rng.randrange(10, 250) for _ in range(1 + i * 7 % 40))), seed=i
        )
        for i in range(n)
    ]


def groups_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups each call of the shared attention has, from now on."""
    found: list[int] = []
    usual = Rows._attend_shared

    def note(self: Rows, layer: int, query: Any, keys: Any, values: Any, step: Any, *args: Any) -> Any:
        found.append(len(step.groups))
        return usual(self, layer, query, keys, values, step, *args)

    monkeypatch.setattr(Rows, "_attend_shared", note)
    return found


@pytest.mark.parametrize(
    ("name", "shares"),
    [("llama", True), ("qwen3", True), ("qwen3_moe", True), ("gpt2", True), ("granite", True), ("mistral", False),
     ("gemma2", False), ("gpt_oss", False), ("deepseek_v3", False)],
)  # fmt: skip
def test_replies_are_those_of_the_model(
    name: str, shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests, used = load(tmp_path, name), asked(24), groups_of(monkeypatch)
    monkeypatch.setattr(continuous, "READ_TOKENS", 30)  # contexts and questions are read in pieces
    running = Continuous(loaded, torch.float32, rows=7, worth=0)
    for _ in range(2):  # the second time, all was read before
        replies = running.sample(requests, HOT)
        assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 1e-3
    assert running._rows.can_share == shares and max(used, default=0) == (2 if shares else 0)
    assert not running._beginnings._count  # nothing grows


def test_in_bfloat16_too(tmp_path: Path) -> None:
    loaded, requests = load(tmp_path), asked(14)
    replies = Continuous(loaded, torch.bfloat16, rows=5, worth=0).sample(requests, HOT)
    with models.autocast(torch.device("cpu"), torch.bfloat16):
        assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 0.1


def test_with_and_without_sharing_the_same_is_said_and_as_little_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests = load(tmp_path), asked(18)
    read: list[int] = []
    usual = Rows.read
    monkeypatch.setattr(
        Rows, "read", lambda self, parts: read.append(sum(len(part.ids) for part in parts)) or usual(self, parts)
    )
    found: list[tuple[list[Completion], int, int]] = []
    for worth in (0, 1 << 40):
        running = Continuous(loaded, torch.float32, rows=9, worth=worth)
        replies = running.sample(requests, HOT)
        found.append((replies, sum(read), running._rows._stores[0].shape[3]))
        read.clear()
    (shared, some, narrow), (own, all_, wide) = found
    assert [reply.token_ids for reply in shared] == [reply.token_ids for reply in own]
    for one, other in zip(shared, own, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert some <= all_ + BLOCK * len(CONTEXTS) and narrow < wide


def test_a_turn_that_goes_on_shares_again_and_what_was_said_is_not_read_again(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    running = Continuous(loaded, torch.float32, rows=6, worth=0)
    requests = asked(6, CONTEXTS[:1])
    for _ in range(3):
        replies = running.sample(requests, HOT)
        assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 1e-3
        requests = [
            dataclasses.replace(request, prompt_ids=(*request.prompt_ids, *reply.token_ids, 9, 8))
            for request, reply in zip(requests, replies, strict=True)
        ]
        if len(requests[0].prompt_ids) < 200:
            assert running._beginnings.tokens <= len(CONTEXTS[0])


def test_requests_that_are_dropped_are_not_counted(tmp_path: Path) -> None:
    running = Continuous(load(tmp_path), torch.float32, rows=2, worth=0)
    requests = asked(6)
    for ticket, request in enumerate(requests):
        running.submit(ticket, request, HOT)
    running.advance()
    running.drop(range(5))
    left = running._beginnings._count
    assert set(left.values()) == {1} and len(left) == (len(requests[5].prompt_ids) - 1) // BLOCK
    while not running.idle:
        running.advance()
    assert not running._beginnings._count


def test_more_contexts_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rng = load(tmp_path), random.Random(0)
    contexts = tuple(tuple(rng.randrange(10, 250) for _ in range(100)) for _ in range(6))
    requests = asked(30, contexts)
    wanted = Continuous(loaded, torch.float32, rows=8, worth=1 << 40).sample(requests, HOT)
    each = Continuous(loaded, torch.float32, rows=1)._rows.each
    monkeypatch.setattr(continuous, "ROWS_BYTES", 2 * 2 * 110 * each)  # half of it: two contexts
    monkeypatch.setattr(continuous, "PREFIXES_BYTES", 100 * each)
    steps: list[int] = []
    for in_order in (False, True):
        running = Continuous(loaded, torch.float32, rows=8, worth=0, in_order=in_order)
        for ticket, request in enumerate(requests):
            running.submit(ticket, request, HOT)
        found: dict[int, Completion] = {}
        most = 0
        while not running.idle:
            found.update(running.advance())
            most = max(most, running._beginnings.tokens)
            stores = running._rows._stores
            held = sum(store.nbytes for store in stores) + each * running._beginnings.tokens
            assert held <= continuous.ROWS_BYTES or stores[0].shape[1] == 1
        assert [found[ticket].token_ids for ticket in range(30)] == [reply.token_ids for reply in wanted]
        assert 100 < most <= 220
        steps.append(running._steps)
    # Those whose context is kept go first, unless those who ask first must.
    assert steps[0] < steps[1]


def test_a_sampler_compares_shared_beginnings_before_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sampler = TransformersSampler(load(tmp_path), compute=torch.float32, say=said.append)
    monkeypatch.setattr(
        "agentopcd.rollouts.sampling.rows.mixed",
        lambda one, other: one[0],  # forgets what is shared
    )
    sampler.sample(asked(6), HOT)
    assert len(said) == 1 and "sampled the slower way, padded: fast decoding is off by" in said[0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_two_parts_mixes_to_that_to_all(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, heads, n, 16, dtype=dtype) for heads, n in ((6, 5), (2, 40), (2, 40)))
    parts = [weighed(query, keys[:, :, at], values[:, :, at], None, 0.3) for at in (slice(0, 30), slice(30, 40))]
    whole = torch.nn.functional.scaled_dot_product_attention(
        query.float(), keys.float(), values.float(), scale=0.3, enable_gqa=True
    )
    assert parts[0][1].dtype == torch.float32
    assert mixed(*parts).sub(whole).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)
    nothing = torch.zeros_like(parts[0][0]), torch.full_like(parts[0][1], -torch.inf)
    assert torch.equal(mixed(parts[0], nothing), parts[0][0])


def test_where_a_beginning_is_cut() -> None:
    beginnings = Beginnings(least=3 * BLOCK)
    system, context = list(range(BLOCK)), list(range(100, 100 + 4 * BLOCK))
    alike = [beginnings.enter([*system, *context, 1000 + i, 7]) for i in range(2)]
    assert beginnings.cut(alike[0]) == 5 * BLOCK  # one other request has it all
    others = [beginnings.enter([*system, 2000 + i, *range(40)]) for i in range(9)]
    assert beginnings.cut(alike[0]) == BLOCK  # ten others have a little
    for marks in others:
        beginnings.leave(marks)
    assert beginnings.cut(alike[0]) == 5 * BLOCK
    beginnings.leave(alike[1])
    assert beginnings.cut(alike[0]) == 0  # alone
    short = [beginnings.enter([*range(500, 500 + 2 * BLOCK), i]) for i in range(2)]
    assert beginnings.cut(short[0]) == 0  # not worth it
    assert beginnings.enter(list(range(BLOCK))) == []  # a token must be left to read


def test_two_beginnings_with_one_number_are_told_apart() -> None:
    beginnings = Beginnings(0)
    ids = list(range(BLOCK + 1))
    marks = beginnings.enter(ids)
    beginnings.keep(Shared(tuple(ids[:BLOCK]), []), marks)
    assert beginnings.find(ids, marks) is not None
    assert beginnings.find([5, *ids[1:]], marks) is None
    beginnings.forget([])
    assert beginnings.find(ids, marks) is None and beginnings.tokens == 0


def test_models_that_may_not_share_are_left_alone(tmp_path: Path) -> None:
    loaded = models.load_model(str(architectures.build(tmp_path / "windows", "mistral")))
    running = Continuous(loaded, torch.float32, rows=4, worth=0)
    running.sample(asked(6), Sampling(max_tokens=2))
    assert running._beginnings.tokens == 0 and not running._beginnings._count
