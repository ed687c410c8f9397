"""`learn --env recorded:NAME --since`: what it reads, what it teaches, and what its exit code says."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from agentopcd.cli.options import Call
from agentopcd.cli.verbs import learn as command
from agentopcd.core.config import LearnConfig, since_of
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import current_student
from agentopcd.workspace.experience.teach import context_to_teach
from agentopcd.workspace.recorded import new_snapshot
from agentopcd.workspace.session import Session
from tests.recording import keep, keep_many, model

CONTEXT = Context("Say left. " * 4, "system")
NOON = datetime(2026, 11, 27, 12, 34, 56, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", ""),
        ("yesterday", "2026-11-26T00:00:00.000000+00:00"),
        ("2026-11-20", "2026-11-20T00:00:00.000000+00:00"),
        ("24h", "2026-11-26T12:00:00.000000+00:00"),
        ("2026-11-27T09:00:00+01:00", "2026-11-27T08:00:00.000000+00:00"),
    ],
)
def test_since_is_a_moment_in_utc(text: str, moment: str) -> None:
    assert since_of(text, NOON) == moment
    assert since_of(moment, NOON) == moment  # a run of yesterday goes on with its own moment


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tomorrow", "wanted yesterday"),
        ("2026-11-28", "still to come"),
        ("0001-01-01T00:00+14:00", "wanted yesterday"),
    ],
)
def test_other_words_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        since_of(text, NOON)


def test_since_and_context_are_for_recordings() -> None:
    for name in ("since", "context"):
        with pytest.raises(ConfigError, match=f"--{name} is for --env recorded:NAME"):
            LearnConfig(env="math", **{name: "yesterday"})  # type: ignore[arg-type]


def test_only_sessions_since_then_are_read(tmp_path: Path) -> None:
    keep_many(tmp_path, 3)
    with Store.open(tmp_path / "store.db") as store:
        after = max(row["at"] for row in store.query("SELECT at FROM request")) + "~"
        with pytest.raises(ConfigError, match="no session of 'shop' was recorded or rated since"):
            new_snapshot(store, tmp_path, "recorded:shop", after)
        moment = datetime.now(UTC).isoformat(timespec="microseconds")
    keep(tmp_path, "s1", "Box 1?", "Up.", rating={"success": True})  # an old one, rated now
    keep(tmp_path, "new", "Box 9?", "Up.")
    with Store.open(tmp_path / "store.db") as store:
        name = new_snapshot(store, tmp_path, "recorded:shop", moment)
    rows = [json.loads(line) for line in (tmp_path / "recorded" / "shop" / name).open()]
    assert {row["session"] for row in rows} == {"s1", "new"}


def settings(tmp_path: Path, **more: Any) -> LearnConfig:
    given: dict[str, Any] = {
        "env": "recorded:shop", "model": "", "steps": 12, "batch_size": 12, "max_tokens": 4, "temperature": 1.0,
        "learning_rate": 1e-4, "select_every": 4, "select_tasks": 6, "test_tasks": 0, "compute": "float32",
        "drift_budget": 10, "chains": 1, "chain_steps": 1, "extract_tokens": 4, "gate_tasks": 12, "since": "24h",
        "lora_rank": 0,
    }  # fmt: skip
    return LearnConfig(**(given | more))


def test_what_is_taught_is_named_confirmed_or_served(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        for context in (CONTEXT, Context("Old."), Context("Best.")):
            store.add_context(context)
    keep_many(tmp_path, 30, context_id=Context("Old.").id)
    config = settings(tmp_path, model=model(tmp_path / "model"))

    def taught(**more: Any) -> tuple[Context | None, str]:
        from agentopcd.core.config import ConsolidateConfig, pick

        with Session(pick(config, ConsolidateConfig, **more), tmp_path, say=lambda line: None) as session:
            return context_to_teach(session, session.config)  # type: ignore[arg-type]

    assert taught()[0] == Context("Old.") and "was served with it" in taught()[1]
    keep(tmp_path, "newest", "Box?", "Up.", context_id=CONTEXT.id)
    assert taught()[0] == CONTEXT
    for context in (Context("On trial."), Context("Judged worse.")):
        with Store.open(tmp_path / "store.db") as store:
            store.add_context(context)
        keep(tmp_path, f"of {context.text}", "Box?", "Up.", arm="canary", context_id=context.id)
    assert taught()[0] == CONTEXT  # what a canary is served with is on trial, or has failed
    with Store.open(tmp_path / "store.db") as store:
        store.move("recorded:shop/best", Context("Best.").id, "person", "")
    assert taught()[0] == CONTEXT  # a ref that a person moved was not confirmed by anything
    with Store.open(tmp_path / "store.db") as store:
        key = {"env": "recorded:shop", "model_id": "m" * 64, "context_id": Context("Best.").id}
        look = store.begin_look({**key, "setup": "canary", "plan": "p"}, {})
        store.end_look(look["id"], "pass", {})
    assert taught() == (Context("Best."), "recorded:shop/best")
    (tmp_path / "own.txt").write_text("Own.")
    assert taught(context=str(tmp_path / "own.txt")) == (Context("Own."), "as given")


@pytest.mark.slow
def test_a_night_that_promotes_and_one_that_has_nothing_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "w"
    with Store.open(work / "store.db") as store:
        store.add_context(CONTEXT)
    keep_many(work, 120, context_id=CONTEXT.id)
    config = settings(tmp_path, model=model(tmp_path / "model"))
    command(config, Call(work, False, True))
    assert "plan: no context is ranked" in capsys.readouterr().out
    command(config, Call(work, False, False))
    said = capsys.readouterr().out
    assert "the newest session was served with it" in said
    promoted = next(line for line in said.splitlines() if line.startswith("promoted: recorded:shop/student is "))
    assert "against its parent" in promoted
    report = Path(next(line for line in said.splitlines() if line.startswith("report: ")).removeprefix("report: "))
    assert "<html" in report.read_text() and report.parent.name.startswith("learn-recorded-shop")
    with Store.open(work / "store.db") as store:
        student = current_student(store, "recorded:shop")
        assert student is not None and CONTEXT.id in store.learned(student)
    keep_many(work, 2, start=120, context_id=EMPTY.id)
    later = dataclasses.replace(config, model="", since="24h", seed=1)
    with pytest.raises(typer.Exit) as ended:
        command(later, Call(work, False, False))
    assert ended.value.exit_code == 3
    said = capsys.readouterr().out
    assert "not promoted: no context is served, and no other one was confirmed" in said
    with Store.open(work / "store.db") as store:
        assert current_student(store, "recorded:shop") == student
