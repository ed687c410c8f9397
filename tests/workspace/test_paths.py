"""A workspace is found again: from another folder, after a move, as a copy; and what is missing is told."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import ConfigError, EnvError, StoreError
from agentopcd.core.runs import Run, kept, written_down
from agentopcd.core.types import Context
from agentopcd.distil import Distilled
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import move_student
from agentopcd.models.find import base_of_adapter, fingerprint
from agentopcd.workspace.overview import overview
from agentopcd.workspace.paths import inside, recall
from agentopcd.workspace.session import Session
from tests import tiny
from tests.cli.test_status import settings_of
from tests.recording import keep_many


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return tiny.questions(tmp_path / "rows.jsonl")


@pytest.fixture
def work(rows: str, tmp_path: Path) -> Path:
    """A workspace with a student in ``runs/a/student``, made while standing in ``tmp_path``."""
    work = tmp_path / "w"
    with open_session(rows, work) as session:
        run_id = session.store.start("consolidate", {"env": session.env}, 0)
        session.store.add_model("base", "base")
        session.store.add_model("s", "runs/a/student", "runs/a/student", "base", run_id)
        session.store.finish(run_id)
        move_student(session.store, session.env, "s", "gate")
    (work / "runs" / "a" / "student").mkdir(parents=True)
    return work


def open_session(rows: str, work: Path, said: list[str] | None = None, **settings: object) -> Session:
    return Session(PlayConfig(env=rows, **settings), work, say=(said or []).append)  # type: ignore[arg-type]


def model_of(rows: str, work: Path) -> tuple[str, str]:
    with open_session(rows, work) as session:
        return session.model_name()


def test_a_student_is_found_from_any_folder(
    rows: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for here, path in ((tmp_path, "w"), (tmp_path / "elsewhere", "../w"), (work, "."), (tmp_path, str(work))):
        monkeypatch.chdir(here)
        name, why = model_of(rows, Path(path))
        assert Path(name).resolve() == work / "runs" / "a" / "student"
        assert "missing" not in why


@pytest.mark.parametrize("path", ["runs/a/student", "w/runs/a/student", "/old/place/w/runs/a/student"])
def test_a_moved_or_copied_workspace_plays_with_its_own_student(
    rows: str, work: Path, tmp_path: Path, path: str
) -> None:
    with Store.open(work / "store.db") as store:
        store.move_model("s", path)  # as typed in version 0.1
    shutil.copytree(work, tmp_path / "copy")
    assert model_of(rows, tmp_path / "copy")[0] == str(tmp_path / "copy" / "runs" / "a" / "student")
    work.rename(tmp_path / "moved")
    assert model_of(rows, tmp_path / "moved")[0] == str(tmp_path / "moved" / "runs" / "a" / "student")


def test_a_missing_student_is_told_and_neither_the_originals_nor_an_older_one_is_taken(
    rows: str, work: Path, tmp_path: Path
) -> None:
    older = work / "runs" / "older" / "student"
    older.mkdir(parents=True)
    with Store.open(work / "store.db") as store:
        env, run_id = store.runs()[0]["config"], store.runs()[0]["id"]
        env = json.loads(env)["env"]
        store.add_model("older", "older", str(older), "base", run_id)
        move_student(store, env, "older", "gate")
        move_student(store, env, "s", "gate")
        store.move_model("s", str(work / "runs" / "a" / "student"))
    shutil.copytree(work, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / "a")
    why = r"student is .*runs/a/student, which is gone; put it back, .*agentopcd rollback .*--work .*copy\), or name"
    with pytest.raises(ConfigError, match=why):
        model_of(rows, tmp_path / "copy")
    with Store.open(tmp_path / "copy" / "store.db") as store:
        move_student(store, env, "older", "rollback")
    assert model_of(rows, tmp_path / "copy")[0] == str(tmp_path / "copy" / "runs" / "older" / "student")


def test_files_that_were_changed_are_not_that_student(rows: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    work = tmp_path / "w"
    student = work / "runs" / "a" / "student"
    shutil.copytree(tiny_model_dir, student)
    with open_session(rows, work, model=str(student)) as session:
        id_ = session.loaded.id
        run_id = session.store.start("consolidate", {"env": session.env}, 0)
        session.store.add_model("base", "base")
        session.store.add_model("other", "x", "runs/a/student", "base", run_id)
        session.store.finish(run_id)
        move_student(session.store, session.env, "other", "gate")
    with open_session(rows, work) as session, pytest.raises(ConfigError, match="not the model that was trained there"):
        _ = session.loaded
    with open_session(rows, work, model=str(student)) as session:  # asked for by name, it is a model like any other
        assert session.loaded.id == id_


@pytest.mark.parametrize("typed", ["w/runs/a/student", "/old/place/w/runs/a/student", "runs/a/student"])
def test_an_adapter_finds_its_base_in_its_own_workspace(work: Path, typed: str) -> None:
    adapter = work / "runs" / "b" / "student"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{typed}"}}')
    assert base_of_adapter(adapter) == typed  # an adapter that knows no parent belongs to what it names
    (adapter / "agentopcd.json").write_text(f'{{"parent_id": "{fingerprint(work / "runs" / "a" / "student")}"}}')
    assert base_of_adapter(adapter) == str(work / "runs" / "a" / "student")
    for other in ("org/runs", "/elsewhere/base", "w/runs/gone/student"):
        (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{other}"}}')
        assert base_of_adapter(adapter) == other


def test_a_base_that_was_moved_is_found_where_it_was_seen_last(rows: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "here")
    with open_session(rows, tmp_path / "w", model=str(tmp_path / "here")) as session:
        id_ = session.loaded.id
    (tmp_path / "here").rename(tmp_path / "there")
    with open_session(rows, tmp_path / "w", model=str(tmp_path / "there")) as session:
        assert session.loaded.id == id_
        row = session.store.lookup("model", id=id_)
        assert row and recall(tmp_path / "w", row) == str(tmp_path / "there")


def test_a_repeated_command_whose_model_is_gone_says_so(rows: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    from agentopcd.workspace.ledger import run_config

    shutil.copytree(tiny_model_dir, tmp_path / "base")
    with open_session(rows, tmp_path / "w", model=str(tmp_path / "base")) as session:
        base = session.loaded
    with open_session(rows, tmp_path / "w") as session:
        config = run_config(session.config) | {"env": session.env, "model_id": base.id, "context_id": "c"}
        session.store.start("consolidate", config, 0)
    shutil.rmtree(tmp_path / "base")
    with open_session(rows, tmp_path / "w") as session, pytest.raises(ConfigError, match=r"no longer at .*--model"):
        session.resume_model("consolidate", "c")


def test_paths_to_write_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    student = tmp_path / "w" / "runs" / "a" / "student"
    student.mkdir(parents=True)
    assert kept(Path("w"), "w/runs/a/student") == kept(tmp_path / "w", student) == "runs/a/student"
    assert kept(Path("w"), "base") == str(tmp_path / "base")
    assert written_down(Path("w"), str(student)) == "runs/a/student"
    assert written_down(Path("w"), "pocket") == "pocket"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert written_down(Path("w"), f"~/{student.relative_to(tmp_path)}") == "runs/a/student"
    assert inside(Path("w"), "/x/runs/old/runs/a/student") == Path("w/runs/a/student")
    assert inside(Path("w"), "base") is None


def test_a_finished_run_whose_student_is_gone_or_changed(tmp_path: Path, tiny_model_dir: Path) -> None:
    from agentopcd.models.find import fingerprint

    run = Run(tmp_path, "consolidate", {})
    done = {"folder": "old/place", "model": fingerprint(tiny_model_dir), "parent": "p", "teacher": "p", "context": "c",
            "best_step": 2}  # fmt: skip
    with pytest.raises(ConfigError, match="its student is gone"):
        Distilled.repeating(done, run)
    shutil.copytree(tiny_model_dir, run.folder / "student")
    assert Distilled.repeating(done, run).folder == str(run.folder / "student")
    (run.folder / "student" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="its student was changed"):
        Distilled.repeating(done, run)


# -- other files of a workspace --------------------------------------------------------------------------


def test_a_workspace_that_is_removed_while_it_is_used(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        shutil.rmtree(tmp_path / "w")
        with pytest.raises(StoreError, match="removed or replaced while"):
            session.store.start("play", {}, 0)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"splits": 5}', b"[" * 100_000])
def test_damaged_splits_are_one_line(rows: str, tmp_path: Path, body: bytes) -> None:
    open_session(rows, tmp_path / "w").close()
    (file,) = (tmp_path / "w" / "splits").iterdir()
    file.write_bytes(body)
    with pytest.raises(EnvError, match=file.name) as error:
        open_session(rows, tmp_path / "w")
    assert "\n" not in str(error.value)


def test_a_damaged_result_of_one_run_does_not_stop_the_others(rows: str, tmp_path: Path) -> None:
    with open_session(rows, tmp_path / "w") as session:
        killed = session.store.start("consolidate", {"folder": "w/runs/a"}, 0)
        imported = session.store.start("import", {"file": "x"}, 0)
    folder = tmp_path / "w" / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    said: list[str] = [""]
    with open_session(rows, tmp_path / "w", said) as session:
        assert session.store.run(killed)["status"] == "running"
        assert session.store.run(imported)["status"] == "failed"  # an import that still runs was killed
    assert any("result.json cannot be read" in line for line in said)


def test_contexts_from_files(rows: str, tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes("\ufeff- EXPERIENCE ITEM: a\r\n- EXPERIENCE ITEM: b\r\n".encode())
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 is open")
    with open_session(rows, tmp_path / "w") as session:
        context, _ = session.context(str(tmp_path / "bom.txt"))
        assert context == Context("- EXPERIENCE ITEM: a\r\n- EXPERIENCE ITEM: b")
        assert [item.text for item in session.store.items(context_id=context.id)] == ["a", "b"]
        with pytest.raises(ConfigError, match="line 1 is not UTF-8 text"):
            session.context(str(tmp_path / "latin.txt"))
        (tmp_path / "my export.txt").write_text('{"format":"agentopcd-kb","version":2}\n{"type":"end","rows":0}\n')
        with pytest.raises(ConfigError, match="is a knowledge export, not a context") as error:
            session.context(str(tmp_path / "my export.txt"))
        words = shlex.split(str(error.value).split("`")[1])
        given = [str(tmp_path / "my export.txt"), "--work", str(tmp_path / "w")]
        assert words == ["agentopcd", "knowledge", "import", *given]


def test_a_run_is_the_same_whatever_path_names_the_model_of_its_workspace(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    """The second round of a killed ``learn`` plays a student by the path under ``--work``, which may be typed anew."""
    shutil.copytree(tiny_model_dir, tmp_path / "w" / "runs" / "a" / "student")
    (tmp_path / "elsewhere").mkdir()
    begun, folders = [], []
    for here, work in ((tmp_path, "w"), (tmp_path, str(tmp_path / "w")), (tmp_path / "elsewhere", "../w")):
        monkeypatch.chdir(here)
        model = f"{work}/runs/a/student"
        with open_session(rows, Path(work), model=model) as session:
            begun.append(session.ledger.begin("play", round=2))
            folders.append(Run(Path(work), "learn", {"env": "x", "model": model}).folder.resolve())
    shutil.copytree(tmp_path / "w", tmp_path / "moved")
    with open_session(rows, tmp_path / "moved", model=str(tmp_path / "moved" / "runs" / "a" / "student")) as session:
        begun.append(session.ledger.begin("play", round=2))
        assert session.ledger.begin("play", round=3) not in begun
    assert begun == [1] * 4 and len({*folders}) == 1
    other = Run(tmp_path / "w", "learn", {"env": "x", "model": str(tmp_path / "moved" / "runs" / "a" / "student")})
    assert other.folder not in folders  # another workspace's model by that path is another model


@pytest.mark.parametrize("recording", [False, True])
def test_a_run_goes_on_with_the_student_that_played_it_after_that_was_taken_back(
    rows: str, tmp_path: Path, tiny_model_dir: Path, recording: bool
) -> None:
    env, work = "recorded:shop" if recording else rows, tmp_path / "w"
    keep_many(work, 20)
    shutil.copytree(tiny_model_dir, folder := work / "runs" / "a" / "student")
    with open_session(env, work) as session:
        id_ = fingerprint(folder)
        run_id = session.store.start("consolidate", {"env": session.env}, 0)
        session.store.add_model("base", "base")
        session.store.add_model(id_, "runs/a/student", "runs/a/student", "base", run_id)
        session.store.finish(run_id)
        move_student(session.store, session.env, id_, "gate")
        begun, read = session.ledger.begin("play"), session.snapshot

    def command() -> PlayConfig:
        with Store.open(work / "store.db") as store:
            (job,) = [job for job in overview(store, work).jobs if job.open]
        return settings_of(job.command)

    assert command() == PlayConfig(env=env)
    with Store.open(work / "store.db") as store:
        move_student(store, session.env, None, "rollback")
    assert command() == PlayConfig(env=env, model=str(folder))
    keep_many(work, 5, start=100)
    with open_session(env, work, model=str(folder)) as session:
        assert (session.snapshot, session.ledger.begin("play")) == (read, begun)
        session.ledger.finish(begun, {})
        assert session.ledger.begin("play") != begun
    with open_session(env, work, model=str(tiny_model_dir)) as session:
        assert session.snapshot != read or not recording


def test_runs_named_by_the_path_as_it_was_typed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions named them."""
    monkeypatch.chdir(tmp_path)
    identity = {"env": "x", "model": "w/runs/a/student"}
    old = Run(Path("w"), "learn", identity).folder  # there is no such model yet, so the path is taken as it is
    Path("w/runs/a/student").mkdir(parents=True)
    assert Run(Path("w"), "learn", identity).folder == old
