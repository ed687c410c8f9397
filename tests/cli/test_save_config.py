"""``--save-config`` and ``config.toml`` give a command back: equal settings, and the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.core.config import ConsolidateConfig, LearnConfig, PlayConfig
from agentopcd.core.errors import ConfigError
from agentopcd.knowledge import Store
from agentopcd.learn import learn
from agentopcd.workspace.experience import gather as gathering
from tests import tiny
from tests.recording import keep_many


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build(tmp_path_factory.mktemp("saved") / "model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


PLAY = ["play", "--env", "rows.jsonl", "--episodes", "2", "--no-extract", "--max-tokens", "2"]


def test_saved_settings_find_the_run_that_was_killed(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    tiny.questions(here / "rows.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "gather", killed)
        with pytest.raises(Killed):
            run(*PLAY, "--model", model, "--save-config", "kept.toml")
    written = (here / "kept.toml").read_text()
    assert "max_steps = 0  # here: 1\n" in written and 'history = ""  # here: chat\n' in written
    saved = PlayConfig.load(here / "kept.toml")
    assert saved == PlayConfig(env="rows.jsonl", episodes=2, extract=False, max_tokens=2, model=model)
    assert "resuming play run 1" in run("play", "--config", "kept.toml")
    run(*PLAY, "--model", model, "--save-config", "kept.toml", "--dry-run")  # the same command again
    with Store.open(here / "agentopcd-work" / "store.db") as store:
        assert [(row["verb"], row["status"]) for row in store.runs()] == [("play", "done")]
    with pytest.raises(ConfigError, match=r"kept\.toml is there already and is left as it is"):
        run(*PLAY, "--model", model, "--save-config", "kept.toml", "--seed", "1", "--dry-run")
    assert (here / "kept.toml").read_text() == written


def test_a_password_is_not_saved_and_that_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.workspace.session.check_engine", lambda config: None)
    tiny.questions(here / "rows.jsonl")
    words = [
        "play",
        "--env",
        "rows.jsonl",
        "--model",
        "m",
        "--engine",
        "api",
        "--server",
        "http://ann:pw@localhost:1/v1",
    ]
    said = run(*words, "--no-extract", "--dry-run", "--save-config", "kept.toml")
    assert "note: kept.toml is without server (it holds a password; give it with --server)" in said
    assert "pw" not in (here / "kept.toml").read_text()
    run(*words, "--no-extract", "--dry-run", "--save-config", "kept.toml")


def test_the_settings_in_a_run_s_folder_give_the_run_back(model: str, here: Path) -> None:
    (here / "clue.txt").write_text(tiny.CLUE)
    env = tiny.questions(here / "rows.jsonl")
    words = ["--env", env, "--context", "clue.txt", "--model", model, "--steps", "1", "--batch-size", "2"]
    words += ["--max-tokens", "2", "--select-tasks", "2", "--test-tasks", "0", "--select-every", "1", "--force"]
    run("consolidate", *words)
    (folder,) = (here / "agentopcd-work" / "runs").iterdir()
    saved = ConsolidateConfig.load(folder / "config.toml")
    assert (saved.steps, saved.context, saved.model, saved.force) == (1, "clue.txt", model, True)
    text = (folder / "config.toml").read_text()
    assert "learning_rate = 0.0  # 3e-4 for pocket" in text and "max_steps = 0  # here: 1\n" in text
    assert f"already done: agentopcd-work/runs/{folder.name}" in run("consolidate", "--config", f"{folder}/config.toml")
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]


def test_a_folder_of_learn_has_its_settings_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LearnConfig(env="math", rounds=1, steps=3)

    class Stop(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    monkeypatch.setattr("agentopcd.learn.Session", stop)
    for settings in (config, None):
        (folder,) = (here / "runs").iterdir() if settings is None else (here,)
        with pytest.raises(Stop):
            learn(settings or LearnConfig.load(folder / "config.toml"), here)
    assert LearnConfig.load(folder / "config.toml") == config and len(list((here / "runs").iterdir())) == 1


def test_a_night_is_saved_as_it_was_given(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(*given: Any, **_: Any) -> None:
        moments.append(given[0].since)
        raise Stop

    moments: list[str] = []
    monkeypatch.setattr("agentopcd.learn.learn", stop)
    keep_many(here / "agentopcd-work", 40)
    words = ["learn", "--env", "recorded:shop", "--since", "24h", "--model", model, "--save-config", "night.toml"]
    for more in ([], ["--dry-run"], []):  # the file of one is that of the other
        done = CliRunner().invoke(app, [*words, *more])
        assert isinstance(done.exception, Stop) or not done.exit_code, done.output
        assert LearnConfig.load(here / "night.toml").since == "24h"
    assert len(moments) == 2 and all(moment.startswith("20") for moment in moments)
