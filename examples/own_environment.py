"""An environment of your own, in one file: copy it, rename it, put your game in.

    python examples/own_environment.py                                      # check it, let random replies play it
    agentopcd envs try examples/own_environment.py:Ferry                    # play it yourself
    agentopcd play --env examples/own_environment.py:Ferry --episodes 8     # let a model play it

The game: five animals wait for a ferry. It takes them one by one, in an order of precedence that nobody tells; whoever
comes before their time is refused. The order is the same in every game, so one game teaches something for the next. The
animals differ, so answers cannot be learned by heart.
"""

from __future__ import annotations

import sys
from typing import Any

from agentopcd.envs import TextEnv, check_env, last_bracket

PRECEDENCE = ("owl", "goat", "snake", "hen", "pig", "mouse", "wolf", "dog", "crow", "hare")
"""Who crosses before whom: the rule that a player has to find out. It never changes."""
WAITING, REFUSALS = 5, 3

Step = tuple[str, float, bool, bool, dict[str, Any]]
"""What Gymnasium's ``step`` returns: observation, reward, terminated, truncated, info."""


class Ferry(TextEnv):
    """Send five animals over a river, in an order that only the ferryman knows.

    Observation: who waits; what the ferryman did.
    Action: a waiting animal in brackets, such as ``[hen]``.
    Reward: the share of animals that crossed, at the end; 1.0 is success.
    Episode end: all have crossed, or the third refusal. A reply that names no waiting animal counts as one.
    Info: ``invalid`` for such a reply; ``choices``, the replies that can be used.
    Seeds: one draw of animals each, 252 in all.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)  # seeds self.np_random; chance comes from there and from nowhere else
        drawn = self.np_random.permutation(len(PRECEDENCE))[:WAITING]
        self.waiting, self.refused = [PRECEDENCE[i] for i in drawn], 0
        obs, info = self.first(
            # The same animals listed in another order are the same task, so they never are in both train and test.
            key=" ".join(sorted(self.waiting)),
            rules="Animals wait for a ferry. It takes one at a time, in an order that holds in every game. "
            f"Name who is next. After {REFUSALS} refusals the ferry leaves for good.",
            state=self.state(),
            actions="Answer with one waiting animal in brackets, such as [hen].",
        )
        return obs, info | self.replies()

    def step(self, action: str) -> Step:
        name = last_bracket(action, names=self.waiting)  # the last one after the model's thinking; None: no such word
        if name is None:
            return self.refuse("No waiting animal is named in brackets.", invalid=True)
        if name != self.next_in_line():
            return self.refuse(f"The ferryman refuses the {name}: another one crosses first.")
        self.waiting.remove(name)
        if not self.waiting:
            return self.turn(outcome=f"The {name} crosses. All are over.", success=True)
        return self.go_on(f"The {name} crosses.")

    def solution(self) -> list[str]:
        """Replies that win from here. Optional: with it, the check tries them and finds tasks that nobody can win."""
        return [f"[{name}]" for name in sorted(self.waiting, key=PRECEDENCE.index)]

    def refuse(self, why: str, *, invalid: bool = False) -> Step:
        self.refused += 1
        if self.refused < REFUSALS:
            return self.go_on(why, invalid=invalid)
        crossed = 1 - len(self.waiting) / WAITING
        return self.turn(outcome=f"{why} The ferry leaves.", success=False, reward=crossed, invalid=invalid)

    def go_on(self, feedback: str, *, invalid: bool = False) -> Step:
        obs, reward, terminated, truncated, info = self.turn(feedback=feedback, state=self.state(), invalid=invalid)
        return obs, reward, terminated, truncated, info | self.replies()

    def next_in_line(self) -> str:
        return min(self.waiting, key=PRECEDENCE.index)

    def state(self) -> str:
        return f"Waiting: {', '.join(self.waiting)}."

    def replies(self) -> dict[str, list[str]]:
        """Optional: ``--constrain`` holds a model to ``choices``, and random play draws from them."""
        return {"choices": [f"[{name}]" for name in self.waiting]}


def main() -> None:
    """Check the environment, let random replies play it, and say how to go on."""
    report = check_env(Ferry, n=64)
    for line in [f"error: {error}" for error in report.errors] + [f"note: {note}" for note in report.warnings]:
        print(line)
    print(f"{report.distinct} different tasks in {report.seeds} seeds, random replies win {report.random_success:.1%}")
    if not report.ok:
        sys.exit(1)
    print(f"go on with: agentopcd envs try {sys.argv[0]}:Ferry")
    print(f"            agentopcd play --env {sys.argv[0]}:Ferry --episodes 8")


if __name__ == "__main__":
    main()
