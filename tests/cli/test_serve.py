"""`agentopcd serve` as a process: what it says, how it ends, and what it never says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.core.config import SERVE_KEY, ServeConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.knowledge import Store
from agentopcd.workspace.gateway.choice import context_served

KEY = "a-key-of-some-length"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model given; add --model"), (["--model", "pocket", "--record", "a b"], "wanted a name of 1 to 64"),
        (["--model", "pocket", "--redact", "rules.toml"], "add --record NAME"),
        (["--model", "pocket", "--port", "70000"], "wanted 0 to 65535"),
        (["--model", "pocket", "--max-waiting", "0"], "must be above 0"),
        (["--model", "pocket", "--engine", "api", "--server", "http://localhost:1"], "engine is 'api'"),
        (["--model", "pocket", "--server", "localhost"], "no address of a server"),
        (["--model", "pocket", "--host", "0.0.0.0"], "there is no key"),
        (["--model", "pocket", "--record", "a", "--redact", "nowhere.toml"], "cannot read rules from"),
        (["--model", "pocket", "--context", "nobody/best"], "nobody/best"),
        (["--model", "pocket", "--placement", "system"], "--placement is for --context FILE"),
        (["--model", "pocket", "--record", "a", "--canary", "0.1", "--canary-context", "b", "--engine", "vllm"],
         "compared with the student that plays, which may change"),
        (["--model", "pocket", "--record", "a", "--canary", "0.1", "--server", "http://localhost:1"],
         "needs the weights of two models"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SERVE_KEY, raising=False)
    monkeypatch.setattr("agentopcd.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_placement_moves_no_context_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVE_KEY, raising=False)
    monkeypatch.setattr("agentopcd.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    user, system = Context("Be brief."), Context("Be brief.", "system")
    with Store.open(tmp_path / "store.db") as store:
        store.add_context(user)
        store.add_context(system)
        (tmp_path / "told.txt").write_text("Be kind.")
        file = {"context": str(tmp_path / "told.txt"), "record": "a", "canary": 0.1, "canary_context": user.id}
        config = ServeConfig(model="pocket", placement="system", **file)
        assert context_served(store, config, config.context).placement == "system"
        assert context_served(store, config, config.canary_context) == user
        config = ServeConfig(model="pocket", placement="system", context=system.id)
        assert context_served(store, config, config.context) == system
    words = ["serve", "--model", "pocket", "--work", str(tmp_path), "--context", user.id, "--placement", "system"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigError) and "is placed in the user message" in str(result.exception)


@pytest.mark.parametrize("name", ["recorded:shop/student", "lake/student"])
def test_a_student_that_this_workspace_does_not_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["serve", "--model", name])
    said = str(result.exception)
    assert f"this workspace has no student of {name.removesuffix('/student')}" in said and "\n" not in said
    (tmp_path / name).mkdir(parents=True)
    assert "folder without config.json" in str(CliRunner().invoke(app, ["serve", "--model", name]).exception)


def begun(tmp_path: Path, *words: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """A server with a key that answers, its address, and the lines that it has said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentopcd", "serve", "--model", "pocket", "--port", "0", "--work", tmp_path, *words],
        env=os.environ | {SERVE_KEY: KEY, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+)/v1", line):
            return process, found[1], lines
    raise AssertionError("".join(lines))


def post(url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_ends_and_tells_neither_the_key_nor_a_text(tmp_path: Path, sig: signal.Signals) -> None:
    process, at, lines = begun(tmp_path, "--record", "shop")
    assert process.stdout
    with process.stdout:
        asked = {"model": "pocket", "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 4}
        reply = post(f"{at}/v1/chat/completions", asked)
        post(f"{at}/v1/feedback", {"session": reply["id"], "success": True})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(f"{at}/v1/chat/completions", asked | {"my other secret": 1})
        process.send_signal(sig)
        lines += process.stdout.readlines()
    assert process.wait(60) == 0 and lines[-1] == "stopped: 1 replies given\n"
    said = "".join(lines)
    assert "secret" not in said and KEY not in said and "Traceback" not in said
    assert "pocket answers at" in said and "record: shop" in said and "/v1/feedback" in said
