"""Environments on an OpenEnv server, as text environments (protocol of openenv 0.10: JSON over a WebSocket)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from agentopcd.core.calls import Function, as_written, read_written
from agentopcd.core.errors import EnvError, GameFault
from agentopcd.core.text import after_thinking
from agentopcd.envs.base import TextEnv
from agentopcd.envs.hub.mapping import ActionForm, NoAction, result_of, words_of
from agentopcd.envs.hub.session import ServerSaid, Session, checked_url, get_json
from agentopcd.envs.views import hash_text

_FORMS: dict[str, ActionForm] = {}
"""What actions look like, by server: asked once, so that a server that is gone later costs episodes and not the run."""
_NEW_EACH_TIME = ("episode_id",)
"""Facts of a state that are no part of the task."""


class OpenEnv(TextEnv):
    """An environment on an OpenEnv server; each instance has a session of its own there.

    Observation: ``state`` with the fields that the server tells (a single text as it stands, several as ``name:
    value``), ``feedback`` with the results of tools or what was wrong with the reply; ``actions`` says which JSON
    object or which word is wanted.
    Action: the reply goes into the action's text field, if that is the only one that must be given. Else the reply
    holds a JSON object. Tools of the server are called as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.
    Reward: the server's, 0 where it gives none; of several calls in one reply, the sum.
    Episode end: the server's ``done``.
    Info: ``tools`` on reset, if the server lists any; ``choices``, if it lists the replies; ``action``, the whole
    reply, so that no call is cut in later prompts.
    Task key: the first observation and the server's state, without its ``episode_id``.
    Seeds: passed to the server. One that ignores them shows in ``agentopcd envs check``.

    Args:
        url: the server's address.
        **options: passed to the server's reset beside the seed.

    Raises:
        EnvError: nobody answers there.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = checked_url(url)
        if self.url not in _FORMS:
            schema = get_json(self.url, "/schema")
            if not isinstance(schema, dict) or not isinstance(schema.get("action"), dict):
                raise EnvError(f"{self.url}/schema names no action, so {self.url} is no OpenEnv server")
            _FORMS[self.url] = ActionForm.of(schema["action"])
        self._form = _FORMS[self.url]
        self._options = options
        self._session: Session | None = None
        self._tools: list[dict[str, Any]] = []
        self._seen = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        observation, state = self._begin(chosen)
        self._seen = words_of(observation)
        key = hash_text(json.dumps([observation, state], sort_keys=True))
        obs, info = self.first(key=key, state=self._seen or "(nothing is shown)", actions=self._asks)
        return obs, info | self._legal() | ({"tools": self._tools} if self._tools else {})

    def _begin(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset on the server; return the first observation and the state. A session that broke is given up."""
        try:
            if self._session is None:
                self._session = Session(self.url)
                self._session.enter()
            told = self._session.ask("reset", {**self._options, "seed": seed})
            state = self._state(self._session)
            self._tools = _tools(self._session)
            return _observation(told), state
        except ServerSaid as said:
            self.close()
            raise GameFault(f"the OpenEnv server {self.url} cannot reset: {said}") from None
        except BaseException:
            self.close()
            raise

    def _state(self, session: Session) -> dict[str, Any]:
        try:
            state = session.ask("state")
        except ServerSaid:  # it has none to tell
            return {}
        return {name: value for name, value in state.items() if name not in _NEW_EACH_TIME}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._session is None:
            raise GameFault("the session on the OpenEnv server is over; call reset()")
        reply = after_thinking(action)
        try:
            calls = [call["function"] for call in read_written(reply)[1]] if self._tools else []
            if not calls and self._tools and self._form.calls_tools:
                raise NoAction("No tool was called.")
            actions = [_as_action(call) for call in calls] or [self._form.read(reply)]
            answers = _answers(self._session, actions)
        except GameFault:
            self.close()
            raise
        except ValueError as wrong:  # of read_written, NoAction
            return self._refused(reply, str(wrong))
        except ServerSaid as said:
            if said.code == "VALIDATION_ERROR":
                return self._refused(reply, f"The action was refused: {said}")
            raise GameFault(f"the OpenEnv server {self.url} cannot step: {said}") from None
        except BaseException:  # an alarm, for example: the late answer would be read as that of the next reset
            self.close()
            raise
        rewards = [_number(answer.get("reward")) for answer in answers]
        over = bool(answers[-1].get("done"))
        observations = [_observation(answer) for answer in answers]
        said_back = "\n".join(result_of(observation) for observation in observations) if calls else ""
        self._seen = self._seen if calls else words_of(observations[-1])
        shown: dict[str, Any] = {"feedback": said_back} if calls else {"state": self._seen}
        text, _, _, _, info = self.turn(**shown, actions="" if over else self._asks)
        return text, sum(rewards), over, False, info | _did(reply) | ({} if over else self._legal())

    def _refused(self, reply: str, why: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        text, _, _, _, info = self.turn(feedback=why, state=self._seen, actions=self._asks, invalid=True)
        # Of listed replies, one with an action would count as understood in agentopcd envs check.
        return text, 0.0, False, False, info | (self._legal() or _did(reply))

    @property
    def _asks(self) -> str:
        return "" if self._tools and self._form.calls_tools else self._form.asks

    def _legal(self) -> dict[str, Any]:
        choices = self._form.choices
        return {"choices": choices} if choices else {}

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __del__(self) -> None:  # a session that nobody closed would keep its seat on the server
        with contextlib.suppress(Exception):
            self.close()


def _did(reply: str) -> dict[str, Any]:
    return {"action": as_written(reply).strip()}


def _as_action(call: Function) -> dict[str, Any]:
    return {"type": "call_tool", "tool_name": call["name"], "arguments": call["arguments"]}


def _answers(session: Session, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the server answers to one action after the other, up to the end of the episode."""
    answers: list[dict[str, Any]] = []
    for action in actions:
        answers.append(session.ask("step", action))
        if answers[-1].get("done"):
            break
    return answers


def _observation(answer: Mapping[str, Any]) -> dict[str, Any]:
    observation = answer.get("observation")
    if not isinstance(observation, dict):
        raise GameFault(f"the OpenEnv server gave the observation {str(observation)[:60]!r}, wanted an object")
    return observation


def _number(reward: Any) -> float:
    return 0.0 if reward is None else reward


def _tools(session: Session) -> list[dict[str, Any]]:
    """The tools that the server lists; most have none and say so by an error."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    try:
        result = session.ask("mcp", request).get("result")
    except ServerSaid:
        return []
    listed = result.get("tools", []) if isinstance(result, dict) else []
    schemas = [tool.get("inputSchema") or tool.get("input_schema") for tool in listed]
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"], "description": tool.get("description") or "",
                "parameters": schema if isinstance(schema, dict) else {"type": "object", "properties": {}},
            },
        }
        for tool, schema in zip(listed, schemas, strict=True)
    ]  # fmt: skip
