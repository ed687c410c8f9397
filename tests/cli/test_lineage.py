"""``agentopcd knowledge audit, forget`` as commands, and what ``knowledge show`` says of a student."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agentopcd.cli import main
from agentopcd.cli.rollback import rollback
from agentopcd.core.types import Context
from agentopcd.knowledge import identify
from agentopcd.knowledge.students import student_moves, student_ref
from agentopcd.workspace.lineage import audit
from tests.lineage import ONE, SECOND, THREE, TWO, Lab, base_of, lab, made, row_of

__all__ = ["lab", "made"]


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lab: Lab, *words: str) -> str:
    """What a command prints; it must end well."""
    monkeypatch.setattr(sys, "argv", ["agentopcd", "knowledge", *words, "--work", str(lab.work)])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    assert not stop.value.code, out.err
    return out.out


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lab: Lab, *words: str) -> str:
    """The one line with which a command is refused."""
    monkeypatch.setattr(sys, "argv", ["agentopcd", "knowledge", *words, "--work", str(lab.work)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_the_command_audits_a_lineage(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (row_of(lab, n)["id"] for n in (0, 1))
    plan = told(capsys, monkeypatch, lab, "audit", "--lineage", "--dry-run")
    assert f"plan: student {first[:12]}, 2 items" in plan and f"plan: student {second[:12]}, 3 items" in plan
    with lab.open() as store:
        assert not store.runs("audit")
    said = told(capsys, monkeypatch, lab, "audit", "--lineage", "--turns", "8")
    assert (
        f"student {first[:12]}, " in said and f"student {second[:12]}, " in said and "from student to student:" in said
    )
    by_folder = told(
        capsys, monkeypatch, lab, "audit", str(lab.work / row_of(lab, 0)["path"]), "--turns", "8", "--json"
    )
    (found,) = json.loads(by_folder)["audits"]
    assert (found["student"], [row["text"] for row in found["items"]]) == (first, [ONE, TWO])
    shown = told(capsys, monkeypatch, lab, "show", second[:12])
    assert f"trained on context {SECOND.id[:12]}" in shown and f"{identify(TWO)[:12]}  pending  {TWO}" in shown
    assert shown.count("audited: ") == 3 and shown.count("from: unknown") == 3
    view = json.loads(told(capsys, monkeypatch, lab, "show", second[:12], "--json"))
    assert [len(one["items"]) for one in view["lineage"]] == [0, 2, 1]


@pytest.mark.parametrize("words", [["audit"], ["forget", "1f0c9a"]])
def test_a_workspace_that_is_not_there_is_not_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["agentopcd", "knowledge", *words, "--work", str(tmp_path / "no"), "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "no knowledge store" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_command_forgets(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    second = row_of(lab, 1)["id"]
    plan = told(capsys, monkeypatch, lab, "forget", identify(THREE)[:8], "--dry-run")
    assert f"left out: the training on {SECOND.id[:12]}, of which nothing is left" in plan and "dry run" in plan
    said = told(capsys, monkeypatch, lab, "forget", identify(THREE)[:8], "--reason", "no boxes here")
    assert f"none of these hashes is that of {identify(THREE)[:12]}" in said
    assert f"still in the weights of: {second[:12]}" in said
    assert f"next: agentopcd knowledge audit {row_of(lab, 0)['id'][:12]} --item {identify(THREE)[:12]}" in said
    assert "no boxes here" in told(capsys, monkeypatch, lab, "show", identify(THREE)[:8])
    with lab.open() as store:
        (env,) = {move["env"] for move in student_moves(store)}
    rollback(env, work=lab.work)  # to the student of before
    said = capsys.readouterr().out
    assert f"-> {row_of(lab, 1)['path']}" in said
    assert f"warning: it has item {identify(THREE)[:12]} in its weights, which was to be forgotten: {THREE}" in said


def test_a_student_that_plays_and_still_has_it_is_told(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.train(SECOND, str(lab.work / row_of(lab, 0)["path"]), moves=False, seed=1, test_tasks=0)  # the newest carrier
    with lab.open() as store:
        (env,) = {move["env"] for move in student_moves(store)}
    said = told(capsys, monkeypatch, lab, "forget", identify(THREE)[:8])
    again = f"agentopcd knowledge forget {identify(THREE)[:12]} --student {student_ref(env)} --work"
    assert f"warning: {student_ref(env)} is another student and still has {identify(THREE)[:12]}: {again}" in said
    said = told(capsys, monkeypatch, lab, "forget", identify(THREE)[:8], "--student", student_ref(env))
    assert "is another student and still has" not in said


def test_where_the_base_is_what_is_left_no_audit_of_it_is_offered(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(capsys, monkeypatch, lab, "forget", *(identify(text)[:12] for text in (ONE, TWO, THREE)))
    assert "still in the weights of: " in said and "next: " not in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("audit", "nobody"), "'nobody' is no student of this workspace; agentopcd status --work "),
        (("forget", "frozen"), "unknown context 'frozen'"),
        (("forget", SECOND.id[:12]), "is a context; name an item"),
    ],
)
def test_what_is_no_student_or_no_item_is_refused(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    assert line in refused(capsys, monkeypatch, lab, *words)


def test_a_student_of_plain_text_carries_no_items(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Context("Be brief.")
    made = lab.train(plain, base_of(lab), test_tasks=0)
    monkeypatch.setattr(audit, "load_known", lambda *args: pytest.fail("a model was loaded"))
    why = (
        "items: what was trained on is plain text, which has no lines to ask for; a prompt becomes items where its "
        "lines begin with '- EXPERIENCE ITEM:', agentopcd knowledge import FILE reads it"
    )
    said = refused(capsys, monkeypatch, lab, "audit", made.model_id[:12])
    assert f"student {made.model_id[:12]} carries no {why}" in said
    look = f"agentopcd knowledge show {plain.id[:12]} --work {lab.work} says what it holds"
    assert f"(no items of its own; {look})" in told(capsys, monkeypatch, lab, "show", made.model_id[:12])
    with lab.open() as store, store.write():
        store.change("DELETE FROM context_item", ())
    assert f"no student of this workspace carries {why}" in refused(capsys, monkeypatch, lab, "audit")
    with lab.open() as store, store.write():
        store.change("UPDATE model SET run_id = NULL, parent_id = NULL", ())
    assert "this workspace has no students yet; agentopcd consolidate" in refused(capsys, monkeypatch, lab, "audit")
