"""Several processes that train through one server, a small one in this process: they do what one process does."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Completion
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests.processes import NO_WHOLE, SHARDED, STOPPED, TWO, run, same, uneven
from tests.rollouts.sampling.fake_server import FakeServer
from tests.rollouts.sampling.served import HOT, REQUESTS, move, own, replies

STEPS = 4


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*uneven(tmp_path_factory.mktemp("ranks")), "--gate-tasks", "0"]  # whose games would load weights, too


@pytest.fixture
def server(flags: list[str]) -> Iterator[FakeServer]:
    found = FakeServer(Path(flags[flags.index("--model") + 1]))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def alone(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("alone")
    fake = FakeServer(Path(flags[flags.index("--model") + 1]))
    run("-m", "agentopcd", *flags, "--server", fake.url, "--work", work)
    fake.stop()
    assert fake.loads == 1 + STEPS
    return work


@pytest.mark.slow
def test_two_processes_play_through_one_server_and_send_the_weights_once_a_step(
    flags: list[str], alone: Path, server: FakeServer, tmp_path: Path
) -> None:
    said = run(*TWO, "-m", "agentopcd", *flags, "--server", server.url, "--work", tmp_path)
    assert f"engine: server ({server.url})" in said
    same(alone, tmp_path)
    assert server.loads == 1 + STEPS


@pytest.mark.slow
def test_a_server_that_comes_back_gets_the_weights_from_the_process_that_sees_it_first(
    flags: list[str], alone: Path, server: FakeServer, tmp_path: Path
) -> None:
    """No process has them: they are read again from where the last update has written them."""
    server.forgets_label_after = 14  # in the second step
    (tmp_path / "looks.py").write_text(SHARDED + NO_WHOLE)
    said = run(*TWO, tmp_path / "looks.py", *flags, "--shard", "--server", server.url, "--work", tmp_path)
    assert said.count("no whole layer") == 2 * STEPS
    same(alone, tmp_path)
    assert server.loads == 2 + STEPS


@pytest.mark.slow
def test_a_server_that_comes_back_gets_the_weights_of_any_process(
    flags: list[str], alone: Path, server: FakeServer, tmp_path: Path
) -> None:
    server.forgets_label_after = 14
    run(*TWO, "-m", "agentopcd", *flags, "--server", server.url, "--work", tmp_path)
    same(alone, tmp_path)
    assert server.loads == 2 + STEPS


@pytest.mark.slow
def test_a_sharded_run_through_a_server_goes_on_where_it_stopped(
    flags: list[str], alone: Path, server: FakeServer, tmp_path: Path
) -> None:
    words = [*flags, "--shard", "--server", server.url, "--work", tmp_path]
    (tmp_path / "stopped.py").write_text(SHARDED + STOPPED)
    run(*TWO, tmp_path / "stopped.py", *words, rc=1)
    assert "resumed after step 2" in run(*TWO, "-m", "agentopcd", *words)
    same(alone, tmp_path)


@dataclasses.dataclass
class Rank(Ranks):
    """One of two processes, without the other."""

    index: int
    count: int = 2

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        yield


def test_what_another_process_gave_back_is_not_given_twice_and_earlier_replies_do_not_count(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load_model(str(server.folder))
    monkeypatch.setattr(Ranks, "from_main", lambda self, value: value)
    one, two = (
        ServerSampler(loaded, compute=torch.float32, urls=[server.url], ranks=Rank(index=index)) for index in (0, 1)
    )
    move(loaded)
    one.update()
    two.label, two.servers[0].serves, two.servers[0].holds = one.label, "tiny", one.servers[0].holds
    monkeypatch.setattr(ServerSampler, "current", two)  # as it is in the second process
    tickets = [two.submit(request, HOT) for request in REQUESTS]
    while len(server.answered) < len(REQUESTS) + 2:  # with the two of the comparison
        time.sleep(0.01)
    server.restart()  # what the second process is about to read may come from other weights
    monkeypatch.setattr(ServerSampler, "current", one)
    assert replies(one) == own(loaded)
    loads, answered = server.loads, len(server.answered)
    monkeypatch.setattr(ServerSampler, "current", two)
    found: dict[int, Completion] = {}
    while len(found) < len(tickets):
        found |= two.collect()
    assert [found[ticket].token_ids for ticket in tickets] == own(loaded)
    assert len(server.answered) == answered + len(REQUESTS)  # all were asked again
    assert server.loads == loads
