"""The session of docs/students.md: every command parses, and the block runs in an empty folder."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests import pages

PAGE = Path(__file__).resolve().parent.parent / "docs" / "students.md"


def test_every_command_parses(cli_generator: ModuleType) -> None:
    pages.check_commands(PAGE, cli_generator, 5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    folder, (said,) = pages.run(pages.blocks_of(PAGE), tmp_path)
    (card,) = folder.glob("agentopcd-work/runs/consolidate-*/student/README.md")
    assert card.read_text(encoding="utf-8") in said and "| student |" in said
    assert "dry run: 8 files" in said
