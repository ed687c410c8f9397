"""Conversations as an environment: the prompts are stored, the replies are the model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.core.types import Message, Part, Tool
from agentopcd.envs.base import TextEnv
from agentopcd.envs.chats.rows import Conversation, conversations, load, stamps
from agentopcd.envs.graders import grader_of
from agentopcd.envs.judge import Judge
from agentopcd.envs.questions.text_checks import grade_checks, known_checks

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class ConversationEnv(TextEnv):
    """Conversations from rows: seed ``s`` is row ``s % len(rows)``, and every answer of its assistant is a turn.

    A turn's prompt is what stands before that answer in the row, whatever was replied before: the log's own answer goes
    on. What the log answered at a place is never shown there.

    Observation: ``state`` is what is new, as text; the prompt itself is ``info["messages"]``.
    Action: the reply.
    Reward: 1.0 for a reply that passes the checks or the grader; without any, 0.0.
    Episode end: after the last place; truncated, if nothing is graded.
    Info: ``task_key``, ``messages``, ``tools``, ``split`` if the row names one; with a grader ``success`` (at the end:
    whether all replies passed) and ``metrics`` (means over the turns).

    Args:
        rows: a file, several with commas between them, or a list of mappings; see
            :mod:`agentopcd.envs.chats.rows` for the columns that are understood.
        turns: ``all`` places to answer, or only the ``last`` one of each conversation.
        system: ``keep`` the system messages of the rows, or ``drop`` them, where they hold what is to be distilled.
        checks: checks that every reply has to pass, such as ``{"max_words": 40}``; a row's own are added.
        grader: ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``; see :mod:`agentopcd.envs.graders`. With a judge,
            the file of the question that it is asked.
        judge: ``URL#NAME``, a model behind an API that grades; see :mod:`agentopcd.envs.judge`.

    Raises:
        EnvError: rows or arguments that cannot be understood.
    """

    def __init__(
        self,
        rows: str | Iterable[Mapping[str, Any]],
        *,
        turns: str = "all",
        system: str = "keep",
        checks: Mapping[str, Any] | None = None,
        grader: str = "",
        judge: str = "",
    ) -> None:
        for name, value, known in (("turns", turns, ("all", "last")), ("system", system, ("keep", "drop"))):
            if value not in known:
                raise EnvError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
                )
        self.rows = self._read(rows, turns, system)
        self._checks = {} if checks is None else known_checks(checks)
        self._judge = Judge(grader, judge) if judge else None
        self._grader = grader_of(grader) if grader and not judge else None
        without = next((row.name for row in self.rows if not row.checks), "")
        if without and not (self._checks or self._grader or self._judge) and any(row.checks for row in self.rows):
            raise EnvError(f"{without} has no checks, and other rows have; give it some, or --grader FILE.py:FUNCTION")
        self._row: Conversation | None = None
        self._turn = 0
        self._verdicts: list[tuple[bool, Mapping[str, float]]] = []

    def _read(self, rows: str | Iterable[Mapping[str, Any]], turns: str, system: str) -> Sequence[Conversation]:
        if isinstance(rows, str):
            return load(stamps(rows), turns=turns, system=system)
        named = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
        if not named:
            raise EnvError("there are no rows")
        for name, row in named:
            if not isinstance(row, Mapping):
                raise EnvError(f"{name} must be a mapping of columns to cells, got {type(row).__name__}")
        return conversations(named, turns=turns, system=system)

    def _row_of(self, seed: int) -> Conversation:
        return self.rows[seed % len(self.rows)]

    @property
    def num_tasks(self) -> int:
        """Number of conversations; more seeds only repeat them."""
        return len(self.rows)

    def log(self, seed: int) -> list[tuple[list[Message], list[Tool], list[Part]]]:
        """The prompt, the tools and the new parts of every turn of the conversation of this seed."""
        row = self._row_of(seed)
        starts = (0, *row.places)
        return [
            (row.messages[:place], row.tools, [("state", shown(row.messages[start:place]))])
            for start, place in zip(starts, row.places, strict=False)
        ]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        row = self._row = self._row_of(chosen)
        self._turn, self._verdicts = 0, []
        obs, info = self.first(key=row.key, state=shown(row.messages[: row.places[0]]))
        if row.split:
            info["split"] = row.split
        return obs, info | self._prompt(row)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        row = self._row
        if row is None:
            raise EnvError("the conversation is over (or never began); call reset()")
        verdict = self._graded(row, action)
        if verdict is not None:
            self._verdicts.append(verdict)
        before = row.places[self._turn]
        self._turn += 1
        reward = float(bool(verdict and verdict[0]))
        if self._turn < len(row.places):
            new = shown(row.messages[before : row.places[self._turn]])
            obs, reward, over, cut, info = self.turn(reward=reward, state=new)
            return obs, reward, over, cut, info | self._prompt(row)
        self._row = None
        success = all(passed for passed, _ in self._verdicts) if self._verdicts else None
        obs, reward, _, _, info = self.turn(success=success, reward=reward, metrics=_means(self._verdicts))
        return obs, reward, success is not None, success is None, info

    def close(self) -> None:
        """End a question to the judge, if one is under way; from any thread."""
        if self._judge is not None:
            self._judge.close()

    def _prompt(self, row: Conversation) -> dict[str, Any]:
        return {"messages": row.messages[: row.places[self._turn]], "tools": row.tools}

    def _graded(self, row: Conversation, reply: str) -> tuple[bool, Mapping[str, float]] | None:
        """Whether a reply passes, and its metrics; None if nothing is graded."""
        checks = self._checks | dict(row.checks)
        before = row.messages[: row.places[self._turn]]
        verdicts: list[tuple[bool, Mapping[str, float]]] = []
        if checks:
            grade = grade_checks(reply, checks)
            verdicts.append((grade.right, grade.metrics))
        if self._grader is not None:
            verdicts.append(self._grader({**row.source, "turn": self._turn, "prompt_messages": before}, reply))
        if self._judge is not None:
            score = self._judge(row.source, shown(before), after_thinking(reply).strip())
            verdicts.append((score >= 0.5, {"score": score}))
        if not verdicts:
            return None
        metrics = {name: value for _, found in verdicts for name, value in found.items()}
        return all(passed for passed, _ in verdicts), metrics


def _means(verdicts: Sequence[tuple[bool, Mapping[str, float]]]) -> dict[str, float]:
    """The mean of each metric over the turns that report it, and the share of replies that passed."""
    if not verdicts:
        return {}
    names = dict.fromkeys(name for _, metrics in verdicts for name in metrics)
    told = {name: [metrics[name] for _, metrics in verdicts if name in metrics] for name in names}
    means = {name: sum(values) / len(values) for name, values in told.items()}
    return {"replies_passed": sum(passed for passed, _ in verdicts) / len(verdicts)} | means


def shown(messages: Sequence[Message]) -> str:
    """Messages as text for people: in lists, logs and ``envs try``."""
    lines = []
    for message in messages:
        said = [message["content"]] if message["content"] else []
        said += [f"[calls {call['function']['name']} {call['function']['arguments']}]"
                 for call in message.get("tool_calls", ())]  # fmt: skip
        lines.append(f"{_NAMES[message['role']]}: {' '.join(said)}")
    return "\n\n".join(lines)
