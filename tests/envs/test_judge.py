"""A judge behind an API: asked once, kept beside its prompt, and refused where its answer is no verdict."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.config.engine import KEY
from agentopcd.core.errors import EnvError, GameFault
from agentopcd.envs import judge
from agentopcd.envs.judge import Judge, verdict

TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]


class Api:
    """Says yes to replies with ``good`` in them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = ""
        self.body: tuple[str, str] | None = None
        self.answers = threading.Event()
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                outer.asked.append(question)
                outer.answers.wait(60)
                said = outer.answer or ("Fine.\nyes" if "good" in question.split("REPLY")[-1] else "no")
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                data = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                                   "choices": [choice]}).encode()  # fmt: skip
                kind = "application/json"
                if outer.body:
                    kind, data = outer.body[0], outer.body[1].encode()
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}#m"


@pytest.fixture
def api() -> Iterator[Api]:
    found = Api()
    yield found
    found.answers.set()
    found.http.shutdown()


@pytest.fixture
def prompt(tmp_path: Path) -> str:
    file = tmp_path / "judge.md"
    file.write_text("Topic {topic}. {conversation}\nREPLY {reply}\nIs that polite? Last line: yes or no.")
    return str(file)


def test_a_reply_is_judged_once_and_the_answer_is_kept(api: Api, prompt: str) -> None:
    one = Judge(prompt, api.address)
    row = {"topic": "bikes"}
    assert one(row, "User: Hi.", "good day") == 1.0 and one(row, "User: Hi.", "go away") == 0.0
    assert api.asked[0] == "Topic bikes. User: Hi.\nREPLY good day\nIs that polite? Last line: yes or no."
    judge._calls.cache_clear()  # as in another process
    api.http.shutdown()
    api.http.server_close()
    again = Judge(prompt, api.address)
    assert again(row, "User: Hi.", "good day") == 1.0 and len(api.asked) == 2
    kept = [json.loads(line) for line in Path(f"{prompt}.calls.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in kept] == ["Fine.\nyes", "no"]


def test_conversations_are_graded_by_it(api: Api, prompt: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": TALK, "topic": "bikes"}))
    env = envs.make(str(file), grader=prompt, judge=api.address)
    env.reset(seed=0)
    *_, info = env.step("<think>good</think>go away")
    assert info["success"] is False and info["metrics"]["score"] == 0.0 and "good" not in api.asked[0]
    env.reset(seed=0)
    assert env.step("good")[-1]["success"] is True
    api.answer = "I cannot say."
    env.reset(seed=0)
    with pytest.raises(GameFault, match=r"last line must be yes, no or a number"):
        env.step("something else")
    api.answer = "yes"
    env.reset(seed=0)
    assert env.step("something else")[-1]["success"] is True, "an answer without a verdict is asked again"


def test_a_kept_answer_without_a_verdict_is_asked_again(api: Api, prompt: str) -> None:
    Judge(prompt, api.address)({"topic": "bikes"}, "User: Hi.", "good day")
    file = Path(f"{prompt}.calls.jsonl")
    file.write_text(json.dumps({**json.loads(file.read_text()), "answer": "I cannot say."}) + "\n")
    judge._calls.cache_clear()  # as in another process
    assert Judge(prompt, api.address)({"topic": "bikes"}, "User: Hi.", "good day") == 1.0 and len(api.asked) == 2


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", "<html>Log in.</html>"), ("text/plain", '{"choices": 1}'), ("application/json", "<html>"),
        ("application/json", "{}"), ("application/json", '{"choices": []}'), ("application/json", "[1]"),
        ("application/json", '{"choices": [{"index": 0}]}'), ("application/json", '{"choices": [null]}'),
        ("application/json", "null"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_one_line(api: Api, prompt: str, kind: str, body: str) -> None:
    api.body = (kind, body)
    with pytest.raises(EnvError, match=r"the judge at http://\S+ answers, but not as an OpenAI-compatible chat API"):
        Judge(prompt, api.address)({"topic": "bikes"}, "User: Hi.", "good day")
    assert not Path(f"{prompt}.calls.jsonl").exists()


def test_closing_the_environment_ends_a_question_under_way(api: Api, prompt: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": TALK, "topic": "bikes"}))
    env = envs.make(str(file), grader=prompt, judge=api.address)
    env.reset(seed=0)
    api.answers.clear()
    said: list[str] = []

    def step() -> None:
        with pytest.raises(GameFault) as raised:
            env.step("good")
        said.append(str(raised.value))

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    while not api.asked:
        thread.join(0.01)
    env.close()
    thread.join(20)
    assert not thread.is_alive() and "was closed before it answered" in said[0]
    with pytest.raises(EnvError, match="was closed"):  # a step that had not begun to ask
        env.unwrapped._judge({"topic": "x"}, "a", "b")  # type: ignore[attr-defined]
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("answer", "score"), [("yes", 1.0), ("Well.\n**No**", 0.0), ("Score: 0.25", 0.25), ("x\n\n1.", 1.0), (".5", 0.5)]
)
def test_verdicts(answer: str, score: float) -> None:
    assert verdict(answer) == score


@pytest.mark.parametrize("answer", ["", "maybe", "7", "1.5", "yes, but no", "0.5 of it"])
def test_no_verdicts(answer: str) -> None:
    with pytest.raises(EnvError, match="judge"):
        verdict(answer)


def test_what_is_wrong_is_one_line(prompt: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.md"
    bare.write_text("Is {reply} good?")
    for file, address, says in (
        (prompt, "localhost#m", "is no address of a server"), (prompt, "http://localhost:1", "wanted http://HOST"),
        (prompt, "http://me:secret@localhost:1#m", "without a password"), ("nothing.md", "http://h:1#m", "no file"),
        (str(bare), "http://h:1#m", r"has no \{conversation\}"),
    ):  # fmt: skip
        with pytest.raises(EnvError, match=says) as raised:
            Judge(file, address)
        assert "secret" not in str(raised.value)
    with pytest.raises(EnvError, match=r"names \{topic\}, and the row has no such column"):
        Judge(prompt, "http://127.0.0.1:9#m")({}, "a", "b")


def test_a_key_that_no_header_carries_is_refused_at_once(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "schlüssel")
    with pytest.raises(EnvError, match=KEY):
        Judge(prompt, "http://127.0.0.1:9#m")
