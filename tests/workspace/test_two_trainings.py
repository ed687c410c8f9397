"""Two equal commands at once in one workspace: one run, one row, and one training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentopcd import distil as distilling
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run
from agentopcd.knowledge import Store
from agentopcd.workspace import ledger as ledgers
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import Ledger
from tests import tiny
from tests.workspace.test_placebo_student import CONTEXT, distil, settings


def of(store: Store) -> Ledger:
    return Ledger(
        store=store, config=PlayConfig(env="rooms"), env="rooms", kind="game", work=Path(store.path).parent,
        model_id=lambda: "a" * 64, say=lambda line: None,
    )  # fmt: skip


def test_the_second_of_two_that_begin_at_once_finds_the_run_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, tried = Ledger._found, []
    with Store.open(tmp_path / "store.db") as one, Store.open(tmp_path / "store.db") as other:
        other.change("PRAGMA busy_timeout = 1")

        def meanwhile(self: Ledger, verb: str, identity: Any, status: str) -> int | None:
            run_id = found(self, verb, identity, status)
            if status == "failed" and not tried:
                tried.append(status)
                with pytest.raises(Exception, match="lock"):  # it waits, until the first has its row
                    other.start(verb, identity, 0)
            return run_id

        monkeypatch.setattr(Ledger, "_found", meanwhile)
        first = of(one)
        assert first.begin("play") == 1
        with pytest.raises(ConfigError, match="another process works on play run 1"):
            of(other).begin("play")
        first.close()
        assert len(one.runs()) == 1


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_run_that_another_one_finishes_before_it_is_held_is_not_opened_again(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store.db") as one, Store.open(tmp_path / "store.db") as other:
        first = of(one)
        run_id = first.begin("play")
        first.close() if status == "running" else first.fail("no server")

        def held(*args: Any) -> Hold:
            other.finish(run_id, {"n": 1})
            return Hold(*args)

        monkeypatch.setattr(ledgers, "Hold", held)
        second = of(one)
        assert second.begin("play") == run_id + 1
        assert second.result(run_id) == {"n": 1}
        second.close()
        assert not list((tmp_path / "live").iterdir())


def test_a_training_that_another_process_works_on_or_has_just_finished_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.build(tmp_path / "base", tie=False)
    config = settings(tmp_path, test_tasks=0)
    check, second, refused = distilling.check_before, [], []

    def meanwhile(*args: Any) -> None:
        check(*args)
        if not refused:
            refused.append(None)
            with pytest.raises(ConfigError, match="another process works on this training"):
                distil(config, tmp_path)

    result = Run.result.fget
    assert result is not None

    def late(self: Run) -> Any:
        """What the second reads before it holds the run is from before the first has finished."""
        found = result(self)
        if found is None and not second and not refused:
            second.append(None)
            monkeypatch.setattr(distilling, "check_before", meanwhile)
            second[0] = distil(config, tmp_path)[0]
        return found

    monkeypatch.setattr(Run, "result", property(late))
    out, said = distil(config, tmp_path)
    assert refused and out.repeated and out.model_id == second[0].model_id
    assert not any(line.startswith("consolidating") for line in said)
    with Store.open(tmp_path / "work" / "store.db") as store:
        assert [row["status"] for row in store.runs("consolidate")] == ["done"]
        assert CONTEXT.id in store.model_contexts(out.model_id)
