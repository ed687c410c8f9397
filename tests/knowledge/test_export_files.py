"""Files of exports and of text: recognised by what they hold, whole or refused, written beside and renamed."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli.knowledge import app
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.runs import write_text
from agentopcd.core.text import split_lines
from agentopcd.core.types import EMPTY, MARKER, Context, Job
from agentopcd.knowledge import Origin, Store, ingest
from agentopcd.knowledge.dump import dump, to_jsonl
from agentopcd.knowledge.exchange import from_jsonl, is_export, load

RULE = f"{MARKER} Avoid holes."


@pytest.fixture
def work(tmp_path: Path, kit) -> Path:
    with kit.open(tmp_path / "work" / "store.db") as store:
        tasks = kit.tasks(3)
        store.add_tasks(kit.env, tasks, "extract")
        for task in tasks:
            episode = kit.episode(Job(task), True, turns=[kit.turn([("state", "P.\n.G")], "I go [down]")])
            (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
            ingest(store, RULE, Origin(run_id=1, episode=episode, episode_id=number))
        store.add_context(Context(RULE))
        store.move("lake/best", Context(RULE).id, "person")
    return tmp_path / "work"


def run(work: Path, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--work", str(work)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(work: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as error:
        run(work, *words)
    assert "\n" not in str(error.value)
    return str(error.value)


def exported(work: Path, file: Path) -> str:
    said = run(work, "export", "--all", "--episodes", "-o", str(file))
    assert f"agentopcd knowledge import {shlex.quote(str(file))} --work OTHER" in said
    return file.read_text()


# -- recognised ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A.JSONL", "a.ndjson", "a.json", "a.txt", "a", "a.jsonl.bak"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n\n"])
def test_an_export_is_recognised_by_what_it_holds(work: Path, tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(mark + exported(work, tmp_path / "my out.jsonl"))
    other = tmp_path / "other"
    assert json.loads(run(other, "import", str(tmp_path / name), "--json")) == {
        "run": 1, "task": 3, "item": 1, "context": 1, "model": 1, "episode": 3, "source": 3, "event": 2, "ref": 1,
        "look": 0,
    }  # fmt: skip
    with Store.open(other / "store.db") as store:
        assert [item.text for item in store.items()] == ["Avoid holes."]


def test_rows_without_their_header_are_no_text(work: Path, tmp_path: Path) -> None:
    _, *rows = exported(work, tmp_path / "out.jsonl").splitlines(keepends=True)
    (tmp_path / "tail.txt").write_text("".join(rows))
    assert "not a knowledge export" in refused(tmp_path / "other", "import", str(tmp_path / "tail.txt"))
    with Store.open(tmp_path / "other" / "store.db") as store:
        assert store.items() == [] and len(store.contexts()) == 1


def test_text_that_begins_with_a_brace_is_still_text(tmp_path: Path) -> None:
    for name, text in (("a.txt", '{"role": "a doctor"}\nBe brief.'), ("b.md", "{not json"), ("c.txt", "[1]")):
        (tmp_path / name).write_text(text)
        assert not is_export(text)
        run(tmp_path / "w", "import", str(tmp_path / name), "--as", name)
        with Store.open(tmp_path / "w" / "store.db") as store:
            assert store.get_context(store.resolve(name)).text == text


# -- text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_cost_no_item(tmp_path: Path, encoding: str, end: str) -> None:
    text = f"{MARKER} Holes\u2028are marked\x0c H.{end}{MARKER} The goal is G.{end}"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    result = json.loads(run(tmp_path / "w", "import", str(tmp_path / "a.txt"), "--json"))
    assert result["items"] == 2
    with Store.open(tmp_path / "w" / "store.db") as store:
        assert {item.text for item in store.items()} == {"Holes are marked H.", "The goal is G."}
    assert Context(text).lines == ["Holes\u2028are marked\x0c H.", "The goal is G."]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xe9", r"a\.txt: line 1 is not UTF-8 text .byte 0xe9"),
        (b"a\nb\n\xff\n", "line 3 is not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is NUL, so this is no UTF-8 text"),
        (b"\xff\xfea", "line 1 is not UTF-16 text"),
    ],
)
def test_other_encodings_are_refused_with_the_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["missing.txt", "x" * 300, "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_text(tmp_path / name)


def test_lines_end_where_editors_end_them() -> None:
    assert split_lines("a\r\nb\rc\nd\u2028e\x0bf\x0cg\x85h\x1ci\n") == [
        "a",
        "b",
        "c",
        "d\u2028e\x0bf\x0cg\x85h\x1ci",
        "",
    ]


# -- whole or refused ------------------------------------------------------------------------------------


def test_every_cut_of_an_export_is_refused(work: Path, tmp_path: Path) -> None:
    whole = exported(work, tmp_path / "out.jsonl")
    lines = whole.splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"type": "end", "rows": len(lines) - 2}
    fresh = Store.open(":memory:")
    before = "".join(to_jsonl(dump(fresh)))
    for kept in range(1, len(lines)):
        with pytest.raises(StoreError, match="cut short"):
            load(fresh, from_jsonl(lines[:kept]))
    with pytest.raises(StoreError, match=r"line .* is not JSON.*export again"):
        load(fresh, from_jsonl(whole[: len(whole) // 2].split("\n")))
    with pytest.raises(StoreError, match=f"should hold {len(lines) - 2} rows and holds {len(lines) - 3}"):
        load(fresh, from_jsonl([*lines[:-2], lines[-1]]))
    with pytest.raises(StoreError, match="goes on after its end"):
        load(fresh, from_jsonl(lines * 2))
    assert "".join(to_jsonl(dump(fresh))) == before


def test_an_export_of_version_1_has_no_end_and_is_read(work: Path, tmp_path: Path) -> None:
    lines = exported(work, tmp_path / "out.jsonl").splitlines()
    lines[0] = lines[0].replace('"version":4', '"version":1')
    assert load(Store.open(":memory:"), from_jsonl(lines[:-1]))["episode"] == 3


def _changed(work: Path, tmp_path: Path, kind: str, **values: object) -> list[str]:
    rows = [json.loads(line) for line in exported(work, tmp_path / "out.jsonl").splitlines()]
    row = next(row for row in rows if row.get("type") == kind and row.get("rendered") != "")
    for name, value in values.items():
        where = row["transcript"] if name in ("turns_", "outcome") else row
        where[name.rstrip("_")] = value
    return [json.dumps(row) for row in rows]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("episode", {"transcript": {"turns": []}}, "transcript does not fit its episode"),
        ("episode", {"transcript": [1]}, "transcript does not fit its episode"),
        ("episode", {"turns_": []}, "turns is 1, not 0"),
        ("episode", {"success": 0}, "success is 0, not 1"),
        ("episode", {"outcome": [["a", 5]]}, "not as it was written"),
        ("episode", {"seed": 1 << 70, "transcript": None}, "cannot hold this value"),
        (
            "episode",
            {"metrics": '{"score": "high"}', "transcript": None},
            "row .*'score' is 'high', which is no finite",
        ),
        ("episode", {"metrics": '{"score": NaN}', "transcript": None}, "'score' is nan, which is no finite"),
        ("episode", {"metrics": '{"score": 1' + "0" * 400 + "}", "transcript": None}, "which is no finite"),
        ("episode", {"reward": float("inf"), "transcript": None}, "'reward' is inf, which is no finite"),
        ("run", {"config": "[]"}, "config is no JSON object"),
        ("context", {"recipe": "5"}, "recipe is no JSON object"),
        ("context", {"items": []}, "shows other items"),
        ("ref", {"name": "a\x1b]0;x"}, "cannot name a ref"),
        ("item", {"type": ["item"]}, "unknown row type"),
        ("item", {"type": "x" * 10000}, "unknown row type"),
    ],
)
def test_rows_that_nobody_could_read_again_are_refused(
    work: Path, tmp_path: Path, kind: str, values: dict, message: str
) -> None:
    lines = _changed(work, tmp_path, kind, **values)
    with pytest.raises(StoreError, match=message) as error:
        load(Store.open(":memory:"), from_jsonl(lines))
    assert len(str(error.value)) < 700 and str(error.value).isprintable()


def test_deep_json_is_refused() -> None:
    for line in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(StoreError, match="line 1 is not JSON"):
            list(from_jsonl([line]))
        assert not is_export(line)


def test_half_a_surrogate_pair_travels(work: Path, tmp_path: Path, kit) -> None:
    with Store.open(work / "store.db") as store:
        store.add_tasks(kit.env, kit.tasks(1, 50), "extract")
        episode = kit.episode(Job(kit.tasks(1, 50)[0]), True, turns=[kit.turn([("state", "P \ud800 ²")], "a\udfffb")])
        (number,) = store.add_episodes(1, kit.model, kit.setup, [episode])
    exported(work, tmp_path / "out.jsonl")
    run(tmp_path / "other", "import", str(tmp_path / "out.jsonl"))
    with Store.open(tmp_path / "other" / "store.db") as store:
        assert dataclasses.replace(store.transcript(number or 0)) == episode


# -- written -------------------------------------------------------------------------------------------


def test_a_failed_export_leaves_the_file_before(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    before = exported(work, out)
    with Store.open(work / "store.db") as store:
        store.change("UPDATE transcript SET body = x'00' WHERE episode_id = 3")
    assert "transcript of episode 3" in refused(work, "export", "--all", "--episodes", "-o", str(out))
    assert out.read_text() == before
    assert not list(tmp_path.glob("*.tmp"))
    assert "its folder is not there" in refused(work, "export", "--all", "-o", str(tmp_path / "no" / "a.jsonl"))
    assert "Is a directory" in refused(work, "export", "--all", "-o", str(tmp_path))


def test_the_store_is_no_file_to_write_to(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(work.parent))
    assert "is the store itself" in refused(work, "export", "--all", f"--output=~/{work.name}/store.db")
    assert run(work, "list")


def test_links_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", ["a", "b"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "ab"
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(ConfigError, match=r"No space left on device.*make room"):
        write_text(Path("/dev/full"), "x")


def test_the_name_of_a_text_file_may_be_in_capitals(work: Path, tmp_path: Path) -> None:
    run(work, "export", "lake/best", "-o", str(tmp_path / "A.TXT"))
    assert (tmp_path / "A.TXT").read_text() == RULE


@pytest.mark.parametrize("placement", ["system", "user"])
def test_the_command_that_imports_a_text_keeps_its_placement(work: Path, tmp_path: Path, placement: str) -> None:
    context = Context(RULE, placement)  # type: ignore[arg-type]
    with Store.open(work / "store.db") as store:
        store.add_context(context)
    said = run(work, "export", context.id, "-o", str(tmp_path / "a.txt"))
    words = shlex.split(said.partition("; agentopcd knowledge ")[2].partition(" --work OTHER")[0])
    run(tmp_path / "other", *words)
    with Store.open(tmp_path / "other" / "store.db") as store:
        assert store.get_context(context.id).placement == placement


# -- runs of imports -----------------------------------------------------------------------------------


def test_a_killed_import_leaves_nothing(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(work, tmp_path / "out.jsonl")
    other = tmp_path / "other"

    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("agentopcd.knowledge.exchange._Load.end", dies)
        run(other, "import", str(tmp_path / "out.jsonl"))
    with Store.open(other / "store.db") as store:
        assert store.runs() == [] and store.items() == []
    (tmp_path / "bad.jsonl").write_text("{}")
    refused(other, "import", str(tmp_path / "bad.jsonl"))
    with Store.open(other / "store.db") as store:
        assert [row["status"] for row in store.runs("import")] == ["failed"]
        assert store.get_context(EMPTY.id) == EMPTY
