"""Items chosen for each turn: a whole training with them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.distil import distil_context
from agentopcd.distillation import teacher as teachers
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.session import Session
from tests import tiny
from tests.training import LESSONS


def settings(tmp_path: Path, **more: Any) -> ConsolidateConfig:
    if not (tmp_path / "base").is_dir():
        tiny.build(tmp_path / "base", tie=False)
    given: dict[str, Any] = {
        "env": "math", "model": str(tmp_path / "base"), "steps": 1, "batch_size": 2, "max_tokens": 4,
        "temperature": 1.0, "learning_rate": 3e-4, "select_tasks": 2, "test_tasks": 0, "compute": "float32",
        "turn_items": 1,
    }  # fmt: skip
    return ConsolidateConfig(**(given | more))


@pytest.mark.parametrize("items", [0, 1])
def test_prompts_that_differ_by_turn_share_no_prefix_and_that_is_said(
    items: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes: list[int] = []
    begin = teachers.FrozenTeacher.__init__

    def spy(self: Any, *args: Any, **how: Any) -> None:
        prefixes.append(len(how["prefixes"]))
        begin(self, *args, **how)

    monkeypatch.setattr(teachers.FrozenTeacher, "__init__", spy)
    said: list[str] = []
    config = settings(tmp_path, turn_items=items)
    with Session(config, tmp_path / "w", say=said.append) as session:
        session.store.add_context(LESSONS)
        distil_context(session, config, LESSONS)
    assert prefixes == [1 - items]
    assert bool(items) == any(line.startswith("the teacher sees 1 item at each turn, chosen for it") for line in said)


def test_a_context_without_items_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    config, context = settings(tmp_path), Context("Always go left.")
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        session.store.add_context(context)
        with pytest.raises(ConfigError, match=r"holds no items .* leave out --turn-items"):
            distil_context(session, config, context)
        assert not session.store.episodes()


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--turn-items is for the student's own answers"):
        settings(tmp_path, method="context-distillation")
    with pytest.raises(ConfigError, match="turn_items is -1"):
        settings(tmp_path, turn_items=-1)
    assert "turn_items" not in run_config(settings(tmp_path, turn_items=0))
