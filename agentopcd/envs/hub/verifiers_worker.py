"""Runs the environments of the package verifiers, in a Python of their own; agentopcd is not installed there.

A program, not a module of the package: ``python -I verifiers_worker.py ENV_ID ARGUMENTS_AS_JSON`` (without ``-I`` it
would see the modules beside it, and ours on ``PYTHONPATH``, which do not fit there). It speaks lines of JSON:
commands come on stdin, events go to stdout, and whatever environments print goes to stderr. verifiers asks a model for
replies, so an episode is one of its rollouts with a client (:func:`_client`) that asks on stdout and waits for stdin.

========  ======================================================================================================
command   ``start`` (episode, row), ``reply`` (episode, text, calls), ``drop`` (episode)
event     ``ready`` (rows), ``refused`` (why); of an episode: ``ask`` (task, messages, tools), ``end`` (reward, metrics,
          stop), ``fault`` (why)
========  ======================================================================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Load the environment, then serve until stdin ends."""
    env_id, arguments = sys.argv[1], json.loads(sys.argv[2])
    commands, say = _apart_from_stdio()
    try:
        env, rows = _load(env_id, arguments)
    except Exception as error:
        say({"event": "refused", "why": _line(error)})
        return
    say({"event": "ready", "rows": len(rows)})
    asyncio.run(_serve(_Table(env, rows, say), commands))


def _apart_from_stdio() -> tuple[TextIO, Say]:
    """The stream of commands, and how to say an event. What others write to stdout, in any way, goes to stderr; what
    they read from stdin is empty."""
    commands, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event, default=str) + "\n")
        out.flush()

    return commands, say


def _load(env_id: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The environment and the rows that its tasks come from: those for training, if there are any."""
    try:
        verifiers = importlib.import_module("verifiers")
    except ModuleNotFoundError as error:
        if error.name != "verifiers":
            raise
        raise _Refusal("it has no package verifiers; install 'verifiers<0.4' and the environment there") from None
    version = getattr(verifiers, "__version__", "?")
    try:
        load = verifiers.load_environment
    except AttributeError:
        raise _Refusal(
            f"verifiers {version} has no load_environment any more; install 'verifiers<0.4' beside the environment"
        ) from None
    env = load(env_id, **arguments)
    if not hasattr(env, "run_rollout"):
        raise _Refusal(f"verifiers {version} has no run_rollout; install 'verifiers>=0.1.14,<0.4'")
    try:
        rows = env.get_dataset()
    except ValueError:  # "dataset is not set": it has questions for evaluation only
        rows = env.get_eval_dataset()
    if not len(rows):
        raise _Refusal(f"the dataset of {env_id} has no rows")
    return env, rows


class _Refusal(Exception):
    """An error whose words say all."""


def _line(error: BaseException) -> str:
    """The innermost reason, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, _Refusal):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class _Table:
    """The episodes under way."""

    def __init__(self, env: Any, rows: Any, say: Say) -> None:
        self._env, self._rows, self._say = env, rows, say
        self._episodes: dict[int, asyncio.Task[None]] = {}
        self._replies: dict[int, asyncio.Queue[dict[str, Any]]] = {}

    def take(self, command: dict[str, Any]) -> None:
        """Do what one command says."""
        episode = command["episode"]
        if command["op"] == "start":
            self._replies[episode] = asyncio.Queue()
            task = asyncio.create_task(self._play(episode, command["row"]))
            self._episodes[episode] = task
            task.add_done_callback(lambda _: self._forget(episode))
        elif command["op"] == "reply" and episode in self._replies:
            self._replies[episode].put_nowait(command)
        elif command["op"] == "drop" and episode in self._episodes:
            self._episodes[episode].cancel()

    async def _play(self, episode: int, number: int) -> None:
        try:
            row = dict(self._rows[number])
            outcome = await self._rollout(row, _client(self._asker(episode, _task(row))))
            if error := outcome.get("error"):
                raise _Refusal(_told(error))
            event = {"event": "end", "reward": outcome.get("reward"), "stop": outcome.get("stop_condition")}
            self._say({**event, "episode": episode, "metrics": _numbers(outcome.get("metrics"))})
        except Exception as error:
            self._say({"event": "fault", "episode": episode, "why": _line(error)})

    def _forget(self, episode: int) -> None:
        del self._episodes[episode], self._replies[episode]

    async def _rollout(self, row: dict[str, Any], client: Any) -> Mapping[str, Any]:
        """One rollout with its score; rubrics that compare the rollouts of a group get a group of one."""
        if getattr(self._env, "requires_group_rollouts", False):
            return (await self._env.run_group([row], client, "agentopcd", {}))[0]
        return await self._env.run_rollout(row, client, "agentopcd", {})

    def _asker(self, episode: int, task: str) -> Any:
        one_at_a_time = asyncio.Lock()

        async def ask(messages: Any, tools: Any) -> dict[str, Any]:
            async with one_at_a_time:
                event = {"event": "ask", "episode": episode, "task": task}
                self._say({**event, "messages": [_message(m) for m in messages], "tools": tools or []})
                return await self._replies[episode].get()

        return ask


def _task(row: Mapping[str, Any]) -> str:
    """What tells one task from another: its prompt, its answer, and what else the row tells the environment."""
    told = [row.get(name) for name in ("prompt", "answer", "info")]
    return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _told(error: Any) -> str:
    """What an outcome says of its error: text, or a record of several fields."""
    if isinstance(error, Mapping):
        return str(error.get("error_chain_repr") or dict(error))
    return str(error)


def _numbers(metrics: Any) -> dict[str, float]:
    """The metrics that are numbers."""
    named = metrics.items() if isinstance(metrics, Mapping) else ()
    return {str(name): float(value) for name, value in named if isinstance(value, (int, float))}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message with its content as text.

    Raises:
        ValueError: it holds an image or a sound.
    """
    content = message.get("content")
    if isinstance(content, list):
        other = [part for part in content if part.get("type") != "text"]
        if other:
            raise ValueError(f"a message holds {other[0].get('type')}; only text can be played")
        content = "\n".join(part["text"] for part in content)
    kept = {name: message[name] for name in ("tool_calls", "tool_call_id") if message.get(name)}
    return {"role": message["role"], "content": content or "", **kept}


def _client(ask: Any) -> Any:
    """A client of verifiers that asks us for the reply; it takes messages and tools as OpenAI's chat API has them."""
    from verifiers.clients.openai_chat_completions_client import OpenAIChatCompletionsClient
    from verifiers.types import Response, ResponseMessage, ToolCall

    class Asks(OpenAIChatCompletionsClient):
        async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
            messages, _ = await self.to_native_prompt(prompt)
            reply = await ask(messages, await self.to_native_tools(tools))
            calls = [ToolCall(id=c["id"], name=c["name"], arguments=c["arguments"]) for c in reply["calls"]]
            message = ResponseMessage(
                content=reply["text"],
                tool_calls=calls or None,
                finish_reason="tool_calls" if calls else "stop",
                is_truncated=False,
            )
            return Response(id="agentopcd", created=int(time.time()), model=model, message=message)

    return Asks(None)


async def _serve(table: _Table, commands: TextIO) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in commands:
            loop.call_soon_threadsafe(table.take, json.loads(line))
        os._exit(0)  # whoever asked is gone

    threading.Thread(target=read, daemon=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
