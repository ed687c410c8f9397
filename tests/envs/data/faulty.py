"""Environments with one planted fault each, for the checker."""

import random
import time

import numpy as np

from agentopcd.envs import TextEnv, last_bracket


class Sound(TextEnv):
    """Pick the larger of two numbers; nothing is wrong with it."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pair = [int(n) for n in self.np_random.choice(1000, size=2, replace=False)]
        self.left = 4
        return self.first(state=self.board(), actions="Answer [first] or [second].")

    def board(self):
        return f"{self.pair[0]} or {self.pair[1]}: which is larger?"

    def step(self, action):
        self.left -= 1
        word = last_bracket(action, ("first", "second"))
        if word is None:
            return self.turn(invalid=True, success=None if self.left else False, feedback="Say which.")
        right = word == ("first" if self.pair[0] > self.pair[1] else "second")
        return self.turn(success=right, outcome="So be it.")

    def solution(self):
        return ["[first]" if self.pair[0] > self.pair[1] else "[second]"]


class SeedsGlobal(Sound):
    def reset(self, *, seed=None, options=None):
        random.seed(seed)
        return super().reset(seed=seed)


class UsesGlobal(Sound):
    def board(self):
        state = random.getstate()
        text = super().board() + f" ({random.random()})"
        random.setstate(state)
        return text


class Unseeded(Sound):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class NoOptions(Sound):
    def reset(self, *, seed=None):
        return super().reset(seed=seed)


class Clock(Sound):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "now": time.perf_counter_ns()}


class AddsText(Sound):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs + "!", info


class KeepsLog(Sound):
    log = ""

    def board(self):
        self.log += "."
        return super().board() + self.log


class SharedCounter(Sound):
    steps = 0

    def reset(self, *, seed=None, options=None):
        type(self).steps = 0
        return super().reset(seed=seed)

    def step(self, action):
        type(self).steps += 1
        _, reward, terminated, truncated, info = super().step(action)
        text = f"Step {self.steps}."
        return text, reward, terminated, truncated, {**info, "parts": [("feedback", text)]}


class Hashes(Sound):
    def board(self):
        return super().board() + f" {hash(str(self.pair)) % 1000}"


class RaisesOnJunk(Sound):
    def step(self, action):
        int(action.strip("[]firstecond") or 0)
        return super().step(action)


class NoSuccess(Sound):
    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        info.pop("success", None)
        return obs, 0.5 if terminated else 0.0, terminated, truncated, info


class WrongSolution(Sound):
    def solution(self):
        return ["[second]" if self.pair[0] > self.pair[1] else "[first]"]


class Colours(Sound):
    def board(self):
        return "\x1b[31m" + super().board()


class NotJson(Sound):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {**info, "task_key": {1, 2}}


class OwnInfo(Sound):
    """Nothing is wrong with it either: what is not ours is not read, and numpy's numbers are numbers."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {**info, "seen": {1, 2}, "grid": np.zeros(3), "task_key": np.int64(self.pair[0])}

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        extra = {"metrics": {"x": np.float32(1)}, "invalid": np.bool_(info["invalid"]), "grid": np.ones(3)}
        return obs, reward, terminated, truncated, {**info, **extra}


class SlowOnce(Sound):
    """Imports something when it is first reset."""

    late = 0

    def reset(self, *, seed=None, options=None):
        if type(self).late < 1:
            type(self).late += 1
            time.sleep(1.1)
        return super().reset(seed=seed)


class SlowTwice(Sound):
    late = 0

    def reset(self, *, seed=None, options=None):
        if type(self).late < 2:
            type(self).late += 1
            time.sleep(1.1)
        return super().reset(seed=seed)


class Infinite(Sound):
    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float("inf"), terminated, truncated, info


class Prints(Sound):
    def step(self, action):
        print("hello")
        return super().step(action)


class OneTask(Sound):
    def board(self):
        self.pair = [1, 2]
        return super().board()
