"""A game: an environment, how it is shown to a model, and when it is cut off."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd import envs
from agentopcd.core.config import RECORDED
from agentopcd.core.files import is_file, path_of, resolved
from agentopcd.core.types import EMPTY, Episode, Message, Task, Tool, Turn
from agentopcd.envs.guard import SLOW_STEP_LIMIT_S
from agentopcd.envs.questions.files import row_files
from agentopcd.envs.success import ask, rule_of
from agentopcd.rollouts.history import turn_messages

GRADING = ("checks", "grader")
"""Arguments of an environment of rows that say what is right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game:
    """An environment, how it is shown, and when it is cut off."""

    ref: str
    """The environment's reference, as ``--env`` takes it."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the environment; they define the tasks."""
    rules: str = ""
    """The view: which parts of an observation are shown; '': the environment's default."""
    max_steps: int = 0
    """The most turns of an episode; 0: the environment's default."""
    history: str = ""
    """How earlier turns are shown, ``transcript`` or ``chat``; '': the environment's default."""
    constrain: bool = False
    """Whether replies are held to the actions that the environment lists."""
    success_when: str = ""
    """The rule for success, see :mod:`agentopcd.envs.success`; '': what the environment says."""

    def __post_init__(self) -> None:
        if self.success_when:
            rule_of(self.success_when)
        envs.get_spec(self.ref).view(self.rules or None)  # a wrong name fails before a model is loaded

    @property
    def label(self) -> str:
        """The name of the game's tasks in the store: the reference, and the arguments that change the tasks."""
        words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(self.kwargs.items())}
        arguments = ",".join(f"{name}={word}" for name, word in words.items())
        return "".join((f"{self.ref},{arguments}" if arguments else self.ref).split())

    @property
    def spec(self) -> envs.EnvSpec:
        return envs.get_spec(self.ref)

    @property
    def graded(self) -> bool:
        """Whether anything says what is right: the environment, or a rule, checks or a grader of the user's."""
        return self.spec.graded or bool(self.success_when) or any(self.kwargs.get(name) for name in GRADING)

    @property
    def view(self) -> envs.View:
        return self.spec.view(self.rules or None)

    @property
    def form(self) -> str:
        return self.history or self.spec.history

    @property
    def step_limit(self) -> int:
        return self.max_steps or self.spec.step_limit

    @property
    def steps_apart(self) -> bool:
        """Whether steps take long, or wait for others, so that each episode takes them in a thread of its own."""
        return self.spec.slow or self.spec.waits or bool(self.kwargs.get("judge"))

    def make(self) -> Any:
        """A new environment. One that declares itself slow runs in a process of its own."""
        if self.spec.slow:
            return envs.RemoteEnv(self.ref, self.step_limit, self.kwargs, self.spec.limit_s or SLOW_STEP_LIMIT_S)
        return envs.make(self.ref, max_steps=self.step_limit, **self.kwargs)

    def opening(self, seed: int) -> tuple[list[Message], list[Tool]] | None:
        """The messages of a first turn, without any context, and the tools; None if the environment cannot be reset to
        this seed."""
        env = None
        try:
            env = self.make()
            obs, info = env.reset(seed=seed)
            parts = envs.apply_view(envs.parts_of(obs, info), self.view)
            return told(info, self.view) or turn_messages(self.form, [], parts), info.get("tools", [])
        except Exception:  # play meets the same error, and counts it
            return None
        finally:
            if env is not None:
                with contextlib.suppress(Exception):
                    env.close()

    def log(self, task: Task) -> Episode:
        """The stored turns of a task, without replies, of an environment whose prompts are stored."""
        env = self.make()
        try:
            turns = [
                Turn(
                    parts=parts, messages=messages, tools=tools, prompt_ids=(), response_ids=(), logprobs=(), reply="",
                    finish_reason="stop", reward=0.0, invalid=False,
                )
                for messages, tools, parts in env.unwrapped.log(task.seed)
            ]  # fmt: skip
        finally:
            env.close()
        return Episode(
            env=self.label, task=task, rep=0, context_id=EMPTY.id, turns=turns, outcome=[], success=False, reward=0.0,
            stop_reason="max_steps",
        )  # fmt: skip

    def solved(self, rewards: Sequence[float], terminated: bool, info: Mapping[str, Any]) -> bool:
        """Whether an episode that just ended was solved.

        Raises:
            EnvError: neither the environment nor its rewards say, and there is no rule.
        """
        if not self.graded:
            return False
        said = self.spec.solved(rewards, terminated, info, self.success_when)
        if said is None:
            raise ask(self.ref, rewards)
        return said

    def describe(self) -> dict[str, Any]:
        """The game's part of a setup hash: ``kwargs`` define the tasks; the rest says how they are shown."""
        # Listed only if set, so that it does not change the hash of a setup without it.
        extra: dict[str, Any] = {"constrain": True} if self.constrain else {}
        extra |= {"success_when": self.success_when} if self.success_when else {}
        return {"env": self.ref, "kwargs": dict(self.kwargs), "view": dict(self.view), **extra,
                "max_steps": self.step_limit, "history": self.form, "source": self.source}  # fmt: skip

    @property
    def source(self) -> str:
        """sha256 of the files behind a reference such as ``file.py:Class`` or ``rows.jsonl``, and of those that the
        arguments ``rows``, ``file`` and ``grader`` name; '' for a built-in name without any.

        The hash is part of the setup, so that episodes from before and after an edit are never pooled.
        """
        rows = self.spec.kwargs["rows"] if self.ref.startswith(RECORDED) else self.ref
        names = (self.ref.rpartition(":")[0],) if ".py:" in self.ref else row_files(rows)
        if grader := str(self.kwargs.get("grader", "")):
            names = (*names, grader.rpartition(":")[0] if ".py:" in grader else grader)
        files = [path_of(name) for name in names if is_file(name)]
        arguments = {**self.spec.kwargs, **self.kwargs}
        for name in ("rows", "file"):
            value = arguments.get(name)
            known = set(map(resolved, files))
            named = [path_of(file) for file in row_files(value) if is_file(file)] if isinstance(value, str) else []
            files += [file for file in named if resolved(file) not in known]
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def told(info: Mapping[str, Any], view: envs.View) -> list[Message] | None:
    """The prompt that an environment writes itself (``info["messages"]``), as seen through a view; None if it does not.

    A message may name the kind of its text in ``part``; one without is always shown.
    """
    if not info.get("messages"):
        return None
    seen: list[Any] = []
    for message in info["messages"]:
        kind = message.get("part")
        content = view.get(kind) if kind in view else message["content"]
        if content is not None:
            seen.append({**{name: value for name, value in message.items() if name != "part"}, "content": content})
    return seen
