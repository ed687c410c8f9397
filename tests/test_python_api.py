"""The page on Python: its snippets run, in order, and it names everything that is public. README's run as far as they
can without a network.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentopcd

FENCE = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

# Each snippet has names of its own, as if it stood in a file; a traceback names the line of the page.
DRIVER = """
import ast, sys
for line, code in ast.literal_eval(sys.stdin.read()):
    exec(compile("\\n" * line + code, sys.argv[1], "exec"), {"__name__": "__main__"})
"""


def snippets(page: Path) -> Iterator[tuple[int, str]]:
    """Python on a page, each piece with the number of lines above it."""
    text = page.read_text(encoding="utf-8")
    return ((text.count("\n", 0, found.start(1)), found[1]) for found in FENCE.finditer(text))


def run(root: Path, page: str, pieces: list[tuple[int, str]], folder: Path) -> str:
    """Run pieces of a page in one process of its own, in ``folder``; what it printed."""
    own = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, page], cwd=folder, env=own, input=repr(pieces), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_snippets_of_the_page_run(root: Path, tmp_path: Path) -> None:
    page = root / "docs" / "python-api.md"
    pieces = list(snippets(page))
    assert len(pieces) == page.read_text(encoding="utf-8").count("```python"), "a snippet is indented"
    printed = run(root, page.name, pieces, tmp_path)
    assert "best of 1 on select" in printed and "in-context" in printed


def test_the_readme_s_environment_plays(root: Path, tmp_path: Path) -> None:
    ((line, code),) = (piece for piece in snippets(root / "README.md") if "class Guess" in piece[1])
    code += "env = Guess()\nenv.reset(seed=1)\nprint(env.step('I say [0]')[0])\nprint(env.step('50')[0])\n"
    printed = run(root, "README.md", [(line, code)], tmp_path)
    assert printed.splitlines() == ["Too low.", "I need a number in brackets."]


def test_the_readme_imports_what_exists(root: Path) -> None:
    for _, code in snippets(root / "README.md"):
        tree = ast.parse(code)
        tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
        exec(compile(tree, "README.md", "exec"), {})


@pytest.mark.parametrize("name", agentopcd.__all__)
def test_every_public_name_is_on_the_page(root: Path, name: str) -> None:
    page = (root / "docs" / "python-api.md").read_text(encoding="utf-8")
    table = page[page.index("| from `agentopcd` |") :].partition("\n\n")[0]
    assert f"`{name}`" in table


def test_the_page_names_nothing_that_is_not_public(root: Path) -> None:
    page = (root / "docs" / "python-api.md").read_text(encoding="utf-8")
    table = page[page.index("| from `agentopcd` |") :].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == set(agentopcd.__all__)
