"""The session of docs/conversations.md: every command parses, and the blocks run in an empty folder."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests import pages

PAGE = Path(__file__).resolve().parent.parent / "docs" / "conversations.md"


def test_every_command_parses(cli_generator: ModuleType) -> None:
    pages.check_commands(PAGE, cli_generator, 7)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    _, said = pages.run(pages.blocks_of(PAGE), tmp_path)
    assert len(said) == 2
    assert "distance closed by the student" in said[0] and "method: prefix-replay" in said[0]
    assert "success" in said[1]
