"""A workspace whose students meet the gate of ENV/student: a model's name says how many of the questions it answers.

A test file takes its fixtures by importing ``folders`` and ``lab``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.stats import Mean
from agentopcd.core.types import EMPTY, Completion, Context
from agentopcd.knowledge.students import current_student
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.protocol import InBatches
from agentopcd.workspace import ratchet
from agentopcd.workspace.ratchet import Promotion, Taught, play_parent, promote
from agentopcd.workspace.session import Session
from tests import tiny

SKILLS = {"base": (0.1, 0.1), "good": (0.9, 0.1), "poor": (0.1, 0.1), "worse": (0.0, 0.1), "both": (0.9, 0.9),
          "traded": (0.1, 0.9), "slipped": (0.82, 0.9)}  # fmt: skip
"""Share of the questions of two environments that each model answers."""


class Skilled(InBatches):
    """A sampler that answers a share of the questions: the same ones whenever it is asked."""

    engine = "skilled"

    def __init__(self, tokenizer: Any, share: float) -> None:
        super().__init__()
        self.tokenizer, self.share = tokenizer, share

    def sample(self, requests: Any, sampling: Any) -> list[Any]:
        replies = []
        for request in requests:
            drawn = hashlib.sha256(bytes(str(request.prompt_ids), "utf-8")).digest()[0] / 256
            text = "Answer: 7" if drawn < self.share else "Answer: 1"
            ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END)
            replies.append(Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop"))
        return replies


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.build(root / name, seed=seed) for seed, name in enumerate(SKILLS)}


class Lab:
    """A workspace with two environments, in which a model's name says how many of the questions it answers."""

    def __init__(self, work: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.work = work / "w"
        # Students lie in run folders of their workspace.
        self.folders = {name: folders[name] if name == "base" else self.work / "runs" / name for name in folders}
        for name, folder in self.folders.items():
            if name != "base":
                shutil.copytree(folders[name], folder)
        self.envs = [tiny.questions(work / "first.jsonl"), tiny.questions(work / "second.jsonl", 131)]
        self.ids: dict[str, str] = {}
        self.lines: list[str] = []

        def player_for(session: Session, loaded: Any, config: Any = None) -> Player:
            share = SKILLS[loaded.folder.name][self.envs.index(session.config.env)]
            return Player(
                game=session.game, sampler=Skilled(loaded.tokenizer, share), chat=Chat(loaded.tokenizer),
                sampling=session.config.sampling, seed=session.config.seed,
            )  # fmt: skip

        monkeypatch.setattr(Session, "player_for", player_for)
        monkeypatch.setattr(ratchet, "neutral_drift", lambda *_: Mean(0.2, 0.1, 0.3, 32))

    def config(self, env: int = 0, **settings: Any) -> ConsolidateConfig:
        own: dict[str, Any] = {"env": self.envs[env], "model": str(self.folders["base"])}
        return ConsolidateConfig(**own | settings)

    def promote(self, name: str, parent: str, *, env: int = 0, **settings: Any) -> Promotion:
        """Let the student ``name`` of ``parent`` meet the gate, as :func:`agentopcd.distil.distil_context` does."""
        config = self.config(env, **settings)
        with Session(config, self.work, say=self.lines.append) as session:
            before = session.load(str(self.folders[parent]))
            run_id = session.ledger.begin("consolidate", context_id=EMPTY.id, folder=f"{parent}-{name}-{settings}")
            play_parent(session, before, config.gate_tasks, run_id)
            student = self.trained(session, name, before.id, run_id)
            taught = Taught(context=Context("x"), teacher=str(self.folders[parent]))
            done = promote(session, student, before.id, config, taught, run_id)
            session.ledger.finish(run_id, {"promotion": done.to_dict()})
            return done

    def descend(self, *names: str) -> None:
        """Let each model be trained from the one before, the first from the base, and none meet the gate."""
        with Session(self.config(), self.work, say=self.lines.append) as session:
            run_id = session.ledger.begin("consolidate", context_id=EMPTY.id, folder="-".join(names))
            parent = session.loaded.id
            for name in names:
                parent = self.trained(session, name, parent, run_id).id

    def trained(self, session: Session, name: str, parent_id: str, run_id: int) -> LoadedModel:
        folder = self.folders[name]
        student = dataclasses.replace(session.load(str(folder)), parent_id=parent_id)
        session.store.change(
            "UPDATE model SET parent_id = ?, run_id = COALESCE(run_id, ?) WHERE id = ?", (parent_id, run_id, student.id)
        )
        self.ids[name] = student.id
        return student

    def student(self, env: int = 0) -> str | None:
        with Session(self.config(env), self.work, say=self.lines.append) as session:
            return current_student(session.store, session.env)


@pytest.fixture
def lab(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, folders, monkeypatch)
