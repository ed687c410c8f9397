"""Environments of the package verifiers (Prime Intellect's hub), as text environments."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.calls import as_written, read_written
from agentopcd.core.errors import GameFault
from agentopcd.core.text import after_thinking
from agentopcd.envs.base import TextEnv
from agentopcd.envs.hub.workers import Worker, worker_of


class VerifiersEnv(TextEnv):
    """An environment that ``verifiers.load_environment`` builds, in a Python of its own.

    Observation: what the environment says since the last reply: system messages as ``rules``, the user's as
    ``state``, results of tools as ``feedback``.
    Action: the reply. Tools are called as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.
    Reward: 0 until the end, then the rubric's.
    Episode end: decided by the environment.
    Info: ``messages``, the whole prompt of the next reply; ``tools``, if there are any; at the end ``metrics`` by the
    names of the rubric's functions.
    Task key: prompt, answer and info of the row.
    Seeds: seed s is row s modulo the number of rows; the rows for training, or those for evaluation if there are none.

    Args:
        env_id: as ``verifiers.load_environment`` takes it.
        **arguments: of the environment.

    Raises:
        DependencyError: no Python with verifiers is named.
        EnvError: the environment cannot be loaded.
    """

    def __init__(self, env_id: str, **arguments: Any) -> None:
        self._env_id, self._arguments = env_id, arguments
        self._worker: Worker = worker_of(env_id, arguments)
        self._episode: int | None = None
        self._tools: list[dict[str, Any]] = []
        self._calls: list[dict[str, str]] = []

    @property
    def num_tasks(self) -> int:
        """Number of rows."""
        return self._worker.rows

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.close()
        self._worker = worker_of(self._env_id, self._arguments)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._episode = self._worker.start(chosen % self.num_tasks)
        event = self._worker.next(self._episode)
        if event["event"] == "end":
            raise GameFault(f"verifiers:{self._env_id} ended before the first reply ({event['stop']})")
        obs, info = self.first(key=event["task"], **_parts(event["messages"]))
        return obs, info | self._asked(event)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._episode is None:
            raise GameFault("the episode is over; call reset()")
        reply = after_thinking(action)
        text, calls, invalid = reply, [], False
        if self._tools:
            try:
                text, calls = read_written(reply)
            except ValueError:  # the environment gets the words as they are, and says what it makes of them
                reply = text = as_written(reply)
                invalid = True
        written = [
            {"id": f"call{number:05}", "name": call["name"], "arguments": json.dumps(call["arguments"])}
            for number, call in enumerate(one["function"] for one in calls)
        ]
        self._worker.reply(self._episode, text, written)
        event = self._worker.next(self._episode)
        if event["event"] == "end":
            return self._over(event)
        obs, _, _, _, info = self.turn(invalid=invalid, **_parts(_new(event["messages"])))
        return obs, 0.0, False, False, info | self._asked(event) | {"action": reply}

    def _over(self, event: Mapping[str, Any]) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.close()
        metrics = {name: number for name, number in event["metrics"].items() if number == number}
        stop = str(event["stop"] or "the end").replace("_", " ")
        obs, _, _, _, info = self.turn(outcome=f"The episode is over: {stop}.", metrics=metrics)
        return obs, event["reward"], True, False, info

    def _asked(self, event: Mapping[str, Any]) -> dict[str, Any]:
        self._tools = event["tools"]
        return {"messages": event["messages"], **({"tools": self._tools} if self._tools else {})}

    def close(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            self._worker.drop(episode)

    def __del__(self) -> None:  # an episode that nobody ended would stay in the process
        with contextlib.suppress(Exception):
            self.close()


def _new(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages since the last reply."""
    last = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[last + 1 :]


_KIND_OF = {"system": "rules", "developer": "rules", "tool": "feedback", "function": "feedback"}


def _parts(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Messages as parts. Where a prompt shows replies, as examples, who speaks stands before each line of talk."""
    talk = any(message["role"] == "assistant" for message in messages)
    parts: dict[str, list[str]] = {}
    for message in messages:
        kind = _KIND_OF.get(message["role"], "state")
        who = f"{message['role'].capitalize()}: " if talk and kind == "state" else ""
        parts.setdefault(kind, []).append(f"{who}{message['content']}")
    return {kind: "\n\n".join(texts) for kind, texts in parts.items()}
