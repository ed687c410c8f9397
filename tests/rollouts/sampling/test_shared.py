"""Shared beginnings: read once, kept once, and no reply differs by it."""

from __future__ import annotations

import dataclasses
import itertools
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


def read_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step reads, from now on."""
    read: list[int] = []
    usual = Rows.read
    monkeypatch.setattr(
        Rows, "read", lambda self, parts: read.append(sum(len(part.ids) for part in parts)) or usual(self, parts)
    )
    return read


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
    read = read_tokens(monkeypatch)
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


def test_a_turn_that_goes_on_shares_again_and_what_was_said_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tmp_path)
    running = Continuous(loaded, torch.float32, rows=6, worth=0)
    requests, read = asked(6, CONTEXTS[:1]), read_tokens(monkeypatch)
    for turn in range(3):
        read.clear()
        replies = running.sample(requests, HOT)
        assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 1e-3
        said = sum(len(reply.token_ids) - 1 for reply in replies)
        drafts = running.drafts
        in_vain, drafts.made, drafts.right = drafts.made - drafts.right, 0, 0
        assert not turn or sum(read) - in_vain == 6 * 3 + said  # the last token of the reply before, and two new ones
        requests = [
            dataclasses.replace(request, prompt_ids=(*request.prompt_ids, *reply.token_ids, 9, 8))
            for request, reply in zip(requests, replies, strict=True)
        ]
        assert 0 < running._beginnings.tokens <= len(CONTEXTS[0])
    running._beginnings.forget([])  # what the tree holds is whole
    running._beginnings.least = 1 << 40
    replies = running.sample(requests, HOT)
    assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 1e-3


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
        steps.append(running.steps)
    # Those whose context is kept go first, unless those who ask first must.
    assert steps[0] < steps[1]


def bounded(monkeypatch: pytest.MonkeyPatch, loaded: models.LoadedModel, tokens: int, **how: Any) -> Continuous:
    """An engine that may hold so many tokens."""
    each = Continuous(loaded, torch.float32, rows=1)._rows.each
    monkeypatch.setattr(continuous, "ROWS_BYTES", tokens * each)
    return Continuous(loaded, torch.float32, worth=0, **how)


def told(*lengths: tuple[int, int], max_tokens: int = 12) -> list[tuple[Request, Sampling]]:
    """Pairs of requests ``(shared, own)`` tokens long; each number of shared tokens is another beginning."""
    rng = random.Random(repr(lengths))
    begin = {n: tuple(rng.randrange(10, 250) for _ in range(n)) for n, _ in lengths}
    return [
        (
            Request(prompt_ids=(*begin[n], *(rng.randrange(10, 250) for _ in range(own))), seed=i),
            Sampling(temperature=1.0, max_tokens=max_tokens),
        )
        for i, (n, own) in enumerate(lengths)
    ]


def steps_of(running: Continuous) -> int:
    """Steps until all requests are answered, each within the bound."""
    for steps in itertools.count():
        if running.idle:
            return steps
        running.advance()
        rows = running._rows
        held = sum(store.nbytes for store in rows._stores) + rows.each * running._beginnings.tokens
        assert held <= rows.bound or rows._stores[0].shape[1] == 1
        waiting = [seat for seat in running._waiting if seat.shared is not None]
        assert not waiting  # only those under way keep it alive
    raise AssertionError


def test_what_waits_is_not_read_again_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = bounded(monkeypatch, load(tmp_path), 800, rows=2)
    for ticket, entry in enumerate(told((320, 5), (320, 6), (160, 5), (160, 6), (161, 5), (161, 6))):
        running.submit(ticket, *entry)
    read = read_tokens(monkeypatch)
    steps_of(running)
    assert sum(read) <= 320 + 160 + 161 + 6 * (6 + 16 + 12)


def test_rows_that_share_nothing_do_not_lock_out_those_that_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentopcd.rollouts.sampling.drafts.MOST", 0)  # each reply takes its time
    loaded = load(tmp_path)
    running = bounded(monkeypatch, loaded, 8 * 256, rows=8)
    ((request, sampling),) = told((99, 1), max_tokens=150)
    long = [(dataclasses.replace(request, choices=((*[30] * 140, loaded.end_ids[0]),)), sampling)]
    for ticket, entry in enumerate([*told(*[(200 + i, 0) for i in range(7)], max_tokens=20), *long]):
        running.submit(ticket, *entry)
    running.advance()
    for ticket, entry in enumerate(told(*[(100, 5 + i) for i in range(16)]), start=8):
        running.submit(ticket, *entry)
    found: list[int] = []
    while len({ticket for ticket in found if ticket >= 8}) < 16:
        found += [ticket for ticket, _ in running.advance()]
    assert 7 not in found  # the long one goes on
    steps_of(running)


def test_wide_rows_are_given_up_for_what_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = bounded(monkeypatch, load(tmp_path), 8 * 256, rows=8)
    for ticket, entry in enumerate(told(*[(200 + i, 0) for i in range(8)])):
        running.submit(ticket, *entry)
    steps_of(running)
    for ticket, entry in enumerate(told(*[(100, 5 + i) for i in range(8)])):
        running.submit(ticket, *entry)
    running.advance()
    assert running._beginnings.tokens == 96 and len(running._seats) == 8


def test_rows_and_what_is_shared_stay_within_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = bounded(monkeypatch, load(tmp_path), 4000, rows=8)
    for ticket, entry in enumerate(told((900, 5), (900, 6), (1000, 5), (1000, 6), max_tokens=220)):
        running.submit(ticket, *entry)
    running.advance()
    for ticket, entry in enumerate(told(*[(10 + i, 0) for i in range(10)], max_tokens=250), start=4):
        running.submit(ticket, *entry)
    steps_of(running)


def test_what_nobody_uses_any_more_makes_room_for_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = bounded(monkeypatch, load(tmp_path), 8 * 256, rows=8, in_order=True)
    for ticket, entry in enumerate(told((800, 5), (800, 6))):
        running.submit(ticket, *entry)
    steps_of(running)
    assert running._beginnings.tokens == 800
    for ticket, entry in enumerate(told(*[(150 + i, 0) for i in range(18)], max_tokens=60)):
        running.submit(ticket, *entry)
    running.advance()
    assert len(running._seats) == 8 and running._beginnings.tokens == 0


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_windows_as_wide_as_the_rows(kind: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, kind.removesuffix("_text"))
    first = Request(prompt_ids=(*range(20, 40), 200), seed=0)
    rest = [Request(prompt_ids=(*range(20, 40), 201 + i, 7, 9), seed=i) for i in range(4)]
    running = Continuous(loaded, torch.float32, rows=4)
    for requests in ([first], rest):
        replies = running.sample(requests, HOT)
        assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < 1e-3


@pytest.mark.parametrize("n", [3, 12, 100])
def test_a_sampler_compares_shared_beginnings_before_it_takes_them(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sampler = TransformersSampler(load(tmp_path), compute=torch.float32, say=said.append)
    monkeypatch.setattr(
        "agentopcd.rollouts.sampling.rows.mixed",
        lambda one, other: one[0],  # forgets what is shared
    )
    sampler.sample([dataclasses.replace(asked(1)[0], prompt_ids=tuple(range(20, 20 + n)))], HOT)
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
