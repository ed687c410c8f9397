"""The gate of canaries: what moves a ref, what does not, and what a look costs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.looks import level_of
from agentopcd.knowledge.students import current_student, move_student, student_moves
from agentopcd.workspace import canary
from agentopcd.workspace.canary import Outcome, decide
from tests.recording import MODEL, keep

NEW = "c" * 64
ENV = "recorded:shop"


def served(
    work: Path, n: int, rates: tuple[float, float], *, start: int = 0, paired: bool = False, figure: str = "success",
    new: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Record ``n`` sessions beside a canary and ``n`` of it, which succeed at these rates."""
    rng = random.Random(start)
    for i in range(start, start + n):
        for arm, rate in zip(("canary", "control"), reversed(rates), strict=True):
            won = rng.random() < rate
            rating = {"success": won} if figure == "success" else {"metrics": {figure: won + rng.random()}}
            more = ({"model_id": NEW} if new is None else new) if arm == "canary" else {}
            about = f"task {i}" if paired else f"task {i} of {arm}"
            keep(work, f"{arm}-{i}", f"Box {i}?", "Up.", arm=arm, rating=rating, task=about, **more)


def decided(work: Path, **more: Any) -> Outcome:
    with Store.open(work / "store.db") as store:
        return decide(store, "shop", **more)


def student(work: Path) -> str | None:
    with Store.open(work / "store.db") as store:
        return current_student(store, ENV)


@pytest.mark.parametrize("paired", [False, True])
def test_a_better_model_becomes_the_student_once(tmp_path: Path, paired: bool) -> None:
    served(tmp_path, 30, (0.2, 0.9), paired=paired)
    with Store.open(tmp_path / "store.db") as store:
        move_student(store, ENV, MODEL, "gate")
    found = decided(tmp_path)
    assert (found.verdict, found.moved, found.look) == ("pass", f"{ENV}/student", 1)
    assert ("pairs on 30 tasks" in found.lines()[1]) == paired and found.level == level_of(1)
    assert found.rated == (30, 30) and student(tmp_path) == NEW
    again = decided(tmp_path)
    assert (again.verdict, again.moved, again.look) == ("pass", "", 1)
    with Store.open(tmp_path / "store.db") as store:
        move_student(store, ENV, MODEL, "rollback")
    assert decided(tmp_path).moved == "" and student(tmp_path) == MODEL  # what a person took back stays so
    with Store.open(tmp_path / "store.db") as store:
        assert [move["actor"] for move in student_moves(store, ENV)] == ["gate", "gate", "rollback"]
        assert len(store.looks(ENV)) == 1


@pytest.mark.parametrize("paired", [False, True])
def test_a_worse_one_does_not_get_through(tmp_path: Path, paired: bool) -> None:
    served(tmp_path, 40, (0.9, 0.2), paired=paired)
    found = decided(tmp_path)
    assert found.verdict == "worse" and found.pair and found.pair.p > 0.9 and student(tmp_path) is None
    assert found.lines()[-1] == "verdict: not promoted, it is worse; no new session is dealt to it"


def test_ratings_that_cannot_pass_spend_no_look_and_more_of_them_make_another(tmp_path: Path) -> None:
    served(tmp_path, 3, (0.0, 1.0))
    few = decided(tmp_path)
    assert few.verdict == "too few" and few.look is None and "too few ratings" in few.lines()[-1]
    served(tmp_path, 20, (0.5, 0.5), start=3)
    first = decided(tmp_path)
    assert (first.verdict, first.look) == ("not better", 1)
    assert decided(tmp_path).look == 1
    served(tmp_path, 5, (0.5, 0.5), start=23)
    second = decided(tmp_path)
    assert (second.look, second.level) == (2, level_of(2)) and second.level < first.level
    with Store.open(tmp_path / "store.db") as store:
        assert len(store.looks(ENV)) == 2


def test_a_dry_run_tells_how_many_ratings_there_are_and_nothing_of_them(tmp_path: Path) -> None:
    served(tmp_path, 2, (0.0, 1.0))
    assert decided(tmp_path, look=False).verdict == "too few"
    served(tmp_path, 28, (0.2, 0.9), start=2)
    said = json.loads(
        CliRunner().invoke(app, ["canary", "shop", "--dry-run", "--json", "--work", str(tmp_path)]).stdout
    )
    assert said["verdict"] == "not asked" and said["rated"] == [30, 30] and said["look"] is None
    assert not {"first", "second", "difference", "p", "p_worse"} & said.keys()
    with Store.open(tmp_path / "store.db") as store:
        assert store.looks(ENV) == [] and current_student(store, ENV) is None
    assert {"first", "p"} <= decided(tmp_path).to_dict().keys()


@pytest.mark.parametrize("dry", [True, False])
def test_recording_goes_on_while_ratings_are_compared(
    tmp_path: Path, dry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, 30, (0.2, 0.9))

    def watched(real: Any) -> Any:
        def act(*given: Any, **more: Any) -> Any:
            keep(tmp_path, f"while-{len(calls)}", "Box?", "Up.")
            calls.append(real)
            return real(*given, **more)

        return act

    calls: list[Any] = []
    for name in ("arms_of", "compare_apart"):
        monkeypatch.setattr(canary, name, watched(getattr(canary, name)))
    assert decided(tmp_path, look=not dry).verdict == ("not asked" if dry else "pass")
    assert len(calls) == (1 if dry else 3)


def test_what_a_person_moves_while_ratings_are_compared_stays_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, 30, (0.2, 0.9))
    with Store.open(tmp_path / "store.db") as store:
        move_student(store, ENV, MODEL, "gate")
    real = canary.compare_apart

    def rolled_back(*given: Any, **more: Any) -> Any:
        with Store.open(tmp_path / "store.db") as store:
            move_student(store, ENV, None, "rollback")
        return real(*given, **more)

    monkeypatch.setattr(canary, "compare_apart", rolled_back)
    for _ in range(2):  # the same command again is the same look
        done = CliRunner().invoke(app, ["canary", "shop", "--json", "--work", str(tmp_path)])
        found = json.loads(done.stdout)
        assert (done.exit_code, found["verdict"], found["moved"], student(tmp_path)) == (3, "pass", "", None)
        assert "its ref was moved while ratings were compared, and stays" in found["lines"][-1]
        assert found["overtaken"]
        monkeypatch.undo()


def test_a_canary_does_not_replace_what_it_was_never_served_beside(tmp_path: Path) -> None:
    """A night's training has put another student there since; nobody compared the two."""
    served(tmp_path, 30, (0.2, 0.9))
    with Store.open(tmp_path / "store.db") as store:
        store.add_model("d" * 64, "tonight's")
        move_student(store, ENV, "d" * 64, "gate")
    for look in (True, False):
        with pytest.raises(ConfigError, match=rf"{ENV}/student is {'d' * 12} now.*never served.*no look was spent"):
            decided(tmp_path, look=look)
    with Store.open(tmp_path / "store.db") as store:
        assert store.looks(ENV) == [] and current_student(store, ENV) == "d" * 64
        move_student(store, ENV, MODEL, "rollback")
    assert decided(tmp_path).verdict == "pass" and student(tmp_path) == NEW
    with Store.open(tmp_path / "store.db") as store:
        move_student(store, ENV, "d" * 64, "gate")
    assert decided(tmp_path).verdict == "pass" and student(tmp_path) == "d" * 64  # what was decided stays decided


def test_a_canary_s_context_does_not_replace_one_that_was_not_served(tmp_path: Path) -> None:
    new, other = Context("Say where the box is."), Context("Say it in a friendly voice.")
    with Store.open(tmp_path / "store.db") as store:
        store.add_context(new)
        store.move(f"{ENV}/best", store.add_context(other), "gate", "it won")
    served(tmp_path, 30, (0.2, 0.9), new={"context_id": new.id})
    with pytest.raises(ConfigError, match=rf"{ENV}/best is {other.id[:12]} now"):
        decided(tmp_path)


@pytest.mark.parametrize(("n", "verdict"), [(5, "too few"), (6, "pass")])
def test_six_pairs_that_all_won_are_enough(tmp_path: Path, n: int, verdict: str) -> None:
    served(tmp_path, n, (0.0, 1.0), paired=True)
    assert decided(tmp_path).verdict == verdict


@pytest.mark.parametrize(("n", "verdict"), [(3, "too few"), (4, "pass")])
def test_four_sessions_of_each_are_enough_if_all_of_one_arm_alone_won(tmp_path: Path, n: int, verdict: str) -> None:
    served(tmp_path, n, (0.0, 1.0))
    assert decided(tmp_path).verdict == verdict


def test_equal_models_seldom_pass() -> None:
    from agentopcd.core.apart import compare_apart

    rng = random.Random(0)
    arms = [[[rng.random() < 0.4 for _ in range(30)] for _ in range(2)] for _ in range(2000)]
    passed = sum(compare_apart(a, b).p < 0.05 for a, b in arms)
    assert 0.03 < passed / len(arms) < 0.06


def test_a_better_context_becomes_the_best_and_may_be_distilled(tmp_path: Path) -> None:
    context = Context("Say where the box is.")
    with Store.open(tmp_path / "store.db") as store:
        store.add_context(context)
    served(tmp_path, 30, (0.2, 0.9), new={"context_id": context.id})
    assert decided(tmp_path).moved == f"{ENV}/best" and student(tmp_path) is None
    with Store.open(tmp_path / "store.db") as store:
        assert store.ref(f"{ENV}/best") == context.id
        assert [look["verdict"] for look in store.looks(ENV, context.id)] == ["pass"]


def test_scores_are_compared_as_success_is(tmp_path: Path) -> None:
    served(tmp_path, 40, (0.1, 0.9), figure="stars")
    assert decided(tmp_path).verdict == "too few"  # of ratings with a success
    assert decided(tmp_path, by="stars").verdict == "pass" and student(tmp_path) == NEW


def test_only_sessions_beside_the_canary_count(tmp_path: Path) -> None:
    for i in range(40):  # before there was a canary, and worse
        keep(tmp_path, f"old-{i}", "Box?", "Up.", arm="control", rating={"success": False})
        keep(tmp_path, f"alone-{i}", "Box?", "Up.", rating={"success": False})
    served(tmp_path, 30, (0.8, 0.8), start=100)
    keep(tmp_path, "silent", "Box?", "Up.", arm="canary", model_id=NEW)
    found = decided(tmp_path)
    assert found.verdict == "not better" and found.rated == (30, 30) and len(found.arms.canary) == 31
    assert len(found.arms.control) == 30


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no session of 'shop' was dealt to a canary.*--canary 0\.1 --work \S+`"):
        decided(tmp_path)
    keep(tmp_path, "one", "Box?", "Up.", arm="canary", model_id=NEW)
    with pytest.raises(ConfigError, match="nothing to compare"):
        decided(tmp_path)
