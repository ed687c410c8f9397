"""The contract of a sampler. Every back end answers it: add one to ``BACK_ENDS``.

All of it in float32: batches of another shape round differently, which must not reach a reply there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ConfigError, EngineError
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling import Sampler, request_seed
from tests import tiny
from tests.rollouts.sampling.vllm_server import VllmServer

Make = Callable[..., Sampler]


def transformers_back_end(loaded: models.LoadedModel, **options: Any) -> Sampler:
    from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler

    return TransformersSampler(loaded, compute=torch.float32, **options)


def vllm_back_end(loaded: models.LoadedModel, **options: Any) -> Sampler:
    from agentopcd.rollouts.sampling.vllm_engine import VllmSampler

    return VllmSampler(loaded, compute=torch.float32, **options)


def server_back_end(loaded: models.LoadedModel, **options: Any) -> Sampler:
    from agentopcd.rollouts.sampling.vllm_server import ServerSampler

    return ServerSampler(loaded, compute=torch.float32, urls=[VLLM[0].url], **options)


VLLM: list[VllmServer] = []
"""The server that runs while its contract is tested."""
BACK_ENDS: dict[str, Make] = {
    "transformers": transformers_back_end, "vllm": vllm_back_end, "server": server_back_end
}  # fmt: skip
ENDS = (tiny.END, *range(5, 40))
"""A random model hardly ever stops; with this many end tokens replies have all lengths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0, head_dim=32)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> models.LoadedModel:
    found = models.load_model(str(folder))
    found.end_ids = ENDS
    return found


@pytest.fixture(
    params=["transformers", *(pytest.param(name, marks=pytest.mark.vllm) for name in ("vllm", "server"))],
    scope="module",
)
def make(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:
        if request.param == "server":
            log = tmp_path_factory.mktemp("vllm") / "log"
            VLLM[:] = [stack.enter_context(VllmServer(folder, "tiny", log))]
        yield BACK_ENDS[request.param]


@pytest.fixture(scope="module")
def sampler(make: Make, loaded: models.LoadedModel) -> Sampler:
    return make(loaded)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    found = torch.randint(40, 290, (length,), generator=torch.Generator().manual_seed(seed))
    return tuple(found.tolist())


REQUESTS = [Request(prompt_ids=prompt(n, n), seed=1000 + n) for n in (3, 17, 5, 9, 1, 30, 9)]
HOT, COLD = Sampling(temperature=0.7, max_tokens=12), Sampling(temperature=0.0, max_tokens=12)


@torch.no_grad()
def scores(loaded: models.LoadedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """Next-token logits after ``ids``, from a plain forward pass."""
    return loaded.model(torch.tensor([ids])).logits[0, -1]


def close(a: Completion, b: Completion) -> bool:
    gaps = [abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    return (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason) and max(gaps) < 1e-4


def test_temperature_0_takes_the_likeliest_token_each_time(sampler: Sampler, loaded: models.LoadedModel) -> None:
    for request, reply in zip(REQUESTS, sampler.sample(REQUESTS, COLD), strict=True):
        ids: list[int] = []
        while len(ids) < COLD.max_tokens and not (ids and ids[-1] in ENDS):
            ids.append(int(scores(loaded, request.prompt_ids + tuple(ids)).argmax()))
        assert reply.token_ids == tuple(ids)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_log_probabilities_are_those_of_a_plain_forward_pass(
    sampler: Sampler, loaded: models.LoadedModel, temperature: float
) -> None:
    for request, reply in zip(
        REQUESTS, sampler.sample(REQUESTS, Sampling(temperature=temperature, max_tokens=8)), strict=True
    ):
        for at, (token, logprob) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
            logits = scores(loaded, request.prompt_ids + reply.token_ids[:at])
            assert logprob == pytest.approx(float((logits / temperature).log_softmax(-1)[token]), abs=1e-4)


def test_a_reply_does_not_depend_on_its_neighbours_or_the_order(sampler: Sampler) -> None:
    together = sampler.sample(REQUESTS, HOT)
    backwards = sampler.sample(REQUESTS[::-1], HOT)[::-1]
    alone = [sampler.sample([request], HOT)[0] for request in REQUESTS]
    assert all(close(a, b) for a, b in zip(together, alone, strict=True))
    assert all(close(a, b) for a, b in zip(together, backwards, strict=True))


def test_a_reply_does_not_depend_on_the_batch_size(make: Make, loaded: models.LoadedModel) -> None:
    sizes = [make(loaded, batch_size=size).sample(REQUESTS, HOT) for size in (1, 2, 64)]
    for replies in zip(*sizes, strict=True):
        assert all(close(reply, replies[0]) for reply in replies)


def test_the_seed_makes_the_reply(sampler: Sampler) -> None:
    same = [Request(prompt_ids=prompt(6), seed=7)] * 2
    other = [Request(prompt_ids=prompt(6), seed=seed) for seed in range(8)]
    first, second = sampler.sample(same, HOT)
    assert first.token_ids == second.token_ids and first.finish_reason == second.finish_reason
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-5)  # rows of a batch may round differently
    assert len({reply.token_ids for reply in sampler.sample(other, HOT)}) > 4


def test_global_random_state_is_neither_read_nor_moved(sampler: Sampler) -> None:
    torch.manual_seed(0)
    first, state = sampler.sample(REQUESTS, HOT), torch.get_rng_state()
    torch.manual_seed(1)
    second = sampler.sample(REQUESTS, HOT)
    torch.manual_seed(0)
    assert [r.token_ids for r in first] == [r.token_ids for r in second]
    assert torch.equal(state, torch.get_rng_state())


def test_replies_end_with_an_end_token_or_at_the_limit(sampler: Sampler) -> None:
    requests = [Request(prompt_ids=prompt(4), seed=seed) for seed in range(24)]
    reasons = Counter[str]()
    for reply in sampler.sample(requests, Sampling(temperature=1.0, max_tokens=10)):
        reasons[reply.finish_reason] += 1
        *inside, last = reply.token_ids
        assert len(reply.logprobs) == len(reply.token_ids)
        assert not set(inside) & set(ENDS)
        if reply.finish_reason == "stop":
            assert last in ENDS
        else:
            assert len(reply.token_ids) == 10 and last not in ENDS
    assert min(reasons["stop"], reasons["length"]) > 2


def test_an_end_token_at_the_limit_is_a_stop(sampler: Sampler) -> None:
    requests = [Request(prompt_ids=prompt(4), seed=seed) for seed in range(99)]
    replies = sampler.sample(requests, Sampling(temperature=1.5, max_tokens=1))
    assert {(r.finish_reason == "stop") == (r.token_ids[0] in ENDS) for r in replies} == {True}
    assert {r.finish_reason for r in replies} == {"stop", "length"}


def first_tokens(sampler: Sampler, n: int, **sampling: Any) -> list[Completion]:
    requests = [Request(prompt_ids=prompt(5), seed=request_seed("draw", seed)) for seed in range(n)]
    return sampler.sample(requests, Sampling(max_tokens=1, **sampling))


def test_frequencies_match_the_probabilities(sampler: Sampler, loaded: models.LoadedModel) -> None:
    """Chi-square over the likely tokens and the rest; the seeds are fixed, so it passes always or never."""
    probs = scores(loaded, prompt(5)).softmax(-1)
    n = 2000
    drawn = Counter(reply.token_ids[0] for reply in first_tokens(sampler, n, temperature=1.0))
    likely = [token for token in range(len(probs)) if probs[token] * n >= 10]
    cells = [(drawn[token], float(probs[token]) * n) for token in likely]
    cells.append((n - sum(seen for seen, _ in cells), n - sum(wanted for _, wanted in cells)))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    assert freedom > 8
    assert statistic < freedom + 3 * (2 * freedom) ** 0.5


def test_top_k_keeps_k_tokens_and_renormalises(sampler: Sampler, loaded: models.LoadedModel) -> None:
    logits = scores(loaded, prompt(5)) / 1.3
    kept = logits.topk(3)
    wanted = dict(zip(kept.indices.tolist(), kept.values.log_softmax(-1).tolist(), strict=True))
    replies = first_tokens(sampler, 60, temperature=1.3, top_k=3)
    assert {r.token_ids[0] for r in replies} == set(wanted)
    assert all(r.logprobs[0] == pytest.approx(wanted[r.token_ids[0]], abs=1e-4) for r in replies)


def test_top_p_keeps_the_smallest_set_that_holds_p(sampler: Sampler, loaded: models.LoadedModel) -> None:
    probs, order = scores(loaded, prompt(5)).softmax(-1).sort(descending=True)
    size = int((probs.cumsum(-1) < 0.5).sum()) + 1
    wanted = {int(token): float((p / probs[:size].sum()).log()) for token, p in zip(order[:size], probs, strict=False)}
    replies = first_tokens(sampler, 150, temperature=1.0, top_p=0.5)
    assert {r.token_ids[0] for r in replies} == set(wanted)
    assert all(r.logprobs[0] == pytest.approx(wanted[r.token_ids[0]], abs=1e-4) for r in replies)


def test_a_tiny_top_p_still_keeps_the_likeliest_token(sampler: Sampler, loaded: models.LoadedModel) -> None:
    replies = first_tokens(sampler, 5, temperature=1.0, top_p=1e-6)
    assert {r.token_ids[0] for r in replies} == {int(scores(loaded, prompt(5)).argmax())}


def test_a_prompt_that_leaves_no_room_is_refused(sampler: Sampler) -> None:
    fits = Request(prompt_ids=prompt(2048 - 3), seed=0)
    assert len(sampler.sample([fits], Sampling(max_tokens=3))) == 1
    with pytest.raises(ConfigError, match="2048 positions"):
        sampler.sample([REQUESTS[0], fits], Sampling(max_tokens=4))


def test_nothing_asked_nothing_answered(sampler: Sampler) -> None:
    assert sampler.sample([], HOT) == []


VENDOR = [
    {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.3},
    {"num_beams": 3, "max_length": 8, "max_new_tokens": 2},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 12},
    {"suppress_tokens": list(range(60, 200))},
    {"bad_words_ids": [[7], [45], [46], [47]], "encoder_repetition_penalty": 1.5},
    {"forced_eos_token_id": 2},
    {"stop_strings": ["e"]},
]


@pytest.mark.parametrize("vendor", VENDOR, ids=lambda vendor: next(iter(vendor)))
def test_a_vendor_generation_config_does_not_leak_in(
    make: Make, folder: Path, tmp_path: Path, sampler: Sampler, vendor: dict[str, Any]
) -> None:
    shutil.copytree(folder, tmp_path / "vendor")
    (tmp_path / "vendor" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **vendor}))
    loaded = models.load_model(str(tmp_path / "vendor"))
    loaded.end_ids = ENDS
    replies = make(loaded).sample(REQUESTS, HOT)
    assert all(close(a, b) for a, b in zip(replies, sampler.sample(REQUESTS, HOT), strict=True))


def test_sampling_leaves_the_vendor_config_and_the_mode_as_they_were(make: Make, folder: Path) -> None:
    loaded = models.load_model(str(folder))
    before = loaded.model.generation_config.to_dict()
    loaded.model.train()
    make(loaded).sample(REQUESTS[:1], HOT)
    assert loaded.model.training
    assert loaded.model.generation_config.to_dict() == before


def test_the_sampler_follows_the_weights(make: Make, folder: Path) -> None:
    loaded = models.load_model(str(folder))
    sampler = make(loaded)
    before = sampler.sample(REQUESTS, COLD)
    with torch.no_grad():
        loaded.model.lm_head.weight.neg_()
    sampler.update()
    after = sampler.sample(REQUESTS, COLD)
    assert all(a.token_ids[0] != b.token_ids[0] for a, b in zip(before, after, strict=True))


CHOICES = ((50, 60, 70, tiny.END), (50, 61, tiny.END), (50, tiny.END), (80, 81, tiny.END))


def test_replies_that_are_held_to_a_list_are_on_it_and_their_probabilities_are_of_the_rest(
    make: Make, folder: Path, request: pytest.FixtureRequest
) -> None:
    loaded, hot = models.load_model(str(folder)), Sampling(temperature=2.0, max_tokens=12)
    sampler = make(loaded)
    held = [Request(prompt_ids=prompt(6), seed=seed, choices=CHOICES) for seed in range(24)]
    if "server" in request.node.name:
        with pytest.raises(EngineError, match="leave out --constrain"):
            sampler.sample(held, hot)
        return
    both = [held[0], *REQUESTS, *held[1:]]
    replies = sampler.sample(both, hot)
    free, found = replies[1 : 1 + len(REQUESTS)], [replies[0], *replies[1 + len(REQUESTS) :]]
    assert all(close(a, b) for a, b in zip(free, make(loaded).sample(REQUESTS, hot), strict=True))
    assert {reply.token_ids for reply in found} <= set(CHOICES)
    assert len({reply.token_ids for reply in found}) > 1
    assert {reply.finish_reason for reply in found} == {"stop"}
    for reply in found:
        for at, (token, logprob) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
            may = [c[at] for c in CHOICES if len(c) > at and c[:at] == reply.token_ids[:at]]
            logits = {t: float(scores(loaded, prompt(6) + reply.token_ids[:at])[t]) / 2 for t in may}
            wanted = torch.tensor([logits[token]]) - torch.tensor(sorted({*logits.values()})).logsumexp(0)
            assert logprob == pytest.approx(float(wanted), abs=1e-4)


def test_the_engine_name_says_what_could_change_replies(make: Make, loaded: models.LoadedModel) -> None:
    assert make(loaded).engine.endswith("-float32")


def test_request_seeds_are_stable_and_differ() -> None:
    assert request_seed(0, "key", 1, 0, 0) == request_seed(0, "key", 1, 0, 0) == 4465723502586136729
    seeds = {request_seed(run, "key", task, rep, turn) for run in range(5) for task in range(5) for rep in range(5)
             for turn in range(5)}  # fmt: skip
    assert len(seeds) == 625
    assert request_seed("a", "b") != request_seed("ab")
    assert all(0 <= seed < 2**63 for seed in seeds)
