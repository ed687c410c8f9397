"""The placebo student: trained like the student on a twin of its context, and never taken for a student."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentopcd.cli.closing import verdict
from agentopcd.cli.options import Call
from agentopcd.cli.page import results
from agentopcd.cli.verbs import consolidate as command
from agentopcd.core.config import ConsolidateConfig, EvaluateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run, read_records, read_result
from agentopcd.core.stats import Difference
from agentopcd.core.types import Context, Mixture
from agentopcd.distil import Distilled, distil_context
from agentopcd.knowledge import PLACEBO, Store, placebo
from agentopcd.knowledge.placebo import twin_of
from agentopcd.knowledge.students import student_moves
from agentopcd.workspace.evaluation import distance
from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT
from agentopcd.workspace.evaluation.student import evaluate_student
from agentopcd.workspace.evaluation.table import lines
from agentopcd.workspace.overview import overview
from agentopcd.workspace.session import Session
from tests import tiny
from tests.training import TRAIN

CONTEXT = Context("always say seven\nnever count twice")
TWIN = placebo(CONTEXT)


def settings(work: Path, **more: Any) -> ConsolidateConfig:
    given: dict[str, Any] = {
        "env": "math", "model": str(work / "base"), "steps": 2, "batch_size": 2, "max_tokens": 4, "temperature": 1.0,
        "learning_rate": 3e-4, "select_every": 2, "select_tasks": 2, "test_tasks": 3, "compute": "float32",
        "gate_tasks": 0,
    }  # fmt: skip
    return ConsolidateConfig(**(given | more))


def distil(config: ConsolidateConfig, work: Path, context: Context | Mixture = CONTEXT) -> tuple[Distilled, list[str]]:
    said: list[str] = []
    with Session(config, work / "work", say=said.append) as session:
        for part in context.parts:
            session.store.add_context(part)
        return distil_context(session, config, context), said


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("twins")
    tiny.build(work / "base", tie=False)
    return work


@pytest.fixture(scope="module")
def alone(work: Path) -> Distilled:
    return distil(settings(work), work)[0]


@pytest.fixture(scope="module")
def both(work: Path, alone: Distilled) -> tuple[Distilled, list[str]]:
    """The same command with --placebo, after one without."""
    assert alone.placebo_id == ""
    return distil(settings(work, placebo=True), work)


def folder_of(work: Path, model_id: str) -> Path:
    with Session(settings(work), work / "work", say=lambda line: None) as session:
        row = session.store.lookup("model", id=model_id)
        assert row is not None
        return work / "work" / row["path"]


def test_only_the_twin_is_trained_where_the_student_is_there(both: tuple[Distilled, list[str]], work: Path) -> None:
    found, said = both
    assert any(line.startswith("already done: ") for line in said) and found.repeated
    (trained,) = [line for line in said if line.startswith("consolidating context")]
    assert trained.startswith(f"consolidating context {TWIN.id[:12]} into ")
    twin = folder_of(work, found.placebo_id)
    assert twin.parent != Path(found.folder).parent
    assert read_result(twin.parent / "result.json", "")["context"] == TWIN.id


def test_it_begins_from_the_same_weights_with_the_same_games(both: tuple[Distilled, list[str]], work: Path) -> None:
    of_student, of_twin = (
        [one for one in read_records(folder.parent / "tokens.jsonl") if one["step"] == 1]
        for folder in (Path(both[0].folder), folder_of(work, both[0].placebo_id))
    )

    def said(turns: list[dict[str, Any]], *what: str) -> list[Any]:
        return [(turn["prompt"], *([token[name] for token in turn["tokens"]] for name in what)) for turn in turns]

    assert len(of_student) == 2 and said(of_student, "text", "student") == said(of_twin, "text", "student")
    assert said(of_student, "teacher") != said(of_twin, "teacher")


def test_the_store_knows_it_by_its_placebo_and_takes_it_for_no_student(
    both: tuple[Distilled, list[str]], work: Path
) -> None:
    found = both[0]
    with Session(settings(work, model=""), work / "work", say=lambda line: None) as session:
        assert session.store.model_contexts(found.placebo_id) == {TWIN.id: 1.0}
        assert json.loads(session.store.context_row(TWIN.id)["recipe"]) == {"order": PLACEBO, "of": CONTEXT.id}
        assert not session.store.items(context_id=TWIN.id)
        assert session.newest_student() == found.folder == session.model_name()[0]
        assert [move["model_id"] for move in student_moves(session.store, session.env)] == [found.model_id]
        assert [one["id"] for one in overview(session.store, work / "work").students] == [found.model_id]
        with pytest.raises(ConfigError, match="is a placebo, which holds no knowledge"):
            session.check_handover(TWIN, force=True)


def test_the_table_has_the_arm_and_the_paired_difference(both: tuple[Distilled, list[str]], work: Path) -> None:
    found = both[0]
    assert found.evaluation is not None
    assert [row.label for row in found.evaluation.rows] == ["base", "in-context", "student", PLACEBO_STUDENT]
    gain = found.evaluation.comparisons["student - placebo student"]
    assert gain.n == 3 and gain.difference.n == 3
    text = "\n".join(lines(found.evaluation))
    assert "student - placebo student" in text and "placebo student - base" in text
    kept = read_result(Path(found.folder).parent / "result.json", "")
    assert kept["placebo"] == found.placebo_id
    assert kept["evaluation"]["differences"]["student - placebo student"] == gain.to_dict()
    card = (Path(found.folder) / "README.md").read_text(encoding="utf-8")
    assert "| placebo student |" in card and "- student - placebo student: " in card
    assert "It is a placebo student" in (folder_of(work, found.placebo_id) / "README.md").read_text(encoding="utf-8")
    page = results.evaluation(kept)
    assert page and "student - placebo student" in [row["label"] for row in page["differences"]]


def test_the_table_is_added_to_its_own_run_which_keeps_what_else_it_holds(
    alone: Distilled, work: Path, tmp_path: Path
) -> None:
    """Another run ended in the same weights before, so that the model's row names that one."""
    shutil.copytree(work, tmp_path / "w")
    with Session(settings(work), tmp_path / "w" / "work", say=lambda line: None) as session:
        store = session.store
        (row,) = (row for row in store.runs("consolidate") if "placebo" not in json.loads(row["config"]))
        store.finish(row["id"], json.loads(row["result"]) | {"env_errors": 5, "shortcuts": {"kept": 1}})
        first = store.start("consolidate", {"env": session.env}, 0)
        store.finish(first, {"mine": 1})
        with store.write():
            store.change("UPDATE model SET run_id = ? WHERE id = ?", (first, alone.model_id))
    found, _ = distil(settings(tmp_path / "w", placebo=True, model=str(work / "base")), tmp_path / "w")
    with Session(settings(work), tmp_path / "w" / "work", say=lambda line: None) as session:
        kept = session.store.run(row["id"])
        assert json.loads(session.store.run(first)["result"]) == {"mine": 1}
    result, folder = json.loads(kept["result"]), Path(found.folder).parent
    assert (result["env_errors"], result["shortcuts"], result["placebo"]) == (5, {"kept": 1}, found.placebo_id)
    assert found.repeated and not result["repeated"] and not read_result(folder / "result.json", "")["repeated"]


def test_a_repeated_command_trains_and_plays_nothing(both: tuple[Distilled, list[str]], work: Path) -> None:
    for config in (settings(work, placebo=True), settings(work)):
        again, said = distil(config, work)
        assert again.evaluation is not None and both[0].evaluation is not None
        assert again.evaluation.to_dict() == both[0].evaluation.to_dict()
        assert not any("consolidating" in line for line in said)


def test_evaluate_plays_it_beside_its_student(both: tuple[Distilled, list[str]], work: Path) -> None:
    config = EvaluateConfig(env="math", max_tokens=4, temperature=1.0, test_tasks=3, compute="float32")
    with Session(config, work / "work", say=lambda line: None) as session:
        table, moved = evaluate_student(session, config)
    assert table.comparisons["student - placebo student"].n == 3 and PLACEBO_STUDENT in moved
    assert table.compared[PLACEBO_STUDENT]["model"] == both[0].placebo_id


def test_a_killed_twin_goes_on_and_ends_as_an_unbroken_one(
    both: tuple[Distilled, list[str]], work: Path, tmp_path: Path
) -> None:
    config = settings(work, placebo=True)

    class Killed(BaseException):
        pass

    def say(line: str) -> None:
        if line.startswith("step 001/") and started:
            raise Killed
        started.extend([line] if line.startswith("placebo student: ") else [])

    started: list[str] = []
    with pytest.raises(Killed), Session(config, tmp_path / "work", say=say) as session:
        session.store.add_context(CONTEXT)
        distil_context(session, config, CONTEXT)
    with Session(config, tmp_path / "work", say=lambda line: None) as session:
        (job,) = [job for job in overview(session.store, tmp_path / "work").jobs if job.open]
        assert "--placebo" in job.command
    again, said = distil(config, tmp_path)
    assert again.placebo_id == both[0].placebo_id and again.model_id == both[0].model_id
    assert any(line.startswith("resuming consolidate run") for line in said)


@pytest.mark.parametrize("write", [(Store, "finish"), (Run, "finish")], ids=["store", "folder"])
def test_a_kill_before_either_write_of_the_twin_loses_it_from_neither(
    write: tuple[type, str], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(work, placebo=True, steps=1, test_tasks=1)

    class Killed(BaseException):
        pass

    def finish(*given: Any, **more: Any) -> None:
        if any(isinstance(one, dict) and one.get("placebo") for one in given):
            raise Killed
        whole(*given, **more)

    whole = getattr(*write)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(*write, finish)
        distil(config, tmp_path)
    found, _ = distil(config, tmp_path)
    assert read_result(Path(found.folder).parent / "result.json", "")["placebo"] == found.placebo_id != ""
    with Session(config, tmp_path / "work", say=lambda line: None) as session:
        (row,) = (row for row in session.store.runs("consolidate") if "placebo" not in json.loads(row["config"]))
    assert json.loads(row["result"])["placebo"] == found.placebo_id


def test_every_context_of_a_mixture_has_its_twin(work: Path, tmp_path: Path) -> None:
    mixture = Mixture((CONTEXT, Context("count every line again")), (0.75, 0.5))
    found, _ = distil(settings(work, placebo=True, steps=1), tmp_path, mixture)
    with Session(settings(work), tmp_path / "work", say=lambda line: None) as session:
        assert session.store.model_contexts(found.placebo_id) == {
            placebo(mixture.parts[0]).id: 0.6, placebo(mixture.parts[1]).id: 0.4,
        }  # fmt: skip


def test_each_part_of_a_mixture_has_its_twin_in_the_same_episodes() -> None:
    mixture = Mixture((CONTEXT, Context("count every line again")), (0.75, 0.5))
    twin = twin_of(mixture)
    assert isinstance(twin, Mixture) and twin.id != mixture.id
    drawn = [(mixture.drawn(task, rep), twin.drawn(task, rep)) for task in TRAIN for rep in range(8)]
    assert {mine for mine, _ in drawn} == {*mixture.parts}
    assert all(theirs == placebo(mine) for mine, theirs in drawn)


def test_distances_say_what_the_form_alone_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Box {i}?"}]} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.build(tmp_path / "base", tie=False, hearing=4.0)
    config = settings(tmp_path, env=str(tmp_path / "chats.jsonl"), placebo=True, steps=1)
    labels: list[str] = []
    computed = distance.reply_totals

    def totals(session: Session, contestant: Any, *more: Any) -> Any:
        labels.append(contestant.label)
        return computed(session, contestant, *more)

    monkeypatch.setattr(distance, "reply_totals", totals)
    found, _ = distil(config, tmp_path, dataclasses.replace(CONTEXT, placement="system"))
    assert sorted(labels) == sorted({*labels}), "each once"
    assert found.evaluation is not None
    far = found.evaluation.distances
    assert far is not None
    base, twin, student = (far.rows[label].distance.rate for label in ("base", PLACEBO_STUDENT, "student"))
    assert far.placebo is not None and far.placebo.rate == pytest.approx(1 - twin / base)
    assert far.beyond is not None and far.beyond.rate == pytest.approx(1 - student / twin)
    text = "\n".join(far.lines())
    assert "distance closed by the placebo student: " in text
    page = results.evaluation(found.to_dict())
    assert page and any(note.startswith("closed by the student of the distance that") for note in page["notes"])


def test_what_cannot_be_compared_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--placebo is for a comparison on test tasks"):
        settings(work, placebo=True, test_tasks=0)
    with pytest.raises(ConfigError, match="too short for a placebo"):
        distil(settings(work, placebo=True), tmp_path, Context("!"))
    with Session(settings(work), tmp_path / "work", say=lambda line: None) as session:
        assert not session.store.runs("consolidate") and not session.store.episodes(), "before anything is trained"


@pytest.mark.parametrize(("low", "word"), [(0.01, "better"), (-0.01, "form only")])
def test_a_gain_that_the_placebo_student_has_too_is_form_only(
    low: float, word: str, both: tuple[Distilled, list[str]]
) -> None:
    table = both[0].evaluation
    assert table is not None
    ends = {"student - base": (0.1, 0.3), "student - placebo student": (low, 0.2)}
    changed = {
        name: dataclasses.replace(one, difference=Difference(0.15, *ends[name], 3)) if name in ends else one
        for name, one in table.comparisons.items()
    }
    said = verdict(dataclasses.replace(table, comparisons=changed))
    assert said.startswith(f"verdict: {word}, ") and f"; against its placebo student: +0.150 [{low:+.3f}" in said


def test_a_plan_counts_both_trainings(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.txt").write_text("always say seven")
    command(settings(work, placebo=True, context=str(tmp_path / "c.txt")), Call(tmp_path / "w", False, True))
    printed = capsys.readouterr().out
    assert "2 episodes, and the same for the placebo student" in printed and "3 tasks, four arms" in printed


def test_a_base_that_was_changed_meanwhile_trains_no_placebo_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, weights = sys.modules["agentopcd.distil"], tiny.build(tmp_path / "base") / "model.safetensors"
    monkeypatch.setattr(module, "_distil", lambda *_, **__: pytest.fail("it was trained"))
    config: Any = settings(tmp_path, placebo=True)
    with Session(config, tmp_path / "work", say=lambda line: None) as session:
        session.store.add_context(CONTEXT)
        out: Any = SimpleNamespace(parent_id=session.loaded.id)
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        run: Any = None
        with pytest.raises(ConfigError, match="its files were changed; put them back"):
            module._beside_placebo(session, config, CONTEXT, out, run, {})
