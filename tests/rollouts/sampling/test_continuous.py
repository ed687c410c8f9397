"""Continuous batching: a reply is that of its request alone, whatever runs beside it and whatever was read before."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentopcd import models
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling import continuous
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.prefixes import Prefixes
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.models import architectures

HOT = Sampling(temperature=1.0, max_tokens=12)


def load(folder: Path, name: str = "llama") -> models.LoadedModel:
    return models.load_model(str(architectures.build(folder / "model", name)))


def prompts(n: int, seed: int = 0) -> list[Request]:
    """Prompts of many lengths; many begin alike."""
    rng = random.Random(seed)
    context = [rng.randrange(10, 250) for _ in range(40)]
    asked = []
    for number in range(n):
        shared = rng.choice((0, 7, 40))
        ids = (*context[:shared], *(rng.randrange(10, 250) for _ in range(rng.randrange(1, 30))))
        asked.append(Request(prompt_ids=ids, seed=number))
    return asked


@torch.no_grad()
def off_nats(model: Any, request: Request, reply: Completion, sampling: Sampling = HOT) -> float:
    """How far the log-probabilities of a reply are from those of the model's own forward pass."""
    logits = models.own_logits(model, request.prompt_ids, reply.token_ids) / sampling.temperature
    own = logits.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
    return float((own - torch.tensor(reply.logprobs)).abs().max())


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "deepseek_v3"]
)
def test_replies_are_those_of_the_model_with_windows_caps_and_sinks_too(name: str, tmp_path: Path) -> None:
    loaded, asked = load(tmp_path, name), prompts(14)
    replies = Continuous(loaded, torch.float32, rows=5).sample(asked, HOT)
    assert max(off_nats(loaded.model, *pair) for pair in zip(asked, replies, strict=True)) < 1e-3
    assert len({len(reply.token_ids) for reply in replies}) > 1 or len(replies[0].token_ids) == HOT.max_tokens


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt_oss", "deepseek_v3"])
def test_in_bfloat16_keys_are_held_in_it_and_replies_are_near_the_models(name: str, tmp_path: Path) -> None:
    loaded, asked = load(tmp_path, name), prompts(14)
    running = Continuous(loaded, torch.bfloat16, rows=5)
    replies = running.sample(asked, HOT)
    assert {store.dtype for store in running._rows._stores} == {torch.bfloat16}
    with models.autocast(torch.device("cpu"), torch.bfloat16):
        off = [off_nats(loaded.model, *pair) for pair in zip(asked, replies, strict=True)]
    assert max(off) < 0.1  # of the model's own pass in bfloat16


@torch.no_grad()
def test_two_models_that_answer_at_once_keep_their_rows_apart(tmp_path: Path) -> None:
    """One step of the second engine runs inside a forward pass of the first, as with two threads of a server."""
    first, second = (load(tmp_path / name, "gpt2") for name in ("one", "two"))
    asked = prompts(6)
    wanted = [Continuous(loaded, torch.float32, rows=3).sample(asked, HOT) for loaded in (first, second)]
    inner, outer = (Continuous(loaded, torch.float32, rows=3) for loaded in (second, first))
    for ticket, request in enumerate(asked):
        inner.submit(ticket, request, HOT)
    found: dict[int, Any] = {}
    usual = outer._rows._attend

    def between(*args: Any, **kwargs: Any) -> Any:
        if not inner.idle:
            found.update(inner.advance())
        return usual(*args, **kwargs)

    outer._rows._attend = between  # type: ignore[method-assign]
    assert outer.sample(asked, HOT) == wanted[0]
    assert [found[ticket] for ticket in range(len(asked))] == wanted[1]


def test_a_reply_does_not_depend_on_what_runs_beside_it_or_was_read_before(tmp_path: Path) -> None:
    loaded, asked = load(tmp_path), prompts(20)
    alone = [Continuous(loaded, torch.float32, rows=1).sample([request], HOT)[0] for request in asked]
    for rows in (1, 3, 64):
        running = Continuous(loaded, torch.float32, rows)
        for _ in range(2):  # the second time, all was read before
            replies = running.sample(asked, HOT)
            assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in alone]
            for one, other in zip(replies, alone, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert one.finish_reason == other.finish_reason


def test_what_prompts_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    usual = Rows.read
    monkeypatch.setattr(
        Rows, "read", lambda self, parts: read.append(sum(len(part.ids) for part in parts)) or usual(self, parts)
    )
    loaded, context = load(tmp_path), tuple(range(20, 120))
    asked = [Request(prompt_ids=(*context, 130 + number, 7), seed=number) for number in range(6)]
    running = Continuous(loaded, torch.float32, rows=4)
    replies = running.sample(asked, dataclasses.replace(HOT, max_tokens=3))
    said = sum(len(reply.token_ids) - 1 for reply in replies)  # the last token of a reply is never read
    in_vain = running.drafts.made - running.drafts.right
    assert sum(read) - in_vain == len(context) + 6 * 2 + said
    read.clear()  # the next turn: the game so far, and something new
    more = [
        dataclasses.replace(request, prompt_ids=(*request.prompt_ids, *reply.token_ids, 9, 8))
        for request, reply in zip(asked, replies, strict=True)
    ]
    running.sample(more, dataclasses.replace(HOT, max_tokens=1))
    assert sum(read) == 6 * 3  # the last token of the reply, and the two new ones


def test_long_prompts_are_read_in_pieces_and_memory_stays_within_its_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, asked = load(tmp_path), prompts(30)
    wanted = [reply.token_ids for reply in Continuous(loaded, torch.float32, 8).sample(asked, HOT)]
    monkeypatch.setattr(continuous, "READ_TOKENS", 5)
    monkeypatch.setattr(continuous, "PREFIXES_BYTES", 40_000)
    monkeypatch.setattr(continuous, "ROWS_BYTES", 3 * 128 * 1024)
    running = Continuous(loaded, torch.float32, 8)
    long = dataclasses.replace(asked[0], prompt_ids=tuple(range(10, 230)))
    running.sample([long], HOT)  # the rows are wide from now on, so there may be fewer
    for _ in range(4):
        assert [reply.token_ids for reply in running.sample(asked, HOT)] == wanted
        assert 0 < running._prefixes.size <= 40_000
        assert running._prefixes.size == sum(node.size for node in nodes(running._prefixes))
        assert sum(store.nbytes for store in running._rows._stores) <= 3 * 128 * 1024


@torch.no_grad()
def test_one_long_request_after_many_short_ones_stays_within_the_bound_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "ROWS_BYTES", 12 * 64 * 256)  # twelve rows of 64 tokens
    loaded, asked = load(tmp_path), [request for request in prompts(40) if len(request.prompt_ids) < 50]
    running = Continuous(loaded, torch.float32, 12)
    wanted = [reply.token_ids for reply in running.sample(asked, HOT)]
    rows = running._rows._stores[0].shape[1]
    assert rows > 8
    running.submit(0, dataclasses.replace(asked[0], prompt_ids=tuple(range(10, 230))), HOT)
    most = 0
    for ticket, request in enumerate(asked[:6], start=1):
        running.submit(ticket, request, HOT)
    found: dict[int, Any] = {}
    while not running.idle:
        found.update(running.advance())
        most = max(most, sum(store.nbytes for store in running._rows._stores))
    assert most <= 12 * 64 * 256
    assert [found[ticket].token_ids for ticket in range(1, 7)] == wanted[:6]
    assert [reply.token_ids for reply in running.sample(asked, HOT)] == wanted
    assert running._rows._stores[0].shape[1] == rows  # wide rows were given up


def test_each_request_is_drawn_with_its_own_settings(tmp_path: Path) -> None:
    loaded, asked = load(tmp_path), prompts(6)
    kinds = [HOT, dataclasses.replace(HOT, temperature=0.0), dataclasses.replace(HOT, top_k=2, max_tokens=3)]
    alone = [Continuous(loaded, torch.float32, 1).sample([one], kinds[i % 3])[0] for i, one in enumerate(asked)]
    running = Continuous(loaded, torch.float32, 4)
    for ticket, request in enumerate(asked):
        running.submit(ticket, request, dataclasses.replace(kinds[ticket % 3]))  # equal, not the same object
    found: dict[int, Any] = {}
    while not running.idle:
        found.update(running.advance())
    assert [found[ticket].token_ids for ticket in range(6)] == [reply.token_ids for reply in alone]
    assert max(len(found[ticket].token_ids) for ticket in (2, 5)) <= 3


def test_tokens_are_heard_as_they_are_sampled_and_add_up_to_the_reply(tmp_path: Path) -> None:
    sampler = TransformersSampler(load(tmp_path), compute=torch.float32)
    heard: dict[int, list[tuple[int, float]]] = {}
    sampler.heard = lambda ticket, ids, logprobs: heard.setdefault(ticket, []).extend(zip(ids, logprobs, strict=True))
    tickets = [sampler.submit(request, HOT) for request in prompts(4)]
    found: dict[int, Any] = {}
    before = 0
    while len(found) < 4:
        found.update(sampler.advance())
        now = sum(map(len, heard.values()))
        assert now - before <= 4  # one more token each
        before = now
    for ticket in tickets:
        assert list(zip(found[ticket].token_ids, found[ticket].logprobs, strict=True)) == heard[ticket]


@pytest.mark.parametrize("in_order", [False, True])
def test_who_gets_a_free_row(in_order: bool, tmp_path: Path) -> None:
    running = Continuous(load(tmp_path), torch.float32, rows=1, in_order=in_order)
    running.submit(0, prompts(3)[0], HOT)
    running.advance()
    for ticket in (1, 2):
        running.submit(ticket, prompts(3)[ticket], HOT)
    order = [ticket for _ in range(3) for ticket, _ in running.collect()]
    assert order == ([0, 1, 2] if in_order else [0, 2, 1])


def nodes(prefixes: Prefixes) -> list[Any]:
    found, open_ = [], [*prefixes._root.children.values()]
    while open_:
        found.append(open_.pop())
        open_ += found[-1].children.values()
    return found


def test_replies_are_held_to_the_choices(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    end = loaded.end_ids[0]
    allowed = ((30, 31, end), (30, 40, 41, end))
    asked = [dataclasses.replace(request, choices=allowed) for request in prompts(8)] + prompts(3, seed=1)
    replies = Continuous(loaded, torch.float32, 4).sample(asked, HOT)
    assert {reply.token_ids for reply in replies[:8]} == set(allowed)
    assert not {reply.token_ids for reply in replies[8:]} & set(allowed)


def test_the_prefix_tree_finds_what_was_kept_and_no_more() -> None:
    rng, prefixes, kept = random.Random(0), Prefixes(1 << 20), []

    def take(ids: tuple[int, ...]) -> Any:
        return lambda start, end: [torch.tensor(ids[start:end], dtype=torch.float32).view(1, 1, -1, 1)]

    for _ in range(200):
        ids = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 12)))
        best = max((sum(1 for _ in common(ids, other)) for other in kept), default=0)
        pieces = [tensor[0, 0, :n, 0] for (tensor,), n in prefixes.find(ids)]
        found = torch.cat(pieces).int().tolist() if pieces else []
        assert found == list(ids[:best])
        prefixes.add(ids, take(ids))
        kept.append(ids)
    prefixes.clear()
    assert prefixes.find(kept[0]) == [] and prefixes.size == 0


def common(one: tuple[int, ...], other: tuple[int, ...]) -> Any:
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return
        yield mine


def test_what_was_used_longest_ago_goes_first() -> None:
    prefixes = Prefixes(bound=10 * 4)
    for start in range(5):
        prefixes.add((start, 7), lambda first, last: [torch.zeros(1, 1, last - first, 1)])
    prefixes.find((0, 7))
    prefixes.add((9, 9), lambda first, last: [torch.zeros(1, 1, last - first, 1)])
    assert [bool(prefixes.find((start, 7))) for start in range(5)] == [True, False, False, True, True]
    assert prefixes.size <= prefixes.bound


def test_a_sampler_forgets_when_weights_change_and_when_nothing_is_left(tmp_path: Path) -> None:
    loaded, (first, second) = load(tmp_path), prompts(2)
    sampler = TransformersSampler(loaded, compute=torch.float32)
    ticket, other = sampler.submit(first, HOT), sampler.submit(second, HOT)
    found = dict(sampler.collect())
    assert sampler._running is not None
    sampler.drop({ticket, other} - found.keys())
    assert sampler._running is None
    tickets = [sampler.submit(first, HOT), sampler.submit(second, HOT)]
    replies: dict[int, Completion] = {}
    while len(replies) < 2:
        replies.update(sampler.collect())
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.3)
    sampler.update()
    again = sampler.submit(first, HOT)
    ((_, changed),) = sampler.collect()
    assert changed == TransformersSampler(loaded, compute=torch.float32).sample([first], HOT)[0]
    assert changed.logprobs != replies[tickets[0]].logprobs and again not in tickets


def test_a_sampler_that_serves_keeps_what_it_read_until_its_engine_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, (first, second) = load(tmp_path), prompts(2)
    sampler = TransformersSampler(loaded, compute=torch.float32, in_order=True)

    def broken(self: Continuous) -> None:
        raise RuntimeError("no memory")

    ticket = sampler.submit(first, HOT)
    assert sampler.advance() == []
    running = sampler._running
    sampler.drop([ticket])
    assert sampler._running is running is not None
    other = sampler.submit(second, HOT)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Continuous, "_step", broken)
        sampler.advance()
    sampler.drop([other])
    assert sampler._running is None
    sampler.submit(second, HOT)
    ((_, reply),) = sampler.collect()
    assert reply == TransformersSampler(loaded, compute=torch.float32).sample([second], HOT)[0]
    sampler.update()
    assert sampler._running is None


def test_dropped_requests_leave_the_others_as_they_are(tmp_path: Path) -> None:
    loaded, asked = load(tmp_path), prompts(9)
    wanted = TransformersSampler(loaded, compute=torch.float32).sample(asked, HOT)
    sampler = TransformersSampler(loaded, compute=torch.float32, batch_size=2)
    tickets = [sampler.submit(request, HOT) for request in asked]
    found = dict(sampler.collect())
    gone = [ticket for ticket in tickets[::2] if ticket not in found]
    sampler.drop(gone)
    while len(found) + len(gone) < len(asked):
        found.update(sampler.collect())
    assert {ticket: found[ticket].token_ids for ticket in tickets if ticket in found} == {
        ticket: reply.token_ids for ticket, reply in zip(tickets, wanted, strict=True) if ticket not in gone
    }


@pytest.mark.parametrize(
    ("kind", "more"), [("llama4_text", {"attention_chunk_size": 64, "intermediate_size_mlp": 64}), ("phimoe", {})]
)
@torch.no_grad()
def test_windows_that_only_a_mask_tells_are_refused_however_long_they_are(kind: str, more: dict[str, Any]) -> None:
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=300, num_local_experts=2, sliding_window=4096, eos_token_id=1, bos_token_id=None, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="windows that nothing but the mask"):
        Rows(model, most=2, bound=1 << 20)
