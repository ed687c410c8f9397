"""Guesses at the next tokens: what is guessed, and that they change how many steps a reply takes and nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Completion, Request
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.drafts import Drafts
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.steps import Part, Step
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.rollouts.sampling.test_continuous import HOT, load, off_nats

KINDS = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "deepseek_v3")


def taught(*replies: Sequence[int]) -> Drafts:
    known = Drafts()
    for reply in replies:
        for n in range(1, len(reply)):
            known.learn(reply[: n + 1])
    return known


def test_what_always_followed_is_guessed_and_what_seldom_did_is_not() -> None:
    known = taught(*[[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 9)
    assert known.guess([0, 1, 2, 3, 4], 0, 9, ()) == [5, 6, 7]  # no more than MOST
    assert known.guess([1, 2, 3, 4], 0, 2, ()) == [5, 6]
    assert known.guess([2, 1, 3, 4], 0, 9, ()) == []
    once = taught([1, 2, 3, 4, 5, 6])
    assert once.guess([1, 2, 3, 4], 0, 9, ()) == [5]  # a second one would be right once in four
    either = taught([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])
    assert either.guess([1, 2, 3, 4], 0, 9, ()) == []


def test_the_commonest_token_is_guessed_even_if_another_one_came_first() -> None:
    known = taught([1, 2, 3, 4, 5], *[[1, 2, 3, 4, 6]] * 9)
    assert known.guess([1, 2, 3, 4], 0, 1, ()) == [6]
    seldom = taught(*[[1, 2, 3, 4, 5]] * 9, *[[1, 2, 3, 4, 10 + n % 5] for n in range(40)])
    assert seldom._next([1, 2, 3, 4])[1] <= 0.5  # the new one has not inherited the count of the old one


def test_ends_of_replies_are_not_guessed() -> None:
    known = taught(*[[1, 2, 3, 4, 5, 9]] * 9)
    assert known.guess([1, 2, 3, 4], 0, 9, {9}) == [5]
    assert known.guess([1, 2, 3, 4], 0, 0, {9}) == []


def test_a_token_without_an_alternative_is_certain_and_a_forbidden_one_is_not_guessed() -> None:
    choices = ((5, 6, 7, 2), (5, 6, 8, 2))
    assert Drafts().guess([1], 1, 9, {2}, choices) == [5, 6]
    assert Drafts().guess([1, 5, 6, 7], 1, 9, {2}, choices) == []
    assert taught(*[[0, 1, 5, 6, 8]] * 9).guess([0, 1], 2, 9, {2}, choices) == [5, 6, 8]
    assert taught(*[[0, 1, 5, 6, 9]] * 9).guess([0, 1], 2, 9, {2}, choices) == [5, 6]
    assert Drafts().guess([1, 5, 6, 7, 2], 1, 9, {2}, choices) == []  # the reply is complete


def test_what_is_remembered_is_bounded_and_the_older_half_goes_first() -> None:
    known = Drafts(100)
    for n in range(1000):
        known.learn([n, n, n, n, n + 1])
        assert len(known._seen) <= 100
    assert known.guess([999] * 4, 0, 1, ()) == [1000] and known.guess([890] * 4, 0, 1, ()) == []


def requests_of(seed: int, lengths: Sequence[int], choices: Any = ()) -> list[Request]:
    numbers = random.Random(seed)
    begin = [numbers.randrange(20, 200) for _ in range(40)]
    return [
        Request(prompt_ids=(*begin[:length], numbers.randrange(20, 200)), seed=n, choices=choices)
        for n, length in enumerate(lengths)
    ]


def answered(
    loaded: Any, requests: Sequence[Request], guess: Any, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> tuple[list[Completion], int]:
    """The replies with these guesses, and in how many steps."""
    steps: list[int] = []
    usual = Rows.read
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "read", lambda self, parts: steps.append(len(parts)) or usual(self, parts))
        patch.setattr(Drafts, "guess", guess)
        return Continuous(loaded, torch.float32, 4, **how).sample(requests, HOT), len(steps)


def none(*args: Any) -> list[int]:
    return []


def wild(self: Drafts, ids: Sequence[int], start: int, most: int, *args: Any) -> list[int]:
    """Guesses of all lengths, of which hardly any is right."""
    numbers = random.Random(f"{list(ids)}")
    return [numbers.randrange(20, 200) for _ in range(min(most, numbers.randrange(4)))]


def knowing(replies: Sequence[Completion], requests: Sequence[Request], wrong: bool = False) -> Any:
    """Guesses that are right; with ``wrong``, all but the last of those of a step."""
    by_prompt = {request.prompt_ids: reply.token_ids for request, reply in zip(requests, replies, strict=True)}

    def guess(self: Drafts, ids: Sequence[int], start: int, most: int, *args: Any) -> list[int]:
        said = len(ids) - start
        found = list(by_prompt[tuple(ids[:start])][said : said + min(most, 3)])
        return [*found[:-1], (found[-1] + 1) % 200] if wrong and found else found

    return guess


def checked(loaded: Any, requests: Sequence[Request], replies: Sequence[Completion], within: float = 1e-3) -> None:
    """The log-probabilities are those of the model."""
    assert max(off_nats(loaded.model, *pair) for pair in zip(requests, replies, strict=True)) < within


def alike(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert [reply.token_ids for reply in found] == [reply.token_ids for reply in expected]
    assert [reply.finish_reason for reply in found] == [reply.finish_reason for reply in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("worth", [0, 1 << 40], ids=["shared", "alone"])
def test_guesses_change_nothing_but_the_number_of_steps(
    kind: str, worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tmp_path, kind)
    requests = requests_of(3, [3, 34, 1, 40, 36, 20, 40, 38, 2])
    expected, steps = answered(loaded, requests, none, monkeypatch, worth=worth)
    assert sum(len(reply.token_ids) for reply in expected) > 60
    for guess in (wild, knowing(expected, requests, wrong=True), knowing(expected, requests), Drafts.guess):
        found, fewer = answered(loaded, requests, guess, monkeypatch, worth=worth)
        alike(found, expected)
        assert fewer <= steps
    _, fewest = answered(loaded, requests, knowing(expected, requests), monkeypatch, worth=worth)
    assert 2 * fewest < steps


def test_replies_from_a_list_take_a_step_for_each_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path)
    end = loaded.end_ids[0]
    choices = ((30, 31, 32, 33, end), (30, 31, 40, 41, end), (30, 31, 40, 42, end))
    requests = requests_of(5, [8, 12, 3], choices)
    expected, _ = answered(loaded, requests, none, monkeypatch)
    found, steps = answered(loaded, requests, Drafts.guess, monkeypatch)
    alike(found, expected)
    assert {reply.token_ids for reply in found} <= set(choices)
    assert steps <= 3  # the first draws three tokens, and one or two more end the reply


def test_the_second_time_a_reply_takes_fewer_steps_and_is_heard_in_order(tmp_path: Path) -> None:
    running, sampling = Continuous(load(tmp_path), torch.float32, 4), dataclasses.replace(HOT, max_tokens=60)
    requests, heard = requests_of(7, [30]), []
    running.heard = lambda ticket, ids, logprobs: heard.extend(ids)
    first, steps = running.sample(requests, sampling), running.steps
    second = running.sample(requests, sampling)
    alike(second, first)
    assert running.drafts.right > 10 and running.steps - steps < 0.7 * steps
    assert heard == [*first[0].token_ids, *second[0].token_ids]


@pytest.mark.parametrize("worth", [0, 1 << 40], ids=["shared", "alone"])
def test_rows_that_are_full_to_the_last_place(worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path)
    monkeypatch.setattr(loaded, "end_ids", ())
    requests = [Request(prompt_ids=(20, 21, 22, 23 + n), seed=n) for n in range(4)]
    sampling = dataclasses.replace(HOT, max_tokens=60)  # 64 in all, as wide as a row
    monkeypatch.setattr(Drafts, "guess", lambda self, ids, start, most, *args: [33, 44, 55][:most])
    running = Continuous(loaded, torch.float32, 4, worth=worth)
    replies = running.sample(requests, sampling)
    assert running._rows._stores[0].shape[3] == 64 and {len(reply.token_ids) for reply in replies} == {60}
    checked(loaded, requests, replies)


def test_turn_after_turn_with_wrong_guesses_no_key_of_them_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests = load(tmp_path), requests_of(9, [3, 34, 36, 20, 38])
    monkeypatch.setattr(Drafts, "guess", wild)
    running = Continuous(loaded, torch.float32, 3, worth=0)
    for _ in range(3):
        replies = running.sample(requests, HOT)
        checked(loaded, requests, replies)
        requests = [
            dataclasses.replace(request, prompt_ids=(*request.prompt_ids, *reply.token_ids, 9, 8))
            for request, reply in zip(requests, replies, strict=True)
        ]
    assert running.drafts.made > running.drafts.right


def test_many_kinds_of_sampling_at_once_and_requests_that_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests = load(tmp_path), requests_of(11, [3, 34, 36, 20, 38, 1, 7, 40])
    kinds = [dataclasses.replace(HOT, **how) for how in ({"temperature": 0.0}, {"max_tokens": 1}, {"top_k": 5}, {})]
    alone = [
        Continuous(loaded, torch.float32, 1).sample([request], kinds[n % 4])[0] for n, request in enumerate(requests)
    ]
    for guess in (wild, knowing(alone, requests, wrong=True), Drafts.guess):
        monkeypatch.setattr(Drafts, "guess", guess)
        running, found = Continuous(loaded, torch.float32, 3), {}
        for ticket, request in enumerate(requests):
            running.submit(ticket, request, kinds[ticket % 4])
        found.update(running.advance())
        running.drop([2, 7])
        while not running.idle:
            found.update(running.advance())
        kept = sorted(found.keys() - {2, 7})
        assert kept == [0, 1, 3, 4, 5, 6]
        alike([found[ticket] for ticket in kept], [alone[ticket] for ticket in kept])


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
def test_in_bfloat16_guesses_are_as_near_the_model_as_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests = load(tmp_path, kind), requests_of(13, [3, 34, 36, 20, 38])
    monkeypatch.setattr(Drafts, "guess", wild)
    for worth in (0, 1 << 40):
        replies = Continuous(loaded, torch.bfloat16, 3, worth=worth).sample(requests, HOT)
        with models.autocast(torch.device("cpu"), torch.bfloat16):
            checked(loaded, requests, replies, within=0.1)


def test_recorded_steps_guess_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Continuous(load(tmp_path), torch.float32, 4)
    monkeypatch.setattr(Rows, "records", property(lambda self: True))
    for _ in range(2):
        running.sample(requests_of(7, [30]), HOT)
    assert (running.drafts.made, running.drafts._seen) == (0, {})


def test_an_engine_is_compared_with_the_model_while_it_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: set[int] = set()
    usual = Rows.read

    def noted(self: Rows, parts: Sequence[Part]) -> torch.Tensor:
        wanted.update(part.wanted for part in parts)
        return usual(self, parts)

    monkeypatch.setattr(Rows, "read", noted)
    loaded, requests = load(tmp_path), requests_of(1, [30, 12])
    assert TransformersSampler(loaded, compute=torch.float32).way(requests, HOT) == "fast"
    assert {1, 4} <= wanted
    mask = Step.mask

    def blind(self: Step, *how: Any) -> torch.Tensor:
        """Every token of a row sees what its last one sees, which is wrong for guesses alone."""
        seen = mask(self, *how)
        return seen[:, :, -1:].expand_as(seen)

    monkeypatch.setattr(Step, "mask", blind)
    said: list[str] = []
    sampler = TransformersSampler(load(tmp_path / "other"), compute=torch.float32, say=said.append)
    assert sampler.way(requests, HOT) == "padded" and "fast decoding" in said[0]
