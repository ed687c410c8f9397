"""A workspace with two generations of a tiny student, for tests of what is in a student's weights.

A test file takes its fixtures by importing ``made`` and ``lab``.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.types import Context, Mixture
from agentopcd.distil import Distilled, distil_context
from agentopcd.knowledge import Store, identify, render
from agentopcd.workspace.lineage.audit import audit
from agentopcd.workspace.lineage.forget import Plan, forget, plan_of
from agentopcd.workspace.lineage.found import Audit
from agentopcd.workspace.lineage.proof import Forgotten
from agentopcd.workspace.lineage.recorded import student_named
from agentopcd.workspace.session import Session
from tests import tiny

ONE, TWO, THREE = "say seven", "left, then up and down", "move the box to the goal"
FIRST, SECOND = Context(render([ONE, TWO])), Context(render([THREE]))

STAYS = functools.partial(distil_context, moves=False)
"""Trains as the command ``forget`` does."""


class Killed(BaseException):
    """A kill, that nothing catches."""


def dies(*args: Any, **more: Any) -> None:
    """What is killed as soon as it is called."""
    raise Killed


@dataclasses.dataclass
class Lab:
    """A workspace, and how its students are trained."""

    work: Path
    settings: dict[str, Any]

    def train(self, context: Context | Mixture, model: str, *, moves: bool = True, **settings: Any) -> Distilled:
        given: dict[str, Any] = {**self.settings, "model": model, **settings}
        given |= {"mix": len(context.parts)} if isinstance(context, Mixture) else {"context": context.id}
        config = ConsolidateConfig(**given)
        with Session(config, self.work, say=lambda line: None) as session:
            for part in context.parts:
                session.store.add_context(part)
            return distil_context(session, config, context, moves=moves)

    def open(self) -> Store:
        return Store.open(self.work / "store.db")

    def plan(self, store: Store, *texts: str, student: str = "") -> Plan:
        name = student or store.models(trained=True)[0]["id"][:12]
        row = student_named(store, self.work, name)
        assert row is not None
        return plan_of(store, self.work, row, [store.item(identify(text)) for text in texts])

    def forget(self, *texts: str, student: str = "", distil: Any = STAYS) -> Forgotten:
        with self.open() as store:
            plan = self.plan(store, *texts, student=student)
            return forget(store, self.work, plan, distil=distil, say=lambda line: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Base, a student of two items, and its student of a third."""
    folder = tmp_path_factory.mktemp("carried")
    model = tiny.build(folder / "model", tie=False, hearing=4.0)
    settings: dict[str, Any] = {
        "env": tiny.questions(folder / "rows.jsonl"), "steps": 6, "batch_size": 8, "max_tokens": 6,
        "temperature": 5.0, "learning_rate": 3e-3, "select_every": 6, "select_tasks": 4, "test_tasks": 16,
        "compute": "float32", "divergence": "full", "gate_tasks": 0,
    }  # fmt: skip
    lab = Lab(folder / "w", settings)
    lab.work.mkdir()
    first = lab.train(FIRST, str(model))
    lab.train(SECOND, first.folder)
    yield lab


@pytest.fixture
def lab(made: Lab, tmp_path: Path) -> Lab:
    """A copy to work in."""
    shutil.copytree(made.work, tmp_path / "w")
    return dataclasses.replace(made, work=tmp_path / "w")


def row_of(lab: Lab, generation: int) -> Any:
    """The row of a student: 0 the first, 1 the second."""
    with lab.open() as store:
        return store.models(trained=True)[::-1][generation]


def base_of(lab: Lab) -> str:
    """The folder of the model that all come from."""
    with lab.open() as store:
        row = store.lookup("model", id=row_of(lab, 0)["parent_id"])
        assert row is not None
        return str(row["path"])


def audit_of(lab: Lab, generation: int, **more: Any) -> Audit:
    with lab.open() as store:
        return audit(store, lab.work, row_of(lab, generation), turns=12, say=lambda line: None, **more)
