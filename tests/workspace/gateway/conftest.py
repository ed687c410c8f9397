"""The tiny model, loaded once for all tests of the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentopcd import models
from tests.workspace.gateway.running import load


@pytest.fixture(scope="session")
def loaded(tiny_model_dir: Path) -> models.LoadedModel:
    return load(tiny_model_dir)
