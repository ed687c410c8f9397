"""The model card's figures: every arm on the same tasks, the student beside the base, played once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.config import EvaluateConfig
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.session import Session
from recipes.pocket import measure
from recipes.pocket.measure import PROBES, Probe
from tests import tiny


class Stubborn(tiny.Clued):
    """A student that answers right only where no context gets in its way."""

    def _answer(self, prompt: str) -> Any:
        return super()._answer(prompt.replace(tiny.CLUE, "") if tiny.CLUE in prompt else prompt + tiny.CLUE)


@pytest.fixture
def desk(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions, a context file, a student, and players that need no model."""
    student = tiny.build(tmp_path / "student", seed=1)

    def player_for(session: Session, loaded: Any) -> Player:
        kind = Stubborn if loaded.folder == student else tiny.Clued
        return Player(
            game=session.game, sampler=kind(loaded.tokenizer), chat=Chat(loaded.tokenizer),
            sampling=session.config.sampling,
        )  # fmt: skip

    tiny.questions(tmp_path / "rows.jsonl")
    (tmp_path / "clue.txt").write_text(f"Please {tiny.CLUE}.\n")
    monkeypatch.setattr(Session, "player_for", player_for)
    monkeypatch.setattr(measure, "CONTEXTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def probe() -> Probe:
    return Probe("rows.jsonl", "clue.txt", {"goal": "G", "hole": "H"}, "Up is up.", ("obedience", "in-context"))


def test_each_arm_and_each_difference(desk: Path, tiny_model_dir: Path) -> None:
    one = probe()
    config = EvaluateConfig(env=one.env, model=str(tiny_model_dir), student=str(desk / "student"), test_tasks=10)
    found = measure.measure(one, config, desk / "w")
    assert {row.label: (row.rate.wins, row.rate.n) for row in found.rows} == {
        "base": (0, 10), "in-context": (10, 10), "other words": (0, 10),
        "student": (10, 10), "student, in-context": (0, 10), "student, other words": (10, 10),
    }  # fmt: skip
    assert {name: one.difference.diff for name, one in found.comparisons.items()} == {
        "in-context - base": 1, "other words - base": 0,
        "student - base": 1, "student, in-context - in-context": -1, "student, other words - other words": 1,
    }  # fmt: skip


def test_the_command_prints_and_writes_and_plays_nothing_twice(
    desk: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model_dir, "--student", desk / "student", "--work", desk / "w", "--tasks", 5]
    call = [str(word) for word in [*words, "--json", desk / "figures.json"]]
    measure.main(call, [probe()])
    printed = capsys.readouterr().out
    assert "forgetting, obedience" in printed and "student 0.000, base 1.000, -1.000" in printed
    assert "│ student, in-context  │   0.000 │ [0.000, 0.434] │ 5 │ -1.000" in printed
    (figures,) = json.loads((desk / "figures.json").read_text())["figures"]
    assert figures["contexts"]["in-context"] == f"Please {tiny.CLUE}."
    assert [row["success"] for row in figures["rows"]] == [0, 1, 0, 1, 0, 1]
    monkeypatch.setattr(Player, "play", None)
    measure.main(call, [probe()])
    assert capsys.readouterr().out == printed


def test_a_wrong_model_is_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        measure.main(["--model", str(desk / "nowhere"), "--work", str(desk / "w")], [probe()])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no model ")


@pytest.mark.parametrize("one", PROBES, ids=lambda one: one.env)
def test_what_is_told_is_true_of_the_environment(one: Probe) -> None:
    kwargs = envs.get_spec(one.env).kwargs
    usual = {"goal": "G", "hole": "H"} if "lake" in one.env else {"box": "X", "target": "O"}
    for role, letter in one.roles.items():
        assert letter == kwargs.get(role, usual[role])
        for text in (context.text for name, context in one.arms().items() if name != "base"):
            assert letter in text.replace(".", "").replace(",", "").replace(":", "").split()
    assert ("swapped" in one.moves) == (kwargs.get("swap") == "vertical")
    if one.roles:
        assert set(one.arms()) == {"base", "in-context", "other words"}


def test_a_real_game_is_measured(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = EvaluateConfig(env="frozen-lake", model=str(tiny_model_dir), test_tasks=2, max_tokens=2)
    (one,) = (one for one in PROBES if one.env == "frozen-lake")
    found = measure.measure(one, config, tmp_path / "w")
    assert [row.rate.n for row in found.rows] == [2, 2, 2]
    assert found.floors is not None and found.floors.blind is not None
    assert any("floors of frozen-lake: uniform random" in line for line in measure.lines([one], [found], False))


def test_a_killed_call_goes_on(desk: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluateConfig(env=probe().env, model=str(tiny_model_dir), test_tasks=6)
    finished: list[Any] = []

    def dying(label: str, items: Iterable[Any], total: int) -> Iterator[Any]:
        for item in items:
            yield item  # stored when the next one is asked for
            finished.extend([] if label.startswith("tasks of") else [item])
            if len(finished) == 8:
                raise KeyboardInterrupt

    monkeypatch.setattr(measure, "progress", dying)
    with pytest.raises(KeyboardInterrupt):
        measure.measure(probe(), config, desk / "w")
    assert [row.rate.n for row in measure.measure(probe(), config, desk / "w").rows] == [6, 6, 6]
    assert len(finished) == 18  # none of the first 8 was played again
