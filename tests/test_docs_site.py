"""The documentation: links, anchors and names of files lead somewhere, the tree is whole, the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = [f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")]
PAGES = sorted(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS])
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
CODE = re.compile(r"`([^`\n]+)`")

HISTORY = {"CHANGELOG.md", "docs/LOG.md", "docs/mutations.md"}
"""Pages that may name what is gone."""
STAND_INS = {"knowledge/schema/NNNN.sql", "utils.py", "guess.py", "grade.py", "till.py"}
"""Names on pages that stand for other files, or for none."""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and our site make them: lower case, words joined by hyphens."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose, flags=re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", LINK.sub(lambda link: link[0][1:].partition("]")[0], heading).lower())
        anchor, number = words.replace(" ", "-"), 0
        while anchor in found:
            number += 1
            anchor = f"{words.replace(' ', '-')}-{number}"
        found.add(anchor)
    return found


def broken(page: Path) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_and_anchors_exist(name: str) -> None:
    assert list(broken(ROOT / name)) == []


def test_the_reader_of_links_sees_a_broken_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    links = "[a](#the-one-thing) [b](#other) [c](gone.md) [d](page.md#x)"
    page.write_text(f"# The `one` thing\n\n{links}\n\n```\n[e](no)\n```\n")
    assert list(broken(page)) == ["#other", "gone.md", "page.md#x"]


def known_files() -> set[str]:
    """Every file of the repository that a page may name, with all the shorter ways to name it."""
    folders = [ROOT / name for name in ("agentopcd", "benchmarks", "docs", "examples", "recipes", "tests")]
    files = [*ROOT.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]
    parts = [file.relative_to(ROOT).parts for file in files]
    return {"/".join(names[start:]) for names in parts for start in range(len(names))}


@pytest.mark.parametrize("name", sorted(set(PAGES) - HISTORY))
def test_files_and_modules_that_a_page_names_exist(name: str) -> None:
    words = CODE.findall(FENCE.sub("", (ROOT / name).read_text(encoding="utf-8")))
    files = {word for word in words if re.fullmatch(r"[\w./-]+\.(py|toml|sql|sh|md)", word)}
    assert files - STAND_INS - known_files() == set()
    for word in (word for word in words if re.fullmatch(r"agentopcd(\.\w+)+", word) and word != "agentopcd.json"):
        module, _, attribute = word.rpartition(".")
        assert find_spec(word) or hasattr(import_module(module), attribute), word


def test_functions_that_the_map_names_exist() -> None:
    words = CODE.findall(FENCE.sub("", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    named = {word.rpartition(".")[2] for word in words if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)?", word)}
    files = [*(ROOT / "agentopcd").rglob("*.py"), ROOT / "Makefile"]
    source = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    assert {word for word in named if not (ROOT / word).exists()} - source - {"py"} == set()


def in_tree(block: str) -> Iterator[str]:
    """The paths of an annotated tree: two blanks a level, then a name; what follows or stands further in is text."""
    above: list[str] = []
    for line in block.splitlines():
        found = re.match(r"((?:  )*)([\w.]+/?)(  |$)", line)
        if found and len(found[1]) // 2 <= len(above):
            above = [*above[: len(found[1]) // 2], found[2]]
            yield "".join(above)
            if not found[2].endswith("/"):
                above.pop()


def test_the_tree_has_every_file_of_the_package_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = (text for text in FENCE.findall(page) if "\nagentopcd/\n" in text)
    named = Counter(in_tree(block.partition("\n")[2].rstrip("`\n")))
    assert [name for name, times in named.items() if times > 1 or not (ROOT / name).exists()] == []
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / "agentopcd").rglob("*.py")}
    # A folder's own line stands for its __init__.py.
    assert {file for file in files if file not in named and file.removesuffix("__init__.py") not in named} == set()


def test_the_reader_of_trees_sees_what_it_should() -> None:
    block = "top/\n  a.py      what it is\n            and more\n\n  b/        a folder\n    c.py      d.py\n  e.py"
    assert list(in_tree(block)) == ["top/", "top/a.py", "top/b/", "top/b/c.py", "top/e.py"]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
