"""A real server with a canary: who is dealt to whom, a student that is worse on purpose, and rollback while it serves.

The student has other weights, so it says other words. People here want the words of the base, and rate accordingly.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ServeConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.recordings import rate, sessions
from agentopcd.knowledge.students import CANARY, current_student, move_student
from agentopcd.workspace.canary import decide
from agentopcd.workspace.gateway import serve as served
from agentopcd.workspace.gateway.choice import REFUSED, refused
from agentopcd.workspace.gateway.connection import Server
from agentopcd.workspace.gateway.serve import prepare
from tests import tiny
from tests.recording import model
from tests.workspace.gateway.running import load

ENV = "recorded:shop"


class Live:
    """``agentopcd serve`` in a thread of this process, on a port of its own."""

    def __init__(self, work: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.work, self.lines = work, []
        self._server: list[Server] = []
        self._ready = threading.Event()
        make = served.Server

        def watched(*given: Any) -> Server:
            self._server.append(make(*given))
            return self._server[-1]

        monkeypatch.setattr(served, "Server", watched)
        given: dict[str, Any] = {"record": "shop", "port": 0, "max_tokens": 8, "compute": "float32", "device": "cpu"}
        self.config = ServeConfig(**(given | settings))
        self._thread = threading.Thread(target=served.serve, args=(self.config, work, self._say))

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith("client: "):
            self.at = line.split("OPENAI_BASE_URL=")[1].split()[0]
            self._ready.set()

    def __enter__(self) -> Live:
        self._thread.start()
        assert self._ready.wait(120), self.lines
        return self

    def __exit__(self, *_: object) -> None:
        self._server[-1].should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def ask(self, session: str, *texts: str) -> str:
        import httpx2 as httpx

        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        body = {"model": self.config.model, "messages": messages, "max_tokens": 8, "temperature": 0}
        headers = {"X-Agentopcd-Session": session}
        reply = httpx.post(f"{self.at}/chat/completions", json=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"]

    def who(self, session: str) -> list[str]:
        """Whose weights answered a session, and last its arm."""
        with Store.open(self.work / "store.db") as store:
            (one,) = [one for one in sessions(store, "shop") if one.key == session]
            return [*(request.model_id for request in one.requests), one.arm]


class Shop:
    """A workspace with a base, and a student of it that says other things."""

    def __init__(self, tmp_path: Path, base: Path) -> None:
        self.work = tmp_path / "w"
        other = tiny.build(self.work / "runs" / "one" / "student", seed=1, tie=False, hearing=4.0)
        self.base, self.student = load(base), load(other)
        self.base_folder = str(base)
        with Store.open(self.work / "store.db") as store:
            run = store.start("consolidate", {"env": ENV}, seed=0)
            store.finish(run, {})
            store.add_model(self.base.id, self.base_folder, self.base_folder)
            store.add_model(self.student.id, "student", "runs/one/student", self.base.id, run, {EMPTY.id: 1.0})

    def move(self, model_id: str | None, actor: Any = "gate") -> None:
        with Store.open(self.work / "store.db") as store:
            move_student(store, ENV, model_id, actor)

    def now(self) -> str | None:
        with Store.open(self.work / "store.db") as store:
            return current_student(store, ENV)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, Path(model(tmp_path / "model")))


@pytest.mark.slow
def test_a_student_that_is_worse_on_purpose_does_not_get_through(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    names, replies = [f"s{i}" for i in range(60)], {}
    with Live(shop.work, monkeypatch, model=shop.base_folder, record="") as live:
        wanted = live.ask("any", "Which way?")
    with Live(shop.work, monkeypatch, model=shop.base_folder, canary=0.5) as live:
        assert any(line.startswith("canary: 0.5 of new sessions try model") for line in live.lines)
        for name in names:
            replies[name] = live.ask(name, "Which way?")
            live.ask(name, "Which way?", replies[name], "And then?")
        dealt = {name: live.who(name) for name in names}
        for who in dealt.values():  # a session stays where it was dealt to
            assert who in ([shop.student.id] * 2 + ["canary"], [shop.base.id] * 2 + ["control"])
        assert 18 < sum(who[-1] == "canary" for who in dealt.values()) < 42
        with Store.open(shop.work / "store.db") as store:  # people who want the words of the base
            for name, reply in replies.items():
                assert rate(store, "shop", name, success=reply == wanted)
            found = decide(store, "shop")
        assert found.verdict == "worse" and shop.now() is None
        later = [f"t{i}" for i in range(12)]
        for name in later:
            live.ask(name, "Which way?")
        assert [live.who(name) for name in later] == [[shop.base.id, ""]] * 12
        old = next(name for name, who in dealt.items() if who[-1] == "canary")
        live.ask(old, "Which way?", "up", "On?")
        assert live.who(old) == [shop.student.id] * 3 + ["canary"]
    with pytest.raises(ConfigError, match="no student of recorded:shop is left to try"):
        prepare(live.config, shop.work, lambda line: None)
    named = ServeConfig(model=shop.base_folder, record="shop", canary=0.5, canary_model=str(shop.student.folder))
    with pytest.raises(ConfigError, match="is no canary: a canary was worse"):
        prepare(named, shop.work, lambda line: None)


def test_a_student_is_rolled_back_while_it_serves(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.move(shop.student.id)
    with Live(shop.work, monkeypatch, model=f"{ENV}/student") as live:
        first = live.ask("a", "Which way?")
        assert live.who("a") == [shop.student.id, ""]
        shop.move(None, "rollback")
        second = live.ask("b", "Which way?")  # a new session: the base, loaded while the server runs
        assert live.who("b") == [shop.base.id, ""] and second != first
        assert live.ask("a", "Which way?", first, "On?") and live.who("a") == [shop.student.id] * 2 + [""]
        shop.move(shop.student.id, "person")
        assert live.ask("c", "Which way?") == first and live.who("c") == [shop.student.id, ""]
        assert sum("moved: new sessions go to" in line for line in live.lines) == 2


def test_a_student_that_cannot_be_loaded_is_an_error_and_not_another_model(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2 as httpx

    with Store.open(shop.work / "store.db") as store:
        store.add_model("f" * 64, "gone", "runs/gone/student", shop.base.id)
    shop.move(shop.student.id)
    with Live(shop.work, monkeypatch, model=f"{ENV}/student") as live:
        live.ask("a", "Which way?")
        shop.move("f" * 64)
        body = {"model": live.config.model, "messages": [{"role": "user", "content": "Which way?"}]}
        refused = httpx.post(f"{live.at}/chat/completions", json=body, timeout=60)
        assert refused.status_code == 503 and "is gone" in refused.json()["error"]["message"]
        assert live.ask("a", "Which way?", "up", "On?")  # what is under way goes on
        assert any("cannot be served" in line for line in live.lines)


@pytest.mark.parametrize("fault", [OSError("no space"), MemoryError(), RuntimeError("out of memory")])
def test_whatever_keeps_a_student_from_being_loaded_is_told(
    fault: Exception, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2 as httpx

    def raises(*given: Any) -> Any:
        raise fault

    engine_of = served.engine_of
    shop.move(shop.student.id)
    with Live(shop.work, monkeypatch, model=f"{ENV}/student") as live:
        monkeypatch.setattr(served, "engine_of", raises)
        shop.move(None, "rollback")
        body = {"model": live.config.model, "messages": [{"role": "user", "content": "Which way?"}]}
        refused = httpx.post(f"{live.at}/chat/completions", json=body, timeout=60)
        wanted = str(fault) or type(fault).__name__
        assert refused.status_code == 503 and wanted in refused.json()["error"]["message"]
        monkeypatch.setattr(served, "engine_of", engine_of)
        assert live.ask("b", "Which way?") and live.who("b") == [shop.base.id, ""]


def test_a_student_whose_files_were_changed_is_not_served(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2 as httpx

    added = shop.work / "runs" / "one" / "student" / "added.json"
    with Store.open(shop.work / "store.db") as store:
        folder = tiny.build(shop.work / "runs" / "two" / "student", seed=2, tie=False, hearing=4.0)
        second = load(folder).id
        store.add_model(second, "student", "runs/two/student", shop.base.id, 1, {EMPTY.id: 1.0})
    shop.move(second)
    with Live(shop.work, monkeypatch, model=f"{ENV}/student") as live:
        live.ask("a", "Which way?")
        added.write_text("{}")
        shop.move(shop.student.id, "person")
        body = {"model": live.config.model, "messages": [{"role": "user", "content": "Which way?"}]}
        for _ in range(2):
            refused = httpx.post(f"{live.at}/chat/completions", json=body, timeout=60)
            assert refused.status_code == 503 and "were changed" in refused.json()["error"]["message"]
        assert not any("moved: new sessions go to" in line for line in live.lines)
        added.unlink()
        live.ask("b", "Which way?")
        assert live.who("b") == [shop.student.id, ""]
    added.write_text("{}")
    with pytest.raises(ConfigError, match="were changed"):
        prepare(live.config, shop.work, lambda line: None)


def test_a_canary_context_shares_the_weights(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "say.txt").write_text("Say left. Say left.")
    settings = {"model": shop.base_folder, "canary": 0.5, "canary_context": str(tmp_path / "say.txt")}
    with Live(shop.work, monkeypatch, **settings) as live:
        for i in range(16):
            live.ask(f"s{i}", "Which way?")
        with Store.open(shop.work / "store.db") as store:
            seen = {(one.arm, one.context_id == EMPTY.id, one.model_id) for one in sessions(store, "shop")}
        assert seen == {("canary", False, shop.base.id), ("control", True, shop.base.id)}


def test_a_bad_context_says_nothing_about_the_model_that_it_was_tried_with(shop: Shop) -> None:
    context = Context("Say left.")
    with Store.open(shop.work / "store.db") as store:
        store.add_context(context)
        for context_id, wanted in ((context.id, ""), (EMPTY.id, REFUSED["worse"])):
            key = {"env": ENV, "model_id": shop.student.id, "context_id": context_id, "setup": CANARY, "plan": "p"}
            store.end_look(store.begin_look(key, {})["id"], "worse", {})
            assert refused(store, ENV, shop.student.id) == wanted


@pytest.mark.parametrize(("verdict", "told"), [("pass", "serve it with --context"), ("worse", "name another one")])
def test_a_canary_that_was_decided_about_is_not_announced(shop: Shop, tmp_path: Path, verdict: str, told: str) -> None:
    context, config = Context("Say left."), ServeConfig(model=shop.base_folder, record="shop", canary=0.1)
    (tmp_path / "say.txt").write_text(context.text)
    again = f"rollback {ENV} --to {shop.student.id[:12]}" if verdict == "pass" else "name another one"
    with Store.open(shop.work / "store.db") as store:
        store.add_context(context)
        for model_id, context_id in ((shop.student.id, EMPTY.id), (shop.base.id, context.id)):
            key = {"env": ENV, "model_id": model_id, "context_id": context_id, "setup": CANARY, "plan": "p"}
            store.end_look(store.begin_look(key, {})["id"], verdict, {})
    for given, wanted in (
        ({}, "no student of recorded:shop is left to try"),
        ({"canary_model": str(shop.student.folder)}, "is no canary: .*" + again),
        ({"canary_context": str(tmp_path / "say.txt")}, f"verdict with this model is '{verdict}'.*; {told}"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            prepare(dataclasses.replace(config, **given), shop.work, lambda line: None)


def test_canaries_that_make_no_sense_are_refused(shop: Shop) -> None:
    for given, wanted in (
        ({"canary": 1.5}, "wanted a share"),
        ({"canary_model": "pocket"}, "--canary-model is for --canary SHARE"),
        ({"canary": 0.1, "record": ""}, "add --record NAME"),
        ({"canary": 0.1, "canary_model": "a", "canary_context": "b"}, "try two things at once"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            ServeConfig(**{"model": "pocket", "record": "shop", **given})
    same = ServeConfig(model=shop.base_folder, record="shop", canary=0.1, canary_model=shop.base_folder)
    with pytest.raises(ConfigError, match="is the model that is served otherwise"):
        prepare(same, shop.work, lambda line: None)
    shop.move(shop.student.id)
    with pytest.raises(ConfigError, match="add --model recorded:shop/student"):
        prepare(same, shop.work, lambda line: None)
