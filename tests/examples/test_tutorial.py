"""The notebook: it is stored without outputs, its commands parse, and it runs from top to bottom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import pages
from tests.test_docs_site import LINK
from tests.test_readme import commands, parse

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
BOOK = EXAMPLES / "tutorial.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    book = json.loads(BOOK.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs() -> None:
    assert [cell["id"] for cell in cells("code") if cell["outputs"] or cell["execution_count"]] == []
    assert len(BOOK.read_bytes()) < 20_000


def test_its_commands_parse(cli_generator: ModuleType) -> None:
    shell = ["".join(cell["source"][1:]) for cell in cells("code") if cell["source"][0] == "%%bash\n"]
    found = [words for text in shell for words in commands(f"```bash\n{text}\n```")]
    assert [words[0] for words in found] == ["envs", "knowledge", "knowledge", "consolidate"]
    for words in found:
        parse(cli_generator, words)


def test_its_links_lead_somewhere() -> None:
    links = [link for cell in cells("markdown") for link in LINK.findall("".join(cell["source"]))]
    assert links and [link for link in links if not (EXAMPLES / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name, value in pages.reader(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    shutil.copy(EXAMPLES / "cave.py", tmp_path)
    book = nbformat.read(BOOK, as_version=4)
    nbclient.NotebookClient(
        book, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = {cell["source"]: "".join(out.get("text", "") for out in cell.get("outputs", ())) for cell in book.cells}
    assert any("student - base" in text for text in said.values())
    assert "goal T hole X" in next(text for source, text in said.items() if "answer(student, " in source)
