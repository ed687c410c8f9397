"""The ratchet: a student takes ENV/student only if it is better here, has lost nothing, and stayed near its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Mean, paired_difference
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, level_of
from agentopcd.knowledge.students import move_student, student_moves
from agentopcd.models.load import LoadedModel
from agentopcd.workspace import ratchet
from agentopcd.workspace.evaluation.distilled import Distilled
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.gated import abilities, to_gate, too_few
from agentopcd.workspace.ratchet import Promotion
from agentopcd.workspace.session import Session
from tests.ratchet import Lab, folders, lab

__all__ = ["folders", "lab"]


def test_a_better_student_is_promoted_and_a_repeated_call_moves_nothing(lab: Lab) -> None:
    done = lab.promote("good", "base")
    assert done.verdict == "promoted" and lab.student() == lab.ids["good"]
    (test,) = done.tests
    assert test.role == "parent" and test.passed and test.level == level_of(1)
    again = lab.promote("good", "base")
    assert again.to_dict() == done.to_dict()
    with Session(lab.config(), lab.work, say=lab.lines.append) as session:
        assert len(student_moves(session.store)) == 1 and len(session.store.looks(session.env)) == 1
        assert session.config.model and session.model_name() == (str(lab.folders["base"]), "as given")


@pytest.mark.parametrize("name", ["poor", "worse"])
def test_a_student_that_is_no_better_stays_out(lab: Lab, name: str) -> None:
    done = lab.promote(name, "base")
    assert done.verdict == "not better" and lab.student() is None
    assert done.drift is None, "the first no is enough"
    assert "verdict: not promoted, it is not shown to be better than its parent here" in done.lines()[-1]


def test_a_second_student_must_beat_the_first(lab: Lab) -> None:
    lab.promote("good", "base")
    done = lab.promote("slipped", "base")  # better than the base, from which it was trained, too
    assert [test.role for test in done.tests] == ["parent", "student"]
    assert done.verdict == "student stays" and lab.student() == lab.ids["good"]


@pytest.mark.parametrize("moved", ["another gate", "a rollback"])
def test_what_moves_during_a_gate_stays(lab: Lab, moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slipped is worse than good, which it does not meet: the base was there when its gate began."""
    if moved == "a rollback":
        lab.promote("poor", "base")
        with Session(lab.config(), lab.work, say=lab.lines.append) as session:
            move_student(session.store, session.env, lab.ids["poor"], "person")

    def meanwhile(session: Session, *_: Any) -> Mean:
        monkeypatch.setattr(ratchet, "neutral_drift", lambda *_: Mean(0.2, 0.1, 0.3, 32))
        if moved == "another gate":
            lab.promote("good", "base")
        else:
            move_student(session.store, session.env, None, "rollback")
        return Mean(0.2, 0.1, 0.3, 32)

    monkeypatch.setattr(ratchet, "neutral_drift", meanwhile)
    done = lab.promote("slipped", "base")
    assert done.verdict == "overtaken" and lab.student() == (lab.ids["good"] if moved == "another gate" else None)
    assert "it passed, but" in done.lines()[-1] and not done.promoted
    with Session(lab.config(), lab.work, say=lab.lines.append) as session:
        assert "overtaken" in [look["verdict"] for look in session.store.looks(session.env)]


def test_what_the_lineage_had_elsewhere_must_be_kept(lab: Lab) -> None:
    assert lab.promote("good", "base").verdict == "promoted"
    lost = lab.promote("traded", "good", env=1)
    assert lost.verdict == "lost" and lab.student(1) is None and lab.student(0) == lab.ids["good"]
    assert [(test.role, test.passed) for test in lost.tests] == [("parent", True), ("had", False)]
    kept = lab.promote("both", "good", env=1, margin=0.3)
    assert kept.verdict == "promoted" and lab.student(1) == lab.ids["both"]
    had = kept.tests[1]
    assert had.rival == lab.ids["good"] and had.look == 3, "the third look at the first environment"
    # The interval is at the level of the look, one-sided, and not at 95 %.
    pair, z = had.pair, NormalDist().inv_cdf(1 - had.level)
    won = round(pair.first.rate * pair.n)
    cells = (won - pair.wins, pair.wins, pair.losses, pair.n - won - pair.losses)
    assert pair.difference == paired_difference(*cells, z) and had.level == level_of(3) and z > 2.8


def test_what_must_be_kept_is_of_the_last_model_that_was_promoted_there(lab: Lab) -> None:
    lab.descend("poor", "good")
    with Session(lab.config(1), lab.work, say=lab.lines.append) as session:
        for name in ("poor", "good"):
            move_student(session.store, lab.envs[0], lab.ids[name], "no gate")
        assert [had["id"] for had in abilities(session, lab.ids["good"]).values()] == [lab.ids["good"]]


@pytest.mark.parametrize(("nats", "verdict"), [((0.1, 0.5), "promoted"), ((0.5, 0.1), "not better")])
def test_by_distance_the_nearer_one_is_the_better_one(
    nats: tuple[float, float], verdict: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    far: dict[str, float] = {"good": nats[0], "base": nats[1]}

    def by_place(session: Session, one: Contestant, prompted: Any, context: Any, jobs: Any, *, setup: str) -> Any:
        return {(job.task.key, job.task.seed, job.rep): far[one.model.folder.name] for job in jobs}

    monkeypatch.setattr(ratchet, "nats_by_place", by_place)
    done = lab.promote("good", "base", by="distance")
    assert done.verdict == verdict and (lab.student() == lab.ids["good"]) is (verdict == "promoted")
    told = "distance {:.3f} against {:.3f}, nearer by {:+.3f}".format(*nats, nats[1] - nats[0])
    assert told in done.lines()[1]


@pytest.mark.parametrize(("chosen", "asked"), [("reward", "reward"), ("distance", "success")])
def test_what_a_lineage_had_elsewhere_is_asked_by_the_score_that_it_was_chosen_by(
    lab: Lab, chosen: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a distance to whatever taught it then, nothing can be asked later."""
    with monkeypatch.context() as patch:
        if chosen == "distance":  # which takes a training to measure
            patch.setattr(Session, "by", "success")
        lab.promote("good", "base", by=chosen)
    kept = lab.promote("both", "good", env=1, margin=0.3)
    assert [(test.role, test.by) for test in kept.tests] == [("parent", "success"), ("had", asked)]


def test_too_few_tasks_to_show_that_nothing_is_lost_are_told(lab: Lab) -> None:
    lab.promote("good", "base")
    done = lab.promote("both", "good", env=1)  # 22 tasks, all alike: at worst -0.2
    assert done.verdict == "lost" and done.tests[-1].pair.losses == 0
    assert "are too few to show a loss below 0.1" in done.notes[0]


def test_the_margin_is_what_may_be_lost(lab: Lab) -> None:
    lab.promote("good", "base")
    assert lab.promote("slipped", "good", env=1, margin=0.01).verdict == "lost"
    assert lab.promote("slipped", "good", env=1, margin=0.5).verdict == "promoted"


def test_a_lineage_that_never_learned_elsewhere_has_nothing_to_lose_there(lab: Lab) -> None:
    lab.promote("good", "base")
    assert lab.promote("traded", "base", env=1).verdict == "promoted"


def test_an_environment_that_cannot_be_asked_counts_as_lost(lab: Lab) -> None:
    lab.promote("good", "base")
    Path(lab.envs[0]).unlink()
    done = lab.promote("both", "good", env=1)
    assert done.verdict == "lost" and "could not be asked, so it counts as lost" in done.notes[0]


@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_a_margin_follows_the_scale_of_rewards(lab: Lab, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Store.outcomes

    def scaled(store: Store, arm: Any, arena: Any) -> Any:
        found = outcomes(store, arm, arena)
        return found if arena.by != "reward" else {place: scale * value for place, value in found.items()}

    monkeypatch.setattr(Store, "outcomes", scaled)
    lab.promote("good", "base", by="reward")
    lost = lab.promote("traded", "good", env=1, margin=0.9)
    kept = lab.promote("slipped", "good", env=1, margin=0.9)
    assert (lost.verdict, kept.verdict) == ("lost", "promoted")
    had = kept.tests[-1]
    won = had.pair.second.rate / scale
    assert had.pair.difference.diff < 0 and had.allowed / scale == pytest.approx(0.9 * 2 * (won * (1 - won)) ** 0.5)
    assert f"{-had.allowed:+.3g} is allowed" in kept.lines()[2]


# -- what cannot be asked -------------------------------------------------------------------------------


def passed(done: Promotion) -> bool:
    """Whether `learn` tries no other way to train after this."""
    return Distilled(
        folder="", model_id="", parent_id="", teacher_id="", context_id="", best_step=1, steps=1, skipped=0,
        evaluation=None, promotion=done.to_dict(),
    ).passed  # fmt: skip


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("environment", "which the parent's lineage has learned, cannot be asked"),
        ("model", "cannot be asked, so no student would pass the gate: its model, runs/good "),
        ("base", "the base of the lineage, .* is gone, .* put it back"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_training(lab: Lab, tmp_path: Path, gone: str, why: str) -> None:
    lab.promote("good", "base", gate_tasks=12)
    if gone == "environment":
        Path(lab.envs[0]).unlink()
    if gone == "model":
        lab.folders["good"].rename(tmp_path / "good")
    with Session(lab.config(1), lab.work, say=lab.lines.append) as session:
        if gone == "base":
            session.store.change("UPDATE model SET path = 'none' WHERE parent_id IS NULL", ())
        if gone == "model":
            to_gate(session, lab.config(1, gate_tasks=12), lab.ids["good"], 99)  # what it has played is stored
        with pytest.raises(ConfigError, match=rf"{why}.*, or train without the gate, by --gate-tasks 0"):
            to_gate(session, lab.config(1), lab.ids["good"], 99)


def test_the_student_before_is_there_or_has_played_before_the_next_one_is_trained(lab: Lab, tmp_path: Path) -> None:
    lab.promote("good", "base", gate_tasks=12)
    lab.folders["good"].rename(tmp_path / "good")
    with Session(lab.config(), lab.work, say=lab.lines.append) as session:
        base = session.loaded
        to_gate(session, lab.config(gate_tasks=12), base.id, 99)
        with pytest.raises(ConfigError, match=r"/student is runs/good .*put it back, .* \(agentopcd rollback .*--work"):
            to_gate(session, lab.config(), base.id, 99)


def test_no_other_way_to_train_is_tried_for_what_cannot_be_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.promote("good", "base")
    with monkeypatch.context() as patch:
        patch.setattr(ratchet, "neutral_drift", lambda *_: Mean(0.6, 0.6, 0.6, 32))
        far = lab.promote("both", "good", env=1, margin=0.3)
    assert far.verdict == "drifted" and not passed(far), "another way may stay nearer"
    Path(lab.envs[0]).unlink()
    lost = lab.promote("both", "good", env=1)
    assert lost.verdict == "lost" and passed(lost) and "or train without the gate" in lost.notes[0]


def test_drift_is_measured_to_the_base_and_not_to_the_parent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.descend("good")
    seen: list[tuple[str, str]] = []

    def drift(session: Session, student: LoadedModel, base: LoadedModel) -> Mean:
        seen.append((student.folder.name, base.folder.name))
        return Mean(0.2, 0.1, 0.3, 32)

    monkeypatch.setattr(ratchet, "neutral_drift", drift)
    assert lab.promote("both", "good", env=1).promoted
    assert seen == [("both", "base")]


@pytest.mark.parametrize(("what", "why"), [("gone", "no longer here; put it back"), ("changed", "files were changed")])
def test_drift_is_measured_to_the_base_as_it_was(lab: Lab, tmp_path: Path, what: str, why: str) -> None:
    """The parent is another model, which is still there."""
    shutil.copytree(lab.folders["base"], tmp_path / "base")
    lab.folders["base"], train = tmp_path / "base", lab.trained
    lab.descend("good")
    weights = tmp_path / "base" / "model.safetensors"

    def trained(*given: Any) -> LoadedModel:
        student = train(*given)
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        if what == "gone":
            shutil.rmtree(tmp_path / "base")
        return student

    lab.trained = trained  # type: ignore[method-assign]
    done = lab.promote("both", "good", env=1)
    assert done.verdict == "drifted" and done.drift is None and passed(done)
    assert why in done.notes[0]


def test_a_model_that_a_canary_moved_is_not_asked_where_it_was_trained(lab: Lab) -> None:
    lab.promote("good", "base")
    with Session(lab.config(), lab.work, say=lab.lines.append) as session:
        move_student(session.store, "recorded:shop", lab.ids["good"], "gate", "the canary won")
        env = session.env
    done = lab.promote("both", "good", env=1, margin=0.3)
    assert done.notes == [f"recorded:shop was not asked: its student was trained on {env}"]
    assert [test.role for test in done.tests] == ["parent", "had"] and done.verdict == "promoted"


def test_what_was_trained_on_a_recording_is_asked_however_that_was_graded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.promote("good", "base")
    with Session(lab.config(), lab.work, say=lab.lines.append) as session:
        move_student(session.store, "recorded:shop", lab.ids["good"], "gate")
    given = {"env": "recorded:shop,grader=g.py:f", "env_ref": "recorded:shop", "env_args": {}}
    monkeypatch.setattr(ratchet, "made_by", lambda session, had: given)
    done = lab.promote("both", "good", env=1, margin=0.3)
    assert done.verdict == "lost" and any("recorded:shop could not be asked, so it counts" in one for one in done.notes)


def test_too_few_tasks_to_pass_spend_no_look_and_are_told_before(lab: Lab) -> None:
    for name in ("poor", "worse", "traded"):
        lab.promote(name, "base", gate_tasks=8)
    few, enough = lab.config(gate_tasks=8), lab.config(gate_tasks=9)
    with Session(few, lab.work, say=lab.lines.append) as session:
        to_gate(session, few, session.loaded.id, 99)
        to_gate(session, enough, session.loaded.id, 99)
        own = session.store.looks(session.env)[-1]
        assert too_few(session, few, own["run_id"]) == "", "a look that was begun keeps its level"
    (told,) = [line for line in lab.lines if line.startswith("warning: ")]
    assert told.startswith("warning: 8 confirm tasks cannot reach level 0.0013 of look 4, whatever comes of them")
    assert "; --gate-tasks 9 could, so this student will not become" in told
    done = lab.promote("good", "base", gate_tasks=8)
    assert done.verdict == "too few" and not done.tests and "--gate-tasks 9 could" in done.notes[0] and passed(done)
    assert "no look was spent" in done.lines()[-1]
    assert lab.promote("good", "base", gate_tasks=9).tests[0].look == 4


def test_drift_on_neutral_prompts_has_a_budget(lab: Lab) -> None:
    done = lab.promote("good", "base", drift_budget=0.25)  # the upper end of the interval is 0.3
    assert done.verdict == "drifted" and lab.student() is None
    assert lab.promote("good", "base", drift_budget=0.35).verdict == "promoted"


def test_drift_that_cannot_be_measured_promotes_nobody(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> Mean:
        raise ConfigError("good gave 0 replies to neutral prompts, and none that can be scored")

    monkeypatch.setattr(ratchet, "neutral_drift", silent)
    done = lab.promote("good", "base")
    assert done.verdict == "drifted" and lab.student() is None
    assert "was not measured: good gave 0 replies" in done.notes[0]


def test_tests_of_students_spend_the_looks_of_contexts(lab: Lab) -> None:
    lab.promote("poor", "base")
    lab.promote("worse", "base")
    done = lab.promote("good", "base")
    assert done.tests[0].look == 3 and done.tests[0].level == level_of(3)


def test_the_student_plays_where_no_model_is_named_and_its_ref_can_be_named(lab: Lab) -> None:
    lab.promote("good", "base")
    with Session(lab.config(model=""), lab.work, say=lab.lines.append) as session:
        assert session.model_name()[0] == str(lab.folders["good"])
        ref = f"{session.env}/student"
        assert session.load(ref).id == lab.ids["good"]
    with Session(lab.config(1, model=ref), lab.work, say=lab.lines.append) as session:
        assert session.model_name() == (str(lab.folders["good"]), "as given")
        move_student(session.store, ref.removesuffix("/student"), None, "rollback")
        with pytest.raises(ConfigError, match="was rolled back to none"):
            session.model_name()


@pytest.mark.parametrize(("tasks", "kept"), [(2, False), (6, False), (7, True)])
def test_tasks_too_few_to_show_anything_do_not_show_that_nothing_was_lost(
    tasks: int, kept: bool, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal scores have an interval without width, however few; 0.5 ** 7 is below the level of a first look."""
    monkeypatch.setattr(ratchet._Ground, "scores", lambda ground, *_: dict.fromkeys(ground.places, 1.0))
    with Session(lab.config(by="reward"), lab.work, say=lab.lines.append) as session:
        run_id = session.ledger.begin("consolidate", context_id=EMPTY.id, folder="equal")
        ground = ratchet._Ground.of(session, tasks, run_id)
        (had,), _ = ground.meet(session.bench(run_id), session.loaded, {"other": "had"}, 0.1)
    assert had.passed == kept and had.pair.difference.low == 0
    assert (f"{tasks} tasks, too few to tell" in str(had)) != kept
