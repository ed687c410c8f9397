"""The commands of docs/recorded.md parse; tests/workspace/test_harness_real.py runs the circle, others its parts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tests import pages

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recorded.md"


def test_every_command_parses(cli_generator: ModuleType) -> None:
    pages.check_commands(PAGE, cli_generator, 8)
