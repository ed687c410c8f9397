"""A parcel desk with a price list that adds, and a charge for each place that nobody tells beforehand.

By hand: ``agentopcd envs try recipes/tools/desk.py:Desk``, where ``look(thing="lamp", add=2)`` is a call.
"""

from collections.abc import Mapping

from agentopcd.envs import ToolEnv, call, tool

THINGS = (
    "lamp", "chair", "book", "cake", "boat", "bird", "coat", "door", "egg", "fish", "flag", "frog", "hat", "key",
    "milk", "nest", "ring", "rock", "shoe", "star", "tree", "cup", "dog", "leaf",
)  # fmt: skip
PRICES = range(1, 7)
CHARGES = {"farm": 2, "ship": 3, "lake": 0, "house": 1}
"""What this desk adds for each place. It says so only after the answer."""


class Desk(ToolEnv):
    """What does it cost to send a parcel? The price on today's list, and a charge for the place.

    Args:
        charges: what is added for each place, 0 to 3; the desk's own table if not given.
    """

    max_steps = 3
    seeds = 1000
    rules = "Find what a parcel costs. Answer with the number alone."

    def __init__(self, charges: Mapping[str, int] = CHARGES) -> None:
        self.charges = charges

    def begin(self) -> str:
        self.thing = str(self.np_random.choice(THINGS))
        self.place = str(self.np_random.choice(sorted(self.charges)))
        self.listed = int(self.np_random.choice(PRICES))
        return f"What does a {self.thing} to the {self.place} cost?"

    def key(self) -> object:
        return self.listed

    @tool
    def look(self, thing: str, add: int) -> int:
        """Look up a price and add to it.

        Args:
            thing: one word.
            add: a number.
        """
        if thing != self.thing:
            raise ValueError(f"there is no {thing!r} on the list")
        return self.listed + add

    @property
    def price(self) -> int:
        return self.listed + self.charges[self.place]

    def grade(self, answer: str) -> bool:
        self.feedback = f"It costs {self.price}: {self.charges[self.place]} more for the place."
        return answer.strip().rstrip(".") == str(self.price)

    def solution(self) -> list[str]:
        return replies(self.thing, self.listed, self.charges[self.place])


def replies(thing: str, listed: int, charge: int) -> list[str]:
    """What a player says who believes in a charge: a call, then the answer."""
    return [call("look", thing=thing, add=charge), str(listed + charge)]
