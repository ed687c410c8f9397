"""One request of several at a server: what its failure costs the others, and how much room there is for it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import EngineError
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests.rollouts.sampling.fake_server import FakeServer
from tests.rollouts.sampling.served import HOT, REQUESTS, own, replies


@pytest.fixture
def fake(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(ServerSampler, "current", None)
    found = FakeServer(tiny_model_dir)
    yield found
    found.stop()


@pytest.fixture
def loaded(tiny_model_dir: Path) -> models.LoadedModel:
    return models.load_model(str(tiny_model_dir))


def sampler_of(loaded: models.LoadedModel, fake: FakeServer) -> ServerSampler:
    return ServerSampler(loaded, compute=torch.float32, urls=[fake.url])


def test_a_request_that_fails_takes_no_other_reply_with_it(loaded: models.LoadedModel, fake: FakeServer) -> None:
    sampler = sampler_of(loaded, fake)
    replies(sampler)
    fake.refuses = lambda body: "no room" if body["seed"] == REQUESTS[2].seed else ""
    tickets = [sampler.submit(request, HOT) for request in REQUESTS]
    concurrent.futures.wait(sampler._running)  # all at once
    assert sorted(ticket for ticket, _ in sampler.collect()) == [t for t in tickets if t != tickets[2]]
    with pytest.raises(EngineError, match="no room") as raised:
        sampler.collect()
    assert raised.value.ticket == tickets[2]
    sampler.drop(tickets)
    assert not sampler._running and not sampler._asked
    with pytest.raises(EngineError, match="no room"):
        replies(sampler)
    assert not sampler._running and not sampler._asked
    fake.refuses = lambda body: ""
    assert replies(sampler) == own(loaded)


def test_the_room_of_a_server_is_known_before_the_first_request(loaded: models.LoadedModel, fake: FakeServer) -> None:
    loaded.model.config.max_position_embeddings = 4096
    assert sampler_of(loaded, fake).room == 2048
