"""Pushing to a hub: which files, and what is said when it does not work. The hub is a small server in this process."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from agentopcd import models
from agentopcd.cli import app
from agentopcd.core.errors import ConfigError, ModelError
from agentopcd.models import find, push


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits, as the hub's API does for files that are not large."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.endswith("/repos/create"):
            server.created = json.loads(body)
            self._answer({"url": f"{server.url}/me/student", "name": "me/student"})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                value = (row := json.loads(line))["value"]
                if row["key"] == "file":
                    server.files[value["path"]] = base64.b64decode(value["content"])
            self._answer({"commitUrl": f"{server.url}/me/student/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({})

    def do_GET(self) -> None:
        server: Any = self.server
        self._answer({"sha": "0", "id": "me/student", "siblings": [], "private": server.private})

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import huggingface_hub

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.asked, server.files, server.created = f"http://127.0.0.1:{server.server_port}", [], {}, {}
    server.private = True
    Thread(target=server.serve_forever, daemon=True).start()
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=server.url, token="hf_secret"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def student(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An adapter of a local base, with things in its folder that are nobody's business."""
    loaded, folder = models.load_model(str(tiny_model_dir)), tmp_path / "student"
    models.add_adapter(loaded, 2, torch.float32, 0)
    models.save_model(loaded, folder, parent_id=loaded.id, facts={"step": 2})
    (folder / "README.md").write_text("---\ntags: []\n---\n# a student\n")
    (folder / "store.db").write_text("private")
    (folder / ".env").write_text("HF_TOKEN=x")
    return folder


def test_only_the_students_files_are_pushed_and_no_path(hub: Any, student: Path, tiny_model_dir: Path) -> None:
    done = CliRunner().invoke(app, ["push", str(student), "me/student", "--private"])
    assert done.exit_code == 0, done.output
    assert "left out: .env, store.db" in done.output and "the base of this adapter is a local model" in done.output
    assert hub.created["name"] == "student"
    assert hub.created.get("visibility") == "private" or hub.created.get("private") is True  # older libraries
    wanted = {path.name for path in student.iterdir()} - {"store.db", ".env"}
    assert set(hub.files) - {".gitattributes"} == wanted
    assert str(tiny_model_dir).encode() not in b"".join(hub.files.values())
    assert json.loads(hub.files[find.ADAPTER])["base_model_name_or_path"] is None
    assert json.loads((student / find.ADAPTER).read_text())["base_model_name_or_path"] == str(tiny_model_dir.resolve())
    assert hub.files["adapter_model.safetensors"] == (student / "adapter_model.safetensors").read_bytes()


def test_nothing_is_sent_to_a_public_repository_that_should_be_private(hub: Any, student: Path) -> None:
    hub.private = False
    with pytest.raises(ConfigError, match="me/student is there and public; --private makes a new repository"):
        push.push(push.parcel(str(student)), "me/student", private=True)
    assert not hub.files
    push.push(push.parcel(str(student)), "me/student", private=False)
    assert hub.files


def test_named_chat_templates_are_pushed_and_count_in_the_id(student: Path, tmp_path: Path) -> None:
    before = find.fingerprint(student)
    for place in ("", find.CARRIED):
        (student / place / find.TEMPLATES).mkdir(parents=True)
        (student / place / find.TEMPLATES / "tool_use.jinja").write_text("{{ messages }}")
    assert find.fingerprint(student) != before
    sent = push.parcel(str(student))
    names = [f"{find.TEMPLATES}/tool_use.jinja", f"{find.CARRIED}/{find.TEMPLATES}/tool_use.jinja"]
    assert set(names) <= set(sent.files) and not set(names) & set(sent.left_out)
    staged = push._staged(sent, tmp_path / "staged")
    assert all((staged / name).read_text() == "{{ messages }}" for name in names)


def test_a_dry_run_lists_the_files_and_asks_nobody(hub: Any, student: Path) -> None:
    done = CliRunner().invoke(app, ["push", str(student), "me/student", "--dry-run", "--json"])
    listed = json.loads(done.stdout[done.stdout.index("{") :])
    assert listed["files"]["tokenizer.json"] == (student / "tokenizer.json").stat().st_size
    assert hub.asked == []


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_what_is_no_name_is_refused_with_and_without_a_dry_run(hub: Any, student: Path, flags: list[str]) -> None:
    done = CliRunner().invoke(app, ["push", str(student), "a b/c", *flags])
    assert isinstance(done.exception, ConfigError) and "'a b/c' is no name of a repository" in str(done.exception)
    assert hub.asked == []


def test_without_a_token_or_a_name_nothing_is_sent(hub: Any, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = push.parcel(str(student))
    with pytest.raises(ConfigError, match="is no name of a repository"):
        push.push(sent, "me/../x", private=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token for the model hub; run `hf auth login`"):
        push.push(sent, "me/student", private=False)
    assert hub.asked == []


def test_a_hub_that_is_away_is_one_line(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint="http://127.0.0.1:9", token="x"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "x")
    with pytest.raises(ConfigError, match="the model hub did not take me/student") as caught:
        push.push(push.parcel(str(student)), "me/student", private=False)
    assert "\n" not in str(caught.value)


def test_a_base_on_a_hub_is_told_and_one_beside_the_adapter_is_local(student: Path, tiny_model_dir: Path) -> None:
    settings = json.loads((student / find.ADAPTER).read_text())
    (student / find.ADAPTER).write_text(json.dumps(settings | {"base_model_name_or_path": "models/llama"}))
    done = CliRunner().invoke(app, ["push", str(student), "me/student", "--dry-run"])
    assert "base: models/llama, on the model hub, as the adapter says" in done.output
    assert not push.parcel(str(student)).local_base
    shutil.copytree(tiny_model_dir, student / "models" / "llama")
    assert push.parcel(str(student)).local_base


def test_a_run_or_a_workspace_is_no_student(student: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    shutil.copytree(student, run / "student")
    for folder in (run, tmp_path, tmp_path / "gone"):
        with pytest.raises(ModelError, match="is no student"):
            push.parcel(str(folder))
