"""Replies through the real client, streamed and not, and what is kept of them."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import EngineError, StoreError
from agentopcd.core.types import Completion, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.care import problems
from agentopcd.knowledge.recordings import Answered, Rating
from agentopcd.workspace.gateway import desk
from tests import tiny
from tests.workspace.gateway.running import NAME, Running, Says, Stuck, load, says, text_of

TOOL: Any = {"type": "function", "function": {"name": "price", "description": "Looks up a price.", "parameters": {
    "type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}}}  # fmt: skip
CALL = '<tool_call>{"name": "price", "arguments": {"item": "lamp"}}</tool_call>'
SHOWS = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that has a place for tools."""


@torch.no_grad()
def off_nats(loaded: models.LoadedModel, one: Answered) -> float:
    """How far the recorded log-probabilities are from the model's own forward pass on the recorded ids."""
    logits = models.own_logits(loaded.model, one.prompt_ids, one.response_ids) / (one.sampling["temperature"] or 1.0)
    own = logits.log_softmax(-1).gather(1, torch.tensor(one.response_ids)[:, None])[:, 0]
    return float((own - torch.tensor(one.logprobs)).abs().mean())


def streamed(client: openai.OpenAI, **asked: Any) -> tuple[str, Any, list[Any]]:
    """The content of a stream, its last reason, and its chunks."""
    chunks = list(client.chat.completions.create(model=NAME, stream=True, **asked))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return "".join(one.delta.content or "" for one in choices), choices[-1].finish_reason, chunks


def test_the_ids_that_are_kept_are_those_that_were_sampled(loaded: models.LoadedModel, tmp_path: Path) -> None:
    """Streamed and not, with tools and without, with one temperature and another: re-scored, they agree."""
    template = load(Path(loaded.folder), SHOWS)
    for number, own in enumerate((loaded, template)):
        with Running(own, tmp_path / str(number)) as server, server.client() as client:
            for seed, more in enumerate(({}, {"tools": [TOOL]}, {"temperature": 0.5}, {"tools": [TOOL], "stop": "e"})):
                asked: Any = {
                    "messages": [{"role": "user", "content": "go up"}],
                    "max_tokens": 20,
                    "seed": seed,
                    **more,
                }
                whole = client.chat.completions.create(model=NAME, **asked)
                content, reason, _ = streamed(client, **asked)
                message = whole.choices[0].message
                assert (message.content or "", whole.choices[0].finish_reason) == (content, reason)
            kept = [request for session in server.recorded() for request in session.requests]
            assert len(kept) == 8
            for one in kept:
                assert off_nats(own, one) < 1e-4 and one.model_id == own.id and one.begun_at < one.at
                assert own.tokenizer.decode(one.response_ids, skip_special_tokens=True) == one.reply
                assert len(one.response_ids) == one.output_tokens and len(one.prompt_ids) == one.prompt_tokens
            for whole, stream in zip(kept[::2], kept[1::2], strict=True):
                assert (whole.response_ids, whole.message) == (stream.response_ids, stream.message)
            assert [request.tools for request in kept][2] == [TOOL]
            assert server.lines == []
        with Store.open(tmp_path / str(number) / "store.db") as store:
            assert problems(store) == []


def test_a_reply_through_the_client(loaded: models.LoadedModel, tmp_path: Path) -> None:
    sampler = says(loaded, "move the box")
    with Running(loaded, tmp_path, sampler=sampler) as server, server.client() as client:
        assert [model.id for model in client.models.list()] == [NAME]
        reply = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "hello"}], logprobs=True, temperature=0
        )
        (choice,) = reply.choices
        assert choice.message.content == "move the box" and choice.finish_reason == "stop"
        assert reply.id.startswith("chatcmpl-") and reply.model == NAME and reply.usage
        (kept,) = server.recorded()[0].requests
        assert reply.usage.completion_tokens == len(kept.response_ids) and kept.name == reply.id
        assert choice.logprobs and choice.logprobs.content
        assert [token.logprob for token in choice.logprobs.content] == list(kept.logprobs)
        assert "".join(token.token for token in choice.logprobs.content).startswith("move the box")
        content, reason, chunks = streamed(
            client,
            messages=[{"role": "user", "content": "hello"}],
            stream_options={"include_usage": True},
            logprobs=True,
        )
        assert (content, reason) == ("move the box", "stop") and chunks[-1].usage == reply.usage
        told = [token.logprob for chunk in chunks if chunk.choices and chunk.choices[0].logprobs
                for token in chunk.choices[0].logprobs.content or []]  # fmt: skip
        assert told == list(kept.logprobs)


def test_a_stream_comes_token_by_token(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path) as server, server.client() as client:
        *_, chunks = streamed(client, messages=[{"role": "user", "content": "go"}], max_tokens=24, seed=1)
        told = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        assert len(told) > 1, "a busy machine sends several tokens at once, but never all of them"


def test_a_conversation_with_tools(tmp_path: Path, loaded: models.LoadedModel) -> None:
    own = load(Path(loaded.folder), SHOWS)
    sampler = says(own, f"I look.\n{CALL}", "It costs 5.")
    with Running(own, tmp_path, sampler=sampler) as server, server.client() as client:
        messages: list[Any] = [{"role": "user", "content": "How much is the lamp?"}]
        first = client.chat.completions.create(model=NAME, messages=messages, tools=[TOOL]).choices[0]
        assert first.finish_reason == "tool_calls" and first.message.tool_calls and first.message.content == "I look."
        (call,) = first.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("price", {"item": "lamp"})  # type: ignore[union-attr]
        messages += [first.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "5"}]
        second = client.chat.completions.create(model=NAME, messages=messages, tools=[TOOL]).choices[0]
        assert second.message.content == "It costs 5." and second.finish_reason == "stop"
        (session,) = server.recorded()  # the second request goes on from the first one's call
        assert [request.finish_reason for request in session.requests] == ["tool_calls", "stop"]
        shown = own.tokenizer.decode(session.requests[1].prompt_ids)
        assert "TOOLS" in shown and '"price"' in shown and shown.count("lamp") == 2
        none = client.chat.completions.create(model=NAME, messages=messages[:1], tools=[TOOL], tool_choice="none")
        assert none.choices[0].finish_reason == "stop"


def test_tool_calls_are_streamed_whole(tmp_path: Path, loaded: models.LoadedModel) -> None:
    own = load(Path(loaded.folder), SHOWS)
    with Running(own, tmp_path, sampler=says(own, CALL * 2)) as server, server.client() as client:
        content, reason, chunks = streamed(client, messages=[{"role": "user", "content": "?"}], tools=[TOOL])
        calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
        assert (content, reason) == ("", "tool_calls") and [call.index for call in calls] == [0, 1]
        assert [json.loads(call.function.arguments) for call in calls] == [{"item": "lamp"}] * 2
        assert len({call.id for call in calls}) == 2


def test_the_context_is_in_the_prompt_and_nowhere_else(loaded: models.LoadedModel, tmp_path: Path) -> None:
    context = Context("Boxes are heavy.", "system")
    with Running(loaded, tmp_path, sampler=says(loaded, "ok"), context=context) as server:
        answer = server.ask("hello")
        assert "heavy" not in answer.text
        (session,) = server.recorded()
        (kept,) = session.requests
        assert kept.messages == [{"role": "user", "content": "hello"}]
        assert "Boxes are heavy." in loaded.tokenizer.decode(kept.prompt_ids)
        assert kept.context_id == session.context_id == context.id


def test_a_growing_conversation_is_one_session(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "one", "two", "three", "four")) as server:
        answers = [server.ask("a"), server.ask("a", "one", "b"), server.ask("a", "one", "b", "two", "c")]
        assert len({answer.headers["x-agentopcd-session"] for answer in answers}) == 1
        branch = server.ask("a", "one", "other")  # from an earlier place than the last
        assert branch.headers["x-agentopcd-session"] != answers[0].headers["x-agentopcd-session"]
        assert [len(session.requests) for session in server.recorded()] == [3, 1]


def test_a_header_names_the_session_whatever_the_messages_are(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "ok")) as server:
        for text in ("a", "b"):
            server.ask(text, x_agentopcd_session="s-1", x_agentopcd_task="t-1")
        (session,) = server.recorded()
        assert (session.key, session.task, len(session.requests)) == ("s-1", "t-1", 2)
        other = server.ask("c", x_agentopcd_session="s-1", x_agentopcd_task="t-2")
        assert other.status_code == 409 and other.json()["error"]["code"] == "other_task"
        assert server.ask("c", x_agentopcd_session="two words").status_code == 400


def test_feedback_rates_a_session(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "ok")) as server:
        first, second = server.ask("a"), server.ask("b")
        by_session = {"session": first.headers["x-agentopcd-session"], "success": True}
        assert server.post("/v1/feedback", by_session).status_code == 200
        assert server.post("/v1/feedback", {"session": second.json()["id"], "metrics": {"stars": 4}}).status_code == 200
        server.ask("c")
        ratings = [session.rating for session in server.recorded()]
        assert ratings == [Rating(True), Rating(metrics={"stars": 4}), Rating()]
        for wrong, status in (
            ({"session": "nobody", "success": True}, 404), ({"session": "x"}, 400),
            ({"session": "x", "success": 1}, 400),
            ({"session": "x", "reward": "1"}, 400), ('{"session": "x", "reward": 1e999}', 400), ([], 400),
            ({"session": "x", "metrics": {"a b": 1}}, 400),
        ):  # fmt: skip
            assert server.post("/v1/feedback", wrong).status_code == status
        nothing = server.post("/v1/feedback", {"session": "x"}).json()["error"]["message"]
        assert nothing == "the body: give success, reward or metrics"
    with Running(loaded, tmp_path, sampler=says(loaded, "ok"), record="") as server:
        assert server.post("/v1/feedback", by_session).status_code == 409


def test_a_repeated_request_gets_the_same_reply_and_is_kept_once(loaded: models.LoadedModel, tmp_path: Path) -> None:
    sampler = says(loaded, "one", "two")
    with Running(loaded, tmp_path, sampler=sampler) as server:
        told = {"logprobs": True}
        first = server.ask("a", more=told, idempotency_key="k")
        again = server.ask("a", more=told, idempotency_key="k")
        assert first.json() == again.json() and text_of(again) == "one" and len(sampler.asked) == 1
        assert again.json()["choices"][0]["logprobs"]["content"]
        assert first.headers["x-agentopcd-session"] == again.headers["x-agentopcd-session"]
        stream = server.ask("a", more={"stream": True, "logprobs": True}, x_request_id="k")
        assert first.json()["id"] in stream.text and "one" in stream.text and stream.text.endswith("[DONE]\n\n")
        other = server.ask("b", idempotency_key="k")
        assert other.status_code == 409 and other.json()["error"]["code"] == "name_used_before"
        assert [len(session.requests) for session in server.recorded()] == [1]


def test_tokens_are_not_told_by_the_vocabulary_of_another_model(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "one", "two")) as server:
        first = server.ask("a", more={"logprobs": True}, idempotency_key="k").json()["choices"][0]
        now = server.gateway.dealer.current  # a student has moved, and the one that answered has left the memory
        now.kept = dataclasses.replace(now.kept, model_id="another")
        again = server.ask("a", more={"logprobs": True}, idempotency_key="k").json()["choices"][0]
        assert again["message"] == first["message"] and first["logprobs"]["content"] and again["logprobs"] is None


def test_a_repeated_request_gets_the_thoughts_that_the_prompt_had_opened(
    tmp_path: Path, loaded: models.LoadedModel
) -> None:
    own = load(Path(loaded.folder), tiny.TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}"))
    with Running(own, tmp_path, sampler=says(own, "Is it 5?</think>It is 4.", "Is it")) as server:
        for key, thought in (("a", "Is it 5?"), ("b", "Is it")):
            first, again = server.ask(key, idempotency_key=key), server.ask(key, idempotency_key=key)
            message = first.json()["choices"][0]["message"]
            assert message["reasoning_content"] == thought and again.json() == first.json()


def test_a_reply_that_cannot_be_kept_is_not_given(
    loaded: models.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    with Running(loaded, tmp_path, sampler=says(loaded, "ok")) as server:
        monkeypatch.setattr(desk, "record", full)
        refused = server.ask("a", idempotency_key="k")
        assert refused.status_code == 503 and "the disk is full" in refused.json()["error"]["message"]
        stream = server.ask("a", more={"stream": True})
        assert '"code": "not_kept"' in stream.text and "[DONE]" not in stream.text
        assert '"finish_reason": "stop"' not in stream.text
        monkeypatch.undo()
        assert text_of(server.ask("a", idempotency_key="k")) == "ok" and len(server.recorded()) == 1


def test_nothing_is_kept_without_a_recording(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "ok"), record="") as server:
        answer = server.ask("hello secret")
        assert text_of(answer) == "ok" and "x-agentopcd-session" not in answer.headers
        assert server.recorded() == []
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_each_request_has_its_own_settings_in_one_batch(loaded: models.LoadedModel, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0}, {"temperature": 1.3, "seed": 1}, {"top_p": 0.5, "seed": 2}, {"top_k": 3, "seed": 3},
        {"max_tokens": 3, "seed": 4}, {"max_completion_tokens": 5, "max_tokens": None, "seed": 5},
    ]  # fmt: skip
    with Running(loaded, tmp_path) as server:
        alone = [text_of(server.ask("go", more=kind)) for kind in kinds]
        with ThreadPoolExecutor(6) as pool:
            together = [text_of(answer) for answer in pool.map(lambda kind: server.ask("go", more=kind), kinds)]
        assert together == alone
        kept = [request for session in server.recorded() for request in session.requests]
        assert {request.sampling["max_tokens"] for request in kept} == {12, 3, 5}
        assert max(len(request.response_ids) for request in kept if request.sampling["max_tokens"] == 3) <= 3


def test_without_a_seed_a_request_gets_its_own_and_it_is_kept(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path) as server:
        for _ in range(4):
            server.ask("go", more={"temperature": 1.5})
        kept = [session.requests[0] for session in server.recorded()]
        assert len({one.sampling["seed"] for one in kept}) == 4  # by chance, the replies may still be the same
        again = server.ask("go", more={"temperature": 1.5, "seed": kept[0].sampling["seed"]})
        assert text_of(again) == kept[0].message["content"]


def test_who_names_no_length_gets_what_there_is_room_for(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, max_tokens=4000) as server:
        positions = models.positions(loaded.model)
        long = server.ask("up " * 700, more={"max_tokens": None, "stop": ["e", "t", "o", "a"]})
        assert long.status_code == 200
        (kept,) = server.recorded()[0].requests
        assert kept.sampling["max_tokens"] == positions - kept.prompt_tokens
        for messages, asked in ((["up " * 700], 3000), (["up " * 5000], None)):
            refused = server.ask(*messages, more={"max_tokens": asked})
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"


def test_a_failing_engine_costs_the_requests_under_way_and_no_more(loaded: models.LoadedModel, tmp_path: Path) -> None:
    def reply(prompt: str) -> str:
        if "break" in prompt:
            raise RuntimeError(f"cannot read {prompt}")
        return "ok"

    with Running(loaded, tmp_path, sampler=Says(loaded.tokenizer, reply)) as server:
        broken = server.ask("break my secret")
        assert broken.status_code == 500 and "secret" not in broken.text
        stream = server.ask("break my secret", more={"stream": True})
        assert stream.status_code == 200 and '"code": "internal"' in stream.text and "[DONE]" not in stream.text
        assert text_of(server.ask("hello")) == "ok"
        assert len(server.recorded()) == 1 and not any("secret" in line for line in server.lines)
        assert any("RuntimeError" in line for line in server.lines)


def test_a_request_that_fails_alone_ends_no_other(loaded: models.LoadedModel, tmp_path: Path) -> None:
    class Refuses(Stuck):
        def advance(self) -> list[tuple[int, Completion]]:  # type: ignore[override]
            if not self.go.is_set() and len(self._asked) == 2:
                self.go.set()
                error = EngineError("no room")
                error.ticket = min(self._asked)
                raise error
            return super().advance()

    sampler = says(loaded, "hello", kind=Refuses)
    with Running(loaded, tmp_path, sampler=sampler) as server, ThreadPoolExecutor(2) as threads:
        both = [answer.result() for answer in [threads.submit(server.ask, text) for text in ("one", "two")]]
    assert sorted(answer.status_code for answer in both) == [200, 503]
    assert sampler.dropped == [0]


def test_the_description_is_served(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with Running(loaded, tmp_path, sampler=says(loaded, "ok")) as server:
        described = httpx.get(f"{server.at}/openapi.json").json()
        assert described["openapi"] == "3.1.0" and set(described["paths"]) == {
            "/v1/chat/completions", "/v1/feedback", "/v1/models", "/health"
        }  # fmt: skip
        assert httpx.get(f"{server.at}/health").json() == {"status": "ok"}
