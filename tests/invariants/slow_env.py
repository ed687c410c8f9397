"""An environment that takes its time, so that a test can kill a run in the middle of it."""

from __future__ import annotations

import os
import time
from typing import Any

from agentopcd.envs import EnvSpec, TextEnv

NAP_S = float(os.environ.get("SLOW_ENV_NAP_S", "0.03"))
STEPS_FILE = os.environ.get("SLOW_ENV_STEPS")
"""Gets one line per step, if set."""


class Slow(TextEnv):
    """Two replies per episode; it is won when the two together are even in length."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.said: list[str] = []
        return self.first(key=f"slow-{seed}", rules="Say two things.", state=f"Room {seed}", actions="Say it.")

    def step(self, action: str) -> Any:
        time.sleep(NAP_S)
        if STEPS_FILE:
            with open(STEPS_FILE, "a") as file:
                file.write("step\n")
        self.said.append(action)
        if len(self.said) < 2:
            return self.turn(state="Another room", actions="Say it.")
        return self.turn(success=len("".join(self.said)) % 2 == 0, outcome="Over.")


SLOW = EnvSpec(id="slow", entry_point=Slow, max_steps=2, seeds=150, summary="for tests")
