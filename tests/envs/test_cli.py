from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Discrete
from typer.testing import CliRunner

from agentopcd.cli.envs import app
from agentopcd.core.errors import AgentOpcdError, EnvError
from agentopcd.envs import Manifest, TextEnv, registry
from agentopcd.envs.check import CheckReport

DATA = Path(__file__).parent / "data"
runner = CliRunner()


def run(*args: str, stdin: str = "", code: int = 0) -> str:
    result = runner.invoke(app, list(args), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_list_names_everything() -> None:
    text = run("list")
    assert all(name in text for name in ("sokoban", "frozen-lake-4x4", "math", "gym-frozen-lake"))
    assert "warning" not in text
    facts = {entry["id"]: entry for entry in json.loads(run("list", "--json"))}
    assert facts["sokoban"]["max_steps"] == 5 and "hidden" in facts["sokoban"]["views"]


def test_show_prints_the_card_and_the_first_observation() -> None:
    text = run("show", "sokoban")
    assert "Push every box onto a goal." in text and "Reach the goal" in text and "# # #" in text
    facts = json.loads(run("show", "math", "--env-arg", "level=1", "--json"))
    assert "What is" in facts["observation"] and facts["task_key"]


@pytest.mark.parametrize(
    ("args", "typed", "last"),
    [
        (["frozen-lake", "--seed", "0"], "right\nright\ndown\ndown\n", "success after 4 steps"),
        (["sokoban", "--seed", "0"], "up\nup\n", "success after 2 steps"),
        (["sokoban"], "[up]\nw\n", "success after 2 steps"),
        (["frozen-lake"], "right\nq\nright\n", "stopped after 1 step"),
        (["frozen-lake"], "x\ny\n", "failed after 2 steps"),
        (["frozen-lake", "--max-steps", "1"], "right\n", "out of steps after 1 step"),
        (["sokoban", "--solve"], "", "success after 2 steps"),
        (["math", "--solve"], "", "success after 1 step"),
        ([f"{DATA / 'guess.py'}:Guess"], "[50]\n", "stopped after 1 step"),
        (["gym:CartPole-v1"], "0\n" * 40, "failed after"),
        (["gym:CartPole-v1", "--success-when", "return >= 5"], "0\n" * 40, "success after"),
        (["tests.envs.test_success:Pays"], "a\nb\nc\n", "over (nothing says whether that is success"),
    ],
)
def test_try_plays(args: list[str], typed: str, last: str) -> None:
    assert run("try", *args, stdin=typed).strip().splitlines()[-1].startswith(last)


def test_try_shows_what_the_view_shows() -> None:
    assert "Reach the goal" in run("try", "frozen-lake")
    assert "Welcome to Frozen Lake" in run("try", "frozen-lake", "--rules", "full")
    none = run("try", "frozen-lake", "--rules", "none")
    assert "Welcome" not in none and "Reach" not in none and "[up]" in none
    lines = [json.loads(line) for line in run("try", "sokoban", "--json", "--random").splitlines()]
    assert lines[-1]["result"] in ("failed", "out of steps", "success") and lines[1]["reply"].startswith("[")


def test_show_tells_what_a_gymnasium_id_is() -> None:
    text = run("show", "gym:CartPole-v1")
    assert "A pole is attached by an un-actuated joint to a cart" in text and "a coloured cell becomes" not in text
    assert "a coloured cell becomes" in run("show", "tests.envs.test_cli:Bare"), "a game without a word of its own"


class Corridor(TextEnv):
    """Two doors, each with a name of its own."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        obs, info = self.first(state="door 1")
        return obs, info | {"choices": ["[one]"]}

    def step(self, action: str) -> Any:
        obs, *rest, info = self.turn(state="door 2") if action == "[one]" else self.turn(success=action == "[two]")
        return obs, *rest, info | {"choices": ["[two]"]}


class Bare(gymnasium.Env):
    observation_space = Discrete(1)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0, {}


class Word(Corridor):
    solution = "word"


def test_data_of_that_name_is_no_solution() -> None:
    with pytest.raises(EnvError, match="no solution is known for this task"):
        run("try", "tests.envs.test_cli:Word", "--solve")


class Builder:
    def __call__(self) -> TextEnv:
        return Corridor()


def test_an_entry_point_without_a_name_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SPECS", dict(registry.registered()))
    registry.register("part", partial(Corridor))
    registry.register("built", Builder())
    facts = {entry["id"]: entry["entry_point"] for entry in json.loads(run("list", "--json"))}
    assert (facts["part"], facts["built"]) == (f"{__name__}:Corridor", f"{__name__}:Builder")
    assert "Corridor" in run("show", "part") and f"{__name__}:Builder" in run("list")


@pytest.mark.parametrize("success_when", ["", "terminated"])
def test_check_says_what_the_next_command_needs(success_when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report = CheckReport([], [], 2, 2, 0.5)
    monkeypatch.setattr("agentopcd.envs.check.check_env", lambda *_, **__: report)
    text = run("check", "gym:CartPole-v1", *(["--success-when", success_when] if success_when else []))
    assert "random replies won 50.0% within 30 replies\n" in text
    assert text.endswith(f"play --env gym:CartPole-v1{' --success-when terminated' * bool(success_when)}\n")


def test_where_nothing_is_graded_a_text_is_distilled(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    talk = '{"messages": [{"role": "user", "content": "Where is %d?"}]}\n'
    file.write_text("".join(talk % number for number in range(120)))
    (tmp_path / "g.py").write_text("def short(row, reply):\n    return len(reply) < 9\n")
    for command in ("check", "splits"):
        text = run(command, str(file), "--seeds", "120")
        assert "won" not in text and text.endswith(f"consolidate --env {file} --context FILE\n")
        assert "agentopcd play" in run(command, str(file), "--seeds", "120", "--grader", f"{tmp_path}/g.py:short")


def test_random_moves_are_those_that_the_class_lists() -> None:
    text = run("try", "tests.envs.test_solvers:Halves", "--random")
    assert text.strip().splitlines()[-1].startswith(("failed after 1 step", "success after 1 step"))


def test_random_moves_are_those_of_the_newest_state() -> None:
    text = run("try", "tests.envs.test_cli:Corridor", "--random")
    assert text.strip().splitlines()[-1].startswith("success after 2 steps")


def test_a_grader_goes_with_every_command_and_into_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "How many? {i}"}}\n' for i in range(8)))
    (tmp_path / "grade.py").write_text("def seven(row, reply):\n    return reply == '7'\n")
    rows, grader = str(tmp_path / "rows.jsonl"), ("--grader", f"{tmp_path / 'grade.py'}:seven")
    assert f"play --env {rows} --grader {grader[1]}" in run("check", rows, *grader, "--seeds", "4")
    assert f"envs try {rows} --grader {grader[1]}" in run("show", rows, *grader)
    assert run("try", rows, *grader, stdin="7\n").strip().splitlines()[-1].startswith("success after 1 step")
    assert "8 distinct tasks" in run("splits", rows, *grader)
    with pytest.raises(AgentOpcdError, match="grader"):
        run("try", rows, stdin="7\n")


@pytest.mark.slow
def test_check_tells_and_sets_the_exit_code() -> None:
    assert "guess.py:Guess: ok" in run("check", f"{DATA / 'guess.py'}:Guess", "--seeds", "4")
    text = run("check", f"{DATA / 'faulty.py'}:AddsText", "--seeds", "2", code=1)
    assert "error: info['parts']" in text
    assert json.loads(run("check", "math", "--seeds", "2", "--json"))["ok"] is True
    pays = "tests.envs.test_success:Pays"
    assert "does not say; say when it is solved" in run("check", pays, "--seeds", "2", code=1)
    assert f"{pays}: ok" in run("check", pays, "--seeds", "2", "--success-when", "return >= 3")


def test_splits_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    text = run("splits", "sokoban", "--seeds", "150", "--test", "40", "-o", str(out))
    assert "40 tasks" in text and "can be won within the step limit" in text and "few" in text
    assert len(Manifest.load(out).tasks("test")) == 40
    assert "every split is all of them" in run("splits", "frozen-lake", "--seeds", "200")
    assert json.loads(run("splits", "math", "--seeds", "200", "--json"))["env"] == "math"


@pytest.mark.parametrize(
    "args",
    [
        ["try", "nothing"],
        ["try", "sokoban", "--random", "--solve"],
        ["try", "sokoban", "--rules", "some"],
        ["try", f"{DATA / 'guess.py'}:Guess", "--solve"],
        ["try", "math", "--random"],
        ["show", "math", "--env-arg", "level"],
        ["splits", "frozen-lake", "--test", "500"],
        ["try", "gym:CartPole-v1", "--success-when", "won"],
        ["check", "math", "--success-when", "won"],
        ["show", "gym:LunarLander-v3"],
        ["show", "gym:no_such_package:Thing-v0"],
        ["show", "textarena:TicTacToe-v0"],
        ["show", "shutil:rmtree"],
    ],
)
def test_a_mistake_is_one_of_our_errors(args: list[str]) -> None:
    with pytest.raises(AgentOpcdError) as caught:
        run(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["list", "show", "check", "try", "splits"])
def test_every_help_has_an_example(command: str) -> None:
    assert "agentopcd envs" in run(command, "--help")
