"""The session of docs/knowledge.md: every command parses, and the blocks run one after the other in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from agentopcd.core.types import MARKER
from agentopcd.knowledge import Store, identify
from agentopcd.knowledge.lineage import carried
from tests import pages

PAGE = Path(__file__).resolve().parent.parent / "docs" / "knowledge.md"
BLOCKS = pages.blocks_of(PAGE)


def test_every_command_parses(cli_generator: ModuleType) -> None:
    pages.check_commands(PAGE, cli_generator, 18)


def test_the_page_shows_every_door(cli_generator: ModuleType) -> None:
    words = PAGE.read_text(encoding="utf-8")
    for path, command in cli_generator.commands():
        if path[1:2] == ["knowledge"] and len(path) == 3 and not getattr(command, "commands", None):
            assert re.search(rf"\b{path[2]}\b", words), f"docs/knowledge.md does not name `knowledge {path[2]}`"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    folder, said = pages.run(BLOCKS, tmp_path)
    before, after = "Step around a tile marked H.", "Walk around a tile marked H."
    assert "2 of 2 items active now; undo with: agentopcd knowledge retire" in said[1]
    assert f"~ {identify(before)[:12]}  {before}\n  -> {identify(after)[:12]}  {after}" in said[2]
    assert "one word for one thing (run " in said[2]
    with Store.open(folder / "agentopcd-work" / "store.db") as store:
        assert store.get_context(store.resolve("frozen-lake-4x4/mine")).text.startswith(f"{MARKER} {after}\n")
        (old,) = store.students(store.resolve("frozen-lake-4x4/mine"))
        goal, new = identify("The goal is the tile marked G."), store.models(trained=True)[0]["id"]
        assert [entry.item.text for entry in carried(store, new)] == [after] and store.carriers(goal) == [old]
        pool = store.refs("frozen-lake-4x4/pool/")
    with Store.open(folder / "elsewhere" / "store.db") as store:
        sampled = {name.removeprefix("sampled/pool/"): id_ for name, id_ in store.refs("sampled/pool/").items()}
        assert sampled == {name.removeprefix("frozen-lake-4x4/pool/"): id_ for name, id_ in pool.items()}
        assert {item.status for item in store.items()} <= {"pending", "retired"}
