"""What a client asks: the body of a request, read and checked, or one clear refusal in OpenAI's layout."""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
from collections.abc import Mapping
from typing import Any

from agentopcd.core.calls import tools_of
from agentopcd.core.config.base import COLDEST, SURROGATE
from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.messages import read_messages
from agentopcd.core.types import Message, Sampling, Tool
from agentopcd.workspace.gateway import schema

DEEPEST = 100
"""The most lists and objects inside each other in a body."""


class Refused(Exception):
    """A request that gets an error for an answer.

    Args:
        status: of HTTP.
        message: what was found, what was wanted and what to do; for the client alone, since it may quote its text.
        param: the parameter it is about.
        code: a word that programs can compare.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for a reply."""

    messages: list[Message]
    tools: list[Tool]
    """What the model is told of; none with ``tool_choice`` none."""
    sampling: Sampling
    """``max_tokens`` is the server's bound where the client named none."""
    bounded: bool
    """Whether the client named a longest reply."""
    seed: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    """Whether a stream ends in the numbers of tokens."""
    logprobs: bool


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        Refused: it is no JSON, or holds what no text or number can be.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise Refused(400, f"the body is no JSON: {error}"[:300], code="invalid_json") from None
    _check_plain(value)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON has")


def _check_plain(value: Any) -> None:
    """Refuse half a character, and levels that later code would have to follow one by one."""
    todo = [(value, 1)]
    while todo:
        one, level = todo.pop()
        if level > DEEPEST:
            raise Refused(400, f"the body is nested deeper than {DEEPEST} levels", code="invalid_json")
        if isinstance(one, dict):
            todo += [(part, level + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            todo += [(part, level + 1) for part in one]
        elif isinstance(one, str) and SURROGATE.search(one):
            raise Refused(400, "the body holds half a surrogate pair, which is no character", code="invalid_json")


def check(value: Any, name: str) -> None:
    """Compare a body with its description.

    Args:
        name: of the schema in :data:`schema.SCHEMAS`.

    Raises:
        Refused: they differ.
    """
    known = schema.SCHEMAS[name]["properties"]
    if isinstance(value, dict):
        for key in value:
            if key not in known:
                close = did_you_mean(key[:80], known)
                raise Refused(
                    400, f"{key[:80]!r} is not supported here{close}", param=key, code="unsupported_parameter"
                )
    if (error := next(_validator(name).iter_errors(value), None)) is not None:
        param = str(error.absolute_path[0]) if error.absolute_path else None
        where = ".".join(map(str, error.absolute_path)) or "the body"
        said = schema.WANTED.get(param or "") or (schema.RATING if error.validator == "anyOf" else error.message[:200])
        raise Refused(400, f"{where}: {said}", param=param, code="invalid_value")


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema.SCHEMAS[name])


def asked_of(value: Any, served: str, max_tokens: int) -> Asked:
    """Read the body of a request for a reply.

    Args:
        served: the name of the model that is served.
        max_tokens: the longest reply that may be asked for.

    Raises:
        Refused: it cannot be answered as asked.
    """
    check(value, "ChatRequest")
    given = {name: one for name, one in value.items() if one is not None}
    if given["model"] != served:
        raise Refused(
            404,
            f"model {given['model'][:80]!r} is not served here, {served!r} is",
            param="model",
            code="model_not_found",
        )
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    if len(names) == 2 and given[names[0]] != given[names[1]]:
        raise Refused(400, "max_tokens and max_completion_tokens differ; give one of them", param=names[0])
    longest = given[names[0]] if names else max_tokens
    if longest > max_tokens:
        raise Refused(
            400, f"{names[0]} is {longest}, and this server allows at most {max_tokens}; lower it, or start the "
            "server with a higher --max-tokens", param=names[0], code="invalid_value",
        )  # fmt: skip
    temperature = given.get("temperature", 1.0)
    if 0 < temperature < COLDEST:
        raise Refused(400, f"temperature is {temperature}; it must be 0, or {COLDEST} or more", param="temperature")
    stop = given.get("stop", [])
    messages, tools = _talk(given)
    return Asked(
        messages=messages,
        tools=tools,
        sampling=Sampling(
            temperature=float(temperature), top_p=float(given.get("top_p", 1.0)), top_k=int(given.get("top_k", 0)),
            max_tokens=int(longest),
        ),
        bounded=bool(names),
        seed=int(given["seed"]) if "seed" in given else secrets.randbits(63),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=given.get("stream", False),
        usage=bool(given.get("stream_options", {}).get("include_usage")),
        logprobs=given.get("logprobs", False),
    )  # fmt: skip


def _talk(given: Mapping[str, Any]) -> tuple[list[Message], list[Tool]]:
    try:
        messages = read_messages(given["messages"])
    except ConfigError as error:
        raise Refused(400, str(error), param="messages", code="invalid_value") from None
    try:
        tools = tools_of(given.get("tools"))
    except ConfigError as error:
        raise Refused(400, str(error), param="tools", code="invalid_value") from None
    return messages, [] if given.get("tool_choice") == "none" else list(tools)
