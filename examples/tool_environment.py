"""An environment with tools: a parcel desk with a price list, a calculator, and a rule that nobody tells.

    agentopcd envs try examples/tool_environment.py:ParcelDesk
    agentopcd play --env examples/tool_environment.py:ParcelDesk --model Qwen/Qwen3-1.7B \\
        --template-arg enable_thinking=false

A typed line such as ``weight(parcel="lamp")`` calls a tool; any other line is the answer.
"""

from agentopcd.envs import ToolEnv, call, tool

WEIGHTS = {"lamp": 3, "chair": 7, "book": 1, "kettle": 2, "mirror": 5, "drum": 6, "rug": 4, "clock": 8}
RATES = {"Oslo": 4, "Rome": 3, "Lima": 9, "Cairo": 6, "Quito": 8, "Delhi": 7, "Turin": 2, "Perth": 5}


class ParcelDesk(ToolEnv):
    """What does it cost to send a parcel? The price is weight times rate, and 2 more for what can break."""

    max_steps = 6
    rules = "You work at a parcel desk. Find the price of each parcel, and answer with the number alone."
    fragile = ("lamp", "mirror", "clock")

    def begin(self) -> str:
        self.parcel = str(self.np_random.choice(sorted(WEIGHTS)))
        self.city = str(self.np_random.choice(sorted(RATES)))
        return f"What does it cost to send a {self.parcel} to {self.city}?"

    @tool
    def weight(self, parcel: str) -> int:
        """Weigh a parcel.

        Args:
            parcel: what it is, in one word.
        """
        if parcel not in WEIGHTS:
            raise ValueError(f"there is no {parcel!r} here")
        return WEIGHTS[parcel]

    @tool
    def rate(self, city: str) -> int:
        """Look up what one unit of weight costs.

        Args:
            city: the city that the parcel goes to.
        """
        if city not in RATES:
            raise ValueError(f"there is no rate for {city!r}")
        return RATES[city]

    @tool
    def multiply(self, a: int, b: int) -> int:
        """Multiply two numbers.

        Args:
            a: a number.
            b: another number.
        """
        return a * b

    @property
    def price(self) -> int:
        return WEIGHTS[self.parcel] * RATES[self.city] + 2 * (self.parcel in self.fragile)

    def grade(self, answer: str) -> bool:
        return answer.strip().rstrip(".") == str(self.price)

    def solution(self) -> list[str]:
        asked = call("weight", parcel=self.parcel) + "\n" + call("rate", city=self.city)
        return [asked, call("multiply", a=WEIGHTS[self.parcel], b=RATES[self.city]), str(self.price)]
