"""Files with rows: the content decides what a file is, and what cannot be read is refused with its line."""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path

import pytest

from agentopcd.core.encoding import decoded
from agentopcd.core.errors import ConfigError, EnvError
from agentopcd.envs import get_spec, make
from agentopcd.envs.questions.rows import load_rows, rows_from
from agentopcd.rollouts.game import Game

ROWS = [{"question": "Wie heißt 1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
WANTED = [("Wie heißt 1+1?", "2"), ("2+2?", "4")]


def read(path: Path, data: str | bytes) -> list[tuple[str, str]]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [(row.prompt, row.gold) for row in load_rows(str(path))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        "\n\f\n" + LINES + "\n\n",
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "question,answer\nWie heißt 1+1?,2\n2+2?,4\n",
        "question;answer\r\nWie heißt 1+1?;2\r\n2+2?;4\r\n",
        "question\tanswer\nWie heißt 1+1?\t2\n2+2?\t4\n",
        " question , answer\nWie heißt 1+1?,2\n\n2+2?,4",
    ],
    ids=["lines", "crlf", "blank", "array", "indented-array", "indented", "comma", "semicolon", "tab", "spaces"],
)
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path: Path, name: str, data: str) -> None:
    assert read(tmp_path / name, data) == WANTED


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + LINES.encode(),
        LINES.encode("utf-16"),
        codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + LINES.encode("utf-32-le"),
        codecs.BOM_UTF8 + "question,answer\nWie heißt 1+1?,2\n2+2?,4\n".encode(),
    ],
)
def test_a_byte_order_mark_names_the_encoding_and_is_no_part_of_the_text(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "a.jsonl", data) == WANTED


def test_line_ends_of_unicode_and_form_feeds_stay_in_their_cell(tmp_path: Path) -> None:
    odd = "one\u2028two\x0cthree\x85four\x1cfive"
    assert read(tmp_path / "a.jsonl", json.dumps({"question": odd, "answer": "1"}, ensure_ascii=False)) == [(odd, "1")]
    assert read(tmp_path / "a.csv", f"question,answer\n{odd},1\n") == [(odd, "1")]
    assert read(tmp_path / "b.csv", 'question,answer\n"two\nlines, and ""quotes""",1\n') == [
        ('two\nlines, and "quotes"', "1")
    ]


def test_a_field_may_be_long(tmp_path: Path) -> None:
    ((question, _),) = read(tmp_path / "a.csv", f"question,answer\n{'x' * 200_000},1\n")
    assert len(question) == 200_000


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (LINES.encode("latin-1"), r"line 1 is not UTF-8 text \(byte 0xdf\); save the file as UTF-8"),
        (b"question,answer\nok,1\nWie hei\xdft es?,4\n", r"line 3 is not UTF-8 text \(byte 0xdf\)"),
        ("question,answer\nq,1\n".encode("utf-16-le"), "character 2 is NUL"),
        (b"\x1f\x8b\x08\x00", "packed with gzip; unpack it first"),
        (b"PK\x03\x04", "a spreadsheet; save its table as CSV"),
        ('{"question": "q", "answer": "1"}\n{"question": "q"', "line 2 is not JSON"),
        ('{"question": "q", "answer": "1"}\n{"question": "q"\n', "line 2 is not JSON"),
        (
            '{"question": "q", "answer": "1"}\n{"question": "q"\n\n{"question": "q"}',
            r"line 2 is not JSON: .* \(line 4\)",
        ),
        ('[{"question": "q", "answer": "1"},\n{"question": "q"}\n', "line 2 is not JSON"),
        ('[{"question": "q", "answer": "1"},\n]', "line 2 is not JSON: a comma too many before the bracket"),
        ('[{"question": "q", answer: "1"}]', "line 1 is not JSON: Expecting property name"),
        ('{"a": 1}\n7\n', "line 2 must be an object, got int"),
        ('{"question": "q", "answer": "1", "answer": "2"}', "'answer' stands in an object twice"),
        ('\n{"question": "q", "answer": ' + "[" * 100_000, "line 2 is nested too deeply"),
        ('{"question": "q", "answer": ' + "9" * 5000 + "}", "line 1 is not JSON: .*digits"),
        ("question,answer\na,1\nb,c,2\n", r"line 3 has 3 fields, and there are 2 columns \(question, answer\)"),
        ("question,answer,answer\na,1,2\n", "two columns are called 'answer'"),
        ('question,answer\n"never closed,1\nb,2\n', "is not CSV: unexpected end of data"),
        ("question,answer\na,1\nb", "line 3 has 1 fields"),
        ("question,answer\n", "there are no rows"),
        ("", "there are no rows"),
        ('{"question": "Half \\ud83d an emoji?", "answer": "4"}', "row 1: its question holds half a surrogate pair"),
        ('{"question": "q?", "answer": "\\udc00"}', "row 1: its answer holds half a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, data: str | bytes, says: str) -> None:
    with pytest.raises(EnvError, match=says) as error:
        read(tmp_path / "a.jsonl", data)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "a.jsonl"))


def test_a_folder_is_no_file_and_an_absent_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="cannot be read: Is a directory"):
        load_rows(str(tmp_path))
    with pytest.raises(EnvError, match=r"no file '.*b\.jsonl' with questions"):
        load_rows(f"{tmp_path / 'b.jsonl'}")


def test_several_files_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "b.csv").write_text("comment;isHate\nhm, well;0.2\nyou lot;0.9\n")
    both = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.csv'}"
    assert [(row.gold, row.kind) for row in load_rows(both)] == [
        ("2", "math"), ("4", "math"), ("no", "choice"), ("yes", "choice")
    ]  # fmt: skip
    assert make(both).reset(seed=3)[0].startswith("you lot")
    before = Game(ref=both).source
    (tmp_path / "b.csv").write_text("comment;isHate\nhm, well;0.8\nyou lot;0.9\n")
    assert before and Game(ref=both).source not in ("", before)  # an edit of either file is another setup
    with pytest.raises(EnvError, match=r"b\.csv: row 2: isHate must be a share"):
        (tmp_path / "b.csv").write_text("comment;isHate\nhm, well;0.8\nyou lot;often\n")
        load_rows(both)
    with pytest.raises(EnvError, match=r"no file '.*c\.csv' with questions"):
        get_spec(f"{tmp_path / 'a.jsonl'},{tmp_path / 'c.csv'}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.Csv", "a.tsv"])
def test_names_of_row_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LINES, encoding="utf-8")
    assert get_spec(str(tmp_path / name)).kwargs == {"rows": str(tmp_path / name)}


def test_an_encoding_is_never_guessed() -> None:
    assert decoded("ß\u2028".encode()) == "ß\u2028"
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        decoded(b"one\n\xe9")
    with pytest.raises(ConfigError, match="is not UTF-16"):
        decoded(codecs.BOM_UTF16_LE + b"odd")


@pytest.mark.parametrize("name", ["rows", "file"])
def test_files_named_in_arguments_are_part_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(LINES, encoding="utf-8")
    (tmp_path / "asked.py").write_text(
        f"from agentopcd.envs import EnvSpec\nSPEC = EnvSpec(id='asked', entry_point='agentopcd.envs:DatasetEnv',"
        f" kwargs={{{name!r}: {str(file)!r}}})\n"
    )
    games = [Game(ref=f"{tmp_path / 'asked.py'}:SPEC"), Game(ref="ifeval", kwargs={name: str(file)})]
    before = [game.source for game in games]
    file.write_text(LINES.replace("?", "??"), encoding="utf-8")
    assert all(old and game.source != old for game, old in zip(games, before, strict=True))
    monkeypatch.chdir(tmp_path)
    for ref in ("a.jsonl", str(file)):
        assert Game(ref=ref).source == hashlib.sha256(file.read_bytes()).hexdigest(), "the same file, once"
    assert Game(ref="ifeval").source == ""


def test_numbers_are_places_in_a_file_where_one_of_them_is_no_text_of_its_row() -> None:
    rows = [
        {"question": "How many?", "choices": ["0", "3", "12", "30"], "answer": 0},
        {"question": "And here?", "choices": ["1", "2", "infinitely many", "0"], "answer": 1},
        {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
    ]
    assert [row.gold for row in rows_from(rows)] == ["A", "B", "B"]
    with pytest.raises(EnvError, match="row 1: cannot tell whether 1"):  # nothing says what they count from
        rows_from([{**rows[1], "choices": ["2", "1"]}, {"question": "C?", "choices": ["red", "blue"], "answer": 1}])
    texts = [{"question": f"{n}?", "choices": ["1", "2", "0"], "answer": n} for n in (1, 2, 0)]
    with pytest.raises(EnvError, match="the text or the number of a choice"):  # each may be either
        rows_from(texts)
