"""Audits of what is in a student's weights, against plain forward passes, on tiny models trained twice."""

from __future__ import annotations

import dataclasses
import json
import shlex
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context, Task
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.knowledge import identify, render
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import held_as
from agentopcd.workspace.lineage.audit import Reader, audit, stored_turns
from agentopcd.workspace.lineage.found import Audit, audits, curves
from agentopcd.workspace.lineage.recorded import Training, student_named
from tests.lineage import FIRST, ONE, THREE, TWO, Killed, Lab, audit_of, base_of, dies, lab, made, row_of

__all__ = ["lab", "made"]


def test_an_audit_reads_stored_replies_as_plain_forward_passes_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the first item, one reply at a time, each model's whole forward pass."""
    kept: dict[str, Any] = {}
    reads = Reader.read

    def read(reader: Reader, context: Context, *edit: Any) -> Any:
        kept["reader"] = reader
        return reads(reader, context, *edit)

    monkeypatch.setattr(Reader, "read", read)
    found = audit_of(lab, 0)
    reader: Reader = kept["reader"]
    assert (found.turns, [one.text for one in found.items]) == (12, [ONE, TWO])
    assert len(reader.turns) == 12 and found.tokens == sum(len(one.turns[0].response_ids) for one in reader.turns)
    base, student = (models.load_model(str(folder)) for folder in (reader.base.name, reader.student.name))
    sums: dict[str, list[float]] = {}
    for episode in reader.turns:
        (turn,) = episode.turns
        rows = []
        for loaded, context in ((base, EMPTY), (base, Context(render([TWO]))), (base, FIRST), (student, EMPTY)):
            prompt = reader.chat.render(turn.messages, context)
            with torch.no_grad():
                logits = loaded.model(torch.tensor([[*prompt, *turn.response_ids]])).logits[0]
            rows.append((logits[len(prompt) - 1 : -1] / 5.0).softmax(-1).double())
        b, o, w, s = (one.sqrt() for one in rows)
        kl, of_all = ((rows[2] * (rows[2] / rows[other]).log()).sum() for other in (1, 0))
        parts = [(w - o) * (w - o), (w - o) * (s - b), (o - b) * (w - o), kl, of_all]
        before = sums.setdefault(episode.task.key, [0.0] * 5)
        sums[episode.task.key] = [old + float(one.sum()) for old, one in zip(before, parts, strict=True)]
    item = reader.sums(reads(reader, Context(render([TWO]))), reads(reader, FIRST))
    for (_, (norm, shown, beside, kl, of_all)), one in zip(sorted(sums.items()), item, strict=True):
        assert one.products.part_part == pytest.approx(norm, rel=1e-3)
        assert one.products.part_shown == pytest.approx(shown, rel=2e-3, abs=1e-6)
        assert one.products.rest_part == pytest.approx(beside, rel=2e-3, abs=1e-6)
        assert (one.item_nats, one.context_nats) == pytest.approx((kl, of_all), rel=1e-3)
    whole = [sum(one[place] for one in sums.values()) for place in (3, 4)]
    assert found.items[0].own.of_context.rate == pytest.approx(whole[0] / whole[1], rel=1e-3)


def test_a_later_student_is_asked_for_what_its_ancestors_learned(lab: Lab) -> None:
    first, second = audit_of(lab, 0), audit_of(lab, 1)
    assert [(one.text, one.carrier, one.carried) for one in second.items] == [
        (ONE, row_of(lab, 0)["id"], True), (TWO, row_of(lab, 0)["id"], True), (THREE, row_of(lab, 1)["id"], True),
    ]  # fmt: skip
    with lab.open() as store:
        known = audits(store, row_of(lab, 1)["id"])
        assert known == [first, second]
        *_, told = curves(known)
        assert row_of(lab, 0)["id"][:12] in told and " -> " in told and told.endswith(TWO)
        assert [row["status"] for row in store.runs("audit")] == ["done", "done"]
    # The teacher's side does not depend on the student: the same turns, the same effect.
    assert [one.own.effect for one in second.items[:2]] == [one.own.effect for one in first.items]


def test_an_audit_is_read_back_when_it_is_asked_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit_of(lab, 0)
    monkeypatch.setattr(Reader, "take", lambda *args: pytest.fail("it was read again"))
    assert audit_of(lab, 0) == found
    monkeypatch.undo()
    with lab.open() as store, store.write():
        store.change("UPDATE run SET imported = 1 WHERE verb = 'audit'", ())
    assert audit_of(lab, 0) == found, "what was imported is no word of this store, so it is read again"
    with lab.open() as store:
        assert [row["imported"] for row in store.runs("audit")] == [1, 0]
    assert Audit.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_an_audit_of_few_turns_is_made_again_when_more_are_stored(lab: Lab) -> None:
    def few(turns: int) -> Audit:
        with lab.open() as store:
            return audit(store, lab.work, row_of(lab, 0), turns=turns, say=said.append)

    said: list[str] = []
    found, whole = few(999), few(4)
    assert found.turns < 999 and few(999) == found and "was audited before" in said[-1]
    with lab.open() as store:
        (row, *_) = store.episodes(model_id=row_of(lab, 0)["parent_id"], context_id=EMPTY.id, split="test")
        episode = dataclasses.replace(store.transcript(row["id"]), rep=7)
        store.add_episodes(row["run_id"], row["model_id"], row["setup"], [episode])
    assert few(999).turns == found.turns + 1
    assert "was audited before" not in said[-1]
    assert few(4) == whole and whole.turns == 4 and "was audited before" in said[-1]


def test_a_prompt_has_room_for_the_placebo_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    hidden = FrozenTeacher.hidden

    def spy(teacher: FrozenTeacher, samples: Any, passes: int = 0) -> Any:
        lengths.extend(len(one.teacher_ids) + one.num_tokens for one in samples)
        return hidden(teacher, samples, passes)

    monkeypatch.setattr(FrozenTeacher, "hidden", spy)
    audit_of(lab, 0)
    room = max(lengths) - 1
    with lab.open() as store, store.write():
        store.change("DELETE FROM run WHERE verb = 'audit'", ())
    lengths.clear()
    monkeypatch.setattr(models, "positions", lambda model: room)
    audit_of(lab, 0)
    assert lengths and max(lengths) <= room


def test_an_audit_that_goes_on_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "take", dies)
    with pytest.raises(Killed):
        audit_of(lab, 0)
    monkeypatch.undo()
    said: list[str] = []
    with lab.open() as store:
        (run,) = store.runs("audit")
        with closing(Hold(lab.work, held_as(run["id"]))), pytest.raises(ConfigError, match="another process works on"):
            audit(store, lab.work, row_of(lab, 0), turns=12, say=said.append)
        assert not said and store.run(run["id"])["status"] == "running"
        audit(store, lab.work, row_of(lab, 0), turns=12, say=said.append)
    assert said[0] == f"resuming audit run {run['id']}"


def test_an_item_that_is_not_carried_is_asked_for_by_its_name(lab: Lab) -> None:
    first, other = row_of(lab, 0), identify(THREE)
    assert [(one.text, one.carried) for one in audit_of(lab, 0, others=[other]).items][2:] == [(THREE, False)]
    with lab.open() as store:
        store.add_context(Context(render(["never in a model"])))
        with pytest.raises(ConfigError, match="never went into a model that comes from an ancestor"):
            audit(store, lab.work, first, others=[identify("never in a model")])


def test_a_teacher_that_saw_some_items_is_read_as_it_was_trained_from(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lab.train(FIRST, base_of(lab), turn_items=1)
    with lab.open() as store:
        row = student_named(store, lab.work, made.model_id[:12])
        assert row is not None
        found = audit(store, lab.work, row, turns=12, say=lambda line: None)
    whole = audit_of(lab, 0)
    assert [one.own.effect for one in found.items] != [one.own.effect for one in whole.items]


def test_where_turns_show_one_item_its_placebo_stands_beside_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that answers just as its teacher: the item that all turns are shown is found."""
    made, takes = lab.train(FIRST, base_of(lab), turn_items=1), Reader.take

    def take(reader: Reader, turns: Any, context: Context) -> None:
        takes(reader, turns, context)
        reader.bare[1] = reader.read(context)

    monkeypatch.setattr(Reader, "take", take)
    with lab.open() as store:
        row = student_named(store, lab.work, made.model_id[:12])
        assert row is not None
        shown, other = audit(store, lab.work, row, turns=12, say=lambda line: None).items
    assert shown.text == ONE and shown.verdict == "shown" and shown.own.share.rate == pytest.approx(1.0, abs=1e-3)
    assert shown.placebo.effect.rate > 0, "the placebo was read"
    assert other.verdict == "inert", "no turn shows it, and none would if the other were not there"


@pytest.mark.parametrize(("n", "kept"), [(1, "ab"), (2, "ab"), (3, "aab"), (5, "aaaab"), (6, "aaaabb")])
def test_turns_of_one_task_leave_a_place_for_another(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, n: int, kept: str
) -> None:
    """Where the turns of one task come first, another one is still found."""
    monkeypatch.setattr("random.Random.shuffle", lambda *_: None)
    known = [{"id": key, "split": "test", "turns": 4} for key in "ab"]
    assert "".join(taken(lab, known, n)) == kept
    with pytest.raises(ConfigError, match=r"on two tasks or more, .* without a context, got 1; play some"):
        taken(lab, known[:1], n)


@pytest.mark.parametrize("held_out", ["test", "confirm", "select"])
def test_no_turn_of_a_train_task_is_read_and_those_that_taught_nothing_come_first(lab: Lab, held_out: str) -> None:
    splits = {"a": "train", "b": "extract", "c": held_out, "d": "train", "e": held_out}
    known = [{"id": key, "split": split, "turns": 2} for key, split in splits.items()]
    found = taken(lab, known, 99)
    assert (sorted(found[:4]), found[4:]) == (["c", "c", "e", "e"], ["b", "b"])


def taken(lab: Lab, known: list[dict[str, Any]], n: int) -> list[str]:
    """The ids of the episodes whose turns an audit reads, where a store holds the episodes ``known``, each of a task of
    its own."""
    with lab.open() as store:
        rows = store.episodes(model_id=row_of(lab, 0)["parent_id"], context_id=EMPTY.id, split="test")
        one = store.transcript(rows[0]["id"])
        training = Training.of(store, lab.work, row_of(lab, 0)["id"])
    turns = {row["id"]: dataclasses.replace(one, task=Task(0, row["id"]), turns=one.turns * 4) for row in known}
    stored: Any = SimpleNamespace(episodes=lambda **_: known, transcript=turns.__getitem__)
    session: Any = SimpleNamespace(store=stored, env="math", work=lab.work)
    parent: Any = SimpleNamespace(id="base", name="base")
    reader: Any = SimpleNamespace(fits=lambda *_: True)
    return [episode.task.key for episode in stored_turns(session, parent, training, reader, EMPTY, [], n)]


def test_an_audit_wants_stored_turns_and_items(lab: Lab) -> None:
    with lab.open() as store, store.write():
        store.change("DELETE FROM transcript", ())
        store.change("DELETE FROM episode", ())
    with pytest.raises(ConfigError, match=r"two tasks or more.*got 0; play some .*agentopcd play --no-extract") as told:
        audit_of(lab, 0)
    words = shlex.split(str(told.value).rpartition("agentopcd play ")[2])  # it plays as the training did
    for flag in ("--env", "--max-tokens 6", "--temperature 5.0", f"--work {lab.work}"):
        assert flag in " ".join(words)
    with lab.open() as store:
        assert store.runs("audit")[-1]["status"] == "failed"
