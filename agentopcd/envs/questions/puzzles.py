"""Questions for small models: instructions with one right answer, and sums under a hidden convention.

The question of a seed must never change, because weights are trained on these questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.envs.questions.env import QuestionEnv
from agentopcd.envs.questions.grading import Grade
from agentopcd.envs.questions.rows import QuestionRow

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
_WORDS = (
    "apple bird boat book bread cake chair cloud coat cup dog door egg farm fire fish flag frog gold grass hand"
    " hat horse house key lamp leaf milk moon nest rain ring road rock ship shoe snow star tree wind"
)
WORDS = tuple(_WORDS.split())

KINDS: dict[str, tuple[str, ...]] = {
    "repeat": ("Repeat these items", "Write this again", "Say exactly this"),
    "reverse": ("Write these items in reverse order", "Reverse the order of these items", "Say these items backwards"),
    "count": ("How many items are here", "Count these items", "Give the number of items"),
    "upper": ("Write this in upper case", "Change these words to capitals", "Say this in capital letters"),
    "ending": ("Repeat these items and end with {one}", "Write this and then {one}", "Say these items and last {one}"),
    "first": ("What is the first item here", "Give only the first item", "Say the item that comes first"),
    "last": ("What is the last item here", "Give only the last item", "Say the item that comes last"),
    "without": ("Repeat these items without {one}", "Leave out {one}", "Write all of these items but {one}"),
}
"""Kind of instruction → its wordings, each followed by a colon and the items."""

FORMS = {"plain": "{}", "answer": "Answer: {}", "bracket": "[{}]", "equals": "= {}"}
"""How an answer is written."""
ORDERS = ("usual", "left-to-right")
"""Order of operations: products first, or strictly from left to right."""
MAX_MODULUS = 20


class _ExactEnv(QuestionEnv):
    """A question with exactly one right answer, ``row.gold``, compared character by character."""

    def grade(self, reply: str, row: QuestionRow) -> Grade:
        answer = self.answer_in(after_thinking(reply).strip())
        if not answer:
            return Grade(False, None, {"no_answer": 1.0})
        return Grade(answer == row.gold, answer)

    def answer_in(self, text: str) -> str:
        """Return the part of a reply that counts; ``text`` is trimmed and may be empty."""
        return text

    def solution(self) -> list[str] | None:
        """Return the one reply that is right."""
        return [self._row.gold] if self._row else None


class Instructions(_ExactEnv):
    """A small instruction about two to five items: letters, digits or short words, all different.

    Observation: the instruction, a colon, the items.
    Action: the reply; the text after the thinking must be exactly the answer, letter case included.
    Reward: 1.0 for the right answer, else 0.0.
    Episode end: after one reply; an empty one is invalid.
    Seeds: 10,000 seeds give more than 9,000 different questions.

    Args:
        kinds: some of :data:`KINDS`, separated by commas; all of them by default.
    """

    def __init__(self, kinds: str = "") -> None:
        super().__init__()
        if not isinstance(kinds, str):
            raise EnvError(f"kinds must be names separated by commas, got {kinds!r}")
        named = [kind.strip() for kind in kinds.split(",") if kind.strip()]
        for kind in named:
            if kind not in KINDS:
                raise EnvError(f"no kind of instruction {kind!r}{did_you_mean(kind, KINDS)}")
        self._kinds = [kind for kind in KINDS if kind in named or not named]

    def draw(self, seed: int) -> QuestionRow:
        rng = np.random.default_rng(seed)
        kind = self._kinds[_below(rng, len(self._kinds))]
        pools = (LETTERS, DIGITS, WORDS, LETTERS + DIGITS + WORDS)
        pool = pools[_below(rng, len(pools))]
        items = _distinct(rng, WORDS if kind == "upper" else pool, 2 + _below(rng, 4))
        if kind == "ending":
            one = _distinct(rng, [word for word in WORDS if word not in items], 1)[0]
        else:
            one = items[_below(rng, len(items))]
        wording = KINDS[kind][_below(rng, len(KINDS[kind]))].format(one=one)
        return QuestionRow(prompt=f"{wording}: {' '.join(items)}", gold=_follow(kind, items, one))


def _below(rng: np.random.Generator, top: int) -> int:
    return int(rng.integers(top))


def _distinct(rng: np.random.Generator, pool: Sequence[str], count: int) -> list[str]:
    """Draw different items, using only ``integers``: the draws of ``choice`` may change between numpy versions."""
    left = list(pool)
    return [left.pop(_below(rng, len(left))) for _ in range(count)]


def _follow(kind: str, items: list[str], one: str) -> str:
    """Return the answer to an instruction."""
    answers = {
        "repeat": items,
        "reverse": items[::-1],
        "count": [str(len(items))],
        "upper": [item.upper() for item in items],
        "ending": [*items, one],
        "first": items[:1],
        "last": items[-1:],
        "without": [item for item in items if item != one],
    }
    return " ".join(answers[kind])


class Conventions(_ExactEnv):
    """A sum under a convention that the question does not state: ``What is 3 + 4 * 2?``

    Half of the questions add two numbers up to 20; the others are ``a + b * c`` with numbers up to 9, where
    the order of operations changes the value. The question depends on the seed alone.

    Observation: the question.
    Action: the reply; its last line after the thinking must be the answer in the right form.
    Reward: 1.0 for the right answer, else 0.0.
    Episode end: after one reply; an empty one is invalid.
    Seeds: 1,089 different questions.

    Args:
        form: ``plain`` (``12``), ``answer`` (``Answer: 12``), ``bracket`` (``[12]``) or ``equals`` (``= 12``).
        modulus: 2 to 20: the answer is the remainder; 0: it is the value itself.
        order: ``usual``, products first, or ``left-to-right``.
    """

    def __init__(self, form: str = "plain", modulus: int = 0, order: str = "usual") -> None:
        super().__init__()
        allowed = self.conventions()
        if form not in allowed["form"]:
            raise EnvError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        if type(modulus) is not int or modulus not in allowed["modulus"]:
            raise EnvError(f"modulus must be 0 (none) or 2 to {MAX_MODULUS}, got {modulus!r}")
        if order not in allowed["order"]:
            raise EnvError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self._form, self._modulus, self._order = FORMS[form], modulus, order

    @classmethod
    def conventions(cls) -> dict[str, tuple[str, ...] | tuple[int, ...]]:
        """Return the values that each argument may take."""
        return {"form": tuple(FORMS), "modulus": (0, *range(2, MAX_MODULUS + 1)), "order": ORDERS}

    def draw(self, seed: int) -> QuestionRow:
        rng = np.random.default_rng(seed)
        if _below(rng, 2):
            a, b, c = 1 + _below(rng, 9), 1 + _below(rng, 9), 2 + _below(rng, 8)  # times 1 would hide the order
            text = f"{a} + {b} * {c}"
            value = a + b * c if self._order == "usual" else (a + b) * c
        else:
            a, b = _below(rng, 21), _below(rng, 21)
            text, value = f"{a} + {b}", a + b
        told = value % self._modulus if self._modulus else value
        return QuestionRow(prompt=f"What is {text}?", gold=self._form.format(told))

    def answer_in(self, text: str) -> str:
        return text.rpartition("\n")[2].strip()
