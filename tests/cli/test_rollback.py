"""``agentopcd rollback``, and what shows where ENV/student stands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentopcd.cli import main
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import current_student, move_student


class Done(NamedTuple):
    code: Any
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["agentopcd", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Done(stop.value.code or 0, said.out, said.err)

    return call


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two students of the lake, one after the other, and one of sokoban."""
    folder = tmp_path / "w"
    folder.mkdir()
    with Store.open(folder / "store.db") as store:
        store.add_model("base" * 16, "pocket")
        for name, env in (("aaaa", "lake"), ("bbbb", "lake"), ("cccc", "sokoban")):
            run_id = store.start("consolidate", {"env": env}, 0)
            path = f"runs/{name}/student"
            (folder / path).mkdir(parents=True)
            store.add_model(name * 16, path, path, "base" * 16, run_id)
            store.finish(run_id, {})
            move_student(store, env, name * 16, "gate", "it won", run_id)
        trained(store, "eeee", env="lake", placebo=True)
    return folder


def current(work: Path, env: str) -> Any:
    with Store.open(work / "store.db") as store:
        return current_student(store, env)


def test_it_goes_back_one_by_one_and_can_be_taken_back(cli: Cli, work: Path) -> None:
    where = ["--work", str(work)]
    done = cli("rollback", "lake", *where)
    assert done.code == 0 and "lake/student: bbbbbbbbbbbb -> runs/aaaa/student aaaaaaaaaaaa" in done.out
    done = cli("rollback", "lake/student", *where, "--json")
    assert json.loads(done.out) == {"env": "lake", "from": "aaaa" * 16, "to": None}
    assert current(work, "lake") is None
    done = cli("rollback", "lake", *where)
    assert done.code == 2 and "has no student before it; name one with --to" in done.err
    assert cli("rollback", "lake", "--to", "bbbb", *where).code == 0 and current(work, "lake") == "bbbb" * 16
    assert cli("rollback", "lake", "--to", str(work / "runs/aaaa/student"), *where).code == 0
    assert current(work, "lake") == "aaaa" * 16
    log = cli("knowledge", "log", "lake/student", *where).out
    assert "bbbbbbbbbbbb -> aaaaaaaaaaaa  rollback" in log and "gate: it won (run 1, consolidate)" in log
    assert current(work, "sokoban") == "cccc" * 16


@pytest.mark.parametrize(("env", "before"), [("lake", "bbbb" * 16), ("sokoban", "cccc" * 16)])
def test_the_line_that_takes_it_back_does(cli: Cli, work: Path, env: str, before: str) -> None:
    done = cli("rollback", env, "--work", str(work))
    assert current(work, env) != before
    undo = next(line for line in done.out.splitlines() if line.startswith("undo: agentopcd ")).split()[2:]
    assert cli(*undo).code == 0 and current(work, env) == before


def trained(store: Store, name: str, **settings: Any) -> None:
    """A student of a finished run that no move has put anywhere."""
    run_id = store.start("consolidate", settings, 0)
    (Path(store.path).parent / f"runs/{name}/student").mkdir(parents=True)
    store.add_model(name * 16, name, f"runs/{name}/student", "base" * 16, run_id)
    store.finish(run_id, {})


@pytest.mark.parametrize("env", [["chess"], ["chess/student"], []])
def test_a_first_student_that_its_gate_refused_can_be_put_there(cli: Cli, tmp_path: Path, env: list[str]) -> None:
    with Store.open(tmp_path / "store.db") as store:
        store.add_model("base" * 16, "pocket")
        trained(store, "ffff", env="chess")
    assert cli("rollback", *env, "--to", "ffffffffffff", "--work", str(tmp_path)).code == 0
    assert current(tmp_path, "chess") == "ffff" * 16
    assert cli("rollback", *env, "--to", "base", "--work", str(tmp_path)).code == 0


def test_a_student_that_was_there_can_be_put_back_wherever_it_was_trained(cli: Cli, work: Path) -> None:
    """A canary of served sessions may be a student of another environment."""
    with Store.open(work / "store.db") as store:
        move_student(store, "lake", "cccc" * 16, "gate", "the canary won")
    undo = cli("rollback", "lake", "--work", str(work)).out.partition("undo: agentopcd ")[2].splitlines()[0]
    assert cli(*undo.split()).code == 0 and current(work, "lake") == "cccc" * 16


@pytest.mark.parametrize(
    ("given", "known"), [([], "dddd"), (["--dry-run"], "dddd"), (["--to", "aaaa"], "base"), (["--to", "ffff"], "dddd")]
)
def test_a_student_whose_folder_is_gone_cannot_play(cli: Cli, work: Path, given: list[str], known: str) -> None:
    """``dddd`` was there before ``aaaa`` and ``bbbb``, unless it is gone, too."""
    with Store.open(work / "store.db") as store, store.write():
        trained(store, "dddd", env="lake")
        trained(store, "ffff", env="lake")
        store.change("DELETE FROM student_move WHERE env = 'lake'", ())
        for name in ("dddd", "aaaa", "bbbb"):
            move_student(store, "lake", name * 16, "gate")
    for name in ("aaaa", "ffff", *(["dddd"] if known == "base" else [])):
        (work / f"runs/{name}/student").rmdir()
    done, which = cli("rollback", "lake", *given, "--work", str(work)), "none" if known == "base" else "the newest"
    assert done.code == 2 and f"is gone; put it back, or take {which}" in done.err
    assert f": agentopcd rollback lake --to {known}" in done.err and current(work, "lake") == "bbbb" * 16
    assert cli("rollback", "lake", "--to", known, "--work", str(work)).code == 0


def test_a_dry_run_moves_nothing(cli: Cli, work: Path) -> None:
    with Store.open(work / "store.db") as store, store.write():  # a dry run waits for no writer
        done = cli("rollback", "lake", "--dry-run", "--work", str(work))
    assert "dry run: lake/student: bbbbbbbbbbbb -> runs/aaaa/student" in done.out
    assert current(work, "lake") == "bbbb" * 16


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "which environment? lake, sokoban"),
        (["lak"], "no student of 'lak' in"),
        (["lake", "--to", "dddd"], "'dddd' is no student here; agentopcd status --work "),
        (["lake", "--to", "bbbb"], "is at 'bbbb' already; agentopcd status --work "),
        (["lake", "--to", "baseb"], "'baseb' is no student here"),
        (["lake", "--to", "cccc"], "'cccc' was trained on sokoban, not on lake"),
        (["lake", "--to", "eeee"], "'eeee' is a placebo student"),
    ],
)
def test_what_cannot_be_meant_is_one_line(cli: Cli, work: Path, given: list[str], why: str) -> None:
    done = cli("rollback", *given, "--work", str(work))
    assert done.code == 2 and why in done.err and len(done.err.strip().splitlines()) == 1


def test_a_workspace_without_a_store_or_a_student_says_so(cli: Cli, work: Path, tmp_path: Path) -> None:
    assert cli("rollback", "--work", str(tmp_path / "none")).code == 2
    Store.open(tmp_path / "store.db").close()
    done = cli("rollback", "--work", str(tmp_path))
    assert done.code == 2 and "no student in" in done.err


def test_status_names_the_student_that_plays(cli: Cli, work: Path) -> None:
    lines = cli("status", "--work", str(work)).out.splitlines()
    named = [line for line in lines if "/student  " in line and line.endswith("lake/student")]
    assert len(named) == 1 and "bbbbbbbbbbbb" in named[0]
