"""The commands that take a decision back do so."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Found, Store, identify
from tests.knowledge_commands import run

HOLES, WALL, ICE = "Avoid holes.", "A wall stops you.", "Ice is slippery."


@pytest.fixture
def work(tmp_path: Path, kit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One item in a context, and a retired and a pending one in none."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with kit.open(tmp_path / "work" / "store.db") as store:
        store.add_items(1, [Found(HOLES), Found(WALL), Found(ICE)])
        store.event(identify(HOLES), "approve", "person")
        store.event(identify(WALL), "retire", "person")
        free = Context("Look first.")
        for name, context in (("list", kit.context(HOLES)), ("free", free)):
            store.add_context(context)
            store.move(f"lake/{name}", context.id, "person")
    return tmp_path / "work"


def statuses(work: Path) -> list[str]:
    with Store.open(work / "store.db") as store:
        return [store.item(identify(text)).status for text in (HOLES, WALL, ICE)]


@pytest.mark.parametrize(("ref", "mark", "approved"), [("list", "", True), ("free", f"{MARKER} ", False)])
def test_what_an_edit_has_approved_is_retired_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, mark: str, approved: bool
) -> None:
    script = tmp_path / "editor.py"
    script.write_text(f"import sys; open(sys.argv[1], 'a').write({chr(10) + mark + WALL + chr(10) + mark + ICE!r})")
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(script)]))
    said = run(work, "edit", f"lake/{ref}")
    assert statuses(work) == ["active", "active" if approved else "retired", "active"]
    for command in said.partition("undo with: ")[2].strip().split(" && "):
        run(work, *shlex.split(command)[2:-2])
    assert statuses(work) == ["active", "retired", "retired"]  # no decision makes an item wait again
    with Store.open(work / "store.db") as store:
        assert store.log(f"lake/{ref}")[-1]["context_id"] == store.log(f"lake/{ref}")[0]["context_id"]


def test_a_second_item_in_the_place_of_a_retired_one_has_no_undo(work: Path) -> None:
    said = run(work, "tidy", "--supersede", identify(WALL), "--by", identify(HOLES))
    assert said == f"{identify(WALL)[:12]} retired, {identify(HOLES)[:12]} in its place\n"


@pytest.mark.parametrize(("decision", "after"), [("pin", "pinned"), ("approve", "active")])
def test_what_is_corrected_keeps_its_place(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: str, after: str
) -> None:
    run(work, decision, identify(HOLES)[:12])
    script = tmp_path / "editor.py"
    script.write_text(
        "import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n"
        "file.write_text(file.read_text().replace('Avoid', 'Avoid all') + '\\n#|| is a wall.\\n')\n"
    )
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(script)]))
    run(work, "edit", "lake/list")
    with Store.open(work / "store.db") as store:
        assert store.item(identify("Avoid all holes.")).status == after
        assert store.item(identify("#|| is a wall.")).status == "active", "only lines that begin with '#| ' are notes"
