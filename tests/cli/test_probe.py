"""A recipe's probe whose prompts are not here is left out with a note; any other fault of it stops the recipe."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.paper.plan import RECIPES, Plan, read
from agentopcd.cli.paper.run import say_plan, with_probe
from agentopcd.core.errors import AgentOpcdError
from agentopcd.envs.questions import ifeval


def plan_with(probe: Mapping[str, Any], note: str = "") -> Plan:
    (row, *_) = (plan for plan in read(RECIPES / "table2.toml", "mini")[1] if plan.name == "Arithmetic")
    return dataclasses.replace(row, probe=probe, note=note)


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package has the prompts, and the current folder is empty."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "eval_framework" else find_spec(name, *rest)
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        (
            {"env": "ifeval", "test_tasks": 8},
            "the probe on ifeval is left out: the prompts of IF-Eval are not here; put",
        ),
        ({"env": "ifeval", "env_args": {"file": "data/ifeval.jsonl"}}, "there is no file data/ifeval.jsonl"),
        ({"env": "absent.jsonl"}, "the probe on absent.jsonl is left out: there is no file absent.jsonl"),
    ],
)
def test_a_probe_without_its_prompts_is_left_out_with_a_note(
    probe: Mapping[str, Any], why: str, tmp_path: Path
) -> None:
    said: list[str] = []
    plan = with_probe(plan_with(probe, note="small"), tmp_path / "work", said.append)
    assert not plan.probe and plan.note.startswith("small; ") and why in plan.note
    assert [line for line in said if why in line and line.startswith("note: Arithmetic: ")] == said
    say_plan(plan_with(probe), tmp_path / "work", said.append)
    assert why in said[1] and not any("test tasks, base and every student" in line for line in said)


@pytest.mark.parametrize("probe", [{"env": "mth"}, {"env": "math", "env_args": {"levle": 1}}, {"env": "broken.jsonl"}])
def test_another_fault_of_the_probe_is_raised(probe: Mapping[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("no JSON\n")
    with pytest.raises(AgentOpcdError):
        with_probe(plan_with(probe), tmp_path / "work", lambda line: None)


def test_the_published_prompts_are_looked_for_in_the_current_folder(tmp_path: Path) -> None:
    row = {"key": 1, "prompt": "Use no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "data").mkdir()
    (tmp_path / ifeval.PROMPTS).write_text("".join(json.dumps(row | {"key": i}) + "\n" for i in range(3)))
    pytest.importorskip("if_verifiable")
    plan = plan_with({"env": "ifeval", "test_tasks": 8})
    assert with_probe(plan, tmp_path / "work", lambda line: None) == plan
