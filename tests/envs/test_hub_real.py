"""The packages openenv and verifiers themselves, each in a Python of its own: check, play, extract, one training step.

Run with `pytest -m network tests/envs/test_hub_real.py`. It installs both (minutes), or takes the Pythons that
AGENTOPCD_OPENENV_PYTHON and AGENTOPCD_VERIFIERS_PYTHON name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentopcd.envs.hub.session import get_json
from agentopcd.envs.hub.workers import PYTHON
from tests.envs.circle import PLAYER, agentopcd, plays_and_learns

pytestmark = [pytest.mark.network, pytest.mark.timeout(1800)]
DATA = Path(__file__).parent / "data"


def python_with(package: str, variable: str, folder: Path) -> Path:
    """The Python that the variable names, or a new one with the package."""
    if named := os.environ.get(variable):
        return Path(named)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python


@pytest.fixture(scope="module")
def openenv_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with("openenv==0.10.0", "AGENTOPCD_OPENENV_PYTHON", tmp_path_factory.mktemp("openenv"))


@pytest.fixture
def server(openenv_python: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of the game that the test names, with the number of its sessions."""
    game, sessions = request.param
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(openenv_python), str(DATA / "openenv_games.py"), game, str(port), str(sessions)]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": ""}) as process:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while True:
            try:
                get_json(url, "/schema")
                break
            except ValueError:  # nobody there yet
                assert process.poll() is None and time.monotonic() < until, "the server did not start"
                time.sleep(0.5)
        yield url
        process.terminate()


@pytest.mark.parametrize("server", [("guess", 8)], indirect=True)
def test_a_game_on_a_server(server: str, tmp_path: Path) -> None:
    assert ": ok; 5 distinct tasks in 16 seeds" in agentopcd("envs", "check", f"openenv:{server}", "--seeds", "16")
    assert "env_error" not in plays_and_learns((f"openenv:{server}",), tmp_path)


@pytest.mark.parametrize("server", [("guess", 1)], indirect=True)
def test_one_session_is_enough_to_play(server: str, tmp_path: Path) -> None:
    played = agentopcd("play", "--env", f"openenv:{server}", *PLAYER, "--work", str(tmp_path), "--episodes", "6")
    assert "(n=6)" in played, "every episode waited for its turn, and none broke"


@pytest.mark.parametrize("server", [("tools", 8)], indirect=True)
def test_tools_on_a_server(server: str) -> None:
    from agentopcd import envs

    rule = ("--success-when", "reward >= 1")
    assert ": ok; 14 distinct" in agentopcd("envs", "check", f"openenv:{server}", "--seeds", "16", *rule)
    env = envs.make(f"openenv:{server}")
    obs, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "answer"]
    assert info["tools"][0]["function"]["parameters"]["required"] == ["a", "b"]
    number = int(obs.split()[2])
    obs, reward, over, *_ = env.step(
        f'<tool_call>{{"name": "add", "arguments": {{"a": {number}, "b": 7}}}}</tool_call>'
    )
    assert (obs, reward, over) == (str(number + 7), 0.0, False)
    assert "Unknown tool" in env.step('<tool_call>{"name": "sub"}</tool_call>')[0]
    call = f'<tool_call>{{"name": "answer", "arguments": {{"value": {number + 7}}}}}</tool_call>'
    assert env.step(call)[:3] == ("noted", 1.0, True)
    env.close()


@pytest.mark.parametrize("server", [("wheel", 8)], indirect=True)
def test_objects_on_a_server(server: str) -> None:
    from agentopcd import envs

    env = envs.make(f"openenv:{server}")
    assert '{"colour": "red" or "black", "stake": integer (Coins), "note": string}' in env.reset(seed=1)[0]
    obs, _, over, _, info = env.step('{"colour": "green", "stake": 1}')
    assert "colour: Input should be 'red' or 'black'" in obs and info["invalid"] and not over
    results = {env.step(f'{{"colour": "{colour}", "stake": 2}}')[:3] for colour in ("red", "black")}
    assert results == {("coins: 12\nsaid: It is over.", 0.0, True), ("coins: 12\nsaid: It is over.", 1.0, True)}


@pytest.mark.parametrize("server", [("forgetful", 8)], indirect=True)
def test_a_forgetful_server_is_found(server: str) -> None:
    said = agentopcd("envs", "check", f"openenv:{server}", "--seeds", "8", code=1)
    assert "the same seed gave two different episodes" in said


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that finds verifiers and the environments of the tests."""
    real = python_with("verifiers==0.3.1", PYTHON, tmp_path_factory.mktemp("verifiers"))
    asked = [str(real), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path_factory.mktemp("games")
    subprocess.run([str(real), "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "tests.pth").write_text(f"{packages}\n{DATA}\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("kind", ["sums", "number", "tools", "group"])
def test_verifiers_pass_the_check(games: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, str(games))
    said = agentopcd("envs", "check", "verifiers:verifiers-games", "--env-arg", f"kind={kind}", "--seeds", "16")
    assert ": ok; 8 distinct tasks in 16 seeds" in said


def test_verifiers_play_and_learn(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, str(games))
    ref = ("verifiers:verifiers-games", "--env-arg", "kind=number")
    assert "env_error" not in plays_and_learns(ref, tmp_path)


def test_verifiers_reward_metrics_and_faults(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentopcd import envs
    from agentopcd.core.errors import GameFault

    monkeypatch.setenv(PYTHON, str(games))
    env = envs.make("verifiers:verifiers-games", kind="sums")
    assert dict(env.reset(seed=9)[1]["parts"]) == {"rules": "Give the number only.", "state": "What is 1 + 1?"}
    _, reward, over, _, info = env.step("2")
    assert (reward, over, info["metrics"]["right"], info["metrics"]["short"]) == (1.0, True, 1.0, 1.0)
    env = envs.make("verifiers:verifiers-games", kind="tools")
    assert env.reset(seed=4)[1]["tools"][0]["function"]["parameters"]["required"] == ["x"]
    assert env.step('<tool_call>{"name": "double", "arguments": {"x": 4}}</tool_call>')[0] == "8"
    assert env.step("8")[4]["metrics"]["double_calls"] == 1.0
    env = envs.make("verifiers:verifiers-games", kind="broken")
    with pytest.raises(GameFault, match="row 3 is broken"):
        env.reset(seed=3)
    env.reset(seed=0)
    with pytest.raises(GameFault, match="exit code 7"):
        env.step("die")
    assert env.reset(seed=0)[0] == "Task 0"
