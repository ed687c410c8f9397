"""A server plays an adapter on the weights below it, whatever it was left with, and gets those once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.rollouts.sampling import vllm_server as served
from agentopcd.rollouts.sampling.vllm_command import start_line
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny
from tests.rollouts.sampling.fake_server import FakeServer
from tests.rollouts.sampling.served import move, own, replies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("below") / "model", tie=True, hearing=4.0)


@pytest.fixture
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(ServerSampler, "current", None)
    monkeypatch.setattr(served, "GAP_NATS", {torch.float32: 1e9})  # as in bfloat16, where the check is coarse
    found = FakeServer(folder)
    yield found
    found.stop()


def sampler_of(loaded: models.LoadedModel, fake: FakeServer) -> ServerSampler:
    return ServerSampler(loaded, compute=torch.float32, urls=[fake.url])


def learned(loaded: models.LoadedModel) -> None:
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def test_an_adapter_plays_on_its_own_base_whatever_was_left_on_the_server(folder: Path, fake: FakeServer) -> None:
    student = models.load_model(str(folder))
    move(student)
    plain = sampler_of(student, fake)
    plain.update()  # a full training has left its student there
    loaded = models.load_model(str(folder))
    models.add_adapter(loaded, 4, torch.float32, seed=0)
    sampler, loads = sampler_of(loaded, fake), fake.loads
    assert replies(sampler) == own(loaded) != own(student)
    for _ in range(2):
        learned(loaded)
        sampler.update()
        assert replies(sampler) == own(loaded)
    assert fake.loads == loads + 1
    assert replies(plain) == own(student)
    assert replies(sampler) == own(loaded)
    fake.restart()
    assert replies(sampler) == own(loaded)
    assert fake.loads == loads + 4
    del fake.adapters[sampler.label]
    assert replies(sampler) == own(loaded)
    assert fake.loads == loads + 4


def test_an_adapter_on_an_adapter_plays_on_both(folder: Path, fake: FakeServer, tmp_path: Path) -> None:
    """As later rounds of ``learn`` leave it; the server is started with the model at the bottom."""
    first = models.load_model(str(folder))
    models.add_adapter(first, 4, torch.float32, seed=0)
    learned(first)
    models.save_model(first, tmp_path / "student", parent_id=first.id, facts={})
    loaded = models.load_model(str(tmp_path / "student"))
    line = start_line(loaded, torch.float32, fake.url).split()
    assert str(folder) in line and str(loaded.folder) == line[line.index("--served-model-name") + 1]
    models.add_adapter(loaded, 4, torch.float32, seed=1)
    learned(loaded)
    assert replies(sampler_of(loaded, fake)) == own(loaded)
