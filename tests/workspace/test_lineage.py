"""Forgetting what is in a student's weights, in a workspace with two generations of a tiny student."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentopcd import distil
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context, Mixture
from agentopcd.distil import distil_context
from agentopcd.knowledge import identify, item_ids, render
from agentopcd.knowledge.lineage import carried, generations
from agentopcd.knowledge.students import current_student, move_student, student_moves
from agentopcd.workspace.lineage import forget as module
from agentopcd.workspace.lineage.audit import Reader
from agentopcd.workspace.lineage.forget import forget, forgotten_before
from agentopcd.workspace.lineage.recorded import forgotten, student_named
from agentopcd.workspace.overview import overview
from agentopcd.workspace.session import Session
from tests.lineage import FIRST, ONE, SECOND, THREE, TWO, Killed, Lab, audit_of, base_of, dies, lab, made, row_of

__all__ = ["lab", "made"]


def test_forget_trains_again_without_the_item_and_proves_it(lab: Lab) -> None:
    old, done = row_of(lab, 1)["id"], lab.forget(TWO)
    with lab.open() as store:
        base, first, second = generations(store, done.student)
        assert base.model["id"] == row_of(lab, 0)["parent_id"]
        assert [store.get_context(next(iter(one.contexts))) for one in (first, second)] == [
            Context(render([ONE])), SECOND,
        ]  # fmt: skip
        assert store.item(identify(TWO)).status == "retired"
        assert done.student not in store.carriers(identify(TWO)) and old in store.carriers(identify(TWO))
        recipe = json.loads(store.context_row(next(iter(first.contexts)))["recipe"])
        assert recipe == {"order": "forget", "from": FIRST.id, "without": [identify(TWO)]}
        assert [entry.item.text for entry in carried(store, done.student)] == [ONE, THREE]
        assert store.runs("forget")[-1]["status"] == "done"
        assert [item.text for item in forgotten(store, old)] == [TWO] and not forgotten(store, done.student)
    assert [row["checked"] for row in done.proof] == [True] * 3
    assert identify(TWO) not in json.dumps(done.proof) and Path(done.folder).is_dir()
    before = {file: file.stat().st_mtime_ns for file in lab.work.rglob("model.safetensors")}
    again = lab.forget(TWO, student=old[:12], distil=lambda *args: pytest.fail("trained again"))
    assert again == dataclasses.replace(done, repeated=True)
    assert {file: file.stat().st_mtime_ns for file in lab.work.rglob("model.safetensors")} == before


@pytest.mark.slow
@pytest.mark.parametrize("at", ["the student", "its parent", "another"])
def test_what_plays_no_longer_has_the_item_and_nothing_else_moves(lab: Lab, at: str) -> None:
    other = lab.train(Context(render(["be kind"])), base_of(lab), test_tasks=0)
    with lab.open() as store:
        env = student_moves(store)[0]["env"]
        target = {"the student": row_of(lab, 1)["id"], "its parent": row_of(lab, 0)["id"], "another": other.model_id}
        move_student(store, env, target[at], "person")
    done = lab.forget(TWO, student=row_of(lab, 1)["id"][:12])
    with lab.open() as store:
        new = [one.model["id"] for one in generations(store, done.student)]
        wanted = {"the student": new[2], "its parent": new[1], "another": other.model_id}
        assert current_student(store, env) == wanted[at]
        assert student_named(store, lab.work, f"{env}/student") == store.lookup("model", id=wanted[at])


@pytest.mark.slow
def test_a_killed_forgetting_goes_on_and_ends_like_an_unbroken_one(lab: Lab, tmp_path: Path) -> None:
    straight = dataclasses.replace(lab, work=tmp_path / "straight" / "w")
    shutil.copytree(lab.work, straight.work)
    calls = []

    def dies_later(session: Session, config: ConsolidateConfig, context: Any) -> Any:
        calls.append(context)
        if len(calls) == 2:
            raise Killed
        return distil_context(session, config, context)

    with pytest.raises(Killed):
        lab.forget(TWO, distil=dies_later)
    with lab.open() as store:
        assert store.runs("forget")[-1]["status"] == "running"
        old = row_of(lab, 1)["id"]
    done = lab.forget(TWO, student=old[:12])
    assert done.student == straight.forget(TWO).student
    with lab.open() as store:
        assert len(store.runs("forget")) == 1 and len(store.runs("consolidate")) == 4


@pytest.mark.parametrize("texts", [(THREE,), (ONE, TWO, THREE)])
def test_what_others_move_while_a_forgetting_lies_killed_stays(
    lab: Lab, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another environment, and in this one; also where the base is what is left, which no run has trained."""
    other, old = lab.train(Context(render(["be kind"])), base_of(lab), test_tasks=0), row_of(lab, 1)["id"]
    with lab.open() as store:
        env = student_moves(store)[0]["env"]
        move_student(store, env, old, "person")
    monkeypatch.setattr(module, "proved", dies)
    with pytest.raises(Killed):
        lab.forget(*texts, student=old[:12])
    monkeypatch.undo()
    with lab.open() as store:
        for one in (env, "another"):
            move_student(store, one, other.model_id, "person")
    lab.forget(*texts, student=old[:12])
    with lab.open() as store:
        assert [current_student(store, one) for one in (env, "another")] == [other.model_id] * 2


def test_a_killed_forgetting_and_a_training_that_may_not_move_leave_the_student(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = row_of(lab, 1)["id"]
    monkeypatch.setattr(module, "proved", dies)
    with pytest.raises(Killed):
        lab.forget(TWO, student=old[:12])
    with lab.open() as store:
        assert len(store.models(trained=True)) == 4, "both trainings are done"
        (env,) = {move["env"] for move in student_moves(store)}
        assert current_student(store, env) == old
    kind = Context(render(["be kind"]))
    assert lab.train(kind, base_of(lab), test_tasks=0, moves=False).model_id != old
    with lab.open() as store:
        assert current_student(store, env) == old
    asked = lab.train(kind, base_of(lab), test_tasks=0)  # the same training, by a person who wants it to play
    with lab.open() as store:
        assert asked.repeated and current_student(store, env) == asked.model_id
        move_student(store, env, old, "person")
    lab.train(kind, base_of(lab), test_tasks=0)
    with lab.open() as store:
        assert current_student(store, env) == old, "once"


def test_a_training_that_ends_in_known_weights_moves_nothing_for_good(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the model names the first run that ended in them, so that the training is known by its own row."""
    other, old = lab.train(Context(render(["be kind"])), base_of(lab), test_tasks=0), row_of(lab, 1)["id"]
    with lab.open() as store:
        env, first = student_moves(store)[0]["env"], store.runs("consolidate")[0]["id"]
        move_student(store, env, other.model_id, "person")
    monkeypatch.setattr(module, "proved", dies)
    with pytest.raises(Killed):
        lab.forget(TWO, student=old[:12], distil=distil_context)  # as an older version did
    monkeypatch.undo()
    with lab.open() as store:
        assert current_student(store, env) != other.model_id, "the trainings have moved it"
        with store.write():
            store.change("UPDATE model SET run_id = ? WHERE run_id = (SELECT max(run_id) FROM model)", (first,))
    lab.forget(TWO, student=old[:12])
    with lab.open() as store:
        assert current_student(store, env) == other.model_id


def test_status_goes_on_with_a_killed_forgetting_and_not_with_its_training(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = row_of(lab, 1)["id"]
    with lab.open() as store:
        env = student_moves(store)[0]["env"]
    monkeypatch.setattr(distil, "train_student", dies)
    with pytest.raises(Killed):
        lab.forget(TWO)
    monkeypatch.undo()
    monkeypatch.setattr(Reader, "take", dies)
    with pytest.raises(Killed):
        audit_of(lab, 1, others=[identify(TWO)])
    with lab.open() as store:
        killed, stage, asked = overview(store, lab.work, " --work W").jobs[-3:]
        assert current_student(store, env) == old
    assert killed.command == f"agentopcd knowledge forget {identify(TWO)[:12]} --student {old[:12]} --work W"
    assert (stage.verb, stage.state, stage.part_of, stage.command) == ("consolidate", "interrupted", "forget", "")
    assert asked.command == f"agentopcd knowledge audit {old[:12]} --item {identify(TWO)[:12]} --turns 12 --work W"


def test_a_training_that_nothing_is_left_of_is_left_out(lab: Lab) -> None:
    first = row_of(lab, 0)["id"]
    done = lab.forget(THREE)
    assert done.student == first and done.instead_of == row_of(lab, 1)["id"]
    assert [len(row["contexts"]) for row in done.proof] == [0, 1]


def test_a_mixture_is_trained_on_without_the_item(lab: Lab) -> None:
    mixed = Mixture((FIRST, Context(render([TWO]))), (3.0, 1.0))
    lab.train(mixed, base_of(lab))
    with lab.open() as store:
        (step,) = lab.plan(store, ONE).steps
        assert step.context == Context(render([TWO]))
        (step,) = lab.plan(store, TWO).steps
        assert step.context == Context(render([ONE]))


def test_a_plan_changes_nothing(lab: Lab) -> None:
    with lab.open() as store:
        plan, runs = lab.plan(store, TWO), len(store.runs())
        said = [*plan.lines()]
        assert plan.kept == 1 and len(plan.steps) == 2
        assert said[1].startswith("6 steps on as ") and said[2] == "6 steps on as it is, it never held it"
        assert module.time_of(store, lab.work, plan, lambda line: None).startswith("time: up to ")
        assert len(store.runs()) == runs and store.item(identify(TWO)).status == "pending"


def test_what_says_the_same_is_named_and_what_is_distinct_is_not(lab: Lab) -> None:
    alike = "Left, then up, and down."
    last = lab.train(Context(render([alike])), str(lab.work / row_of(lab, 1)["path"]), test_tasks=0)
    with lab.open() as store:
        with pytest.raises(
            ConfigError, match=rf"seems to say the same .*forget \w+ {identify(alike)[:12]}.*--distinct"
        ):
            lab.plan(store, TWO)
        assert [step.context for step in lab.plan(store, TWO, alike).steps] == [Context(render([ONE])), SECOND, None]
        store.event(identify(TWO), "distinct", "person", other=identify(alike))
        assert len(lab.plan(store, TWO).steps) == 3
        store.event(identify(TWO), "supersede", "person", other=identify(alike))
        assert [item.id for item in store.items(status="retired")] == [identify(TWO)]
    assert last.model_id


@pytest.mark.parametrize("text", [f"Always: {TWO}.", "left, then up and then down", f"Rule one.\nNow {TWO}! And go."])
def test_plain_text_that_says_it_is_refused(lab: Lab, text: str) -> None:
    lab.train(Context(text), str(lab.work / row_of(lab, 1)["path"]), test_tasks=0)
    with lab.open() as store, pytest.raises(ConfigError, match="says it in plain text, where no line can be left out"):
        lab.plan(store, TWO)


def test_what_cannot_be_done_is_refused_and_nothing_is_changed(lab: Lab) -> None:
    work = lab.work
    with lab.open() as store:
        with pytest.raises(ConfigError, match=rf"does not carry item {identify(THREE)[:12]}; agentopcd knowledge show"):
            lab.plan(store, THREE, student=row_of(lab, 0)["id"][:12])
        store.event(identify(ONE), "retire", "person")
        with pytest.raises(ConfigError, match=r"was retired as well \('say seven'\).*forget it too"):
            lab.plan(store, TWO)
        assert len(lab.plan(store, ONE, TWO).steps) == 2
        store.event(identify(ONE), "approve", "person")
        settings = Path(row_of(lab, 0)["path"]).parent / "config.toml"
        (work / settings).rename(work / "elsewhere.toml")
        with pytest.raises(ConfigError, match=r"was trained is not known any more: .* has no config.toml; put"):
            lab.plan(store, TWO)
        (work / "elsewhere.toml").rename(work / settings)
        weights = (work / row_of(lab, 0)["path"]) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        with pytest.raises(ConfigError, match="its files were changed; put them back"):
            forget(store, work, lab.plan(store, THREE), distil=distil_context, say=lambda line: None)
        shutil.rmtree(work / row_of(lab, 0)["path"])
        with pytest.raises(ConfigError, match=r"the last ancestor that never saw it, .* is not here; put it back"):
            lab.plan(store, THREE)
    assert item_ids(FIRST) == [identify(ONE), identify(TWO)]


def test_what_was_sharded_is_forgotten_under_torchrun(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = lab.work / Path(row_of(lab, 1)["path"]).parent / "config.toml"
    settings.write_text(settings.read_text().replace("shard = false", "shard = true"))
    with lab.open() as store:
        with pytest.raises(ConfigError, match=r"was trained with --shard, .*; give the command under torchrun"):
            lab.plan(store, TWO)
        assert store.item(identify(TWO)).status != "retired"
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert len(lab.plan(store, TWO).steps) == 2


def test_a_teacher_that_knows_it_is_refused(lab: Lab) -> None:
    first = lab.work / row_of(lab, 0)["path"]
    lab.train(Context(render([TWO, THREE])), base_of(lab), teacher=str(first), test_tasks=0)
    with lab.open() as store:
        with pytest.raises(ConfigError, match=r"the teacher of student \w+, .*, has it in its weights"):
            lab.plan(store, TWO)
        assert len(lab.plan(store, THREE).steps) == 1


def test_a_teacher_that_knows_nearly_the_same_is_refused(lab: Lab) -> None:
    near = lab.train(Context(render([f"{TWO}."])), base_of(lab), test_tasks=0)
    lab.train(Context(render([TWO, THREE])), base_of(lab), teacher=near.folder, test_tasks=0)
    with (
        lab.open() as store,
        pytest.raises(ConfigError, match=r"the teacher of student \w+, .*, has it in its weights"),
    ):
        lab.plan(store, TWO)


def test_where_the_parent_was_named_as_teacher_the_new_parent_teaches(lab: Lab) -> None:
    first = str(lab.work / row_of(lab, 0)["path"])
    again = lab.train(Context(render(["be kind"])), first, teacher=first, test_tasks=0)
    done = lab.forget(TWO, student=again.model_id[:12])
    with lab.open() as store:
        row = store.lookup("model", id=done.student)
        assert row is not None and json.loads(store.run(row["run_id"])["result"])["teacher"] == row["parent_id"]
        assert done.student not in store.carriers(identify(TWO))


def test_only_what_is_trained_again_has_to_be_there_and_allowed(lab: Lab) -> None:
    with lab.open() as store:
        store.event(identify(ONE), "retire", "person")  # of the first student, which stays as it is
        (step,) = lab.plan(store, THREE).steps
        assert step.context is None
    shutil.rmtree(lab.work / Path(row_of(lab, 1)["path"]).parent)  # nothing is left of that training
    done = lab.forget(THREE, student=row_of(lab, 1)["id"][:12])
    assert done.student == row_of(lab, 0)["id"]


def test_what_was_forgotten_is_proved_again_without_the_old_students_folder(lab: Lab) -> None:
    old = row_of(lab, 1)
    done = lab.forget(TWO)
    for row in (old, row_of(lab, 0)):
        shutil.rmtree(lab.work / Path(row["path"]).parent)
    with lab.open() as store:
        again = forgotten_before(store, lab.work, old, [store.item(identify(TWO))], say=lambda line: None)
    assert again == dataclasses.replace(done, repeated=True)


def test_a_teacher_is_the_one_of_the_first_training_and_stands_in_the_proof(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENV/student has moved since then, to a student that has the item in its weights."""
    clean = lab.train(Context(render(["be kind"])), base_of(lab), test_tasks=0)
    with lab.open() as store:
        env = student_moves(store)[0]["env"]
        assert current_student(store, env) == clean.model_id
    taught = lab.train(Context(render([ONE, TWO, THREE])), base_of(lab), teacher=f"{env}/student", test_tasks=0)
    with lab.open() as store:
        assert current_student(store, env) == taught.model_id
    done = lab.forget(TWO, student=taught.model_id[:12])
    with lab.open() as store:
        row = store.lookup("model", id=done.student)
        assert row is not None and json.loads(store.run(row["run_id"])["result"])["teacher"] == clean.model_id
    (told,) = [one for one in done.proof if one["model"] == clean.model_id]
    assert told["taught"] == done.student and told["checked"] and len(done.proof) == 3
    assert any(line.endswith(f"in the lineage of the teacher of {done.student[:12]}") for line in done.lines())
    weights = Path(clean.folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ConfigError, match=r"is no longer the model that taught: its files were changed"):
        lab.forget(ONE, TWO, student=taught.model_id[:12])
    shutil.rmtree(clean.folder)
    with pytest.raises(ConfigError, match=r"the teacher .* is no longer here; put it back"):
        lab.forget(ONE, TWO, student=taught.model_id[:12])
