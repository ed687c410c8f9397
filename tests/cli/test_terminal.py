"""The command line in odd terminals: other encodings, closed and full streams, Ctrl-C, games that print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from agentopcd.cli.options import Call, configured
from agentopcd.core.config import ConfirmConfig
from agentopcd.core.terminal import HARMFUL
from agentopcd.core.types import Context
from agentopcd.knowledge import Store

GAME = """
import os, sys
from agentopcd.envs import TextEnv
print("hello from a library")

class Prints(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        print("DEBUG", seed)
        os.write(1, b"raw\\n")
        return self.first(key=seed, state="Room \\x1b[2J\\x1b]0;mine\\x07 \\x9b1m \\u25a1.", actions="Say [go].")

    def step(self, action):
        print("DEBUG step")
        return self.turn(outcome="Done.", success=True)
"""


@pytest.fixture
def game(tmp_path: Path) -> str:
    (tmp_path / "prints.py").write_text(GAME)
    return f"{tmp_path / 'prints.py'}:Prints"


def run(*words: str, stdin: str = "", shell: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    own = os.environ | {"OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, "-m", "agentopcd", *words]
    if shell:
        return subprocess.run(["bash", "-c", f'"$@" {shell}', "bash", *command], env=own, capture_output=True)
    return subprocess.run(command, env=own, capture_output=True, input=stdin.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_board_is_shown_in_any_encoding(encoding: str) -> None:
    done = run("envs", "try", "sokoban", "--solve", "--seed", "1", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "success after" in done.stdout.decode(encoding)


def test_no_escape_sequence_of_a_game_reaches_the_terminal(game: str) -> None:
    done = run("envs", "try", game, stdin="[go]\n")
    shown = done.stdout + done.stderr
    assert done.returncode == 0 and b"\x1b" not in shown and b"\x07" not in shown and "\x9b" not in shown.decode()
    assert r"\u001b[2J\u001b]0;mine\u0007 \u009b1m □." in done.stdout.decode()


@pytest.mark.parametrize("words", [["try"], ["show"], ["check", "--seeds", "4"], ["splits", "--seeds", "4"]])
def test_with_json_nothing_but_json_is_on_stdout(words: list[str], game: str) -> None:
    done = run("envs", words[0], game, *words[1:], "--json", stdin="[go]\n")
    lines = done.stdout.decode().splitlines() if words[0] == "try" else [done.stdout.decode()]
    assert all(isinstance(json.loads(line), dict) for line in lines) and lines
    assert b"raw" in done.stderr


def test_no_escape_sequence_of_the_store_reaches_the_terminal(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        odd = "\x9b1m \x00 \x08 \x7f \u202egnp.exe\u202c \u2066\u2067in\u2069 \x1b]8;;http://stranger.invalid/\x07x\x1b]8;;\x07"
        context = Context(f"- EXPERIENCE ITEM: go \x1b[31mleft\x1b]52;c;cm0gLXJm\x07 {odd}")
        store.add_context(context, {"order": "hand"})
        store.move("mine", context.id, "person", "because \x1b[2J")
    for words in (["list", "contexts"], ["list", "refs"], ["show", "mine"], ["export", "mine"]):
        done = run("knowledge", *words, "--work", str(tmp_path))
        assert done.returncode == 0 and done.stdout and b"\x1b" not in done.stdout and b"\x07" not in done.stdout
        assert not HARMFUL.search(done.stdout.decode())
    exported = [json.loads(line) for line in done.stdout.splitlines()]  # JSON has its own spelling, and reads it back
    assert any("\x1b[31m" in line.get("rendered", "") for line in exported)


def test_a_closed_stdin_is_the_end_of_input() -> None:
    done = run("envs", "try", "frozen-lake", shell="<&-")
    assert done.returncode == 0 and b"stopped after 0 steps" in done.stdout and done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["envs", "list"], ["config", "show", "play", "--json"], ["--version"]])
def test_a_full_disk_under_stdout_is_one_line(words: list[str]) -> None:
    done = run(*words, shell="> /dev/full")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert b"error: cannot write to stdout: No space left on device" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = run("config", "show", "learn", shell="| head -1")
    assert done.stderr == b"" and done.stdout.startswith(b"# Settings")


def stopped(config: object, call: Call) -> None:
    """Example: agentopcd nothing"""
    raise KeyboardInterrupt


def test_who_stops_a_run_is_told_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["agentopcd", "confirm", "--env", "my math"])
    app = typer.Typer()
    app.command()(configured(ConfirmConfig, stopped))
    said = "^stopped; the same command goes on from here: agentopcd confirm --env 'my math'$"
    with pytest.raises(typer.Abort, match=said):
        app(["--env", "math"], standalone_mode=False)


MAIN = """
import sys, typer
from agentopcd import cli
from agentopcd.cli.options import configured
from agentopcd.core.config import ConfirmConfig
def run(config, call):
    'Example: agentopcd nothing'
    {body}
cli.app = typer.Typer()
cli.app.command()({command})
sys.argv = ["agentopcd", {words}]
cli.main()
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise KeyboardInterrupt", 130, "stopped; the same command goes on from here"),
        ("raise SystemExit(0)", 2, "error: an environment or a library ended the program"),
        ("open('/nonexistent/games/train.json')", 2, "error: /nonexistent/games/train.json: No such file or directory"),
        ("import sqlite3; sqlite3.connect('/nonexistent/x.db')", 2, "error: OperationalError: unable to open database"),
        (
            "import no_such_package",
            2,
            "error: ModuleNotFoundError: No module named 'no_such_package' (options.py, line",
        ),
        ("'\\ud83d'.encode()", 2, "error: UnicodeEncodeError: "),
        ("raise MemoryError", 2, "error: MemoryError: no reason given"),
    ],
)
def test_main_ends_in_one_line(body: str, code: int, said: str, root: Path) -> None:
    plan = MAIN.format(body=body, command="configured(ConfirmConfig, run)", words="'--env', 'math'")
    done = subprocess.run([sys.executable, "-c", plan], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_a_fault_of_our_own_keeps_its_traceback(root: Path) -> None:
    plan = MAIN.format(body="raise KeyError('x')", command="configured(ConfirmConfig, run)", words="'--env', 'math'")
    done = subprocess.run([sys.executable, "-c", plan], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


BAR = """
import sys
from agentopcd.core import terminal
terminal.guard()
from agentopcd.cli.options import progress
for i in progress("play", range(2), 2):
    print("a game \\x1b[2J\\x07")
    print("a library \\x1b]0;t\\x07", file=sys.stderr)
print("after \\x1b[1m")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no pseudo-terminal")
def test_beside_a_progress_bar_text_is_harmless_and_the_bar_is_a_bar(root: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", BAR], cwd=root, stdout=theirs, stderr=theirs, env=env) as running:
        os.close(theirs)
        shown = b""
        try:
            while some := os.read(ours, 4096):
                shown += some
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert running.returncode == 0, shown
    assert shown.count(rb"a game \u001b[2J\u0007") == 2 and shown.count(rb"a library \u001b]0;t\u0007") == 2
    assert rb"after \u001b[1m" in shown and b"\x1b[2J" not in shown and b"\x07" not in shown
    assert b"\x1b[2K" in shown and b"2/2" in shown  # what rich itself writes


def test_ctrl_c_in_a_command_that_does_not_go_on(root: Path) -> None:
    plan = MAIN.format(body="pass", command="lambda: (_ for _ in ()).throw(KeyboardInterrupt)", words="")
    done = subprocess.run([sys.executable, "-c", plan], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
