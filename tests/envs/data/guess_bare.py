"""The same game as a bare gymnasium.Env."""

import re
import string

import gymnasium


class Guess(gymnasium.Env):
    observation_space = gymnasium.spaces.Text(1000, charset=string.printable)
    action_space = gymnasium.spaces.Text(1000, min_length=0, charset=string.printable)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = int(self.np_random.integers(1, 101))
        return "Find my number, 1 to 100. Answer like [42].", {"task_key": str(self.n)}

    def step(self, action):
        found = re.findall(r"\[([0-9]{1,3})\]", action)
        guess = int(found[-1]) if found else 0
        told = "Correct." if guess == self.n else "Too low." if guess < self.n else "Too high."
        return told, float(guess == self.n), guess == self.n, False, {}
