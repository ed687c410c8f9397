"""Whole weights out of a sharded model, right after a forward pass without gradients, as an evaluation makes it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from agentopcd import models
from agentopcd.models.parallel import sharding
from tests import tiny


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, over gloo."""
    dist.init_process_group("gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_weights_are_gathered_after_a_forward_pass_that_no_backward_pass_follows(tmp_path: Path) -> None:
    whole = models.load_model(str(tiny.build(tmp_path / "model", tie=False)))
    student = dataclasses.replace(whole, model=copy.deepcopy(whole.model), whole=whole)
    expected = {name: weight.detach().clone() for name, weight in whole.model.named_parameters()}
    sharding.shard(student.model)
    with torch.no_grad():
        for weight in whole.model.parameters():
            weight.zero_()
        student.model(input_ids=torch.tensor([[3, 4, 5]]))
    sharding.update_whole(student)
    torch.testing.assert_close(dict(whole.model.named_parameters()), expected, atol=0, rtol=0)
    with torch.no_grad():
        student.model(input_ids=torch.tensor([[3, 4, 5]]))
    sharding.write_whole(student.model, tmp_path / "written.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "written.safetensors"), expected, atol=0, rtol=0)
