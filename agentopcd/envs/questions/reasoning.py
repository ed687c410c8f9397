"""Puzzles of the package reasoning-gym, one per seed: ``rg:chain_sum``."""

from __future__ import annotations

import re
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.envs.questions.answers import bare
from agentopcd.envs.questions.env import HOW_TO_ANSWER, QuestionEnv
from agentopcd.envs.questions.grading import Grade, find_answer
from agentopcd.envs.questions.rows import QuestionRow

_ANSWER = re.compile(r"\banswer\b[*_ \t]*[:：]", re.IGNORECASE)
SOLVED_AT = 0.99
"""reasoning-gym gives a partial score for merely containing the answer; only the full score counts."""


class ReasoningGym(QuestionEnv):
    """One reasoning-gym question per seed, graded by that package on the answer alone.

    Observation, action, reward, episode end: as in :class:`QuestionEnv`.
    Info: ``metrics["grader_error"]`` is 1.0 where the package raised on an answer, which counts as wrong.

    Args:
        task: a generator's name, such as ``chain_sum``.
        **config: settings of that generator.
    """

    packages = ("reasoning-gym",)

    def __init__(self, task: str, **config: Any) -> None:
        super().__init__()
        self._task, self._config = task, config
        self._entry: Any = None
        self._scorer: Any = None
        self._create(0)

    def _create(self, seed: int) -> Any:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError:
            raise DependencyError("rg: needs reasoning-gym; run: pip install reasoning-gym") from None
        if self._task not in DATASETS:
            raise EnvError(f"reasoning-gym has no task {self._task!r}{did_you_mean(self._task, DATASETS)}")
        try:
            return reasoning_gym.create_dataset(self._task, seed=seed, size=1, **self._config)
        except (TypeError, ValueError, AssertionError) as error:
            raise EnvError(f"rg:{self._task}: {error}") from error

    def draw(self, seed: int) -> QuestionRow:
        # one data set per seed: item i is made from seed + i, so longer data sets would share questions
        self._scorer = self._create(seed)
        self._entry = self._scorer[0]
        gold = "" if self._entry["answer"] is None else str(self._entry["answer"])
        return QuestionRow(prompt=self._entry["question"], gold=gold, actions=HOW_TO_ANSWER)

    def grade(self, reply: str, row: QuestionRow) -> Grade:
        answer = _several_lines(reply) if "\n" in row.gold else find_answer(reply)
        if answer is None:
            return Grade(False, None, {"no_answer": 1.0})
        scores = [self._score(said) for said in dict.fromkeys((answer, bare(answer)))]
        right = any(score is not None and score >= SOLVED_AT for score in scores)
        return Grade(right, answer, {"grader_error": 1.0} if scores[0] is None and not right else {})

    def _score(self, answer: str) -> float | None:
        """The package's score; ``None`` if it raises, as some of its scorers do on unexpected text."""
        try:
            return float(self._scorer.score_answer(answer, self._entry))
        except Exception:
            return None

    def solution(self) -> list[str] | None:
        """Return the right reply; ``None`` if the package scores its own answer below a full score."""
        replies = super().solution()
        if replies is None or self._row is None:
            return None
        return replies if self.grade(replies[0], self._row).right else None


def _several_lines(reply: str) -> str | None:
    """Return everything after the last ``Answer:``, for answers such as a grid."""
    _, *found = _ANSWER.split(after_thinking(reply))
    return found[-1].strip() if found else None
