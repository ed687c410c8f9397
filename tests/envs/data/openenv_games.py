"""OpenEnv servers for tests; runs in a Python that has the package openenv: openenv_games.py GAME PORT SESSIONS."""

from __future__ import annotations

import random
import sys
from typing import Any, Literal

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field


class Say(Action):
    message: str = Field(..., description="What you say")


class Bet(Action):
    colour: Literal["red", "black"] = Field(..., description="The colour to bet on")
    stake: int = Field(..., description="Coins")
    note: str | None = None


class Heard(Observation):
    text: str = ""


class Table(Observation):
    coins: int = 0
    said: str = ""


class Secret(State):
    number: int = 0


class Guess(Environment):
    """Find a number from 1 to 5; the state tells it, the observation does not."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = Secret()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        self._state = Secret(episode_id=str(random.random()), number=random.Random(seed).randint(1, 5))
        return Heard(text="Find my number, 1 to 5. Answer with the number alone.")

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        self._state.step_count += 1
        if action.message == "break":
            raise RuntimeError("the game broke")
        right = action.message.strip(" []") == str(self._state.number)
        return Heard(text="Right." if right else "Wrong.", done=right, reward=float(right))

    @property
    def state(self) -> Secret:
        return self._state


class Forgetful(Guess):
    """The same, but the seed is ignored."""

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        return super().reset(None)


class Wheel(Guess):
    """A bet on a colour, as an action of several fields."""

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Table:
        super().reset(seed)
        return Table(coins=10, said="Place a bet.")

    def step(self, action: Bet, timeout_s: float | None = None, **_: Any) -> Table:
        won = action.colour == ("red" if self._state.number % 2 else "black")
        return Table(coins=10 + action.stake, said="It is over.", done=True, reward=float(won))


class Tools(MCPEnvironment):
    """A sum to work out with a tool, and a tool that takes the answer."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("sums")
        self._given: int | None = None
        self._state = Secret()

        @server.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @server.tool
        def answer(value: int) -> str:
            """Give the answer."""
            self._given = value
            return "noted"

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        self._given = None
        self._state = Secret(number=random.Random(seed).randint(1, 50))
        return Heard(text=f"What is {self._state.number} + 7?")

    def _ended(self, seen: Observation) -> Observation:
        if self._given is not None:
            seen.done, seen.reward = True, float(self._given == self._state.number + 7)
        return seen

    def step(self, action: Action, timeout_s: float | None = None, **more: Any) -> Observation:
        return self._ended(super().step(action, timeout_s=timeout_s, **more))

    async def step_async(self, action: Action, timeout_s: float | None = None, **more: Any) -> Observation:
        return self._ended(await super().step_async(action, timeout_s=timeout_s, **more))

    def _step_impl(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
        return Heard(text="Call a tool.")

    @property
    def state(self) -> Secret:
        return self._state


GAMES = {
    "guess": (Guess, Say, Heard),
    "forgetful": (Forgetful, Say, Heard),
    "wheel": (Wheel, Bet, Table),
    "tools": (Tools, CallToolAction, CallToolObservation),
}

if __name__ == "__main__":
    game, port, sessions = sys.argv[1:]
    app = create_fastapi_app(*GAMES[game], max_concurrent_envs=int(sessions))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
