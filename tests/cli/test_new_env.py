"""``agentopcd envs new``: what it writes can be checked and played at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.cli.new_env import SOURCES, TEMPLATES, class_name
from agentopcd.core.calls import typed
from agentopcd.core.errors import ConfigError
from agentopcd.envs import check_env, get_spec, make


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words: str) -> str:
    return CliRunner().invoke(app, ["envs", "new", *words], catch_exceptions=False).output


@pytest.mark.parametrize(
    ("words", "ref"),
    [
        (["mine.py"], "./mine.py:Mine"),
        (["my_game.py", "--kind", "text"], "./my_game.py:MyGame"),
        (["stock-2.py", "--kind", "tools"], "./stock-2.py:Stock2"),
        (["asked.jsonl"], "./asked.jsonl"),
        (["other.jsonl", "--kind", "rows"], "./other.jsonl"),
    ],
)
def test_a_template_passes_the_check_and_its_solution_wins(words: list[str], ref: str, here: Path) -> None:
    assert new(*words) == f"wrote {words[0]}; next: agentopcd envs check {ref}\n"
    report = check_env(ref, n=8)
    assert report.errors == [] and report.distinct >= 6
    env = make(ref)
    env.reset(seed=1)
    for reply in env.unwrapped.solution():  # type: ignore[attr-defined]
        *_, ended, _, info = env.step(reply)
    assert ended and info["success"]
    if ref.endswith(".py"):
        assert "Mine" not in (here / words[0]).read_text().replace("Mine", "", ref.endswith(":Mine"))


def test_settings_on_the_class_of_a_template_count_and_a_typed_call_is_one() -> None:
    new("mine.py")
    spec = get_spec("./mine.py:Mine")
    assert (spec.step_limit, spec.play_format, len(spec.choices)) == (8, "[{}]", 4)
    new("shop.py", "--kind", "tools")
    env = make("./shop.py:Shop")
    env.reset(seed=0)
    obs, *_, info = env.step(typed('count(item="forks")'))
    assert obs.isdecimal() and not info["invalid"]
    obs, *_, info = env.step(typed('count(item="swans")'))
    assert "no swans here; we have apples" in obs


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["mine.py"], r"mine\.py is there already and is left as it is"),
        (["mine.txt"], r"mine\.txt does not end in \.py, as a file of the kind text must"),
        (["game.py", "--kind", "rows"], r"game\.py does not end in \.jsonl"),
        (["game.jsonl", "--kind", "tools"], r"game\.jsonl does not end in \.py"),
        (["random.py"], r"random\.py would stand in the way of Python's own 'random'"),
        (["a,b.jsonl"], "comma in its name"),
        (["nowhere/mine.py"], "cannot write nowhere/mine.py .*its folder is not there"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_lost(words: list[str], refusal: str, here: Path) -> None:
    (here / "mine.py").write_text("mine")
    with pytest.raises(ConfigError, match=refusal):
        new(*words)
    assert [file.name for file in here.iterdir()] == ["mine.py"] and (here / "mine.py").read_text() == "mine"


def test_a_name_is_made_that_the_template_can_have() -> None:
    text = (TEMPLATES / SOURCES["text"]).read_text()  # type: ignore[index]
    names = {stem: class_name(stem, text) for stem in ("2048", "text_env", "none", "wordGame", "Ж", "mine", "__init__")}
    assert names == {
        "2048": "My2048", "text_env": "MyTextEnv", "none": "MyNone", "wordGame": "WordGame", "Ж": "Mine",
        "mine": "Mine", "__init__": "Init",
    }  # fmt: skip
    new("text_env.py")
    written = ast.parse(Path("text_env.py").read_text())
    (found,) = [node.name for node in ast.walk(written) if isinstance(node, ast.ClassDef)]
    assert found == "MyTextEnv" and get_spec("./text_env.py:MyTextEnv").step_limit == 8


@pytest.mark.slow
@pytest.mark.parametrize("words", [["mine.py"], ["shop.py", "--kind", "tools"], ["asked.jsonl"]])
def test_pocket_plays_a_template(words: list[str]) -> None:
    ref = new(*words).split()[-1]
    words = ["play", "--env", ref, "--model", "pocket", "--episodes", "2"]
    played = CliRunner().invoke(app, words, catch_exceptions=False)
    assert played.exit_code == 0 and "run 1: success " in played.output
