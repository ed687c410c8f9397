"""Ctrl-C in a long command, and signs of life of one: in processes of their own, as people meet them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from agentopcd.cli import app, pulse
from agentopcd.cli.options import progress
from agentopcd.core.config import LearnConfig
from tests import tiny

STAND_IN = """
import sys, time
from agentopcd.cli import main, verbs
def works(*_, **__):
    print("ready", flush=True)
    time.sleep(60)
verbs._open = works
sys.argv = ["agentopcd", *sys.argv[1:]]
main()
"""
"""The command line with a stage that takes long in the place of all that a verb opens."""

STAND_IN_ROUNDS = """
import sys, time
from agentopcd import cli, learn
from agentopcd.cli.paper import run
from agentopcd.knowledge import Store
def works(*given, **_):
    if not hasattr(given[1], "folder"):  # a row of a recipe, which would open the workspace first
        with Store.open(given[1] / "store.db"):
            pass
    print("ready", flush=True)
    time.sleep(60)
learn._rounds = run.run = works
sys.argv = ["agentopcd", *sys.argv[1:]]
cli.main()
"""


def interrupted(words: list[str], root: Path) -> tuple[int, str]:
    """Exit code and stderr of a process that gets SIGINT once it has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        while (line := running.stdout.readline()) and line != "ready\n":
            pass
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
    return running.returncode, said


@pytest.mark.parametrize(
    "words",
    [
        ["play"],
        ["knowledge", "score"],
        ["knowledge", "confirm", "--context", "my file.txt"],
        ["consolidate"],
        ["evaluate"],
    ],
    ids=" ".join,
)
def test_who_stops_a_command_gets_it_back(words: list[str], root: Path, tmp_path: Path) -> None:
    words = [*words, "--env", "math", "--env-arg", "name=it's", "--work", str(tmp_path / "w")]
    code, said = interrupted(["-c", STAND_IN, *words], root)
    assert code == 130
    shown = said.splitlines()[-1]
    assert shown.startswith("stopped; the same command goes on from here: agentopcd ")
    assert shlex.split(shown.partition("here: ")[2]) == ["agentopcd", *words]


@pytest.mark.parametrize("given", [["--since", "24h"], ["--since=24h"]], ids=" ".join)
def test_the_same_command_names_the_moment_and_not_how_long_ago_it_was(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: LearnConfig, *_: Any, **__: Any) -> None:
        moments.append(config.since)
        raise KeyboardInterrupt

    moments: list[str] = []
    words = ["learn", *given, "--env", "recorded:shop", "--work", str(tmp_path / "w")]
    monkeypatch.setattr("agentopcd.learn.learn", stopped)
    monkeypatch.setattr(sys, "argv", ["agentopcd", *words])
    result = CliRunner().invoke(app, words, standalone_mode=False)
    assert isinstance(result.exception, typer.Abort) and moments[0].startswith("20")
    again = shlex.split(str(result.exception).partition("from here: ")[2])
    assert again == ["agentopcd", "learn", *words[-4:], "--since", moments[0]]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["learn", "--env", "math"], ["reproduce", "table2"]], ids=lambda words: words[0])
def test_who_stops_many_runs_gets_the_command_back(words: list[str], root: Path, tmp_path: Path) -> None:
    words = [*words, "--work", str(tmp_path / "w")]
    code, said = interrupted(["-c", STAND_IN_ROUNDS, *words], root)
    assert (code, shlex.split(said.splitlines()[-1].partition("here: ")[2])[:2]) == (130, ["agentopcd", words[0]])
    shown = subprocess.run(
        [sys.executable, "-m", "agentopcd", "status", "--work", str(tmp_path / "w")],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    if words[0] == "reproduce":
        assert f"agentopcd reproduce table2 --size mini --report select --work {tmp_path / 'w'}" in shown.stdout


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_while_games_are_played(root: Path, tmp_path: Path) -> None:
    import pty

    (tmp_path / "slow.py").write_text(SLOW)
    model = tiny.build(tmp_path / "model")
    words = f"""play --env {tmp_path}/slow.py:Slow --model {model} --episodes 200 --max-tokens 4 --no-extract
        --work {tmp_path / "w"}""".split()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agentopcd", *words]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "400"}
    with subprocess.Popen(
        command, cwd=root, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as running:
        os.close(theirs)
        shown, sent = b"", False
        try:
            while some := os.read(ours, 4096):
                shown += some
                if not sent and b"3/200" in shown:
                    os.killpg(running.pid, signal.SIGINT)
                    sent = True
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert running.returncode == 130, shown
    assert b"stopped; the same command goes on from here: agentopcd play --env" in shown and b"Traceback" not in shown


SLOW = """
import time
from agentopcd.envs import TextEnv
class Slow(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first(key=seed, state="Room.", actions="Say [go].")
    def step(self, action):
        time.sleep(0.2)
        return self.turn(outcome="Done.", success=True)
"""


# -- signs of life ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 0.05)


def test_one_long_item_shows_that_it_is_alive(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pulse.beating():
        pulse.said("step 003/024 | a long line of figures " + "x" * 80)
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and lines[0].startswith("after: step 003/024 | a long line of figures ...")
    assert "(still at it after " in lines[-1] and len(lines[0]) < 110


def test_progress_says_how_far_it_is_even_if_nothing_ends(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress("select", range(3), 3):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert "select: 1/3 (still at it after 0 s)" in said and "select: 3/3" in said
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # and it is over


def test_what_is_said_breaks_the_silence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 1.0)
    with pulse.beating():
        for _ in range(8):
            time.sleep(0.1)
            pulse.said("a line")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars_instead(quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pulse.beating():
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
