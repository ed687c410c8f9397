"""Every error this package raises on purpose, in one tree.

::

    AgentOpcdError
    ├── ConfigError (ValueError)      an invalid setting, flag, file or reference
    │   ├── EnvError                  an environment that cannot be found or built, or that breaks the contract
    │   │   └── GameFault             what one game did wrong: it costs that episode, not the run
    │   ├── TemplateError             a conversation that a chat template refuses: it costs that episode, not the run
    │   ├── ModelError                a model that cannot be found, loaded or paired
    │   ├── EngineError               a sampling server that cannot be reached, or that refuses a request
    │   └── StoreError                a store that cannot be opened, or an unknown or ambiguous reference
    ├── CallError (ValueError)        a tool call, written by a model, that cannot be read
    ├── TaskLeak (ValueError)         a task of one split was about to be used in another
    ├── AlignmentError (ValueError)   teacher and student would not score the same tokens
    ├── TrainingError (ArithmeticError) a training that has made no usable student
    ├── OutputError                   the terminal, or the file in its place, takes no more text
    └── DependencyError (ImportError) an optional package is missing

Each message says what was found, what was wanted and what to do. The command line prints it as one
line and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AgentOpcdError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(AgentOpcdError, ValueError):
    """An invalid setting, flag, file or reference."""


class EnvError(ConfigError):
    """An environment that cannot be found or built, or that breaks the adapter contract."""


class GameFault(EnvError):
    """A game that raised, hung, left Python or returned nonsense. It costs its own episode; the run goes on."""


class OutOfTime(BaseException):
    """The alarm rang in a game. No ``Exception``, so that the game's own ``except Exception`` does not catch it; it
    becomes a :class:`GameFault`."""


class TemplateError(ConfigError):
    """A conversation that a chat template refuses. In play it costs its own episode; the run goes on."""


class ModelError(ConfigError):
    """A model that cannot be found, loaded or paired with another."""


class EngineError(ConfigError):
    """A sampling server that cannot be reached, does not fit the settings, or refuses a request."""

    ticket: int | None = None
    """The sampler's ticket of the request that failed, if it is about that request alone."""


class StoreError(ConfigError):
    """A knowledge store that cannot be opened, or an unknown or ambiguous reference."""


class CallError(AgentOpcdError, ValueError):
    """A tool call, written by a model, that cannot be read. Its message is one line that the model may be shown."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message[:1000].encode(errors="replace").decode().split())[:300])


class TaskLeak(AgentOpcdError, ValueError):
    """A task of one split was about to be used in another."""


class AlignmentError(AgentOpcdError, ValueError):
    """Teacher and student would not score the same tokens."""


class TrainingError(AgentOpcdError, ArithmeticError):
    """A training that has made no usable student: its numbers are not finite, or nothing was learned."""


class OutputError(AgentOpcdError):
    """Stdout or stderr takes no more text: its disk is full, for example.

    Not an ``OSError``: code on the way that reads or writes files would take it for one of its own.
    """


class DependencyError(AgentOpcdError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: ``"; did you mean 'x'?"``, or the known names."""
    known = sorted(known)
    close = get_close_matches(got, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
