"""What holds whatever happens: nothing is lost or doubled, a killed run ends like any other, mistakes cost nothing.

Everything goes through the command line, in processes of its own. What is killed and given again comes from the warm
process; what it is compared with is started anew, so that the two differ in the hash seed, too.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agentopcd.core.types import Episode
from agentopcd.knowledge import Store
from tests.invariants.conftest import ENV, Desk

COMMON = ("--env", ENV, "--model", "tiny", "--compute", "float32", "--max-tokens", "4")
PLAY = ("play", *COMMON, "--episodes", "5", "--chains", "1", "--chain-steps", "1", "--extract-tokens", "4")
SCORE = ("knowledge", "score", *COMMON, "--select-tasks", "8", "--confirm-tasks", "6")
TRAIN = (
    "consolidate", *COMMON, "--context", "context.txt", "--steps", "6", "--batch-size", "2", "--save-every", "2",
    "--select-every", "3", "--select-tasks", "2", "--test-tasks", "3", "--learning-rate", "3e-4",
)  # fmt: skip
CONTENT = "SELECT seed, rep, context_id, success, reward, turns, output_tokens FROM episode ORDER BY 1, 2, 3"


def transcripts(desk: Desk, work: str, run_id: int) -> dict[int, Episode]:
    with Store.open(desk.folder / work / "store.db") as store:
        rows = store.episodes(run_id=run_id)
        return {row["seed"]: store.transcript(row["id"]) for row in rows}


def said(episodes: dict[int, Episode]) -> dict[int, list[object]]:
    """Prompts and replies; log-probabilities are left out, whose last digit follows the shape of the batch."""
    return {seed: [(turn.prompt_ids, turn.response_ids) for turn in e.turns] for seed, e in episodes.items()}


@pytest.fixture(scope="module")
def played(desk: Desk) -> str:
    """A workspace in which the same play command was called twice."""
    desk.anew.ok(*PLAY, "--work", "played")
    desk.ok(*PLAY, "--work", "played")
    return "played"


# -- play -----------------------------------------------------------------------------------------------


def test_the_store_has_every_turn_and_a_repeated_command_takes_other_tasks(desk: Desk, played: str) -> None:
    first, second = transcripts(desk, played, 1), transcripts(desk, played, 2)
    assert len(first) == len(second) == 5
    assert not set(first) & set(second)
    for episode in [*first.values(), *second.values()]:
        assert len(episode.turns) == 2
        for turn in episode.turns:
            assert turn.prompt_ids and turn.response_ids and turn.messages
            assert len(turn.logprobs) == len(turn.response_ids)
    assert {row["status"] for row in desk.query(played, "SELECT status FROM run")} == {"done"}


def test_play_killed_and_repeated_loses_and_doubles_nothing(desk: Desk, played: str) -> None:
    two_are_stored, nap = lambda: desk.count("killed", "episode") >= 2, {"SLOW_ENV_NAP_S": "0.15"}
    desk.kill_when(two_are_stored, *PLAY, "--work", "killed", SLOW_ENV_STEPS="steps.log", **nap)
    stored = desk.query("killed", "SELECT id FROM episode")
    assert 2 <= len(stored) < 5
    assert len((desk.folder / "steps.log").read_text().splitlines()) < 10  # stored while others were still playing
    out = desk.ok(*PLAY, "--work", "killed")
    assert "resuming play run 1" in out
    assert desk.count("killed", "run") == 1
    assert {row["id"] for row in stored} <= {row["id"] for row in desk.query("killed", "SELECT id FROM episode")}
    assert said(transcripts(desk, "killed", 1)) == said(transcripts(desk, played, 1))


# -- score ----------------------------------------------------------------------------------------------


def test_scoring_killed_and_repeated_plays_every_pair_once(desk: Desk) -> None:
    desk.ok("knowledge", "import", "context.txt", "--as", f"{ENV}/pool/00/01", "--work", "scored")
    desk.kill_when(lambda: desk.count("scored", "episode") >= 4, *SCORE, "--work", "scored")
    stored = desk.query("scored", "SELECT id FROM episode")
    assert 4 <= len(stored) < 16 + 3 * 6
    result = json.loads(desk.ok(*SCORE, "--json", "--work", "scored"))
    rows = desk.query("scored", CONTENT)
    assert len(rows) == len({(row["seed"], row["rep"], row["context_id"]) for row in rows}) == 16 + 3 * 6
    assert {row["id"] for row in stored} <= {row["id"] for row in desk.query("scored", "SELECT id FROM episode")}
    assert result["competed"] == 1
    assert len(desk.query("scored", "SELECT id FROM run WHERE verb = 'score'")) == 1


# -- consolidate ----------------------------------------------------------------------------------------


def metrics(desk: Desk, work: str) -> list[dict[str, object]]:
    files = list((desk.folder / work / "runs").glob("consolidate-*/metrics.jsonl"))
    lines = files[0].read_text().splitlines(keepends=True) if files else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def student(desk: Desk, work: str) -> Path:
    (folder,) = (desk.folder / work / "runs").glob("consolidate-*/student")
    return folder


def test_training_killed_and_repeated_ends_bit_equal_and_a_finished_run_is_not_trained_again(desk: Desk) -> None:
    whole = desk.anew.ok(*TRAIN, "--work", "whole")
    desk.kill_when(lambda: len(metrics(desk, "cut")) >= 5, *TRAIN, "--work", "cut")
    assert not list((desk.folder / "cut" / "runs").glob("*/student"))
    cut = desk.ok(*TRAIN, "--work", "cut")
    assert "resumed after step" in cut
    weights = [(student(desk, work) / "model.safetensors").read_bytes() for work in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert [record["step"] for record in metrics(desk, "cut")] == list(range(7))
    assert desk.query("cut", CONTENT) == desk.query("whole", CONTENT)

    before = (metrics(desk, "cut"), desk.count("cut", "episode"), desk.count("cut", "model"))
    started = time.time()
    again = desk.ok(*TRAIN, "--work", "cut")
    assert "already done" in again and "step 001" not in again
    table = [line for line in whole.splitlines() if line.startswith(("student ", "base ", "in-context "))]
    assert len(table) >= 3 and all(line in again.splitlines() for line in table[-3:])
    assert (metrics(desk, "cut"), desk.count("cut", "episode"), desk.count("cut", "model")) == before
    assert (student(desk, "cut") / "model.safetensors").stat().st_mtime < started


def test_what_was_not_confirmed_is_not_distilled_unless_forced(desk: Desk) -> None:
    short = ("consolidate", *COMMON, "--steps", "1", "--batch-size", "2", "--select-tasks", "2", "--test-tasks", "0")
    desk.ok("knowledge", "import", "context.txt", "--as", f"{ENV}/pool/00/01", "--work", "forced")
    refused = desk.run(*short, "--work", "forced")
    assert refused.returncode == 2
    assert "was confirmed" in refused.stderr
    forced = desk.run(*short, "--force", "--json", "--work", "forced")
    assert forced.returncode == 0, forced.stderr
    result = json.loads(forced.stdout)
    assert result["folder"] == str(student(desk, "forced")) or Path(desk.folder, result["folder"]).is_dir()
    assert desk.query("forced", "SELECT id FROM model WHERE parent_id IS NOT NULL") == [{"id": result["model"]}]


# -- mistakes -------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown environment": ("play", "--env", "frozn-lake", "--model", "tiny"),
    "unknown option": ("play", *COMMON, "--episodez", "3"),
    "unknown choice": ("play", *COMMON[:4], "--compute", "float99"),
    "not a number": ("play", *COMMON, "--episodes", "many"),
    "missing model": ("play", *COMMON[:2], "--model", "no-such-model"),
    "empty context file": ("consolidate", *COMMON, "--context", "empty.txt"),
    "unknown context": ("consolidate", *COMMON, "--context", "nobody/knows"),
    "truncated sampling": ("consolidate", *COMMON, "--context", "context.txt", "--top-p", "0.8"),
    "unknown TOML key": ("consolidate", *COMMON, "--config", "unknown.toml"),
    "missing TOML file": ("play", *COMMON, "--config", "nowhere.toml"),
    "no steps": ("consolidate", *COMMON, "--context", "context.txt", "--steps", "0"),
    "half an argument": ("play", *COMMON, "--env-arg", "foo"),
    "unknown argument": ("play", *COMMON, "--env-arg", "foo=1"),
}
LATE = {"unknown environment", "empty context file", "unknown context", "unknown argument"}
"""Those that are found after torch is imported; they come from the warm process. A missing model is found as late and
is started anew, since an import could say something, too."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(desk: Desk, played: str, mistake: str) -> None:
    before = {table: desk.count(played, table) for table in ("run", "episode", "context", "ref_move", "model")}
    done = (desk if mistake in LATE else desk.anew).run(*MISTAKES[mistake], "--work", played)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert before == {table: desk.count(played, table) for table in before}


def test_a_store_that_is_no_store_is_one_line_and_is_left_alone(desk: Desk) -> None:
    (desk.folder / "corrupt").mkdir()
    store = desk.folder / "corrupt" / "store.db"
    store.write_bytes(b"this is not a database, not at all" * 100)
    done = desk.run(*PLAY, "--work", "corrupt")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "store.db" in line
    assert store.read_bytes().startswith(b"this is not a database")


def test_a_dry_run_loads_no_model_and_changes_nothing(desk: Desk) -> None:
    words = ("--model", "nobody/no-such-model", "--context", "notes.txt", "--dry-run", "--json", "--work", "dry")
    (desk.folder / "notes.txt").write_text("Go down.")
    plan = desk.run("consolidate", *COMMON[:2], *words)
    assert plan.returncode == 0, plan.stderr
    found = json.loads(plan.stdout)
    assert found["settings"]["steps"] == 24 and found["plan"]
    assert desk.count("dry", "run") == desk.count("dry", "episode") == 0
