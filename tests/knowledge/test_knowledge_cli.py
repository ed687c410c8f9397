"""``agentopcd knowledge``: what a person types and reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli.knowledge import app
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.types import EMPTY, MARKER, Job, Task
from agentopcd.knowledge import Origin, Store, confirm, identify, ingest, score
from tests.knowledge_commands import fails, run


@pytest.fixture
def work(tmp_path: Path, kit) -> Path:
    """A workspace in which one item was found, scored and confirmed."""
    store = kit.open(tmp_path / "work" / "store.db")
    with store:
        run_id = store.start("play", {"env": kit.env, "kind": "game", "extractor": "tiny-2"}, 7)
        store.add_tasks(kit.env, ["k"], "extract")
        turns = [kit.turn([("rules", "SECRET"), ("state", "P.\n.G")], "I go [down]")]
        episode = kit.episode(Job(Task(705, "k")), False, turns=turns)
        (number,) = store.add_episodes(run_id, kit.model, kit.setup, [episode])
        reply = f"{MARKER} Avoid holes.\n{MARKER} Go right, right, down."
        ingest(store, reply, Origin(run_id=run_id, episode=episode, episode_id=number))
        context = kit.context("Avoid holes.")
        play = kit.player(lambda shown: 0.8 if shown == context else 0.1)
        score(kit.bench(store, play), [context], kit.tasks(10))
        confirm(kit.bench(store, play), context, kit.tasks(30, 1000))
    return tmp_path / "work"


def test_lists(work: Path) -> None:
    text = run(work, "list", "items")
    assert "active   support 1  Avoid holes." in text and "2 items; agentopcd knowledge show ID" in text
    assert "Go right" in run(work, "list", "items", "--status", "pending")
    assert "Avoid" not in run(work, "list", "items", "--status", "pending")
    assert "0 items" in run(work, "list", "items", "--env", "chess")
    assert "(lake/best)" in run(work, "list", "contexts")
    assert "2 contexts, the newest 1 shown" in run(work, "list", "contexts", "--env", "lake", "--limit", "1")
    assert "lake/best" in run(work, "list", "refs") and "30 episodes" in run(work, "list", "refs")
    assert "111 episodes, the newest 3 shown" in run(work, "list", "episodes", "--limit", "3")
    rows = json.loads(run(work, "list", "refs", "--json"))
    assert rows[0]["name"] == "lake/best" and rows[0]["actor"] == "confirm"
    assert len(json.loads(run(work, "list", "episodes", "--json", "--limit", "100"))) == 100


def test_show_item_tells_its_whole_story(work: Path) -> None:
    item_id = identify("Avoid holes.")
    text = run(work, "show", item_id[:10])
    for piece in (
        "active  support 1", "Avoid holes.", "approve by gate:auto", "lake extract task k", "(play)",
        "episode 1, seed 705, rep 0, model tiny (mmmmmmmmmmmm), extractor tiny-2", f"raw: {MARKER} Avoid holes.",
        "prompt:", "I go [down]", "lake select: ", "lake confirm: ", "to empty", "in the weights of: no model",
    ):  # fmt: skip
        assert piece in text, piece
    assert "SECRET" not in text
    shown = json.loads(run(work, "show", item_id, "--json"))
    assert shown["origins"][0]["run_seed"] == 7 and shown["origins"][0]["split"] == "extract"
    assert {score["split"]: score["n"] for score in shown["contexts"][0]["scores"]} == {
        "select": 10,
        "confirm": 30,
    }
    flagged = run(work, "show", identify("Go right, right, down.")[:8])
    assert "flag by extract  route" in flagged


def test_show_context_and_episode(work: Path) -> None:
    text = run(work, "show", "lake/best")
    assert f"{MARKER} Avoid holes." in text and "lake confirm: " in text and "(30 episodes on 30 tasks" in text
    assert "(empty)" in run(work, "show", "empty")
    game = run(work, "show", "1")
    for piece in (
        "lost failed",
        "turn 1",
        "[rules] SECRET",
        "[state] P.",
        "> I go [down]",
        "You fell into a hole.",
    ):
        assert piece in game, piece
    assert json.loads(run(work, "show", "1", "--json"))["transcript"]["turns"][0]["prompt_tokens"] == 3
    assert "unknown context 'lake/bets'; did you mean 'lake/best'" in fails(work, "show", "lake/bets")


def test_exchange(work: Path, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "other"
    said = run(work, "export", "--all", "--episodes", "-o", str(first))
    assert "agentopcd store backup" in said  # this moves a store whole
    assert "imported items are pending" in run(tmp_path / "third", "import", str(first))
    run(other, "import", str(first), "--gate", "keep")
    run(other, "export", "--all", "--episodes", "-o", str(second))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(run(other, "import", str(first), "--json"))["item"] == 0

    text = tmp_path / "best.txt"
    run(work, "export", "lake/best", "-o", str(text))
    assert text.read_bytes() == f"{MARKER} Avoid holes.".encode()
    result = json.loads(run(other, "import", str(text), "--as", "lake/copy", "--json"))
    assert result["items"] == 1 and not result["changed by sanitising"]
    with Store.open(other / "store.db") as store:
        assert store.resolve("lake/copy") == store.resolve("lake/best") == result["context"]
    assert run(work, "export", "lake/best").startswith('{"format":"agentopcd-kb","version":4}\n')


def test_import_of_a_system_prompt(work: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("You are a doctor.\n")
    run(work, "import", str(prompt), "--as", "doctor", "--placement", "system")
    assert "  system  (doctor)" in run(work, "show", "doctor")


def test_an_import_says_that_items_wait_only_where_some_do(work: Path, tmp_path: Path) -> None:
    free, items = tmp_path / "free.txt", tmp_path / "items.txt"
    free.write_text("You are a doctor.\n")
    assert "pending" not in run(work, "import", str(free))
    items.write_text(f"{MARKER} Stay calm.\n")
    assert f"list items --status pending --work {work} shows them" in run(work, "import", str(items))
    assert "pending" not in run(work, "import", str(items))


def test_an_import_names_the_lines_that_it_leaves_out(work: Path, tmp_path: Path) -> None:
    text, folder = f"You are careful.\n{MARKER} Stay calm.\n", tmp_path / "runs"
    folder.mkdir()
    for file in (tmp_path / "items.txt", folder / "experience_1.txt"):
        file.write_text(text)
    for words in ([str(tmp_path / "items.txt")], [str(folder), "--prefix", "lake/pool/"]):
        said = run(work, "import", *words)
        assert "lines that are no item, left out: 1;" in said and "line 1: You are careful." in said


def test_mistakes(work: Path, tmp_path: Path) -> None:
    assert "either a REF to export or --all" in fails(work, "export")
    assert "either a REF to export or --all" in fails(work, "export", "lake/best", "--all")
    assert "--episodes goes with --all" in fails(work, "export", "lake/best", "--episodes")
    assert "does not fit into a text file" in fails(work, "export", "--all", "-o", "x.txt")
    assert "cannot read" in fails(work, "import", str(tmp_path / "missing.txt"))
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert "--as names the context of a text file" in fails(work, "import", str(tmp_path / "x.jsonl"), "--as", "y")
    assert "not a knowledge export" in fails(work, "import", str(tmp_path / "x.jsonl"))
    (tmp_path / "x.txt").write_text("x")
    assert "did you mean 'system'" in fails(work, "import", str(tmp_path / "x.txt"), "--placement", "sytem")
    assert "no knowledge store" in fails(tmp_path / "nowhere", "list", "refs")
    assert not (tmp_path / "nowhere").exists()
    with Store.open(work / "store.db") as store:
        assert store.lookup("run", verb="import")["status"] == "failed"  # type: ignore[index]


def test_move_promotes_and_rolls_back(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        before = store.resolve("lake/best")
    text = run(work, "move", "lake/best", "empty", "--reason", "start again")
    assert f"undo with: agentopcd knowledge move lake/best {before[:12]}" in text
    assert "look again" in fails(work, "move", "lake/best", "empty", "--expect", before[:12])
    run(work, "move", "lake/best", before[:12], "--expect", "empty")
    with Store.open(work / "store.db") as store:
        assert [row["context_id"] for row in store.log("lake/best")] == [before, EMPTY.id, before]
        assert store.log("lake/best")[1]["reason"] == "start again"


def test_a_student_is_not_moved_as_a_context_is(work: Path) -> None:
    said = fails(work, "move", "lake/student", "lake/best")
    assert "lake/student is a model" in said and "agentopcd rollback lake --to STUDENT" in said
    with Store.open(work / "store.db") as store:
        assert store.ref("lake/student") is None


def test_episodes_where_nothing_is_right_or_wrong_are_not_lost(work: Path) -> None:
    listed = run(work, "list", "episodes", "--json")
    number, env = json.loads(listed)[0]["id"], json.loads(listed)[0]["env"]
    assert {row["result"] for row in json.loads(listed)} <= {"won", "lost"}
    with Store.open(work / "store.db") as store:
        run_id = store.start("evaluate", {"env": env}, 0)
        store.finish(run_id, {"graded": False})
    assert {row["result"] for row in json.loads(run(work, "list", "episodes", "--json"))} == {"played"}
    assert "  played " in run(work, "list", "episodes") and "  played " in run(work, "show", str(number))


def test_the_workspace_may_come_from_the_environment(work: Path) -> None:
    result = CliRunner().invoke(app, ["list", "refs"], env={"AGENTOPCD_WORK": str(work)}, catch_exceptions=False)
    assert "lake/best" in result.output


def test_every_help_has_an_example() -> None:
    for command in ("list", "show", "export", "import", "move"):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0 and "Example: agentopcd knowledge" in " ".join(result.output.split())


def test_importing_the_commands_is_cheap_and_links_are_refused(tmp_path: Path) -> None:
    code = (
        "import sys, agentopcd.cli.knowledge, agentopcd.knowledge\n"
        "heavy = {'torch', 'transformers', 'numpy', 'gymnasium'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (tmp_path / "knowledge").symlink_to(Path(sys.modules["agentopcd.knowledge"].__file__ or "").parent)
    wrong = subprocess.run(
        [sys.executable, "-c", "import knowledge"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "ImportError: import agentopcd.knowledge, not knowledge" in wrong.stderr


def test_store_errors_are_config_errors() -> None:
    assert issubclass(StoreError, ConfigError)
