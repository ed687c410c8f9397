"""An environment and how it is shown to a model and cut off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd import envs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game:
    """An environment, how it is shown, and when it is cut off."""

    ref: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: str = ""
    max_steps: int = 0
    history: str = ""
    constrain: bool = False
    """Whether replies are held to the actions that the environment lists."""

    def __post_init__(self) -> None:
        envs.get_spec(self.ref).view(self.rules or None)  # a wrong name fails before a model is loaded

    @property
    def label(self) -> str:
        """The name of these tasks in the store: the reference, and the arguments that change the tasks."""
        words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(self.kwargs.items())}
        arguments = ",".join(f"{name}={word}" for name, word in words.items())
        return "".join((f"{self.ref},{arguments}" if arguments else self.ref).split())

    @property
    def spec(self) -> envs.EnvSpec:
        return envs.get_spec(self.ref)

    @property
    def view(self) -> envs.View:
        return self.spec.view(self.rules or None)

    @property
    def form(self) -> str:
        return self.history or self.spec.history

    @property
    def step_limit(self) -> int:
        return self.max_steps or self.spec.step_limit

    def make(self) -> Any:
        """The environment; a slow one in a process of its own."""
        if self.spec.slow:
            return envs.RemoteEnv(self.ref, self.step_limit, self.kwargs)
        return envs.make(self.ref, max_steps=self.step_limit, **self.kwargs)

    def describe(self) -> dict[str, Any]:
        """Its part of a setup hash: ``kwargs`` define the tasks, the rest how they are shown."""
        own = {"constrain": True} if self.constrain else {}
        return {"env": self.ref, "kwargs": dict(self.kwargs), "view": dict(self.view), **own,
                "max_steps": self.step_limit, "history": self.form, "source": self.source}  # fmt: skip

    @property
    def source(self) -> str:
        """sha256 of the file behind a reference such as ``file.py:Class`` or ``rows.jsonl``; else ''.

        It is part of the setup, so that episodes from before an edit are not taken for the same thing.
        """
        file = Path(self.ref.rpartition(":")[0] if ".py:" in self.ref else self.ref)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
