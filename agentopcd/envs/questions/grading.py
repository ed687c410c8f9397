r"""Grade replies: plain comparison of strings and exact fractions, safe against hostile replies.

Only the text after the last ``</think>`` counts. The answer is the last balanced ``\boxed{…}`` or the last
``Answer:`` line, whichever comes later; failing both, the whole text if it is a number. The grader
``last-number``, for models too small to keep to a format, then falls back on the last number in the reply.
Only short strings of digits are ever turned into numbers, so no reply can make the grader slow.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Literal

from agentopcd.core.errors import EnvError
from agentopcd.core.text import after_thinking

GraderName = Literal["plain", "symbolic", "last-number"]
MAX_SYMBOLIC_CHARS = 200

_BRACE = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_ANSWER_LINE = re.compile(r"\banswer\b[*_ \t]*:[*_\s]*([^\n]+)", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,;:! ]|[\s$*~]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}")

_DIGITS = r"[0-9]{1,30}"
_DECIMAL = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.[0-9]{{0,30}})?|\.{_DIGITS})")
_ANY_NUMBER = re.compile(rf"(?<![0-9.])-?{_DIGITS}(?:,[0-9]{{3}})*(?:\.[0-9]{{1,30}})?(?![0-9])")
_RATIO = re.compile(rf"([+-]?{_DIGITS})/({_DIGITS})")
_FRAC = re.compile(rf"([+-]?)\\frac(?:\{{([+-]?{_DIGITS})\}}|([0-9]))(?:\{{({_DIGITS})\}}|([0-9]))")


@dataclasses.dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one reply."""

    right: bool
    answer: str | None
    """What was read as the answer; ``None`` when nothing was found."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """``no_answer`` or ``grader_timeout``, each 1.0 where it applies."""


def find_answer(reply: str) -> str | None:
    r"""Return the answer that the reply gives, as written; ``None`` if it gives none."""
    text = after_thinking(reply)
    boxed, box_at = _last_box(text)
    lines = list(_ANSWER_LINE.finditer(text))
    if lines and lines[-1].start() > box_at:
        return lines[-1].group(1).strip()
    if boxed is not None:
        return boxed
    return text.strip() if as_number(normalise(text)) is not None else None


def last_number(reply: str) -> str | None:
    """Return the last number written after the last ``</think>``, ``None`` if there is none.

    A minus sign counts only if no digit or closing bracket precedes it: in ``9 -5`` it is an operator.
    """
    text = after_thinking(reply)
    found = list(_ANY_NUMBER.finditer(text))
    if not found:
        return None
    number, before = found[-1].group(), text[: found[-1].start()].rstrip()
    return number.removeprefix("-") if before[-1:].isdigit() or before.endswith(")") else number


def _last_box(text: str) -> tuple[str | None, int]:
    """Return the content and the position of the balanced box that starts last, in one pass."""
    open_braces: list[tuple[bool, int, int]] = []
    content, found_at = None, -1
    for match in _BRACE.finditer(text):
        brace = match.group()
        if brace.startswith("\\boxed") or brace == "{":
            open_braces.append((brace != "{", match.start(), match.end()))
        elif brace == "}" and open_braces:
            is_box, start, inside = open_braces.pop()
            if is_box and start > found_at:
                content, found_at = text[inside : match.start()], start
    return content, found_at


def normalise(text: str) -> str:
    r"""Return the answer without decoration: ``$``, ``*``, spaces, ``\text{}``, the final dot."""
    text = text.replace("−", "-").replace("\\left", "").replace("\\right", "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _TEXT.sub(r"\1", text)
    text = _SPACE.sub("", text)
    return _THOUSANDS.sub("", text.removesuffix("."))


def as_number(text: str) -> Fraction | None:
    """Return the number a normalised answer stands for, ``None`` if it is not one in plain digits."""
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    if ratio := _RATIO.fullmatch(text):
        return _fraction(ratio.group(1), ratio.group(2))
    if frac := _FRAC.fullmatch(text):
        sign, top, top_digit, bottom, bottom_digit = frac.groups()
        value = _fraction(top or top_digit, bottom or bottom_digit)
        return -value if value is not None and sign == "-" else value
    return None


def _fraction(top: str, bottom: str) -> Fraction | None:
    return Fraction(int(top), int(bottom)) if int(bottom) else None


def same(answer: str, gold: str) -> bool:
    """Return whether two answers are the same string or the same number."""
    answer, gold = normalise(answer), normalise(gold)
    if answer == gold:
        return bool(gold)
    left, right = as_number(answer), as_number(gold)
    return left is not None and left == right


def grade_math(reply: str, gold: str, grader: GraderName = "plain") -> Grade:
    """Grade a reply to a question whose answer is a number or a formula.

    Args:
        reply: the whole reply, thinking included.
        gold: the right answer.
        grader: ``symbolic`` also accepts equal formulas (math-verify, in a separate process);
            ``last-number`` falls back on the last number in the reply.
    """
    answer = find_answer(reply)
    if answer is None and grader == "last-number":
        answer = last_number(reply)
    if answer is None:
        return Grade(False, None, {"no_answer": 1.0})
    if same(answer, gold):
        return Grade(True, answer)
    if grader != "symbolic" or not _worth_symbols(answer, gold):
        return Grade(False, answer)
    from agentopcd.envs.questions.symbolic import equal

    verdict = equal(gold, answer)
    if verdict is None:
        return Grade(False, answer, {"grader_timeout": 1.0})
    return Grade(verdict, answer)


def _worth_symbols(answer: str, gold: str) -> bool:
    """Return whether symbolic comparison can help: two plain numbers need none, and a date is no subtraction."""
    plain = normalise(answer)
    if len(answer) > MAX_SYMBOLIC_CHARS or _DATE.fullmatch(plain):
        return False
    return as_number(plain) is None or as_number(normalise(gold)) is None


def grade_choice(reply: str, gold: str) -> Grade:
    """Grade a reply that ends in ``<answer>…</answer>`` holding a letter or a word such as yes."""
    found = _TAG.findall(after_thinking(reply))
    if not found:
        return Grade(False, None, {"no_answer": 1.0})
    answer = found[-1].strip()
    return Grade(answer.strip(" .()").casefold() == gold.strip().casefold(), answer)


def check_grader(name: str) -> GraderName:
    """Return the grader's name.

    Raises:
        EnvError: there is no such grader.
        DependencyError: ``symbolic`` without math-verify installed.
    """
    if name == "plain":
        return "plain"
    if name == "last-number":
        return "last-number"
    if name == "symbolic":
        from agentopcd.envs.questions.symbolic import require_math_verify

        require_math_verify()
        return "symbolic"
    raise EnvError(f"grader must be 'plain', 'symbolic' or 'last-number', got {name!r}")
