"""What strangers write is harmless on a terminal, whatever the terminal's encoding; results for programs stay JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.core.errors import OutputError
from agentopcd.core.terminal import Guarded, emit, harmless, without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nsecond line ü 🙂 \u2028", "plain\ttext\nsecond line ü 🙂 \u2028"),
        ("\x1b[2J\x1b]0;title\x07", "\\u001b[2J\\u001b]0;title\\u0007"),
        ("\x9b31m\x7f\x00\x08", "\\u009b31m\\u007f\\u0000\\u0008"),
        ("safe\rhidden", "safe\\u000dhidden"),
        ("a line of Windows\r\n", "a line of Windows\r\n"),
        ("half \ud83d", "half \\ud83d"),
        ("user\u202egpj.exe\u2066", "user\\u202egpj.exe\\u2066"),
    ],
)
def test_harmful_characters_are_spelt(text: str, shown: str) -> None:
    assert harmless(text) == shown


def written(text: str, encoding: str) -> str:
    raw = io.BytesIO()
    stream = Guarded(io.TextIOWrapper(raw, encoding=encoding), "stdout")
    print(text, file=stream, end="", flush=True)
    return raw.getvalue().decode(encoding)


def test_what_the_encoding_lacks_is_spelt_as_json_spells_it() -> None:
    assert written("ü □ 🙂 \x1b", "cp1252") == "ü \\u25a1 \\ud83d\\ude42 \\u001b"
    assert written("ü □ 🙂 \x1b", "ascii") == "\\u00fc \\u25a1 \\ud83d\\ude42 \\u001b"
    assert written("ü □ 🙂 \ud83d", "utf-8") == "ü □ 🙂 \\ud83d"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_keeps_its_meaning(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Guarded(io.TextIOWrapper(raw, encoding=encoding), "stdout"))
    value = {"text": "ü □ 🙂 \x1b\x9b\x7f \ud83d \u202e\r", "rate": float("nan"), "all": [1.5, float("inf")]}
    emit(value)
    said = json.loads(raw.getvalue().decode(encoding))
    assert said == {"text": value["text"], "rate": None, "all": [1.5, None]}


def test_a_guard_takes_text_only_as_libraries_expect() -> None:
    with pytest.raises(TypeError):
        Guarded(io.StringIO(), "stdout").write(b"")  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        stream = Guarded(full, "stdout")
        with pytest.raises(OutputError, match="cannot write to stdout: No space left"):
            print("x", file=stream, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:s3cret@host:8000/v1", "http://***@host:8000/v1"),
        ("error at 'https://sk-key@host', twice http://a:b@c", "error at 'https://***@host', twice http://***@c"),
        ("http://ann:p@ss@host,http://localhost:8000", "http://***@host,http://localhost:8000"),
        ("http://localhost:8000/who@where mail ann@host", "http://localhost:8000/who@where mail ann@host"),
    ],
)
def test_passwords_in_addresses_are_left_out(text: str, shown: str) -> None:
    assert without_password(text) == shown


PROBE = """
import os, subprocess, sys
from agentopcd.core import terminal
terminal.guard()
end = terminal.only_results()
print("a game")
os.write(1, b"a library in C\\n")
subprocess.run([sys.executable, "-c", "print('another program')"])
terminal.emit({"result": "\\x1b"})
end()
print("people")
"""


def test_only_results_reach_stdout(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=root, capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    assert json.loads(first) == {"result": "\x1b"} and rest == "people\n"
    assert sorted(done.stderr.splitlines()) == ["a game", "a library in C", "another program"]


def test_a_closed_stream_gives_its_number_to_no_file(root: Path, tmp_path: Path) -> None:
    code = (
        "from agentopcd.core import terminal\nimport os, sys\nterminal.guard()\n"
        f"file = open({str(tmp_path / 'store')!r}, 'w')\nassert file.fileno() > 2\n"
        "os.write(1, b'a library prints')\nassert sys.stdin.readline() == ''\nprint('fine')\n"
    )
    env = {**os.environ, "CODE": code}
    subprocess.run(f'"{sys.executable}" -c "$CODE" <&- >&- 2>&-', shell=True, cwd=root, env=env, check=True)
    assert (tmp_path / "store").read_text() == ""
