"""``--dry-run`` refuses what the run would refuse, and says yes to what can run; a refused run is closed as failed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app, plans
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AgentOpcdError, EngineError, ModelError
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store, identify
from agentopcd.models import find
from agentopcd.rollouts.sampling import vllm_engine
from agentopcd.workspace.session import Session
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


def test_a_memory_that_is_not_known_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> str:
        raise ModelError("no connection\nand more of it")

    monkeypatch.setattr("agentopcd.distillation.memory.memory", fails)
    session: Any = SimpleNamespace(model_name=lambda: ("a/b", ""), compute=None)
    assert plans._memory(session, ConsolidateConfig(env="math")) == "not estimated: no connection"


VERBS = (["play"], ["consolidate", "--context", "prompt.txt"], ["learn"], ["evaluate"], ["knowledge", "score"])


def given(work: Path, verb: list[str]) -> list[str]:
    """The verb with what it needs: its file by its path, and candidates in the store."""
    if verb[-1] == "score":
        with Store.open(work / "store.db") as store:
            context = Context(f"{MARKER} say 7")
            store.add_context(context, {"order": "hand"})
            store.event(identify("say 7"), "approve", "person")
            store.move("math/pool/00/01", context.id, "extract")
    return [word.replace("prompt.txt", str(work.parent / "prompt.txt")) for word in verb]


@pytest.mark.parametrize(
    "verb",
    # To estimate the memory, consolidate asks the hub for the model, which takes long without a network.
    [pytest.param(verb, marks=[pytest.mark.slow] if verb[0] == "consolidate" else []) for verb in VERBS],
    ids=[" ".join(verb) for verb in VERBS],
)
def test_yes_to_what_can_run(verb: list[str], model: str, work: Path) -> None:
    assert "dry run: nothing was played" in run(work, *given(work, verb), "--model", model, "--dry-run")
    hub = run(work, *given(work, verb), "--model", "owner/unknown", "--dry-run")
    assert "owner/unknown is not on this machine yet, so it was not looked at" in hub


def test_candidates_that_could_not_be_distilled_do_not_compete(model: str, work: Path) -> None:
    words = given(work, ["knowledge", "score"])
    with Store.open(work / "store.db") as store:
        store.move("math/pool/00/02", store.add_context(Context(f"{MARKER} say 7\n{MARKER} say 8")), "extract")
    said = run(work, *words, "--model", model, "--dry-run")
    assert (
        "1 of 2 candidates hold an item that is pending or retired, or imported text with flags: left out" in said
        and "up to 1 context " in said
    )
    with Store.open(work / "store.db") as store:
        store.event(identify("say 8"), "approve", "person")
    assert "up to 2 contexts" in run(work, *words, "--model", model, "--dry-run")
    few = ["--model", model, "--dry-run", "--select-tasks", "8"]
    assert "--select-tasks changes nothing" in run(work, *words, *few)
    assert "--select-tasks changes nothing" not in run(work, *words, *few, "--method", "uniform")


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


# -- a dry run fails where the run would, with the same line ------------------------------------------


def both(work: Path, *words: str) -> str:
    """What a command says that is refused with and without ``--dry-run``, each in a workspace of its own."""
    said = []
    for more in ([], ["--dry-run"]):
        with pytest.raises(AgentOpcdError) as error:
            CliRunner().invoke(app, [*words, "--work", str(work), *more], catch_exceptions=False)
        said.append(str(error.value))
    assert said[0] == said[1]
    return said[0]


BOTH: list[tuple[str, str]] = [
    ("play --env ROWS --model MODEL --context mine", "unknown context 'mine'"),
    ("play --env ROWS --model /nope", "no model '/nope'"),
    ("play --env ROWS --model BROKEN", "cannot read the config of model"),
    ("play --env ROWS --model MODEL --extractor /nope", "no model '/nope'"),
    ("play --env ROWS --model MODEL --device nonsense", "cannot use device 'nonsense'"),
    ("play --env ROWS --model MODEL --grader /nope.py:f", "/nope.py"),
    ("play --env ROWS --model MODEL --success-when sometimes", "sometimes"),
    ("knowledge score --env ROWS --model MODEL", "no candidate context of "),
    ("knowledge score --env WAITING --model MODEL", "each of the 1 candidates holds an item that is pending"),
    ("knowledge score --env CHATS --model MODEL", "nothing says what is right in"),
    ("knowledge score --env SILENT --model MODEL", "nothing says what is right in"),
    ("knowledge confirm --env ROWS --model MODEL", "no context given"),
    ("knowledge confirm --env ROWS --model MODEL --context mine", "unknown context 'mine'"),
    ("knowledge confirm --env ROWS --model MODEL --context empty", "the empty context cannot be confirmed"),
    ("knowledge confirm --env CHATS --model MODEL --context PROMPT", "nothing says what is right in"),
    ("consolidate --env ROWS --model MODEL", "was confirmed"),
    ("consolidate --env SILENT --model MODEL", "nothing says what is right in"),
    ("consolidate --env ROWS --model MODEL --context mine", "unknown context 'mine'"),
    ("consolidate --env ROWS --model MODEL --context PROMPT --teacher /nope", "no model '/nope'"),
    ("consolidate --env ROWS --model MODEL --context PROMPT --shard", "one process to shard over"),
    ("consolidate --env ROWS --model MODEL --context PROMPT --turn-decay 0.5", "--turn-decay is for stored turns"),
    (
        "consolidate --env ROWS --model MODEL --context PROMPT --by distance --teacher-kind live",
        "--teacher-kind live moves it; leave out --teacher-kind, or --by distance",
    ),
    (
        "consolidate --env CHATS --model MODEL --context PROMPT --teacher-kind ema",
        "where nothing says what is right, and --teacher-kind ema moves it; leave out --teacher-kind",
    ),
    ("evaluate --env ROWS --model MODEL --context mine", "unknown context 'mine'"),
    ("evaluate --env ROWS --model MODEL --student /nope", "no model '/nope'"),
    ("evaluate --env ROWS --model /nope", "no model '/nope'"),
    ("learn --env CHATS --model MODEL", "nothing says what is right in"),
    ("learn --env ROWS --model /nope", "no model '/nope'"),
    ("learn --env ROWS --model MODEL --by distance", "--by distance chooses checkpoints"),
]


@pytest.fixture(scope="module")
def desk(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A workspace with contexts, and what stands for the words in capitals. Refused commands leave it as it is."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "prompt.txt").write_text("Answer in one word.")
    chats = [{"messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(40)]
    for name in ("chats.jsonl", "silent.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in chats))
    with Store.open(folder / "work" / "store.db") as store:
        context = Context(f"{MARKER} say 7")
        store.add_context(context, {"order": "hand"})
        store.event(identify("say 7"), "approve", "person")
        for name in ("all/00/01", f"{folder / 'chats.jsonl'}/pool/00/01"):
            store.move(name, context.id, "extract")
        store.move(f"{folder / 'waiting.jsonl'}/pool/00/01", store.add_context(Context(f"{MARKER} say 8")), "extract")
    return folder / "work", {
        "MODEL": model, "BROKEN": str(folder / "broken"), "ROWS": tiny.questions(folder / "rows.jsonl"),
        "CHATS": str(folder / "chats.jsonl"), "PROMPT": str(folder / "prompt.txt"),
        "SILENT": str(folder / "silent.jsonl"), "WAITING": tiny.questions(folder / "waiting.jsonl"),
    }  # fmt: skip


@pytest.mark.parametrize(("line", "why"), BOTH, ids=[line for line, _ in BOTH])
def test_a_dry_run_fails_where_the_run_would(line: str, why: str, desk: tuple[Path, dict[str, str]]) -> None:
    work, places = desk
    assert why in both(work, *(places.get(word, word) for word in line.split()))


def test_raw_traces_that_nobody_has_played(desk: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    work, places = desk
    (tmp_path / "pool.toml").write_text('pool = "all/"')
    words = ["--env", places["ROWS"], "--model", places["MODEL"], "--config", str(tmp_path / "pool.toml")]
    assert "no raw traces" in both(work, "knowledge", "score", *words, "--method", "uniform", "--traces", "9")


SPLITS = [
    ("play", "extract"), ("play --no-extract --split train", "train"), ("knowledge score --pool all/", "select"),
    ("knowledge score --pool all/", "confirm"), ("knowledge confirm --context PROMPT", "confirm"),
    ("consolidate --context PROMPT", "train"), ("consolidate --context PROMPT", "select"),
    ("consolidate --context PROMPT", "test"), ("consolidate --context PROMPT", "confirm"), ("evaluate", "test"),
    ("learn", "extract"), ("learn", "confirm"),
    ("learn", "test"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "split"), SPLITS, ids=[f"{line} ({split})" for line, split in SPLITS])
def test_a_split_without_tasks(
    line: str, split: str, desk: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work, places = desk
    words = [places.get(word, word) for word in f"{line} --env ROWS --model MODEL".split()]
    if "--pool" in words:  # which has no flag
        (tmp_path / "pool.toml").write_text('pool = "all/"')
        at = words.index("--pool")
        words[at : at + 2] = ["--config", str(tmp_path / "pool.toml")]
    tasks, before = Session.tasks, rows(work)
    monkeypatch.setattr(Session, "tasks", lambda self, name, n=None: [] if name == split else tasks(self, name, n))
    said = both(work, *words)
    assert f"no {split} task" in said or f"0 {split}" in said
    assert rows(work) == before  # nothing was begun


def test_a_student_whose_base_is_gone(model: str, work: Path) -> None:
    folder = tiny.build(work / "runs" / "consolidate-math-1" / "student", seed=3)
    with Store.open(work / "store.db") as store:
        store.add_model("a" * 64, "lost", "/lost")
        run_id = store.start("consolidate", {"env": "math"}, 0)
        store.finish(run_id, {})
        store.add_model(find.fingerprint(folder), "x", "runs/consolidate-math-1/student", "a" * 64, run_id)
    assert "was trained from is not here; give the base with --model" in both(work, "evaluate", "--env", "math")
    assert both(work, "evaluate", "--env", "math", "--student", str(folder)).startswith("the model that")


# -- how long it will take ----------------------------------------------------------------------------


def played(store: Store, verb: str, day: int, seconds: list[int], status: str = "done") -> None:
    """A run of a verb that stored an episode at each of these seconds of a day."""
    run_id, begin = store.start(verb, {"env": "math", "model_id": "a" * 64}, day), datetime(2026, 1, day, tzinfo=UTC)
    for n, second in enumerate(seconds):
        at = (begin + timedelta(seconds=second)).isoformat(timespec="microseconds")
        place = {"env": "math", "task_key": f"k{n}", "seed": n, "rep": day, "created_at": at}
        who = {"run_id": run_id, "model_id": "a" * 64, "context_id": Context().id, "setup": "s"}
        how = {"success": 1, "reward": 1.0, "stop": "solved", "turns": 1}
        store.insert("episode", place | who | how | {"prompt_tokens": 1, "output_tokens": 1})
    store.finish(run_id, {}, status=status)


def test_what_is_missing_for_the_time_is_named(model: str, work: Path) -> None:
    consolidate = given(work, ["consolidate", "--context", "prompt.txt", "--model", model, "--dry-run"])
    for more, missing in (
        ((), "32 episodes and 24 steps"),
        (("--test-tasks", "0", "--gate-tasks", "0"), "24 steps"),
    ):
        assert f"a first run of {missing} will tell" in run(work, *consolidate, *more)


def test_a_gate_that_nobody_can_pass_is_told_in_the_plan(model: str, work: Path) -> None:
    consolidate = given(work, ["consolidate", "--context", "prompt.txt", "--model", model, "--dry-run"])
    said = run(work, *consolidate, "--gate-tasks", "4")
    told = re.search(r"4 confirm tasks cannot reach level .*; --gate-tasks (\d+) could, so the student will not", said)
    assert told, said
    assert "cannot reach" not in run(work, *consolidate, "--gate-tasks", told[1])


def test_the_time_comes_from_earlier_runs_here(model: str, work: Path) -> None:
    words = ["play", "--model", model, "--episodes", "600", "--dry-run"]
    assert "time: not known here yet; a first run of 32 episodes will tell" in run(work, *words)
    with Store.open(work / "store.db") as store:
        store.add_model("a" * 64, model)
        store.add_tasks("math", [f"k{n}" for n in range(9)], "extract")
        played(store, "play", 1, [0, 2, 4, 6, 8])
        played(store, "play", 2, [0, 10, 20, 30, 40], status="failed")
        played(store, "play", 3, [0, 2, 50_000, 50_002, 50_004])  # a night between a kill and the next call
        played(store, "consolidate", 4, [0, 2, 1200, 1202])  # training between episodes
    assert "time: up to 20 min at 30 episodes a minute, as in earlier runs here" in run(work, *words)
    consolidate = ["consolidate", "--context", str(work.parent / "prompt.txt"), "--model", model, "--dry-run"]
    assert "time: not known here yet; a first run of 24 steps will tell" in run(work, *consolidate)
    log = work / "runs" / "consolidate-math-1" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 0}\n{"step": 1, "time/step_s": 40.0}\n{"step": 2, "time/step_s": 50.0}\n')
    with Store.open(work / "store.db") as store:
        settings = {"env": "math", "model_id": "a" * 64, "folder": f"x/runs/{log.parent.name}"}
        store.finish(store.start("consolidate", settings, 0), {})
    assert "time: up to 22 min at 30 episodes a minute and 45.0 s a step" in run(
        work, *consolidate, "--test-tasks", "40", "--gate-tasks", "0"
    )
    assert "time: not known" in run(work, "play", "--model", "owner/other", "--dry-run")
    learn = ["learn", "--model", model, "--dry-run", "--test-tasks", "40", "--steps", "8", "--episodes-per-round", "60"]
    learn += ["--candidates", "1", "--confirm-tasks", "20"]
    # 256 games of play, ranking, confirmation and test, and 8 steps; then 60 games of the gate
    for more, minutes in ((["--gate-tasks", "0"], 15), (["--gate-tasks", "30", "--one-method"], 17)):
        assert f"time: up to {minutes} min at" in run(work, *learn, *more)
    # then 4 pilots of 2 steps, 64 games to replay, and another student with its steps, its test and its gate
    said = run(work, *learn, "--gate-tasks", "30")
    assert "if it does not pass: 4 pilots of 2 steps" in said and "time: up to 33 min at" in said


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
