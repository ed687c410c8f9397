"""What answers at an address, and is no OpenAI-compatible API or knows other words than most: one line, or a reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ConfigError, EngineError
from agentopcd.core.types import Completion, Message, Request, Sampling
from agentopcd.rollouts.chat import ApiChat
from agentopcd.rollouts.sampling import requests
from agentopcd.rollouts.sampling.chat_api import ApiSampler
from agentopcd.rollouts.sampling.requests import KEY
from agentopcd.rollouts.sampling.vllm_server import ServerSampler

HTML, JSON = "text/html", "application/json"
PAGE = (HTML, b"<html>It works!</html>")
STRANGE = [
    PAGE, (JSON, b"[]"), (JSON, b'[{"id": 1}]'), (JSON, b""), (JSON, b'{"choices": [{"ind'), (JSON, b"{}"),
    (JSON, b'{"choices": []}'), (JSON, b'{"choices": [{"index": 0}]}'), (JSON, b"null"), (JSON, b"\xff\xfe"),
]  # fmt: skip
LISTED = (JSON, b'{"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "x"}]}')
NO_API = "answers, but not as an OpenAI-compatible chat API"
ASK = ApiChat().request([Message(role="user", content="left or right?")], seed=0)


class Strange:
    """Answers every GET with one body, and every POST with another."""

    def __init__(self) -> None:
        self.get: tuple[str, bytes] = LISTED
        self.post: tuple[str, bytes] = PAGE
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(outer.get)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self._say(outer.post)

            def _say(self, what: tuple[str, bytes]) -> None:
                outer.keys.append(str(self.headers["authorization"]))
                self.send_response(200)
                self.send_header("content-type", what[0])
                self.send_header("content-length", str(len(what[1])))
                self.end_headers()
                self.wfile.write(what[1])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Iterator[Strange]:
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(ServerSampler, "current", None)
    found = Strange()
    yield found
    found.http.shutdown()
    found.http.server_close()


def asked(strange: Strange) -> Completion:
    (reply,) = ApiSampler(models.behind_api("tiny"), urls=[strange.url]).sample([ASK], Sampling(max_tokens=8))
    return reply


@pytest.mark.parametrize("answer", STRANGE)
def test_what_is_no_chat_api_is_one_line(strange: Strange, answer: tuple[str, bytes]) -> None:
    strange.post = answer
    with pytest.raises(EngineError, match=f"{strange.url} {NO_API}") as raised:
        asked(strange)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("answer", [PAGE, (JSON, b'["a"]'), (JSON, b""), (JSON, b'{"data": [')])
def test_a_list_of_models_that_is_none_is_one_line(strange: Strange, answer: tuple[str, bytes]) -> None:
    strange.get = answer
    with pytest.raises(EngineError, match=NO_API):
        asked(strange)


@pytest.mark.parametrize("answer", [*STRANGE[:6], (JSON, b'{"data": [1]}'), (JSON, b'{"data": [{}]}')])
def test_a_server_is_told_apart_from_what_is_none(
    strange: Strange, answer: tuple[str, bytes], tiny_model_dir: Path
) -> None:
    strange.get = answer
    loaded = models.load_model(str(tiny_model_dir))
    with pytest.raises(EngineError, match=NO_API):
        ServerSampler(loaded, compute=torch.float32, urls=[strange.url]).sample(
            [Request(prompt_ids=(40, 41), seed=0)], Sampling(max_tokens=2)
        )


def test_a_server_whose_weights_or_replies_are_a_page(strange: Strange, tiny_model_dir: Path) -> None:
    sampler = ServerSampler(models.load_model(str(tiny_model_dir)), compute=torch.float32, urls=[strange.url])
    (server,) = sampler.servers
    strange.get = PAGE
    with pytest.raises(EngineError, match=NO_API):
        server.label()
    for strange.post in STRANGE:
        with pytest.raises(EngineError, match=f"{NO_API}|answers without token ids"):
            sampler._sample_at(server, [Request(prompt_ids=(40, 41), seed=0)], Sampling(max_tokens=2))
    strange.post = (JSON, b"{")
    with pytest.raises(EngineError, match=NO_API):
        server.name_weights("x")


@pytest.mark.parametrize(
    ("why", "text", "found"),
    [
        ("stop", "left", "stop"), (None, "left", "stop"), ("eos", "left", "stop"), ("end_turn", "left", "stop"),
        ("stop", "", "stop"), ("length", "", "length"), ("length", "le", "length"), ("MAX_TOKENS", "le", "length"),
        (None, "", "it is empty"), ("eos", None, "eos"), ("content_filter", "le", "content_filter"),
        ("SAFETY", "le", "safety"),
    ],
)  # fmt: skip
def test_only_what_is_kept_back_is_lost(strange: Strange, why: str | None, text: str | None, found: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": why}
    strange.post = (JSON, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode())
    reply = asked(strange)
    if found in ("stop", "length"):
        assert (reply.error, reply.text, reply.finish_reason) == ("", text, found)
    else:
        assert f"kept a reply: {found}" in str(reply.error)


def test_a_key_goes_out_without_the_end_of_its_line_and_one_that_no_header_carries_is_refused(
    strange: Strange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for set_, sent in ((" secret\r\n", "secret"), ("\n", "none")):
        monkeypatch.setenv(KEY, set_)
        with pytest.raises(EngineError, match=NO_API):
            asked(strange)
        assert set(strange.keys) == {f"Bearer {sent}"}
        strange.keys.clear()
    for bad in ("schlüssel", "two\nlines"):
        monkeypatch.setenv(KEY, bad)
        with pytest.raises(ConfigError, match=f"{KEY} holds no key") as raised:
            asked(strange)
        assert bad not in str(raised.value)
