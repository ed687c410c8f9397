"""The documentation: every relative link and anchor leads somewhere, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = [f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")]
PAGES = sorted(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS])
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")


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


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
