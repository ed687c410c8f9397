"""A command from the warm process is what a real start of it is."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(not warm.FORKS, reason="every start is a real one here")

GAME = """
import os, sys
print(sys.argv[1:], os.getcwd(), sys.path[0], os.environ["OF_THIS_COMMAND"], sys.stdin.isatty(), sys.stdout.encoding)
import beside
from agentopcd.envs import TextEnv

class Room(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first(key=seed, state=f"Room {seed}, ünïcödé.", actions="Say [go].")

    def step(self, action):
        return self.turn(outcome="Done.", success="[go]" in action)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "room.py").write_text(GAME, encoding="utf-8")
    (tmp_path / "beside.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("envs", "try", "room.py:Room", "--seed", "3"), 0, "Room 3, ünïcödé."),
        (("envs", "try", "room.py:Raum"), 2, "error: "),
        (("envs", "try"), 2, "(see --help)"),
    ],
)
def test_it_says_and_returns_what_a_real_start_does(words: tuple[str, ...], code: int, said: str, folder: Path) -> None:
    how: dict[str, Any] = {
        "cwd": folder,
        "env": os.environ | {"OF_THIS_COMMAND": "1", "COLUMNS": "80"},
        "typed": "[go]\n",
    }
    forked, real = (warm.run(*words, real=real, **how) for real in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
    assert forked.returncode == code and said in forked.stdout + forked.stderr


def test_it_is_warm_and_leaves_the_tests_as_they_were(folder: Path) -> None:
    (folder / "room.py").write_text("import os, sys\nprint('torch' in sys.modules)\nos.chdir('/')\n" + GAME)
    before = Path.cwd(), os.environ.get("OF_THIS_COMMAND")
    done = warm.run("envs", "show", "room.py:Room", cwd=folder, env=os.environ | {"OF_THIS_COMMAND": "1"})
    assert "True\n" in done.stdout + done.stderr, done
    assert (Path.cwd(), os.environ.get("OF_THIS_COMMAND")) == before


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_it_is_a_process_that_gets_signals(sig: signal.Signals, code: int, folder: Path) -> None:
    waits = "import time\nopen('here', 'w').close()\ntime.sleep(60)\n"
    (folder / "room.py").write_text(waits)
    command = warm.start("envs", "show", "room.py:Room", cwd=folder)
    until = time.monotonic() + 60
    while not (folder / "here").exists():
        assert command.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    command.send_signal(sig)
    assert command.wait(60) == code
    out, err = command.communicate()
    assert out == "" and "Traceback" not in err
    command.kill()  # it is over, and its number may be another's
