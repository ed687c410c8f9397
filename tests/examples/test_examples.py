"""The smaller examples: each does what its first lines say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentopcd import envs
from agentopcd.knowledge import Store
from tests.conftest import load_file

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write into the folder that they are run in."""
    monkeypatch.chdir(tmp_path)


def test_every_example_is_listed_with_its_command() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".ipynb"):
            assert f"({file.name})" in page, f"examples/README.md does not name {file.name}"
        if file.suffix == ".py":
            assert f"$ python examples/{file.name}" in page or f"examples/{file.name}:" in page, file.name


def test_the_cave_keeps_the_contract() -> None:
    report = envs.check_env(f"{EXAMPLES / 'cave.py'}:Cave", 64)
    assert (report.errors, report.distinct) == ([], 64)
    assert report.random_success < 0.3


def test_the_grader_takes_a_tenth() -> None:
    own = load_file(EXAMPLES / "own_grader.py")
    row = {"question": "?", "right": 200.0}
    graded = {reply: own.near(row, reply) for reply in ("219.9", "about 1,800 no, 180.5.", "221", "none", "1.0")}
    assert [bool(one["success"]) for one in graded.values()] == [True, True, False, False, False]
    assert not own.near(row, "on 12.05.2024")["success"] and own.near(row, "version 1.2.200")["success"]
    assert graded["221"]["error"] == pytest.approx(0.105) and graded["none"]["error"] == 1


def test_the_rows_are_questions_and_the_grader_grades_them() -> None:
    own = load_file(EXAMPLES / "own_grader.py")
    Path("estimates.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own.rows()))
    grader = f"{EXAMPLES / 'own_grader.py'}:near"
    env = envs.make("estimates.jsonl", grader=grader)
    assert envs.build_splits("estimates.jsonl", {"grader": grader}).distinct == 200
    question, _ = env.reset(seed=0)
    assert question.startswith("About how many kilometres are 2 miles?")
    *_, info = env.step("About 3.3 of them.")
    assert info["success"] and info["metrics"]["error"] == pytest.approx(0.025, abs=0.001)


def test_players_of_ones_own_are_measured() -> None:
    found = load_file(EXAMPLES / "own_sampler.py").main(games=30)
    assert [rate.n for rate in found.values()] == [30, 30]
    assert found["straight"].wins > found["at_random"].wins


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_system_prompt_goes_into_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    folder = load_file(EXAMPLES / "system_prompt.py").main(steps=1)
    assert (Path(folder) / "model.safetensors").is_file()
    assert "distance closed by the student" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_circle_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    loop, small = load_file(EXAMPLES / "python_loop.py"), {"episodes": 6, "confirm_tasks": 4, "steps": 1}
    folder = loop.main(**small, test_tasks=4)
    assert (Path(folder) / "model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "lesson: " in said and "no notes of the model were confirmed" in said and "student: loop-work" in said
    assert loop.main(**small, test_tasks=4) == folder  # as after a kill: no stage that is done runs again
    with Store.open("loop-work/store.db") as store:
        assert [run["verb"] for run in store.runs()] == ["play", "score", "consolidate"]
