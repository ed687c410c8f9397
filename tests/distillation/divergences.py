"""Two rows of logits, the divergences by short names, and losses without type checks."""

from __future__ import annotations

import importlib.util
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from agentopcd.distillation.losses import Form, divergence, full_kl

full_reverse_kl, topk_reverse_kl = full_kl, divergence
full_forward_kl = partial(full_kl, direction="forward")
topk_forward_kl = partial(divergence, direction="forward")
FORMS: tuple[Form, ...] = ("full", "tail", "renorm", "raw", "stopgrad")
STUDENT = [2.0, 1.0, 0.0, -1.0, -2.0, -3.0]
TEACHER = [1.0, 2.0, 0.0, 0.0, -1.0, -4.0]


def row(values: list[float], *, grad: bool = False) -> Tensor:
    return torch.tensor([values], dtype=torch.float64, requires_grad=grad)


def near(got: Tensor, wanted: list[float] | float) -> None:
    """Equal to the six decimals the hand values are written with."""
    assert got.flatten().tolist() == pytest.approx(wanted if isinstance(wanted, list) else [wanted], abs=1.5e-6)


def without_type_checks(checked: ModuleType) -> ModuleType:
    assert checked.__file__
    spec = importlib.util.spec_from_file_location("without_type_checks", checked.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
