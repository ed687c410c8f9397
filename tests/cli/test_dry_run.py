"""``--dry-run`` refuses what the run would refuse, and says yes to what can run; a refused run is closed as failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.core.errors import AgentOpcdError, EngineError
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store
from agentopcd.rollouts.sampling import vllm_engine
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build(tmp_path_factory.mktemp("dry") / "model"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "prompt.txt").write_text("Answer in one word.")
    return tmp_path / "work"


def run(work: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--env", "math", "--work", str(work)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(work: Path, *words: str) -> str:
    with pytest.raises(AgentOpcdError) as error:
        run(work, *words)
    return str(error.value)


VERBS = (["play"], ["consolidate", "--context", "prompt.txt"], ["learn"], ["evaluate"], ["knowledge", "score"])


def given(work: Path, verb: list[str]) -> list[str]:
    """The verb with what it needs: its file by its path, and candidates in the store."""
    if verb[-1] == "score":
        with Store.open(work / "store.db") as store:
            context = Context(f"{MARKER} say 7")
            store.add_context(context, {"order": "hand"})
            store.move("math/pool/00/01", context.id, "extract")
    return [word.replace("prompt.txt", str(work.parent / "prompt.txt")) for word in verb]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_yes_to_what_can_run(verb: list[str], model: str, work: Path) -> None:
    assert "dry run: nothing was played" in run(work, *given(work, verb), "--model", model, "--dry-run")
    hub = run(work, *given(work, verb), "--model", "owner/unknown", "--dry-run")
    assert "owner/unknown is not on this machine yet, so it was not looked at" in hub


CANNOT: list[tuple[list[str], str]] = [
    (["--device", "cuda:7"], "cannot use device 'cuda:7'"),
    (["--device", "nonsense"], "cannot use device 'nonsense'"),
    (["--device", "meta"], "cannot use device 'meta'"),
    (["--model", "/nope"], "no model '/nope'"),
    (["--model", "~nobody/x/y"], "no model '~nobody/x/y'"),
    (["--model", "nothing.gguf"], "no file 'nothing.gguf'"),
    (["--server", "http://localhost:9"], "no API answers at http://localhost:9"),
    (["--engine", "vllm"], "vLLM is not installed"),
]


@pytest.mark.parametrize(
    ("verb", "words", "why"),
    [(VERBS[0], *one) for one in CANNOT] + [(verb, *CANNOT[3]) for verb in VERBS[1:]],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_no_to_what_cannot_run(
    verb: list[str], words: list[str], why: str, model: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: False)
    base = [] if "--model" in words else ["--model", model]
    assert why in refused(work, *given(work, verb), *base, *words, "--dry-run")


def test_no_to_what_a_verb_lacks(model: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ["--model", model, "--dry-run"]
    assert "no candidate context of math" in refused(work, "knowledge", "score", *named)
    assert "was confirmed" in refused(work, "consolidate", *named)
    assert "unknown context 'mine'" in refused(work, "play", "--context", "mine", *named)
    assert "unknown context 'mine'" in refused(work, "knowledge", "confirm", "--context", "mine", *named)
    assert "unknown context 'mine'" in refused(work, "evaluate", "--context", "mine", *named)
    assert "no model '/nope'" in refused(work, "evaluate", "--student", "/nope", *named)
    prompt = ["--context", str(work.parent / "prompt.txt")]
    assert "no model '/nope'" in refused(work, "consolidate", *prompt, "--teacher", "/nope", *named)
    assert "one process to shard over" in refused(work, "consolidate", *prompt, "--shard", *named)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert "need PEFT" in refused(work, "consolidate", *prompt, "--lora-rank", "2", *named)
    assert "need PEFT" in refused(work, "learn", "--lora-rank", "2", *named)


def test_a_plan_as_json_holds_no_password(model: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.workspace.session.check_engine", lambda config: None)
    said = run(work, "play", "--model", model, "--server", "http://ann:s3cret@host:8000", "--dry-run", "--json")
    assert json.loads(said)["settings"]["server"] == "http://***@host:8000"


def test_the_whole_prompt_as_context_is_one_short_line(model: str, work: Path) -> None:
    prompt = "You are a careful player. " * 20
    line = refused(work, "play", "--context", prompt, "--model", model, "--episodes", "1")
    assert line.startswith("unknown context 'You are a careful player. You are") and len(line) < 400
    assert "write it into a file" in line


# -- what happens to the run --------------------------------------------------------------------------


def rows(work: Path) -> list[dict[str, Any]]:
    with Store.open(work / "store.db") as store:
        return [{**row, "result": json.loads(row["result"] or "null")} for row in store.runs()]


def test_a_refused_run_is_closed_as_failed_and_taken_up_again(
    model: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = ["play", "--model", model, "--episodes", "2", "--max-tokens", "4", "--no-extract", "--compute", "float32"]

    def away(*_: object) -> None:
        raise EngineError("no server answers")

    with monkeypatch.context() as patch:
        patch.setattr("agentopcd.workspace.session.player_of", away)
        assert refused(work, *play) == "no server answers"
    (row,) = rows(work)
    assert (row["status"], row["finished_at"] is None) == ("failed", False)
    assert row["result"] == {"error": "no server answers"}
    assert "resuming play run 1" in run(work, *play)
    (row,) = rows(work)
    assert (row["status"], row["result"]["episodes"]) == ("done", 2)
