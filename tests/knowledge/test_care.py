"""A store that is damaged, locked, full, moved away or read-only: told in one line, checked, repaired, backed up."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli.knowledge import app as knowledge_app
from agentopcd.cli.store import app as store_app
from agentopcd.cli.store_views import context_rows
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.transcript import pack, to_json
from agentopcd.core.types import MARKER, Context, Job, Task
from agentopcd.knowledge import Origin, Store, confirm, ingest
from agentopcd.knowledge import repair as repairing
from agentopcd.knowledge.care import backup, problems
from agentopcd.knowledge.dump import dump
from agentopcd.knowledge.repair import repair

GAMES = 60


@pytest.fixture
def path(tmp_path: Path, kit) -> Path:
    """A store of some pages: 60 episodes with transcripts, three items, a context and a ref."""
    path = tmp_path / "work" / "store.db"
    with kit.open(path) as store:
        store.add_tasks(kit.env, kit.tasks(GAMES), "extract")
        rng = random.Random(0)
        for task in kit.tasks(GAMES):
            state = "".join(rng.choices("abcdefgh", k=800))
            episode = kit.episode(Job(task), task.seed % 2 == 0, turns=[kit.turn([("state", state)], "I go [down]")])
            (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
            if task.seed < 3:
                origin = Origin(run_id=1, episode=episode, episode_id=number)
                ingest(store, f"{MARKER} Rule {'abc'[task.seed]}.", origin)
        context = Context("\n".join(f"{MARKER} {item.text}" for item in store.items()))
        store.add_context(context)
        store.move("lake/best", context.id, "person")
    return path


def call(app, *words: str, work: Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words, "--work", str(work)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def raw(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


# -- told ----------------------------------------------------------------------------------------------


def test_an_empty_file_is_no_new_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch()
    with pytest.raises(StoreError, match=r"0 bytes.*backup"):
        Store.open(path)
    assert path.stat().st_size == 0
    path.unlink()
    (tmp_path / "store.db-wal").write_bytes(b"rows")
    with pytest.raises(StoreError, match=r"store\.db-wal beside it holds rows"):
        Store.open(path)
    assert not path.exists()


def test_a_new_store_appears_whole(tmp_path: Path) -> None:
    Store.open(tmp_path / "store.db").close()
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


def test_a_store_that_is_removed_meanwhile_is_noticed(path: Path, kit) -> None:
    """SQLite writes on into a file that nobody will ever see."""
    with Store.open(path) as store:
        path.unlink()
        with pytest.raises(StoreError, match="removed or replaced while"):
            store.start("play", {}, 0)
    assert not path.exists()


def test_a_locked_store_says_so_and_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.knowledge.database.BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("agentopcd.knowledge.database.READ_TIMEOUT_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM item_source")
    with pytest.raises(StoreError, match="locked; another process is using it"):
        Store.open(path)
    assert "60 episodes" in call(knowledge_app, "list", "episodes", work=path.parent)
    assert "read from a copy" in call(knowledge_app, "list", "refs", work=path.parent)
    assert "support 1  Rule a." in call(knowledge_app, "list", "items", work=path.parent)  # not what is being written
    exported = call(knowledge_app, "export", "--all", work=path.parent)
    assert '"type":"end"' in exported
    other.execute("ROLLBACK")
    other.close()
    with Store.open(path) as store:
        assert len(store.episodes()) == GAMES


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_read_only_store_can_be_listed_and_exported(path: Path) -> None:
    """As another user where root runs the tests, because root may write anywhere."""
    work = path.parent
    for folder in (work, *(one for one in work.parents if Path(tempfile.gettempdir()) in one.parents)):
        folder.chmod(folder.stat().st_mode | 0o055)
    path.chmod(0o444)
    work.chmod(0o555)
    code = (
        "import os, sys\n"
        "from typer.testing import CliRunner\n"
        "from agentopcd.cli.knowledge import app\n"
        "words = (['list', 'items'], ['export', '--all'], ['show', '5'], ['move', 'lake/x', 'empty'])\n"
        "call = lambda words: CliRunner().invoke(app, [*words, '--work', sys.argv[1]])\n"
        "if os.geteuid() == 0:\n"
        "    [call(line) for line in words[:3]]  # imports what another user may not read\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "for done in map(call, words): print(done.exit_code, repr(done.exception), done.output)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(work)], capture_output=True, text=True, check=True)
    work.chmod(0o755)
    assert done.stdout.count("0 None") == 3, done.stdout
    assert "Rule a." in done.stdout and '"type":"end"' in done.stdout and "I go [down]" in done.stdout
    assert "StoreError" in done.stdout and "permission" in done.stdout


def test_a_full_disk_loses_nothing_that_was_stored(path: Path, kit) -> None:
    with Store.open(path) as store:
        pages = store.query("PRAGMA page_count")[0]["page_count"]
        store.query(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full; make room on the disk"):
            for number in range(100):
                store.add_context(Context(f"{number} " * 1000))
        store.query("PRAGMA max_page_count = 1000000")
        store.add_context(Context("There is room again."))  # the failed transaction is over
        assert len(store.episodes()) == GAMES


@pytest.mark.parametrize("value", ["room/\ud800", 1 << 70])
def test_values_that_sqlite_cannot_hold(path: Path, value: object) -> None:
    with Store.open(path) as store, pytest.raises(StoreError, match="cannot hold this value"):
        store.lookup("run", id=value)


@pytest.mark.parametrize("name", ["room/2²", "room/" + "9" * 5000, "room/٣", "room/00012", "a²b³"])
def test_no_name_of_a_ref_bricks_the_lists(path: Path, name: str) -> None:
    with Store.open(path) as store:
        target = store.resolve("lake/best")
        row = {"name": name, "context_id": target, "actor": "person", "at": "2026"}
        store.insert("ref_move", row)  # as version 0.1 let it in
        assert store.refs()[name] == target and store.resolve(name) == target
    assert name in call(knowledge_app, "list", "refs", work=path.parent)
    with pytest.raises(StoreError, match="unknown context '2²'"):
        call(knowledge_app, "show", "2²", work=path.parent)


def test_numbers_in_names_are_sorted_as_numbers(path: Path) -> None:
    with Store.open(path) as store:
        target = store.resolve("lake/best")
        for name in ("p/10", "p/9", "p/2²", "p/010b", "p/100", "p/x"):
            store.move(name, target, "person")
        assert list(store.refs("p/")) == ["p/2²", "p/9", "p/10", "p/010b", "p/100", "p/x"]


@pytest.mark.parametrize("name", ["", "empty", "a b", "a\x1b[31m", "a\u2028b", "\ud800", "a" * 5000])
def test_names_that_are_refused(path: Path, name: str) -> None:
    with Store.open(path) as store, pytest.raises(StoreError, match="cannot name a ref") as error:
        store.move(name, store.resolve("lake/best"), "person")
    assert str(error.value).isprintable()


# -- checked, repaired, backed up ------------------------------------------------------------------------


def test_a_sound_store_has_no_problems(path: Path) -> None:
    with Store.open(path) as store:
        assert problems(store) == []
    assert "is sound" in call(store_app, "check", work=path.parent)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE transcript SET body = x'00' WHERE episode_id = 7"], "episode 7: the transcript is damaged"),
        (
            ["DROP TRIGGER episode_frozen", "UPDATE episode SET success = 1 WHERE id = 8"],
            "episode 8: success is 1, not 0",
        ),
        (
            ["DROP TRIGGER item_frozen", "UPDATE item SET text = 'Give up.' WHERE text = 'Rule a.'"],
            "its text was changed",
        ),
        (["DELETE FROM model"], "belongs to a model that is not there"),
        (["UPDATE run SET config = '[]'"], "its config is no JSON object"),
    ],
)
def test_check_finds_what_was_changed(path: Path, statements: list[str], problem: str) -> None:
    raw(path, *statements)
    said = call(store_app, "check", work=path.parent, code=1)
    assert problem in said and "agentopcd store repair" in said
    with Store.open(path) as store, contextlib.suppress(StoreError):
        list(dump(store, episodes=True))  # whole, or refused in one line
    call(store_app, "repair", work=path.parent)
    assert "is sound" in call(store_app, "check", work=path.parent)


def test_the_command_that_repairs_is_quoted(path: Path) -> None:
    raw(path, "DELETE FROM model")
    (home := path.parent / "my work").mkdir()
    for file in path.parent.glob("store.db*"):
        file.rename(home / file.name)
    assert call(store_app, "check", work=home, code=1).rstrip().endswith(f"agentopcd store repair --work '{home}'")


@pytest.mark.parametrize("value", ["[]", "5", "null"])
def test_a_recipe_that_is_no_object_is_one_line_that_names_the_remedy(path: Path, value: str) -> None:
    raw(path, "DROP TRIGGER IF EXISTS context_frozen", f"UPDATE context SET recipe = '{value}'")
    said = r"damaged: the recipe of context \w+ is no JSON"
    with Store.open(path) as store, pytest.raises(StoreError, match=said) as told:
        context_rows(store)
    assert "agentopcd store check" in str(told.value) and "\n" not in str(told.value)


def test_repair_keeps_every_row_of_a_sound_store(path: Path, kit) -> None:
    tables = (
        "run",
        "item",
        "context",
        "ref_move",
        "model",
        "task",
        "episode",
        "transcript",
        "item_event",
        "item_source",
        "look",
    )
    with Store.open(path) as store:
        context = store.get_context(store.resolve("lake/best"))
        confirm(kit.bench(store, kit.player(lambda _: 0.5)), context, kit.tasks(4, 5000))
        before = {table: store.table(table, "1, 2") for table in tables}
    done = repair(path)
    assert done.lost == [] and done.kept.is_file()
    with Store.open(path) as store:
        assert {table: store.table(table, "1, 2") for table in tables} == before
        assert [item.support for item in store.items()] == [1, 1, 1]
        with pytest.raises(StoreError, match="immutable"):
            store.change("UPDATE episode SET reward = 2")


def test_repair_saves_the_rest_of_a_damaged_file(path: Path) -> None:
    """Overwrite a page of transcripts: their episodes stay, and so do the transcripts on other pages."""
    body = bytearray(path.read_bytes())
    pages = [
        n for n in range(1, len(body) // 4096) if body[n * 4096] == 13 and b"x\x9c" in body[n * 4096 : n * 4096 + 4096]
    ]
    middle = pages[len(pages) // 2]
    body[middle * 4096 : middle * 4096 + 4096] = random.Random(1).randbytes(4096)
    path.write_bytes(body)
    with Store.open(path) as store:
        assert problems(store)
        assert len(store.episodes()) == GAMES
    done = repair(path)
    assert any(line.startswith("transcript: rows ") for line in done.lost)
    with Store.open(path) as store:
        assert problems(store) == []
        assert len(store.episodes()) == GAMES
        saved = store.query("SELECT count(*) AS n FROM transcript")[0]["n"]
        assert GAMES - 8 <= saved < GAMES
    assert bytes(body) == done.kept.read_bytes()


@pytest.mark.parametrize("damage", ["header", "schema", "cut"])
def test_repair_reads_a_file_that_cannot_be_opened(path: Path, damage: str) -> None:
    body = bytearray(path.read_bytes())
    if damage == "header":
        body[:16] = b"0123456789abcdef"
    elif damage == "schema":
        body[100:4096] = bytes(3996)
    else:
        body = body[: len(body) * 3 // 4 // 4096 * 4096]
    path.write_bytes(body)
    with pytest.raises(StoreError, match="agentopcd store repair"), Store.open(path) as store:
        store.episodes()
        store.query("SELECT * FROM transcript")
    done = repair(path)
    with Store.open(path) as store:
        assert problems(store) == []
        kept = len(store.episodes())
    assert kept == GAMES and done.lost == [] if damage != "cut" else done.lost


def test_repair_takes_lost_tasks_from_the_splits(path: Path, kit) -> None:
    import hashlib
    import json

    raw(path, "DELETE FROM task")
    splits = path.parent / "splits"
    splits.mkdir()
    tasks = [[task.seed, task.key] for task in kit.tasks(GAMES)]
    name = hashlib.sha256(kit.env.encode()).hexdigest()[:12]
    text = json.dumps({"protocol": "disjoint", "splits": {"extract": tasks[:50], "train": tasks[50:]}})
    (splits / f"{name}.json").write_text(text)
    assert repair(path).lost == []
    with Store.open(path) as store:
        assert (len(store.episodes(split="extract")), len(store.episodes(split="train"))) == (50, 10)
        assert [item.support for item in store.items()] == [1, 1, 1]


def test_a_store_that_is_written_to_is_not_repaired(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = repairing._Repair.run, sorted(file.name for file in path.parent.iterdir())

    def meanwhile(self: repairing._Repair) -> list[str]:
        raw(path, "UPDATE run SET seed = 7")
        return run(self)

    monkeypatch.setattr(repairing._Repair, "run", meanwhile)
    with pytest.raises(StoreError, match="while it was repaired; stop what uses it"):
        repair(path)
    assert sorted(file.name for file in path.parent.iterdir()) == before
    with Store.open(path) as store:
        assert {row["seed"] for row in store.runs()} == {7}


def test_what_is_no_store_at_all_cannot_be_repaired(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("not a database " * 1000)
    with pytest.raises(StoreError, match="put a backup in its place"):
        repair(tmp_path / "store.db")
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


def test_a_backup_is_a_whole_store_and_never_overwrites(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.start("play", {}, 0)
        backup(store, tmp_path / "copy.db")  # while the store is open
        with pytest.raises(StoreError, match="always a new file"):
            backup(store, tmp_path / "copy.db")
    with Store.open(tmp_path / "copy.db") as copy:
        assert len(copy.episodes()) == GAMES and len(copy.runs()) == 2
    with pytest.raises(ConfigError, match="is the store itself"):
        call(store_app, "backup", "-o", str(path), work=path.parent)
    with pytest.raises(ConfigError, match="is the store itself"):
        call(knowledge_app, "export", "--all", "-o", str(path), work=path.parent)
    assert "wrote" in call(store_app, "backup", work=path.parent)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    call(knowledge_app, "export", "--all", "-o", str(tmp_path / "loop"), work=path.parent)
    assert (tmp_path / "loop").is_file()  # a link that leads nowhere gives way
    with pytest.raises(ConfigError, match="folder is not there"):
        call(store_app, "backup", "-o", str(tmp_path / "no" / "x.db"), work=path.parent)


def test_a_transcript_that_does_not_fit_its_row_is_told(path: Path, kit) -> None:
    with Store.open(path) as store:
        episode = store.transcript(3)
        body = pack(to_json(episode) | {"task": Task(99, "other")})
        store.change("UPDATE transcript SET body = ? WHERE episode_id = 3", (body,))
        assert problems(store) == ["episode 3: task_key is 'board-00002', not 'other'"]
        store.change("UPDATE transcript SET body = x'00' WHERE episode_id = 3")
        with pytest.raises(StoreError, match=r"transcript of episode 3 .* is damaged"):
            store.transcript(3)
