"""Environments of questions with one reply each: generated arithmetic, and rows from a file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError
from agentopcd.core.text import after_thinking
from agentopcd.envs.base import TextEnv
from agentopcd.envs.graders import grader_of, passes
from agentopcd.envs.questions.grading import Grade, GraderName, check_grader, grade_choice, grade_math
from agentopcd.envs.questions.rows import QuestionRow, load_rows, rows_from
from agentopcd.envs.questions.text_checks import grade_checks, known_checks
from agentopcd.envs.views import hash_prompt

HOW_TO_ANSWER = 'End with a line that says "Answer:" and then the answer.'
_FORMAT_MARKS = ("Answer:", "\\boxed", "<answer>")


class QuestionEnv(TextEnv):
    """One question and one reply. The grade is only in ``info``; text says of it what the row's ``feedback`` says.

    Subclasses implement ``draw``, which returns the question for a seed.

    Observation: ``state`` is the question, ``actions`` how to answer; the last observation is the row's ``feedback`` on
    the reply, or empty.
    Action: the reply.
    Reward: 1.0 for a right answer, else 0.0.
    Episode end: after one reply.
    Info: ``task_key`` (the question), ``success``, ``metrics`` (``no_answer``, ``grader_timeout``), and
    ``split`` if the row names one.
    """

    def __init__(self, grader: str = "plain") -> None:
        self._grader: GraderName = check_grader(grader)
        self._row: QuestionRow | None = None

    def draw(self, seed: int) -> QuestionRow:
        """Return the question for this seed."""
        raise NotImplementedError

    def how_to_answer(self, row: QuestionRow) -> str:
        """What stands below the question; nothing if it asks for a form itself, or any form will do."""
        asks_already = row.kind in ("checks", "instructions") or any(mark in row.prompt for mark in _FORMAT_MARKS)
        return "" if asks_already else row.actions

    def grade(self, reply: str, row: QuestionRow) -> Grade:
        """Return the verdict on a reply."""
        if row.kind == "choice":
            return grade_choice(reply, row.gold, row.also)
        if row.kind == "checks":
            return grade_checks(reply, dict(row.checks))
        return grade_math(reply, row.gold, self._grader, row.also)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        row = self._row = self.draw(int(self.np_random.integers(2**31)) if seed is None else seed)
        obs, info = self.first(key=hash_prompt(row.prompt), state=row.prompt, actions=self.how_to_answer(row))
        if row.split:
            info["split"] = row.split
        return obs, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._row is None:
            raise EnvError("the question is answered (or was never asked); call reset()")
        row, self._row = self._row, None
        grade = self.grade(action, row)
        said = row.feedback[grade.right]
        return self.turn(success=grade.right, invalid=grade.answer is None, metrics=grade.metrics, feedback=said)

    def solution(self) -> list[str] | None:
        """Return the one right reply; ``None`` if no right answer is on record."""
        if self._row is None or not self._row.gold:
            return None
        gold = self._row.gold
        return [f"<answer>{gold}</answer>" if self._row.kind == "choice" else f"Answer: {gold}"]


@dataclasses.dataclass(frozen=True)
class _Level:
    """What the questions of one level look like."""

    low: int
    high: int
    numbers: int
    ops: str
    brackets: bool = False
    natural: bool = False
    """No result below zero."""


_LEVELS = {
    1: _Level(0, 20, 2, "+-", natural=True),
    2: _Level(0, 100, 2, "+-"),
    3: _Level(0, 100, 3, "+-"),
    4: _Level(2, 99, 2, "*"),
    5: _Level(1, 20, 3, "+-*", brackets=True),
}


class Arithmetic(QuestionEnv):
    """Integer arithmetic generated from the seed; nothing is downloaded.

    Level 1 adds or subtracts two numbers up to 20, never below zero (672 questions); 2 adds or subtracts
    two up to 100 (20,402); 3 three up to 100 (about 4 million); 4 multiplies two from 2 to 99 (9,604); 5
    mixes three up to 20 with brackets.

    Args:
        level: 1 to 5.
        ops: the signs to use, some of ``+-*``; the level's own unless given.
        grader: ``plain``, ``symbolic`` or ``last-number``, with which no format is asked for.
    """

    def __init__(self, level: int = 2, ops: str | None = None, grader: str = "plain") -> None:
        super().__init__(grader)
        self._how = "" if grader == "last-number" else HOW_TO_ANSWER
        if not isinstance(level, int) or level not in _LEVELS:
            raise EnvError(f"level must be one of {', '.join(map(str, _LEVELS))}, got {level!r}")
        if ops is not None and (not isinstance(ops, str) or not ops or set(ops) - set("+-*")):
            raise EnvError(f"ops must be some of the signs + - *, got {ops!r}")
        self._level = _LEVELS[level]
        self._ops = sorted(set(ops or self._level.ops))

    def draw(self, seed: int) -> QuestionRow:
        level = self._level
        # a generator of its own, so that the question depends only on the seed
        rng = _generator(seed)
        numbers = [int(n) for n in rng.integers(level.low, level.high + 1, size=level.numbers)]
        signs = [self._ops[int(i)] for i in rng.integers(len(self._ops), size=level.numbers - 1)]
        if level.natural and signs == ["-"]:
            numbers.sort(reverse=True)
        first_pair = level.brackets and bool(rng.integers(2))
        text, value = _expression(numbers, signs, level.brackets, first_pair)
        return QuestionRow(prompt=f"What is {text}?", gold=str(value), actions=self._how)


def _generator(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed)


def _expression(numbers: list[int], signs: list[str], brackets: bool, first_pair: bool) -> tuple[str, int]:
    """Return an expression and its value; brackets go around the first or the last two of three."""
    if not brackets:
        words = [str(numbers[0])]
        for sign, number in zip(signs, numbers[1:], strict=True):
            words += [sign, str(number)]
        return " ".join(words), _without_brackets(numbers, signs)
    (a, b, c), (left, right) = numbers, signs
    if first_pair:
        return f"({a} {left} {b}) {right} {c}", _apply(_apply(a, left, b), right, c)
    return f"{a} {left} ({b} {right} {c})", _apply(a, left, _apply(b, right, c))


def _without_brackets(numbers: list[int], signs: list[str]) -> int:
    """Return the value, products first."""
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        else:
            terms.append(number if sign == "+" else -number)
    return sum(terms)


def _apply(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right if sign == "-" else left * right


class DatasetEnv(QuestionEnv):
    """Questions from rows: seed ``s`` shows row ``s % len(rows)``.

    Args:
        rows: a ``.jsonl``, ``.csv`` or ``.parquet`` file, or a list of mappings; see
            :mod:`agentopcd.envs.questions.rows` for the columns that are understood.
        grade: ``(reply, gold)`` or ``(reply, gold, row)``, in place of the built-in grading; ``row`` is the row as it
            was given, with all its columns. It returns what a ``grader`` returns.
        actions: how to answer, below every question. Without it the built-in text stands there, unless the question
            asks for a form itself, or has checks or a grader of the user's.
        prompt_key: the column with the question, dotted for nested ones.
        answer_key: the column with the right answer.
        grader: ``plain``, ``symbolic``, ``last-number``, or ``FILE.py:FUNCTION``, which gets the row and the reply; see
            :mod:`agentopcd.envs.graders`.
        checks: checks that replies to all rows have to pass, in place of a right answer, such as
            ``{"max_words": 10}``; a row's own ``checks`` are added. See
            :mod:`agentopcd.envs.questions.text_checks`.

    Raises:
        EnvError: a file that cannot be read, rows without a known question or answer, or a right answer
            that the grader would not accept.
    """

    def __init__(
        self,
        rows: str | Iterable[Mapping[str, Any]],
        *,
        grade: Callable[..., Any] | None = None,
        actions: str | None = None,
        prompt_key: str | None = None,
        answer_key: str | None = None,
        grader: str = "plain",
        checks: Mapping[str, Any] | None = None,
    ) -> None:
        own = grader_of(grader) if ":" in grader else None
        super().__init__("plain" if own else grader)
        self._own = own
        self._checks = {} if checks is None else known_checks(checks)
        free = checks is not None or own is not None
        if isinstance(rows, str):
            self.rows = load_rows(rows, prompt_key, answer_key, free=free)
        else:
            self.rows = rows_from(list(rows), prompt_key, answer_key, free=free)
        if any(row.kind == "instructions" for row in self.rows):
            raise EnvError("these are prompts of IF-Eval; play them with --env ifeval --env-arg file=PROMPTS.jsonl")
        self._grade = grade
        self._sees_row = _wants_row(grade)
        self._actions = actions

    @property
    def num_tasks(self) -> int:
        """Number of distinct questions; more seeds only repeat them."""
        return len(self.rows)

    def draw(self, seed: int) -> QuestionRow:
        row = self.rows[seed % len(self.rows)]
        if row.kind == "checks":
            row = dataclasses.replace(row, checks=tuple((self._checks | dict(row.checks)).items()))
        return row if row.actions else dataclasses.replace(row, actions=HOW_TO_ANSWER)

    def how_to_answer(self, row: QuestionRow) -> str:
        return super().how_to_answer(row) if self._actions is None else self._actions

    def grade(self, reply: str, row: QuestionRow) -> Grade:
        if self._own is not None:
            passed, metrics = self._own(row.source, reply)
            checked = super().grade(reply, row) if row.checks else Grade(True, None)
            return Grade(passed and checked.right, after_thinking(reply), checked.metrics | metrics)
        if self._grade is None:
            return super().grade(reply, row)
        said = after_thinking(reply)
        named = {"row": row.source} if self._sees_row == "row" else {}
        third = (row.source,) if self._sees_row == "third" else ()
        passed, metrics = passes(self._grade(said, row.gold, *third, **named), "grade")
        return Grade(passed, said, metrics)

    def solution(self) -> list[str] | None:
        """Return the one right reply; ``None`` if none is known. A grader of the user's own decides what is right."""
        replies = super().solution()
        if replies is None or self._grade is None or self._row is None:
            return replies
        row = self._row
        return next(([reply] for reply in (*replies, row.gold) if self.grade(reply, row).right), None)


def _wants_row(grade: Callable[..., Any] | None) -> str:
    """How a grader takes the row: ``row``, as a parameter of that name; ``third``, if it needs a third; else ''."""
    try:
        signature = inspect.signature(grade or bool)
    except (TypeError, ValueError):  # builtins without a signature
        return ""
    if "row" in signature.parameters:
        return "row"
    try:
        signature.bind("", "", {})
    except TypeError:
        return ""
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return "third" if len(needed) == 3 else ""
