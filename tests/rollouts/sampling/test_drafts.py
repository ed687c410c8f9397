"""Guesses at the next tokens: what is guessed, and that they change how many steps a reply takes and nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling import drafts
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.drafts import Drafts
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.rollouts.sampling.test_continuous import HOT, load

KINDS = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "deepseek_v3")


def taught(*replies: Sequence[int]) -> Drafts:
    known = Drafts()
    for reply in replies:
        for n in range(1, len(reply)):
            known.learn(reply[: n + 1])
    return known


def test_what_always_followed_is_guessed_and_what_seldom_did_is_not() -> None:
    known = taught(*[[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 9)
    assert known.guess([0, 1, 2, 3, 4], [], 9, ()) == [5, 6, 7]  # no more than MOST
    assert known.guess([1, 2, 3, 4], [], 2, ()) == [5, 6]
    assert known.guess([2, 1, 3, 4], [], 9, ()) == []
    once = taught([1, 2, 3, 4, 5, 6])
    assert once.guess([1, 2, 3, 4], [], 9, ()) == [5]  # a second one would be right once in four
    either = taught([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])
    assert either.guess([1, 2, 3, 4], [], 9, ()) == []


def test_the_commonest_token_is_guessed_even_if_another_one_came_first() -> None:
    known = taught([1, 2, 3, 4, 5], *[[1, 2, 3, 4, 6]] * 9)
    assert known.guess([1, 2, 3, 4], [], 1, ()) == [6]


def test_ends_of_replies_are_not_guessed() -> None:
    known = taught(*[[1, 2, 3, 4, 5, 9]] * 9)
    assert known.guess([1, 2, 3, 4], [], 9, {9}) == [5]
    assert known.guess([1, 2, 3, 4], [], 0, {9}) == []


def test_a_token_without_an_alternative_is_certain_and_a_forbidden_one_is_not_guessed() -> None:
    choices = ((5, 6, 7, 2), (5, 6, 8, 2))
    assert Drafts().guess([1], [], 9, {2}, choices) == [5, 6]
    assert Drafts().guess([1, 5, 6, 7], [5, 6, 7], 9, {2}, choices) == []
    assert taught(*[[0, 1, 5, 6, 8]] * 9).guess([0, 1], [], 9, {2}, choices) == [5, 6, 8]
    assert taught(*[[0, 1, 5, 6, 9]] * 9).guess([0, 1], [], 9, {2}, choices) == [5, 6]
    assert Drafts().guess([1, 5, 6, 7, 2], [5, 6, 7, 2], 9, {2}, choices) == []  # the reply is complete


def test_what_is_remembered_is_bounded_and_the_older_half_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "KEPT", 100)
    known = Drafts()
    for n in range(1000):
        known.learn([n, n, n, n, n + 1])
        assert len(known._seen) <= 100
    assert known.guess([999] * 4, [], 1, ()) == [1000] and known.guess([890] * 4, [], 1, ()) == []


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


def wild(self: Drafts, ids: Sequence[int], said: Sequence[int], most: int, *args: Any) -> list[int]:
    """Guesses of all lengths, of which hardly any is right."""
    numbers = random.Random(f"{list(ids)}")
    return [numbers.randrange(20, 200) for _ in range(min(most, numbers.randrange(4)))]


def knowing(replies: Sequence[Completion], requests: Sequence[Request], wrong: bool = False) -> Any:
    """Guesses that are right; with ``wrong``, all but the last of those of a step."""
    by_prompt = {request.prompt_ids: reply.token_ids for request, reply in zip(requests, replies, strict=True)}

    def guess(self: Drafts, ids: Sequence[int], said: Sequence[int], most: int, *args: Any) -> list[int]:
        prompt = tuple(ids[: len(ids) - len(said)])
        found = list(by_prompt[prompt][len(said) : len(said) + min(most, 3)])
        return [*found[:-1], (found[-1] + 1) % 200] if wrong and found else found

    return guess


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
    assert steps <= 3  # up to the third token, and one or two more


def test_a_reply_is_as_long_as_it_may_be_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path)
    sampling = dataclasses.replace(HOT, max_tokens=60)
    ((request,), heard) = requests_of(7, [64]), []
    running = Continuous(loaded, torch.float32, 4)
    running.heard = lambda ticket, ids, logprobs: heard.extend(ids)
    first, second = running.sample([request], sampling), running.sample([request], sampling)
    alike(second, first)
    assert running.drafts.right > 10 and len(first[0].token_ids) <= 60
    assert heard == [*first[0].token_ids, *second[0].token_ids]


def test_an_engine_is_compared_with_the_model_while_it_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right: list[int] = []
    usual = Continuous.sample

    def noted(self: Continuous, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        replies = usual(self, requests, sampling)
        right.append(self.drafts.right)
        return replies

    monkeypatch.setattr(Continuous, "sample", noted)
    sampler = TransformersSampler(load(tmp_path), compute=torch.float32)
    assert sampler.way(requests_of(1, [30, 12]), HOT) == "fast"
    assert len(right) == 4 and right[1] > right[0] and right[3] > right[2]
