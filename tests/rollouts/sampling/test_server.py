"""Served engines: what can go wrong, on a small server in this process.

The contract that all engines share is in ``test_sampling.py``, vLLM's own server in ``test_vllm_server.py``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import AlignmentError, ConfigError, EngineError
from agentopcd.core.types import Request
from agentopcd.rollouts.sampling import requests, vllm_endpoints
from agentopcd.rollouts.sampling import vllm_server as served
from agentopcd.rollouts.sampling.requests import KEY
from agentopcd.rollouts.sampling.vllm_command import max_rank, start_line
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny
from tests.rollouts.sampling.fake_server import FakeServer
from tests.rollouts.sampling.served import HOT, REQUESTS, move, own, replies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("served") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("other") / "model", tie=False, hearing=4.0, seed=5)


@pytest.fixture
def loaded(folder: Path) -> models.LoadedModel:
    return models.load_model(str(folder))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(ServerSampler, "current", None)
    yield


@pytest.fixture
def fake(folder: Path) -> Iterator[FakeServer]:
    found = FakeServer(folder)
    yield found
    found.stop()


def sampler_of(loaded: models.LoadedModel, *fakes: FakeServer) -> ServerSampler:
    return ServerSampler(loaded, compute=torch.float32, urls=[fake.url for fake in fakes])


def test_a_server_answers_as_the_model_does(loaded: models.LoadedModel, fake: FakeServer) -> None:
    assert replies(sampler_of(loaded, fake)) == own(loaded)
    with pytest.raises(ConfigError, match="2048 positions"):
        sampler_of(loaded, fake).sample([Request(prompt_ids=tuple(range(40, 60)) * 103, seed=0)], HOT)


def test_an_update_reaches_the_server_and_its_weights_bear_a_label(
    loaded: models.LoadedModel, fake: FakeServer
) -> None:
    sampler = sampler_of(loaded, fake)
    before = replies(sampler)
    first = fake.label
    move(loaded)
    drift = sampler.update()
    assert drift is not None and drift < 1e-4
    assert replies(sampler) == own(loaded) != before
    assert fake.label.startswith(sampler.label) and fake.label != first


def test_another_model_gets_the_server_and_gives_it_back(
    loaded: models.LoadedModel, other: Path, fake: FakeServer
) -> None:
    base, student = sampler_of(loaded, fake), sampler_of(models.load_model(str(other)), fake)
    assert replies(base) == own(loaded)
    assert replies(student) == own(student.loaded) != own(loaded)
    assert replies(base) == own(loaded)


def test_a_server_that_came_back_gets_the_weights_again_and_no_reply_of_the_old_ones_counts(
    loaded: models.LoadedModel, fake: FakeServer
) -> None:
    sampler = sampler_of(loaded, fake)
    move(loaded)
    sampler.update()
    fake.answered.clear()
    fake.forgets_label_after = 3
    assert replies(sampler) == own(loaded)
    assert len(fake.answered) > len(REQUESTS)  # some were asked again
    assert fake.label.startswith(sampler.label)


def test_replies_that_somebody_broke_off_are_asked_for_again(loaded: models.LoadedModel, fake: FakeServer) -> None:
    sampler = sampler_of(loaded, fake)
    replies(sampler)
    fake.aborting = 2
    assert replies(sampler) == own(loaded)
    fake.aborting = 1
    with pytest.raises(EngineError, match="is paused by somebody"):
        sampler.update()


def test_weights_that_hardly_differ_are_not_mistaken_for_one_another(
    loaded: models.LoadedModel, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in bfloat16, where the check is too coarse for the first steps."""
    monkeypatch.setattr(served, "GAP_NATS", {torch.float32: 1e9})
    sampler = sampler_of(loaded, fake)
    move(loaded)
    assert replies(sampler) == own(loaded)  # not what the server was started with
    move(loaded)
    sampler.update()
    fake.forgets_label_after = len(fake.answered) + 2
    assert replies(sampler) == own(loaded)  # nor what it came back with


@pytest.mark.parametrize("coarse", [True, False])
def test_a_server_that_is_started_anew_during_the_check_gets_the_weights_again(
    loaded: models.LoadedModel, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, coarse: bool
) -> None:
    if coarse:
        monkeypatch.setattr(served, "GAP_NATS", {torch.float32: 1e9})
    sampler = sampler_of(loaded, fake)
    move(loaded)
    sampler.update()
    move(loaded)
    fake.forgets_label_after = len(fake.answered) + 1
    loads = fake.loads
    sampler.update()
    assert fake.loads == loads + 2
    assert replies(sampler) == own(loaded)
    assert fake.label == sampler.servers[0].holds

    def lost() -> str:
        return "default"

    monkeypatch.setattr(sampler.servers[0], "label", lost)
    with pytest.raises(EngineError, match="lost its weights 3 times"):
        sampler.update()


def test_errors_that_pass_are_waited_for(loaded: models.LoadedModel, fake: FakeServer) -> None:
    sampler = sampler_of(loaded, fake)
    replies(sampler)
    fake.failing = 9
    assert replies(sampler) == own(loaded)
    assert fake.failing == 0


def test_a_server_that_is_away_for_a_while(loaded: models.LoadedModel, folder: Path) -> None:
    first = FakeServer(folder)
    sampler = sampler_of(loaded, first)
    move(loaded)
    sampler.update()
    port = first.http.server_address[1]
    first.stop()
    tickets = [sampler.submit(request, HOT) for request in REQUESTS]
    again = FakeServer(folder, port=port)
    found: dict[int, Any] = {}
    while len(found) < len(tickets):
        found |= sampler.collect()
    again.stop()
    assert [found[ticket].token_ids for ticket in tickets] == own(loaded)


def test_where_one_of_two_servers_is_away_the_other_answers(loaded: models.LoadedModel, folder: Path) -> None:
    one, two = FakeServer(folder), FakeServer(folder)
    sampler = sampler_of(loaded, one, two)
    replies(sampler)
    assert one.answered and two.answered
    one.stop()
    one.answered.clear()
    tickets = [sampler.submit(request, HOT) for request in REQUESTS]
    again = FakeServer(folder, port=one.http.server_address[1])
    found: dict[int, Any] = {}
    while len(found) < len(tickets):
        found |= sampler.collect()
    assert [found[ticket].token_ids for ticket in tickets] == own(loaded)
    assert not one.answered
    two.stop()
    again.stop()


def test_a_server_that_never_comes_back_ends_the_run_with_a_line(
    loaded: models.LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "AWAY_S", 0.1)
    fake = FakeServer(folder)
    sampler = sampler_of(loaded, fake)
    replies(sampler)
    fake.stop()
    with pytest.raises(EngineError, match=f"{fake.url} does not answer"):
        replies(sampler)


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_servers_are_waited_for_as_long_whether_one_or_several(servers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    away = [requests.Endpoint(f"http://{name}", f"http://{name}/v1") for name in range(servers)]

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def ask(server: requests.Endpoint) -> None:
        nonlocal now
        now += 0.01
        raise openai.APIConnectionError(request=cast(Any, None))

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 8.0)
    monkeypatch.setattr(requests, "time", clock)
    monkeypatch.setattr(requests, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(requests.at_one_of(away, ask))
    assert 470 < now < 490


def test_a_server_that_takes_connections_and_says_nothing_is_not_waited_for_for_hours(
    loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_endpoints, "LOOK_S", 0.2)
    asked = 0
    with socket.create_server(("127.0.0.1", 0)) as mute:
        sampler = ServerSampler(loaded, compute=torch.float32, urls=[f"http://127.0.0.1:{mute.getsockname()[1]}"])
        (server,) = sampler.servers
        label = server.label

        def counted() -> str | None:
            nonlocal asked
            asked += 1
            return label()

        monkeypatch.setattr(server, "label", counted)
        with pytest.raises(EngineError, match="was reached, but its answer was not there in time"):
            sampler._give_back(server)
    assert asked == requests.TIMEOUTS


def test_a_server_answers_step_by_step_too(loaded: models.LoadedModel, fake: FakeServer) -> None:
    sampler = sampler_of(loaded, fake)
    sampler.sample(REQUESTS[:1], HOT)
    kinds = [HOT, dataclasses.replace(HOT, max_tokens=2)]
    tickets = [sampler.submit(request, kinds[n % 2]) for n, request in enumerate(REQUESTS)]
    found: dict[int, Any] = {}
    while len(found) < len(tickets):
        found |= sampler.advance()
    wanted = own(loaded)
    assert [found[t].token_ids for t in tickets] == [ids[: (8, 2)[n % 2]] for n, ids in enumerate(wanted)]
    assert sampler.advance() == []  # nothing is under way, and nobody waits for it


def test_dropped_requests_are_forgotten(loaded: models.LoadedModel, fake: FakeServer) -> None:
    sampler = sampler_of(loaded, fake)
    tickets = [sampler.submit(request, HOT) for request in REQUESTS]
    sampler.drop(tickets[1:])
    assert [ticket for ticket, _ in sampler.collect()] == tickets[:1]
    assert not sampler._running and not sampler._asked


def test_a_frozen_server_plays_and_cannot_be_the_student(loaded: models.LoadedModel, folder: Path, other: Path) -> None:
    fake = FakeServer(folder, dev=False)
    sampler = sampler_of(loaded, fake)
    assert replies(sampler) == own(loaded)
    with pytest.raises(EngineError, match="it can play and write experience down, but not be the student"):
        sampler.update()
    fake.loaded = models.load_model(str(other))
    fake.failing = 1  # it was away, so it is looked at again
    with pytest.raises(AlignmentError, match="is off by"):
        replies(sampler)
    fake.stop()


def test_a_server_of_another_model_is_refused_where_it_cannot_take_weights(
    loaded: models.LoadedModel, other: Path
) -> None:
    fake = FakeServer(other, dev=False)
    with pytest.raises(AlignmentError, match=r"serves 'tiny' and is off by .* start one with: VLLM_SERVER_DEV_MODE=1"):
        replies(sampler_of(loaded, fake))
    fake.stop()


def test_log_probabilities_without_the_temperature_are_noticed(loaded: models.LoadedModel, fake: FakeServer) -> None:
    fake.raw_logprobs = True
    with pytest.raises(AlignmentError, match="--logprobs-mode processed_logprobs"):
        replies(sampler_of(loaded, fake))


def test_what_does_not_fit_gives_one_line_each(
    loaded: models.LoadedModel, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(sampler: ServerSampler) -> str:
        with pytest.raises(EngineError) as found:
            replies(sampler)
        assert "\n" not in str(found.value)
        return str(found.value)

    monkeypatch.setattr(requests, "AWAY_S", 0.0)
    nobody = ServerSampler(loaded, compute=torch.float32, urls=["http://127.0.0.1:9"])
    assert line(nobody).startswith("no server answers at http://127.0.0.1:9; start one with: ")
    fake.names = ("one", "two")
    assert "serves one, two and nothing named" in line(sampler_of(loaded, fake))
    # A path is no name that it serves, and an adapter that an earlier training has left is none either.
    fake.names = ("tiny", "agentopcd-0123456789ab")
    assert replies(sampler_of(loaded, fake)) == own(loaded)
    fake.names = ("tiny",)
    fake.key = "secret"
    assert f"set the environment variable {KEY}" in line(sampler_of(loaded, fake))
    monkeypatch.setenv(KEY, "secret")
    assert replies(sampler_of(loaded, fake)) == own(loaded)
    fake.refusing = "the prompt is too long"
    assert "refused a request (400): the prompt is too long" in line(sampler_of(loaded, fake))
    fake.refusing, fake.token_ids = "", False
    assert "without token ids" in line(sampler_of(loaded, fake))


def test_the_line_to_start_a_server_names_what_it_must_have(loaded: models.LoadedModel, fake: FakeServer) -> None:
    line = start_line(loaded, torch.float32, "http://there:8123/v1")
    for word in (str(loaded.folder), "--dtype float32", "--port 8123", "processed_logprobs", "VLLM_SERVER_DEV_MODE=1"):
        assert word in line
    assert "--enable-lora" not in line
    models.add_adapter(loaded, 4, torch.float32, seed=0)
    assert "--host" not in line  # who serves elsewhere knows on which network
    for name, host in (("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")):
        assert f"--port 8000 --host {host} " in start_line(loaded, torch.float32, f"http://{name}:8000") + " "
        assert served.Server(f"http://ann:pw@{name}:8000").url == f"http://***@{name}:8000"
    assert "--enable-lora --max-lora-rank 8" in start_line(loaded, torch.float32, fake.url)
    assert [max_rank(rank) for rank in (1, 8, 12, 17, 64, 100)] == [8, 8, 16, 32, 64, 128]  # vLLM takes no other


def test_no_thread_keeps_a_process_that_is_done(fake: FakeServer, folder: Path) -> None:
    script = f"""
import torch
from agentopcd import models
from agentopcd.models import find
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from agentopcd.core.types import Request, Sampling
models.prepare_process()
sampler = ServerSampler(models.load_model({str(folder)!r}), compute=torch.float32, urls=[{fake.url!r}])
sampler.sample([Request(prompt_ids=(40, 41), seed=0)], Sampling(max_tokens=2))
print("done")
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n" and not done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--server http://127.0.0.1:9", "no server answers at http://127.0.0.1:9; start one with: "),
        (
            "--server localhost:8000",
            "'localhost:8000' is no address of a server; wanted one like http://localhost:8000",
        ),
        ("--engine server", "--engine server needs an address; add --server URL"),
        ("--engine vllm --server http://there", "is of no use to --engine vllm; leave one of them out"),
    ],
)
def test_on_the_command_line_a_wrong_address_is_one_line_and_exit_code_2(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentopcd.cli import main

    given = ["agentopcd", "play", "--env", "frozen-lake-4x4", "--model", "pocket", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*given, *words.split()])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert told in capsys.readouterr().err.splitlines()[-1]
