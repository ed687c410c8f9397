"""An environment of your own: a machine with lamps and levers. Change it into what you want played.

agentopcd envs check ./FILE.py:Mine     whether results from it can be trusted
agentopcd envs try ./FILE.py:Mine       play it yourself
"""

from __future__ import annotations

from typing import Any

from agentopcd.envs import TextEnv, last_bracket

LEVERS = {"red": "left", "green": "right", "blue": "up", "yellow": "down"}
"""Which lever each colour wants. The model is not told: it must learn this by playing."""
LAMPS = 4


class Mine(TextEnv):
    """Put out the lamps of a machine, one after the other, each with the lever that its colour wants.

    Observation: the colour of the lamp that is lit, and how many come after it.
    Action: a lever in brackets, such as [left]; the last bracket of a reply counts.
    Reward: 1 when all lamps are out, else 0.
    Episode end: all lamps are out, or the wrong lever.
    Seeds: a seed draws the colours, so there are 256 tasks.
    """

    # Settings on the class; leave out what you do not need (agentopcd.envs.EnvSpec lists them all).
    max_steps = 8  # replies in an episode, unusable ones included
    choices = ("[left]", "[right]", "[up]", "[down]")  # all replies there are, for --constrain
    play_format = "[{}]"  # how a line typed in `agentopcd envs try` becomes a reply

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode. Draw with ``self.np_random`` only: the same seed must give the same task."""
        super().reset(seed=seed)
        self.lamps = [str(colour) for colour in self.np_random.choice(list(LEVERS), size=LAMPS)]
        self.out = 0
        # ``key`` tells tasks apart: seeds with the same key are one task, and a task is in one split only.
        return self.first(
            key=" ".join(self.lamps),
            rules="A machine has lamps and four levers. Put out each lamp with the lever that its colour wants.",
            state=self.lit(),
            actions="Answer with a lever in brackets: [left], [right], [up] or [down].",
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one reply. It may be any text, so say what was wrong with it rather than raise."""
        lever = last_bracket(action)
        if lever not in LEVERS.values():
            return self.turn(feedback="I need a lever in brackets, such as [left].", state=self.lit(), invalid=True)
        colour = self.lamps[self.out]
        if lever != LEVERS[colour]:
            return self.turn(outcome=f"The {colour} lamp stays lit: [{lever}] was wrong.", success=False)
        self.out += 1
        if self.out == LAMPS:
            return self.turn(outcome=f"The {colour} lamp goes out, and all are out.", success=True)
        return self.turn(feedback=f"The {colour} lamp goes out.", state=self.lit())

    def lit(self) -> str:
        """What can be seen now."""
        return f"The {self.lamps[self.out]} lamp is lit; {LAMPS - self.out - 1} come after it."

    def solution(self) -> list[str]:
        """Replies that solve the task, for `agentopcd envs try --solve`; leave it out if you know none."""
        return [f"[{LEVERS[colour]}]" for colour in self.lamps]
