"""The session of docs/gateway.md: every command parses, and the block runs in an empty folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from agentopcd.workspace.gateway.connection import address
from agentopcd.workspace.gateway.redact import read_rules
from tests import pages

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gateway.md"


def test_every_command_parses(cli_generator: ModuleType) -> None:
    pages.check_commands(PAGE, cli_generator, 3)


def test_the_rules_are_rules(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "rules.toml").write_text(text)
    (rule,) = read_rules(tmp_path / "rules.toml")
    assert tomllib.loads(text) and rule.pattern.sub(rule.replacement, "ask me@example.org now") == "ask <email> now"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    with address("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    (block,) = pages.blocks_of(PAGE)
    assert block.count("8643") == 3
    _, (said,) = pages.run([block.replace("8643", str(port))], tmp_path)
    assert "stopped: 3 replies given" in said and "error" not in said
    assert said.splitlines()[-1] == "shop: 1 sessions, 1 of them rated, 3 requests"
