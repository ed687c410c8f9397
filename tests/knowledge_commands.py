"""Give ``agentopcd knowledge`` commands in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli.knowledge import app
from agentopcd.core.errors import ConfigError


def run(work: Path, *words: str) -> str:
    """What a command prints; it must end well."""
    result = CliRunner().invoke(app, [*words, "--work", str(work)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(work: Path, *words: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(ConfigError) as error:
        run(work, *words)
    assert "\n" not in str(error.value)
    return str(error.value)
