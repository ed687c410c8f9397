"""Environments of verifiers: the worker in a Python of its own, beside a small package in place of verifiers."""

from __future__ import annotations

import shutil
import threading
import venv
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import DependencyError, EnvError, GameFault, OutOfTime
from agentopcd.envs.hub import workers

FAKE = Path(__file__).parent / "data" / "fake_verifiers.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment, with the fake package."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    shutil.copy(FAKE, packages / "verifiers.py")
    return folder / "bin" / "python"


@pytest.fixture(autouse=True)
def named(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workers.PYTHON, str(python))


def make(**arguments: Any) -> Any:
    return envs.make("verifiers:game", **arguments)


def test_an_episode_is_a_rollout() -> None:
    env = make()
    assert env.unwrapped.num_tasks == 4
    obs, info = env.reset(seed=5)
    assert info["parts"] == [("rules", "Be short."), ("state", "Go.")] and obs == "Be short.\n\nGo."
    assert info["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Go."}]
    assert "tools" not in info
    obs, reward, terminated, truncated, info = env.step("<think>no</think>hi\n" * 2 + "x" * 999)
    assert obs.startswith("You said hi") and (reward, terminated, truncated) == (0.0, False, False)
    assert len(info["action"]) > 999, "later prompts repeat the whole reply"
    assert [message["role"] for message in info["messages"]] == ["system", "user", "assistant", "user"]
    obs, reward, terminated, truncated, info = env.step("1")
    assert (obs, reward, terminated, truncated) == ("The episode is over: max turns reached.", 1.0, True, False)
    assert info["metrics"] == {"right": 1.0}
    with pytest.raises(GameFault, match="call reset"):
        env.step("1")


def test_rows_make_the_keys() -> None:
    env = make()
    keys = [env.reset(seed=seed)[1]["task_key"] for seed in range(8)]
    assert keys[:4] == keys[4:] and len(set(keys)) == 4, "prompts are alike, answers are not"
    assert make(evaluation=True).unwrapped.num_tasks == 2, "without rows for training, those for evaluation"


def test_a_low_reward_is_no_success() -> None:
    spec = envs.get_spec("verifiers:game")
    assert spec.solved([0.0, 1.0], True, {}) and spec.solved([0.0, 0.9], True, {}) is False


def test_tools_are_listed_and_called() -> None:
    env = make(tools=True)
    assert env.reset(seed=0)[1]["tools"][0]["function"]["name"] == "add"
    obs, _, _, _, info = env.step('So:\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    assert info["parts"] == [("feedback", """[{'id': 'call00000', 'name': 'add', 'arguments': '{"a": 1}'}]""")], obs
    env.reset(seed=0)
    obs, _, _, _, info = env.step("<tool_call>{</tool_call>")
    assert info["invalid"] and "<tool_call>{</tool_call>" in obs, "what cannot be read arrives as words"


def test_one_process_serves_all_episodes_at_once() -> None:
    many = [make() for _ in range(8)]
    for env in many:
        env.reset(seed=1)
    assert len({id(env.unwrapped._worker) for env in many}) == 1
    assert make(rows=3).unwrapped._worker is not many[0].unwrapped._worker, "other arguments, another environment"
    for env in reversed(many):
        env.step("hi")
    results: list[Any] = [None] * 8
    threads = [threading.Thread(target=lambda k=k: results.__setitem__(k, many[k].step(str(k))[1])) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [0.0, 1.0] + [0.0] * 6, "replies do not get mixed up"


def test_what_the_environment_raises_costs_its_episode() -> None:
    env, other = make(), make()
    other.reset(seed=0)
    for said, why in (("raise", r"verifiers:game: Error\('as told'\)"), ("picture", "a message holds image_url")):
        env.reset(seed=0)
        with pytest.raises(GameFault, match=why):
            env.step(said)
    assert other.step("hi")[0] == "You said hi"


def test_a_process_that_dies_costs_its_episodes_and_a_new_one_comes() -> None:
    env, other = make(), make()
    env.reset(seed=0)
    other.reset(seed=1)
    dead = env.unwrapped._worker
    with pytest.raises(GameFault, match=r"its process died \(exit code 7; dying\)"):
        env.step("die")
    with pytest.raises(GameFault, match="its process died"):
        other.step("hi")
    assert env.reset(seed=0)[0] and env.unwrapped._worker is not dead


def test_closing_ends_a_wait_and_the_rollout() -> None:
    env = make()
    env.reset(seed=0)
    worker, episode = env.unwrapped._worker, env.unwrapped._episode
    failed: list[Exception] = []

    def waits() -> None:
        try:
            worker.next(episode)
        except GameFault as fault:
            failed.append(fault)

    thread = threading.Thread(target=waits)
    thread.start()
    env.close()
    thread.join(20)
    assert [str(fault) for fault in failed] and not worker._mailboxes.keys() & {episode}


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EnvError, match=r"cannot be loaded by .*/python: ModuleNotFoundError: No module named 'missing'$"
    ):
        envs.make("verifiers:missing")
    with pytest.raises(EnvError, match="unexpected keyword argument 'roes'"):
        make(roes=3)
    with pytest.raises(EnvError, match="the dataset of game has no rows"):
        make(rows=0)
    venv.create(tmp_path, with_pip=False)
    monkeypatch.setenv(workers.PYTHON, str(tmp_path / "bin" / "python"))
    with pytest.raises(
        EnvError, match=r"it has no package verifiers; install 'verifiers<0.4' and the environment there$"
    ):
        make()
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    (packages / "verifiers.py").write_text("__version__ = '0.4.0'")
    with pytest.raises(EnvError, match=r"verifiers 0.4.0 has no load_environment any more; install 'verifiers<0.4'"):
        make()


@pytest.mark.parametrize(("path", "said"), [("", "needs a Python of its own"), ("/nowhere", "no program that can be")])
def test_no_python_is_one_line(path: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workers.PYTHON, path)
    with pytest.raises(DependencyError, match=f"{said}.*set {workers.PYTHON} to the Python of"):
        make()


def test_an_alarm_while_it_loads_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Late(workers.Worker):
        def _wait_until_ready(self) -> int:
            started.append(self._process)
            self._first = Rings()  # type: ignore[assignment]
            return super()._wait_until_ready()

    class Rings:
        def get(self, timeout: float) -> Any:
            raise OutOfTime

        def put(self, event: Any) -> None: ...

    monkeypatch.setattr(workers, "Worker", Late)
    monkeypatch.setattr(workers, "_WORKERS", {})
    with pytest.raises(GameFault, match="gave no answer within"):
        make(rows=3)
    assert started[0].wait(10) != 0
