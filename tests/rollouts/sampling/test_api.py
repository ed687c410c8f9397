"""A model behind an API: it plays, is scored and writes experience down, by messages and text alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import EngineError
from agentopcd.core.types import MARKER, Context, Message, Sampling
from agentopcd.knowledge import Store
from agentopcd.models import find
from agentopcd.rollouts.chat import ApiChat, Chat
from agentopcd.rollouts.sampling import requests
from agentopcd.rollouts.sampling.chat_api import ApiSampler
from agentopcd.rollouts.sampling.requests import KEY
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import warm
from tests.rollouts.sampling.fake_server import FakeServer
from tests.rollouts.sampling.vllm_server import VllmServer

HOT = Sampling(temperature=0.7, max_tokens=8)
ASKED = [Message(role="user", content="go left or right?")]
HINT = Context("Always go left.", "system")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(KEY, raising=False)
    found = FakeServer(find.find_model("pocket"), names=("pocket", "other"))
    yield found
    found.stop()


def sampler_of(fake: FakeServer, name: str = "pocket") -> ApiSampler:
    return ApiSampler(models.behind_api(name), urls=[fake.url])


def test_the_api_is_asked_in_messages_and_says_what_the_model_says(fake: FakeServer) -> None:
    loaded = models.load_model("pocket")
    chat, api = Chat(loaded.tokenizer), ApiChat()
    own = TransformersSampler(loaded, compute=torch.float32)
    for context in (HINT, Context("Always go left.", "user"), Context()):
        here = own.sample([chat.request(ASKED, context, seed=seed) for seed in range(4)], HOT)
        there = sampler_of(fake).sample([api.request(ASKED, context, seed=seed) for seed in range(4)], HOT)
        assert [chat.reply(reply) for reply in here] == [api.reply(reply) for reply in there]
        assert [len(reply.token_ids) for reply in here] == [reply.usage[1] for reply in there]
    assert any(body["messages"][0] == {"role": "system", "content": "Always go left."} for body in fake.chats)


def test_a_server_that_is_only_slow_is_told_apart_from_one_that_is_away(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.delay_s = 2.5
    monkeypatch.setattr(requests, "REPLY_S", 0.6)
    monkeypatch.setattr(requests, "TOKEN_S", 0.05)  # one second for eight tokens
    with pytest.raises(
        EngineError, match=r"was reached, but 3 times a reply was not there in time; lower --max-tokens"
    ):
        sampler_of(fake).sample([ApiChat().request(ASKED, seed=0)], HOT)
    assert requests.patience(200).read == pytest.approx(0.6 + 200 * 0.05)  # a longer reply may take longer
    assert requests.patience(200).connect == requests.CONNECT_S


def test_a_prompt_without_room_costs_itself_and_not_the_run(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = ([Message(role="user", content=text)] for text in ("go " * 50, "go left or right?"))
    for told in (
        "This model's maximum context length is 256 tokens. However, you requested 300 tokens",
        "'max_tokens' or 'max_completion_tokens' is too large: 8. This model's maximum context length is 256 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ):
        monkeypatch.setattr(fake, "refuses_chat", lambda body, told=told: told if "go go" in str(body) else "")
        sampler = sampler_of(fake)
        lost, found = sampler.sample([ApiChat().request(asked, seed=0) for asked in (long, short)], HOT)
        assert lost.error and told in lost.error and not found.error and found.text
        assert sampler.servers[0].limit == "max_tokens"
    monkeypatch.setattr(fake, "refuses_chat", lambda body: "temperature must be below 2")
    with pytest.raises(EngineError, match=r"refused a request \(400\): temperature"):
        sampler_of(fake).sample([ApiChat().request(short, seed=0)], HOT)


def test_another_name_for_the_longest_reply_is_learned_once(fake: FakeServer) -> None:
    fake.limit = "max_completion_tokens"
    assert len(sampler_of(fake).sample([ApiChat().request(ASKED, seed=s) for s in range(3)], HOT)) == 3


def test_a_busy_api_is_asked_again(fake: FakeServer) -> None:
    fake.failing = 3
    assert len(sampler_of(fake).sample([ApiChat().request(ASKED, seed=s) for s in range(3)], HOT)) == 3
    assert len(fake.chats) == 3


def test_what_is_wrong_is_said_in_one_line(fake: FakeServer) -> None:
    request = ApiChat().request(ASKED, seed=0)
    with pytest.raises(EngineError, match=r"refused a request \(404\)"):
        sampler_of(fake, "nobody").sample([request], HOT)
    with pytest.raises(EngineError, match=r"no API answers at http://127\.0\.0\.1:9/v1"):
        ApiSampler(models.behind_api("pocket"), urls=["http://127.0.0.1:9/v1"]).sample([request], HOT)
    fake.key = "secret"
    with pytest.raises(EngineError, match=KEY):
        sampler_of(fake).sample([request], HOT)
    with pytest.raises(EngineError, match="cannot be the student"):
        sampler_of(fake).update()


def run(*words: str) -> tuple[int, str]:
    done = warm.run(*words)
    return done.returncode, done.stdout + done.stderr


def flags(url: str, work: Path) -> list[str]:
    short = ["--max-steps", "2"]
    return [
        "--env",
        "frozen-lake-4x4",
        "--engine",
        "api",
        "--server",
        url,
        "--model",
        "pocket",
        "--work",
        str(work),
        *short,
    ]


def play_score_refuse(url: str, work: Path) -> None:
    """The whole life of an API here."""
    code, said = run("play", "--episodes", "6", "--chains", "2", "--chain-steps", "2", *flags(url, work))
    assert code == 0 and "engine: api" in said, said
    with Store.open(work / "store.db") as store:
        rows = store.query("SELECT id, turns, prompt_tokens, output_tokens FROM episode")
        assert len(rows) == 6 and all(row["prompt_tokens"] > row["output_tokens"] > 0 for row in rows)
        turn = store.transcript(rows[0]["id"]).turns[0]
        assert turn.reply and not turn.response_ids and not turn.prompt_ids
        assert not store.models(trained=True)
    small = ["--candidates", "1", "--select-tasks", "4", "--confirm-tasks", "8"]
    code, said = run("knowledge", "score", *small, *flags(url, work))
    assert code == 0 and "8 episodes on 8 tasks" in said, said
    lessons = work / "lessons.txt"
    lessons.write_text("Avoid the holes.")
    code, said = run("evaluate", "--context", str(lessons), *flags(url, work))
    assert code == 2 and "not be the student" in said, said
    code, said = run("consolidate", "--context", str(lessons), *flags(url, work))
    assert code == 2 and "not be the student" in said and len(said.strip().splitlines()) == 1, said


@pytest.mark.slow
def test_an_api_plays_and_cannot_be_the_student(fake: FakeServer, tmp_path: Path) -> None:
    play_score_refuse(fake.url, tmp_path / "work")


@pytest.mark.slow
def test_a_reply_that_is_kept_back_is_no_lost_game(fake: FakeServer, tmp_path: Path) -> None:
    fake.withholding = 10_000
    _, said = run("play", "--no-extract", "--episodes", "3", *flags(fake.url, tmp_path / "work"))
    assert "3 of 3 episodes broke off" in said and "kept a reply: content_filter" in said, said
    with Store.open(tmp_path / "work" / "store.db") as store:
        assert not store.query("SELECT id FROM episode")


@pytest.mark.slow
def test_a_lesson_that_is_kept_back_is_not_taken_for_having_none(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = fake.chat

    def only_lessons_are_kept(body: dict[str, Any]) -> dict[str, Any]:
        found = chat(body)
        if MARKER in str(body["messages"]):
            found["choices"][0] |= {"finish_reason": "content_filter", "message": {"role": "assistant"}}
        return found

    monkeypatch.setattr(fake, "chat", only_lessons_are_kept)
    words = ["--episodes", "2", "--chains", "1", "--chain-steps", "2", "--json"]
    done = warm.run("play", *words, *flags(fake.url, tmp_path / "work"))
    found = json.loads(done.stdout)
    assert (found["items"], found["replies_without_item"]) == ([], 2)
    assert "of 1 lessons are missing" in done.stderr and "content_filter" in done.stderr


def test_an_api_wants_an_address_and_a_name(tmp_path: Path) -> None:
    code, said = run("play", "--env", "frozen-lake-4x4", "--engine", "api", "--model", "x", "--work", str(tmp_path))
    assert code == 2 and "--server URL" in said
    code, said = run("play", "--env", "frozen-lake-4x4", "--engine", "api", "--server", "http://localhost:1")
    assert code == 2 and "--model NAME" in said


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllms_server_as_an_api(tmp_path: Path) -> None:
    with VllmServer(find.find_model("pocket"), "pocket", tmp_path / "log") as server:
        play_score_refuse(server.url, tmp_path / "work")
        with pytest.raises(EngineError, match="does not exist"):
            ApiSampler(models.behind_api("nobody"), urls=[server.url]).sample([ApiChat().request(ASKED, seed=0)], HOT)
        there = ApiSampler(models.behind_api("pocket"), urls=[f"{server.url}/v1"])
        cold = Sampling(temperature=0.0, max_tokens=8)
        loaded = models.load_model("pocket")
        chat = Chat(loaded.tokenizer)
        own = TransformersSampler(loaded, compute=torch.float32).sample([chat.request(ASKED, HINT, seed=0)], cold)
        assert there.sample([ApiChat().request(ASKED, HINT, seed=0)], cold)[0].text == chat.reply(own[0])
