"""A parcel desk with a price list that adds, and a charge that nobody tells beforehand.

By hand: ``agentopcd envs try recipes/tools/desk.py:Desk``, where ``look(thing="lamp", add=2)`` is a call.
"""

from agentopcd.envs import ToolEnv, call, tool

THINGS = (
    "lamp", "chair", "book", "cake", "boat", "bird", "coat", "door", "egg", "fish", "flag", "frog", "hat", "key",
    "milk", "nest", "ring", "rock", "shoe", "star", "tree", "cup", "dog", "leaf",
)  # fmt: skip
PRICES = range(1, 7)
PLACES = ("farm", "ship", "lake", "house")
CHARGES = range(1, 7)
CHARGE = 4
"""What this desk adds to each price, one of :data:`CHARGES`. It says so only after the answer."""


class Desk(ToolEnv):
    """What does it cost to send a parcel? The price on today's list, and the desk's charge.

    Args:
        charge: what is added.
    """

    max_steps = 3
    seeds = 1000
    rules = "Find what a parcel costs. Answer with the number alone."

    def __init__(self, charge: int = CHARGE) -> None:
        self.charge = charge

    def begin(self) -> str:
        self.thing = str(self.np_random.choice(THINGS))
        self.place = str(self.np_random.choice(PLACES))
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
        return self.listed + self.charge

    def grade(self, answer: str) -> bool:
        self.feedback = f"It costs {self.price}, {self.charge} more than listed."
        return answer.strip().rstrip(".") == str(self.price)

    def solution(self) -> list[str]:
        return replies(self.thing, self.listed, self.charge)


def replies(thing: str, listed: int, charge: int) -> list[str]:
    """What a player says who believes in a charge: a call, then the answer."""
    return [call("look", thing=thing, add=charge), str(listed + charge)]
