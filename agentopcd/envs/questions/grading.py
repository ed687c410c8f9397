r"""Grade replies: plain comparison of strings and exact fractions, safe against hostile replies.

Only the text after the thinking counts. The answer is the last balanced ``\boxed{…}``, the last ``<answer>…</answer>``
or the last ``Answer:`` line, whichever comes latest; failing all, the whole text if it is a number. The grader
``last-number``, for models too small to keep to a format, then falls back on the last number in the reply; it does not
where an answer is found, so ``Answer: 42 cows`` is not 42. Only short strings of digits are ever turned into numbers,
so no reply can make the grader slow.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from agentopcd.core.errors import EnvError
from agentopcd.core.text import after_thinking
from agentopcd.envs.questions.answers import DASHES, as_number, bare, normalise, same, same_choice

GraderName = Literal["plain", "symbolic", "last-number"]
MAX_SYMBOLIC_CHARS = 200

_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\[{}]|[{}]")
_BARE_BOX = re.compile(r"\\boxed(?:\s+|(?=[0-9]))([-+−–]?(?:\\?\$)?[0-9][^\s${}\\)]*|[A-J](?![^\s.$]))")
"""``\\boxed 7``: a box without braces, around a number or a letter; not the word itself, as in "a \\boxed answer"."""
_ANSWER_LINE = re.compile(
    r"\banswer\b[*_ \t]*[:：](?:[*_\s]|(?:\\\[|\$\$)[ \t]*\n)*+(?!answer\b[*_ \t]*[:：])((?:(?!</answer>)[^\n])+)",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL
)  # linear: from no tag past the next
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}")
_DIGIT_SPACING = re.compile(r"(?<=[0-9])\\[,! ](?=[0-9]{3})")
_ANY_NUMBER = re.compile(r"(?<![0-9.])-?[0-9]{1,30}(?:,[0-9]{3})*(?:\.[0-9]{1,30})?(?![0-9])")


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
    answer, found_at = _last_box(text)
    for pattern in (_TAG, _ANSWER_LINE, _BARE_BOX):
        found = list(pattern.finditer(text))
        if found and found[-1].start() > found_at:
            answer, found_at = found[-1].group(1).strip(), found[-1].start()
    if answer is not None:
        return answer
    return text.strip() if as_number(normalise(text)) is not None else None


def last_number(reply: str) -> str | None:
    """Return the last number written after the thinking, ``None`` if there is none.

    A minus sign counts only if no digit or closing bracket precedes it: in ``9 -5`` it is an operator.
    """
    text = _DIGIT_SPACING.sub("", after_thinking(reply).translate(DASHES).replace("{,}", ","))
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
        if brace == "{" or brace.startswith(("\\b", "\\f")):
            open_braces.append((brace != "{", match.start(), match.end()))
        elif brace == "}" and open_braces:
            is_box, start, inside = open_braces.pop()
            if is_box and start > found_at:
                content, found_at = text[inside : match.start()], start
    return content, found_at


def grade_math(reply: str, gold: str, grader: GraderName = "plain", also: Sequence[str] = ()) -> Grade:
    """Grade a reply to a question whose answer is a number, a formula or a word.

    Args:
        reply: the whole reply; what it says while it thinks does not count.
        gold: the right answer.
        grader: ``symbolic`` also accepts equal formulas (math-verify, in a separate process);
            ``last-number`` falls back on the last number in the reply.
        also: other answers that are as right.
    """
    answer, golds = find_answer(reply), (gold, *also)
    if answer is None and grader == "last-number":
        answer, golds = last_number(reply), tuple(right.rstrip("\\% ") for right in golds)
    if answer is None:
        return Grade(False, None, {"no_answer": 1.0})
    if any(same(answer, right) for right in golds):
        return Grade(True, answer)
    worth = [right for right in golds if grader == "symbolic" and _worth_symbols(answer, right)]
    if not worth:
        return Grade(False, answer)
    from agentopcd.envs.questions.symbolic import equal

    verdicts = [equal(bare(right), bare(answer)) for right in worth]
    if not any(verdicts) and None in verdicts:
        return Grade(False, answer, {"grader_timeout": 1.0})
    return Grade(any(verdicts), answer)


def _worth_symbols(answer: str, gold: str) -> bool:
    """Return whether symbolic comparison can help: two plain numbers need none, and a date is no subtraction."""
    plain = normalise(answer)
    if len(answer) > MAX_SYMBOLIC_CHARS or _DATE.fullmatch(plain):
        return False
    return as_number(plain) is None or as_number(normalise(gold)) is None


def grade_choice(reply: str, gold: str, also: Sequence[str] = ()) -> Grade:
    """Grade a reply that gives a letter or a word such as yes: ``<answer>A</answer>``, else as a formula is read."""
    found = _TAG.findall(after_thinking(reply))
    answer = found[-1].strip() if found else find_answer(reply)
    if answer is None:
        return Grade(False, None, {"no_answer": 1.0})
    return Grade(any(same_choice(answer, right) for right in (gold, *also)), answer)


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
    raise EnvError(f"grader must be 'plain', 'symbolic', 'last-number' or FILE.py:FUNCTION, got {name!r}")
