"""Lines for people: wrapped between words on a terminal, verdicts in colour there, each note once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.cli.options import Call
from agentopcd.cli.spoken import wrapped

SAYS = """
from agentopcd.core import terminal
terminal.guard()
from agentopcd.cli.options import Call
call = Call(None, False, False)
call.say("verdict: pass, sokoban/best moved")
call.say("verdict: not promoted, it is not shown to be better than no context \\x1b[2J")
call.say("  figures: " + "0123456789ab " * 9)
call.say("next: agentopcd consolidate " + "--env-arg a=b " * 9)
"""


def shown(root: Path, **env: str) -> str:
    import pty

    ours, theirs = pty.openpty()
    full = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    full |= {"TERM": "xterm-256color", "COLUMNS": "60"} | env
    with subprocess.Popen([sys.executable, "-c", SAYS], cwd=root, stdout=theirs, stderr=theirs, env=full) as running:
        os.close(theirs)
        said = b""
        try:
            while some := os.read(ours, 4096):
                said += some
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert running.returncode == 0, said
    return said.decode().replace("\r\n", "\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no pseudo-terminal")
def test_on_a_terminal(root: Path) -> None:
    said = shown(root)
    assert "verdict: \x1b[1;32mpass\x1b[0m, sokoban/best moved\n" in said
    assert "verdict: \x1b[1;31mnot promoted\x1b[0m, it is" in said and "\\u001b[2J" in said
    lines = said.splitlines()
    assert lines[-1] == "next: agentopcd consolidate " + "--env-arg a=b " * 9  # copied in one piece
    assert all(len(line) <= 60 for line in lines[3:-1]) and said.count("0123456789ab") == 9
    assert lines[-2].startswith("    0123456789ab")
    assert "next: agentopcd consolidate" in shown(root, COLUMNS="0")  # a terminal that says that it has no columns


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no pseudo-terminal")
@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_the_word_says_it(env: dict[str, str], root: Path) -> None:
    said = shown(root, **env)
    plain = said.replace("\x1b[1m", "").replace("\x1b[0m", "")  # bold is no colour
    assert "\x1b[" not in plain and "verdict: pass, sokoban/best moved\n" in plain


def test_in_a_file_lines_are_as_they_are(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], cwd=root, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 4 and "\x1b" not in done.stdout


def test_words_are_never_cut() -> None:
    assert wrapped("  a: " + "x" * 30 + " bb cc", 12) == ["  a:", "    " + "x" * 30, "    bb cc"]
    assert wrapped("one\n two", 80) == ["one", " two"]


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(None, False, False)
    for line in ("note: from 4-bit weights", "played", "note: from 4-bit weights", "played", "note: another"):
        call.say(line)
    assert capsys.readouterr().out.splitlines() == ["note: from 4-bit weights", "played", "played", "note: another"]
