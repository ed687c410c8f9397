"""Names that people type for files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_dir, is_file, is_gguf, path_of, told
from agentopcd.core.runs import workspace


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_is_found_and_a_stranger_s_is_a_plain_name(home: Path) -> None:
    (home / "notes.txt").write_text("x")
    assert path_of("~/notes.txt") == home / "notes.txt" and is_file("~/notes.txt") and is_dir("~")
    assert path_of("~no such user/x") == Path("~no such user/x") and not is_file("~no such user/x")


@pytest.mark.parametrize("name", ["word " * 2000, "a\0b", "x/" * 5000, ""])
def test_a_text_that_no_path_can_be_is_no_file(name: str) -> None:
    assert not is_file(name) and (not is_dir(name) or name == "")


def test_the_workspace_may_lie_in_the_home_folder(home: Path) -> None:
    assert workspace("~/w") == home / "w" and (home / "w").is_dir()
    with pytest.raises(ConfigError, match=r"cannot use .* as workspace"):
        workspace("w" * 5000)


def test_a_folder_of_somebody_s_own_runs_is_no_student(home: Path) -> None:
    for name in ("runs/llama-8b", "runs/exp/student", "runs/ours/student"):
        (home / name).mkdir(parents=True)
    (home / "runs/ours/student/agentopcd.json").write_text("{}")
    said = [told(str(home / "runs" / name)) for name in ("llama-8b", "exp/student", "ours/student", "gone/student")]
    assert said == ["a local folder", "a local folder", "the student of run ours", "the student of run gone"]
    assert told("") == "a local folder"


def test_a_gguf_file_may_have_capitals() -> None:
    assert is_gguf("w/up.GGUF") and is_gguf("~/x.gguf") and not is_gguf("x.gguf/config.json")
    assert told("UP.GGUF") == "a local .gguf file"
