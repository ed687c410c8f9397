"""Servers that speak OpenAI's API: the key that is sent to them, and a line where an answer is none of that API's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from agentopcd.core.config.engine import KEY
from agentopcd.core.errors import AgentOpcdError, ConfigError, EngineError


def api_key() -> str:
    """The key that is sent to servers: what :data:`KEY` holds, without spaces and line ends around it, else ``none``.

    Raises:
        ConfigError: no header can carry it.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {KEY} holds no key: wanted printable ASCII characters alone")
    return key or "none"


@contextlib.contextmanager
def as_api(who: str, kind: type[ConfigError] = EngineError) -> Iterator[None]:
    """Turn what the client raises over an answer that is not as OpenAI's API has it into one line: a web page, say.

    Args:
        who: the server, as the line names it.
        kind: the error to raise.
    """
    try:
        yield
    except (AgentOpcdError, UnicodeEncodeError):  # the second is about what we send
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise kind(
            f"{who} answers, but not as an OpenAI-compatible chat API; look at its address and at what runs there"
        ) from error
