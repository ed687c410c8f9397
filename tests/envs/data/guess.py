"""The smallest environment with the base class: 15 lines."""

from agentopcd.envs import TextEnv, last_bracket


class Guess(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = int(self.np_random.integers(1, 101))
        return self.first(
            key=self.n,
            rules="Find my number, 1 to 100.",
            state="No guess yet.",
            actions="Answer like [42].",
        )

    def step(self, action):
        g = last_bracket(action) or ""
        if not g.isdecimal():
            return self.turn(feedback="I need a number in brackets.", invalid=True)
        if int(g) == self.n:
            return self.turn(outcome="Correct.", success=True)
        return self.turn(feedback="Too low." if int(g) < self.n else "Too high.")
