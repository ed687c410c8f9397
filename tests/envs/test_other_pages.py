"""The commands of docs/other-environments.md, against the packages themselves.

`pytest -m games` for TextWorldExpress and MiniGrid, `pytest -m network` for OpenEnv and verifiers. The latter are
installed, or taken from the Pythons that AGENTOPCD_OPENENV_PYTHON and AGENTOPCD_VERIFIERS_PYTHON name.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentopcd.envs.hub.session import get_json
from agentopcd.envs.hub.workers import PYTHON
from tests import pages
from tests.envs.test_hub_real import python_with

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "other-environments.md"
SMALL = "--model pocket-s --episodes 2 --max-tokens 8 --no-extract"


def commands(start: str, least: int = 1) -> list[pages.Step]:
    """The commands of the page that begin like this."""
    steps = pages.steps_of(PAGE.read_text(encoding="utf-8"))
    found = [step for step in steps if step.kind == "command" and step.text.startswith(start)]
    assert len(found) >= least, f"the page has no {start!r}"
    return found


def shown(step: pages.Step) -> list[str]:
    """The lines that the page shows below a command, without what a person types and what it cuts."""
    lines = step.shown.splitlines()
    return [line for line in lines if line.strip() and not line.startswith("> ") and not line.endswith("...")]


@pytest.mark.games
@pytest.mark.parametrize(
    ("start", "typed"),
    [("agentopcd envs try twx:", "smell apple"), ("agentopcd envs try gym:minigrid:", "q")],
)
def test_what_a_person_sees_is_as_the_page_shows_it(start: str, typed: str, tmp_path: Path) -> None:
    (step,) = commands(start)
    _, (said,) = pages.run([f"echo '{typed}' | {step.text}"], tmp_path)
    assert [line for line in shown(step) if line not in said.splitlines()] == [], said


@pytest.mark.games
@pytest.mark.timeout(900)
def test_text_games_are_checked_and_played(tmp_path: Path) -> None:
    (check,), (play,) = commands("agentopcd envs check twx:"), commands("agentopcd play --env twx:")
    _, said = pages.run([check.text, f"{play.text} {SMALL} --max-steps 4"], tmp_path)
    assert "twx:coin: ok" in said[0]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[int]:
    """The server of the page, made by its commands; the port where it listens."""
    python = python_with("openenv==0.10.0", "AGENTOPCD_OPENENV_PYTHON", tmp_path / "openenv")
    (tmp_path / "openenv-venv").symlink_to(python.parent.parent)
    (begin,), (edit,), (start,) = (
        commands("openenv-venv/bin/openenv init"),
        commands("sed"),
        commands("../openenv-venv"),
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    made = [begin.text, edit.text]
    subprocess.run(["bash", "-e", "-c", "\n".join(made)], cwd=tmp_path, env=environment, check=True)
    assert "max_concurrent_envs=64" in (tmp_path / "echo_env" / "server" / "app.py").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = start.text.replace("8000", str(port))
    server = subprocess.Popen(
        ["bash", "-c", f"exec {words}"], cwd=tmp_path / "echo_env", env=environment, start_new_session=True
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                get_json(f"http://127.0.0.1:{port}", "/schema")
                break
            except ValueError:  # nobody there yet
                assert server.poll() is None and time.monotonic() < until, "the server did not start"
                time.sleep(0.5)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_the_server_of_the_page_is_tried_checked_and_played(echo: int, tmp_path: Path) -> None:
    (look,), (check,), (play,) = (
        commands(f"agentopcd {verb} openenv:") for verb in ("envs try", "envs check", "play --env")
    )
    blocks = [f"echo q | {look.text}", check.text, f"{play.text} {SMALL}"]
    _, said = pages.run([block.replace(":8000", f":{echo}") for block in blocks], tmp_path)
    assert ": ok; " in said[1]


MY_ENV = """
import verifiers as vf
from datasets import Dataset


async def right(completion, answer, **_) -> float:
    return float(str(completion[-1]["content"]).strip() == answer)


def load_environment(difficulty: str = "easy") -> vf.Environment:
    top = {"easy": 40, "hard": 400}[difficulty]
    rows = {"question": [f"What is {n} + 1?" for n in range(top)], "answer": [str(n + 1) for n in range(top)]}
    return vf.SingleTurnEnv(dataset=Dataset.from_dict(rows), rubric=vf.Rubric(funcs=[right]))
"""


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_an_environment_of_verifiers_is_checked_and_played(tmp_path: Path) -> None:
    (install,), (name,) = commands("verifiers-venv/bin/pip install ./"), commands(f"export {PYTHON}")
    assert install.text.split("#")[0].split()[-1] == "./my_env"
    real = python_with("verifiers==0.3.1", PYTHON, tmp_path / "real")
    asked = [str(real), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path / "empty" / "verifiers-venv"  # a Python that shares the packages and is changed in its stead
    subprocess.run([str(real), "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "verifiers.pth").write_text(f"{packages}\n")
    source = tmp_path / "my_env"
    source.mkdir()
    (source / "my_env.py").write_text(MY_ENV)
    (source / "pyproject.toml").write_text('[project]\nname = "my-env"\nversion = "0.1"\n')
    add = [str(real), "-m", "pip", "install", "-q", "--no-deps", "--target", str(own), str(source)]
    subprocess.run(add, check=True)
    (check,), (play,) = commands("agentopcd envs check verifiers:"), commands("agentopcd play --env verifiers:")
    _, said = pages.run([f"{name.text}\n{check.text}\n{play.text} {SMALL}"], tmp_path)
    assert "verifiers:my-env: ok; 32 distinct tasks in 32 seeds" in said[0]
