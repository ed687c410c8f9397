"""Harnesses that nobody here wrote, unchanged, against `agentopcd serve`, and a student from what they asked.

One is the command line of Pydantic AI, the other the evaluation of the package verifiers with its own environment of
sums. Run with `pytest -m network tests/workspace/test_harness_real.py`. It installs both (minutes), or takes the
Pythons that AGENTOPCD_CLAI_PYTHON and AGENTOPCD_VERIFIERS_PYTHON name; the latter needs reasoning-gym, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentopcd.envs.hub.workers import PYTHON
from tests.envs.circle import agentopcd

pytestmark = [pytest.mark.network, pytest.mark.timeout(3600)]
SESSIONS = 60
ASKED = 100
"""Their keys are new in each run, since the framework puts the time into its prompt: with 60, one run in 150 has no
task to extract from."""
SUMS = """\
from verifiers.legacy.envs.integrations.reasoninggym_env import ReasoningGymEnv

def load_environment():
    return ReasoningGymEnv("chain_sum", num_train_examples=1, num_eval_examples=60)
"""


def python_with(variable: str, folder: Path, *packages: str) -> Path:
    """The Python that the variable names, or a new one with the packages."""
    if named := os.environ.get(variable):
        return Path(named)
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True)
    return folder / "bin" / "python"


@contextlib.contextmanager
def serving(work: Path, *words: str) -> Iterator[dict[str, str]]:
    """A server, and the variables by which OpenAI's clients find it."""
    log = work / "serve.log"
    command = [sys.executable, "-m", "agentopcd", "serve", *words, "--port", "0", "--work", str(work)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as server:
        until = time.monotonic() + 300
        while "client: " not in (said := log.read_text()):
            assert server.poll() is None and time.monotonic() < until, said
            time.sleep(0.5)
        (line,) = [line for line in said.splitlines() if line.startswith("client: ")]
        address = line.split("OPENAI_BASE_URL=")[1].split()[0]
        yield {**os.environ, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none"}
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, log.read_text()


def rate(address: str, **rating: object) -> None:
    head = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/feedback", json.dumps(rating).encode(), head)).read()


def student_of(name: str, work: Path) -> None:
    """Extract from a recording, ask the gate of canaries, distil a context of a person, and serve the student."""
    player = ("--env", f"recorded:{name}", "--model", "pocket", "--work", str(work))
    read = agentopcd("play", *player, "--chains", "1", "--chain-steps", "2", "--extract-tokens", "16")
    assert "recorded sessions" in read
    assert "was dealt to a canary" in agentopcd("canary", name, "--work", str(work), code=2)
    (work / "rule.txt").write_text("Answer with one number.\n")
    small = ("--steps", "2", "--select-every", "2", "--batch-size", "8", "--select-tasks", "4", "--test-tasks", "4")
    told = ("--context", str(work / "rule.txt"), "--placement", "system", "--max-tokens", "8")
    trained = agentopcd("consolidate", *player, *told, *small)
    assert "method: prefix-replay" in trained and f"the gate of recorded:{name}/student" in trained
    (student,) = work.glob(f"runs/consolidate-recorded-{name}-*/student")
    with serving(work, "--model", str(student)) as env:
        models = json.loads(urllib.request.urlopen(f"{env['OPENAI_BASE_URL']}/models").read())
        assert models["data"][0]["id"] == str(student)


def test_the_command_line_of_an_agent_framework(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = python_with("AGENTOPCD_CLAI_PYTHON", tmp_path_factory.mktemp("clai"), "clai==2.62.0", "openai")
    with serving(tmp_path, "--model", "pocket", "--record", "desk") as env:
        for i in range(ASKED):
            words = [str(python.parent / "clai"), "-m", "openai-chat:pocket", f"Where is parcel {i}?"]
            subprocess.run(words, env=env, check=True, capture_output=True, timeout=120)
    listed = agentopcd("store", "recordings", "--work", str(tmp_path))
    (kept,) = re.findall(r"^desk: (\d+) sessions, 0 of them rated", listed, re.MULTILINE)
    assert int(kept) >= ASKED  # an empty reply makes it ask once more, which is a session of its own
    student_of("desk", tmp_path)


def test_an_environment_of_verifiers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = python_with(PYTHON, tmp_path_factory.mktemp("verifiers"), "verifiers==0.3.1", "reasoning-gym")
    (tmp_path / "sums.py").write_text(SUMS)
    with serving(tmp_path, "--model", "pocket", "--record", "sums") as env:
        words = ["vf-eval", "sums", "-m", "pocket", "-b", env["OPENAI_BASE_URL"], "-k", "OPENAI_API_KEY"]
        words += ["-n", str(SESSIONS), "-r", "1", "-c", "4", "-t", "16", "-s", "-o", "out", "-C", "trajectory_id"]
        words += ["--header-from-state", "X-Agentopcd-Session: trajectory_id", "--disable-tui"]
        words += ["--header-from-state", "X-Agentopcd-Task: example_id"]
        words[0] = str(python.parent / words[0])
        there = env | {"PYTHONPATH": str(tmp_path)}
        subprocess.run(words, env=there, cwd=tmp_path, check=True, capture_output=True, timeout=900)
        (results,) = (tmp_path / "out").rglob("results.jsonl")
        for line in results.open():
            row = json.loads(line)
            rate(env["OPENAI_BASE_URL"], session=row["trajectory_id"], success=row["reward"] >= 1)
    listed = agentopcd("store", "recordings", "--work", str(tmp_path))
    (kept,) = re.findall(rf"^sums: (\d+) sessions, {SESSIONS} of them rated", listed, re.MULTILINE)
    assert int(kept) >= SESSIONS  # what comes back empty is asked once more, and only the second reply is a result
    student_of("sums", tmp_path)
