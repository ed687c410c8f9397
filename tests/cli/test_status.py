"""``agentopcd status``: what a workspace holds, seen while others work there, and commands that really go on."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.cli.options import Call, configured
from agentopcd.cli.status import lines
from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, EvaluateConfig, LearnConfig, PlayConfig, ScoreConfig
from agentopcd.core.config.toml import saved
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.runs import Run, write_json
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import now
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import Ledger, held_as, run_config
from agentopcd.workspace.overview import VERBS, Job, overview

FACTS = {"env": "rooms(n=3)", "model_id": "a" * 64, "kind": "game"}
ODD: dict[str, Any] = {
    "env": "./my rows.jsonl", "env_args": {"level": 2, "name": "it's", "digits": "7", "deep": {"a": [1, None]}},
    "model": "own er/x", "temperature": 0.25, "seed": 7, "template_args": {"enable_thinking": False},
}  # fmt: skip
CONFIGS = [
    PlayConfig(**ODD, extract=False, split="train", episodes=5),
    PlayConfig(env="math", gate="support>=2", chains=2, budget_tokens=99),
    ScoreConfig(**ODD, confirm=False, method="uniform", traces=50, by="reward"),
    ConfirmConfig(**ODD, context="a/best"),
    ConsolidateConfig(**ODD, context="my prompt.txt", placement="system", lora_rank=4, merge=True, force=True),
    ConsolidateConfig(env="math", tokens_per_batch=512, steps=3, learning_rate=1e-4),
    EvaluateConfig(**ODD, student="runs/a b/student", test_tasks=9),
    LearnConfig(**ODD, rounds=3, extractor="other/model"),
]
KINDS = {kind: verb for verb, kind in VERBS.items()}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "w"


def begun(work: Path, config: Any, **more: Any) -> int:
    with Store.open(work / "store.db") as store:
        store.add_model("a" * 64, "pocket")
        return store.start(KINDS[type(config)], run_config(config) | FACTS | more, config.seed)


def look(work: Path) -> Any:
    with Store.open(work / "store.db", create=False, to_read=True) as store:
        return overview(store, work)


def settings_of(command: str) -> Any:
    """The settings that the command line reads out of a command."""
    words = shlex.split(command)
    name = " ".join(words[1:3]) if words[1] == "knowledge" else words[1]
    kind: Any = VERBS[name.rpartition(" ")[2]]
    found = []

    def keep(config: Any, call: Call) -> None:
        found.append(config)

    keep.__doc__ = "Example: agentopcd nothing"
    one = typer.Typer()
    one.command()(configured(kind, keep))
    one(words[len(name.split()) + 1 :], standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_command_of_an_interrupted_run_has_its_settings(config: Any, work: Path) -> None:
    if isinstance(config, LearnConfig):
        folder = Run(work, "learn", run_config(config)).folder
        write_json(folder / "start.json", {"model": "pocket"})
        with Store.open(work / "store.db"):
            pass
    else:
        begun(work, config)
    (job,) = look(work).jobs
    assert (job.state, job.needs) == ("interrupted", "")
    assert settings_of(job.command) == config


def test_what_tells_no_run_from_another_is_in_the_command_too(work: Path) -> None:
    for config in (ConsolidateConfig(**ODD, placebo=True, track="trackio"), LearnConfig(**ODD, track="trackio")):
        folder = Run(work, KINDS[type(config)], run_config(config), saved(config)[0]).folder
        if isinstance(config, LearnConfig):
            write_json(folder / "start.json", {"model": "pocket"})
        else:
            begun(work, config, folder=str(folder))
        (job,) = [job for job in look(work).jobs if job.verb == KINDS[type(config)]]
        assert settings_of(job.command) == config


def test_what_a_command_cannot_hold_is_said(work: Path) -> None:
    begun(work, PlayConfig(env="math", engine="api", server="http://ann:key@host:1", model="m"))
    begun(work, ScoreConfig(env="math", pool="math/mine/"))
    begun(work, PlayConfig(env="math"), temperature="of another version")
    api, pool, odd = look(work).jobs
    assert (
        "--server http://ADDRESS" in api.command and "put the server's address" in api.needs and "key" not in str(api)
    )
    assert pool.needs == 'add --config FILE with pool = "math/mine/"'
    assert odd.command == "" and odd.needs.startswith("no command can be given: temperature is")


HOLDS = """
import sys, time
from pathlib import Path
from agentopcd.core.types import EMPTY, Episode, Task
from agentopcd.knowledge import Store
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import held_as
work = Path(sys.argv[1])
hold = Hold(work, held_as(1))
with Store.open(work / "store.db") as store:
    store.add_tasks("rooms(n=3)", [f"k{n}" for n in range(900)], "extract")
    for n in range(900):
        store.add_episodes(1, "a" * 64, "s", [Episode(env="rooms(n=3)", task=Task(n, f"k{n}"), rep=0,
            context_id=EMPTY.id, turns=[], outcome=[], success=False, reward=0.0, stop_reason="failed")])
        if n == 2:
            print("ready", flush=True)
        time.sleep(0.05)
"""


def test_a_run_of_another_process_runs_and_is_interrupted_when_that_is_killed(work: Path, root: Path) -> None:
    begun(work, PlayConfig(env="rooms", episodes=40))
    words = [sys.executable, "-c", HOLDS, str(work)]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        (job,) = look(work).jobs  # while the other writes
        assert (job.state, job.command, job.env, job.model) == ("running", "", "rooms(n=3)", "pocket")
        assert int(job.progress.removesuffix(" of 40 episodes")) >= 3
        with pytest.raises(ConfigError, match=rf"works on play run 1 \(process {other.pid} on .*remove"):
            Hold(work, held_as(1), "play run 1")
        other.kill()
    (job,) = look(work).jobs
    assert job.state == "interrupted" and job.command.startswith("agentopcd play --env rooms --episodes 40")
    assert job.took_s is not None and job.took_s >= 0


def test_what_another_process_works_on_is_refused_and_left_as_it_is(work: Path) -> None:
    with Store.open(work / "store.db") as store:
        store.add_model("a" * 64, "pocket")
        parts: dict[str, Any] = {"store": store, "env": "rooms", "kind": "state", "work": work, "say": print}
        one, other = (Ledger(config=PlayConfig(env="rooms"), model_id=lambda: "a" * 64, **parts) for _ in range(2))
        run_id = one.begin("play")
        with pytest.raises(ConfigError, match=f"another process works on play run {run_id}"):
            other.begin("play")
        one.close()
        assert other.begin("play") == run_id
        other.close()
    whole = Run(work, "reproduce", {"recipe": "placebo", "words": "placebo --size mini --report select"})
    write_json(whole.folder / "result.json", {})
    with Hold_of(work, whole.folder.name), pytest.raises(ConfigError, match="another process works on this command"):
        CliRunner().invoke(app, ["reproduce", "placebo", "--work", str(work)], catch_exceptions=False)
    assert whole.result == {}


def test_a_run_that_was_let_go_is_not_held(work: Path) -> None:
    run_id = begun(work, PlayConfig(env="rooms"))
    hold = Hold(work, held_as(run_id))
    assert [job.state for job in look(work).jobs] == ["running"]
    hold.close()
    hold.close()
    assert [job.state for job in look(work).jobs] == ["interrupted"] and not list((work / "live").iterdir())


def test_how_runs_ended(work: Path) -> None:
    done, failed = begun(work, PlayConfig(env="rooms", seed=1)), begun(work, PlayConfig(env="rooms", seed=2))
    with Store.open(work / "store.db") as store:
        store.finish(done, {"episodes": 12, "env_errors": 2})
        store.finish(failed, {"error": "no server answers"}, status="failed")
        imported = store.start("play", {"env": "rooms"}, 0)
        store.change("UPDATE run SET imported = 1 WHERE id = ?", (imported,))
    one, other = look(work).jobs  # what was imported ran elsewhere
    assert (one.state, one.progress, one.command) == ("done", "12 episodes, 2 broken by the environment", "")
    assert (other.state, other.why) == ("failed", "no server answers") and "--seed 2" in other.command


def test_a_folder_that_a_kill_left_hides_nothing(work: Path) -> None:
    begun(work, PlayConfig(env="rooms"))
    for name in ("reproduce-x", "learn-x", "learn-y", "learn-z"):
        (work / "runs" / name).mkdir(parents=True)
    for name, text in (("learn-x", "{}"), ("learn-y", '{"model": "po'), ("learn-z", "[]")):
        (work / "runs" / name / "start.json").write_text(text)
        (work / "runs" / name / "config.json").write_text('{"env": "rooms"}')
    jobs = look(work).jobs
    assert sorted((job.verb, job.state) for job in jobs) == [
        ("learn", "failed"), ("learn", "failed"), ("learn", "interrupted"), ("play", "interrupted"),
    ]  # fmt: skip
    assert sorted(job.why.partition("learn-")[2][:14] for job in jobs if job.why) == [
        "y/start.json c",
        "z/start.json i",
    ]


def test_stages_of_learn_go_on_with_learn(work: Path) -> None:
    config = LearnConfig(env="rooms", rounds=2)
    folder = Run(work, "learn", run_config(config)).folder
    write_json(folder / "start.json", {"model": "pocket", "round": 2, "started_at": "2026-01-01T00:00:00+00:00"})
    begun(work, PlayConfig(env="rooms"), round=2)
    whole, stage = look(work).jobs
    assert (whole.verb, whole.state, whole.progress) == ("learn", "interrupted", "round 2 of 2")
    assert settings_of(whole.command) == config
    assert (stage.part_of, stage.command, stage.needs) == ("learn", "", "")
    with Hold_of(work, folder.name):
        assert look(work).jobs[0].state == "running"
    (folder / "result.json").write_text("{}")
    assert (look(work).jobs[0].state, look(work).jobs[0].progress) == ("done", "2 rounds")


@pytest.mark.parametrize("resumed", [False, True])
def test_no_learn_is_told_how_another_one_ended(resumed: bool, work: Path) -> None:
    """One is killed in its first round; another one of the environment fails later; then the first may go on."""
    configs = LearnConfig(env="rooms", rounds=2), LearnConfig(env="rooms", steps=8)
    first, second = (Run(work, "learn", run_config(config)).folder for config in configs)
    start = {"model": "pocket", "round": 1, "started_at": now()}
    write_json(first / "start.json", start)
    begun(work, PlayConfig(env="rooms"), round=1)
    write_json(second / "start.json", {"model": "pocket", "round": 1, "started_at": now()})
    failed = begun(work, PlayConfig(env="rooms"), round=2)
    if resumed:
        time.sleep(0.05)  # a file's time may be some milliseconds early
        write_json(first / "start.json", start | {"round": 2})
        begun(work, PlayConfig(env="rooms", seed=1), round=2)
    with Store.open(work / "store.db") as store:
        store.finish(failed, {"error": "no server"}, status="failed")
    one, other = (job for job in look(work).jobs if job.verb == "learn")
    assert [settings_of(job.command) for job in (one, other)] == [*configs]
    assert [(job.state, job.why) for job in (one, other)] == [("interrupted", ""), ("failed", "no server")]


class Hold_of:
    """A held run, for a with statement."""

    def __init__(self, work: Path, name: str) -> None:
        self.hold = Hold(work, name)

    def __enter__(self) -> Hold:
        return self.hold

    def __exit__(self, *_: object) -> None:
        self.hold.close()


def trained(work: Path) -> int:
    """A consolidation of three steps, its student and its context, which a person has named."""
    folder = work / "runs" / "consolidate-rooms-1"
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "model.safetensors").write_bytes(b"x" * 1500)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n{"step": 3, "cut')
    run_id = begun(
        work, ConsolidateConfig(env="rooms", steps=3, context="mine"), folder=f"elsewhere/runs/{folder.name}"
    )
    with Store.open(work / "store.db") as store:
        context = Context("Be brief.")
        store.add_context(context)
        store.move("mine", context.id, "person")
        store.move("rooms(n=3)/pool/00/01", EMPTY.id, "extract")
        look = store.begin_look(
            {"env": "rooms(n=3)", "model_id": "a" * 64, "context_id": context.id, "setup": "s", "plan": "p"}, {}
        )
        store.end_look(look["id"], "form only", {})
        store.add_model("b" * 64, folder.name, f"runs/{folder.name}/student", "a" * 64, run_id, {context.id: 1.0})
    return run_id


def test_progress_of_a_training_and_its_student(work: Path) -> None:
    run_id = trained(work)
    found = look(work)
    assert found.jobs[0].progress == "step 2 of 3" and found.students == []  # not before the run is done
    row = {"label": "student", "success": 0.5, "low": 0.4, "high": 0.6, "n": 64}
    with Store.open(work / "store.db") as store:
        store.finish(run_id, {"evaluation": {"rows": [row]}})
    found = look(work)
    (student,) = found.students
    assert (student["base"], student["bytes"], student["test"]) == ("pocket", 1500, [row])
    assert student["contexts"] == [Context("Be brief.").id]
    assert [(one["refs"], [v["verdict"] for v in one["verdicts"]]) for one in found.contexts] == [
        (["mine"], ["form only"])
    ]
    assert found.candidates == 1 and found.sizes["contexts"] == 1 and found.sizes["runs_bytes"] > 1500
    text = "\n".join(lines(found))
    short = Context("Be brief.").id[:12]
    assert f"from pocket {'a' * 12}, context mine {short}" in text and "form only (look 1 in rooms(n=3))" in text
    assert "test (n = 64): student 0.500 [0.400, 0.600]" in text and "1.5 kB" in text and "to go on" not in text
    shutil.rmtree(work / "runs" / "consolidate-rooms-1")
    (student,) = look(work).students
    assert student["folder"] is None and "(its folder is gone)" in "\n".join(lines(look(work)))


def test_where_nothing_is_graded_the_distance_counts(work: Path) -> None:
    run_id = trained(work)
    row = {"label": "student", "success": 0.0, "low": 0.0, "high": 0.1, "n": 20}
    closed = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    table = {"graded": False, "rows": [row], "distances": {"rows": [], "closed": closed}}
    with Store.open(work / "store.db") as store:
        store.finish(run_id, {"evaluation": table})
    text = "\n".join(lines(look(work)))
    assert "distance closed on 20 test tasks: 0.500 [0.400, 0.600]" in text and "student 0.000" not in text


def test_later_figures_of_a_student_come_first(work: Path) -> None:
    run_id = trained(work)
    again = begun(work, EvaluateConfig(env="rooms"), student="b" * 64)
    row = {"label": "student", "success": 0.25, "low": 0.2, "high": 0.3, "n": 9}
    with Store.open(work / "store.db") as store:
        store.finish(run_id, {"evaluation": None})
        assert "no test figures; agentopcd evaluate measures them" in "\n".join(lines(overview(store, work)))
        store.finish(again, {"rows": [row], "env": "rooms"})
    assert look(work).students[0]["test"] == [row]


def test_of_many_runs_the_newest_and_the_open_ones_are_shown(work: Path) -> None:
    first = begun(work, PlayConfig(env="rooms", seed=99))
    with Store.open(work / "store.db") as store:
        for seed in range(30):
            store.finish(store.start("play", run_config(PlayConfig(env="rooms", seed=seed)) | FACTS, seed), {})
    shown = [line for line in lines(look(work)) if "  play  " in line]
    assert len(shown) == 21 and shown[0].split()[0] == str(first)
    assert "(and 10 older ones that are over; --json lists all)" in "\n".join(lines(look(work)))


def test_a_store_of_an_older_schema_is_read(work: Path) -> None:
    work.mkdir()
    connection = sqlite3.connect(work / "store.db")
    for number in (1, 2):
        connection.executescript((files("agentopcd.knowledge") / "schema" / f"000{number}.sql").read_text())
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    assert look(work).jobs == []


def test_what_a_run_has_played_is_read_from_an_index(work: Path) -> None:
    begun(work, PlayConfig(env="rooms"))
    with Store.open(work / "store.db") as store:
        plans = []
        query = store.query
        store.query = lambda sql, given=(): plans.extend(query(f"EXPLAIN QUERY PLAN {sql}", given)) or query(sql, given)  # type: ignore[method-assign]
        store.played_by([1]), store.spans([1], 60.0)
    detail = [row["detail"] for row in plans if "episode" in row["detail"]]
    assert sum("INDEX episode_by_run (run_id=?)" in one for one in detail) == 2
    assert not any(one.startswith("SCAN") and "INDEX" not in one for one in detail)


@pytest.mark.parametrize("made", [False, True])
def test_no_workspace_is_one_line(made: bool, work: Path) -> None:
    if made:
        work.mkdir()
    with pytest.raises(StoreError, match=r"agentopcd play --env NAME --work .*` begins one"):
        CliRunner().invoke(app, ["status", "--work", str(work)], catch_exceptions=False)
    assert work.exists() == made and not (made and list(work.iterdir()))


def test_the_command_in_text_and_json(work: Path) -> None:
    begun(work, PlayConfig(env="rooms"))
    said = CliRunner().invoke(app, ["status", "--work", str(work)], catch_exceptions=False).stdout
    command = f"agentopcd play --env rooms --work {shlex.quote(str(work))}"
    assert f"play run 1: {command}" in said and "interrupted" in said
    found = json.loads(CliRunner().invoke(app, ["status", "--json", "--work", str(work)]).stdout)
    assert found["jobs"][0]["command"] == command and set(found["jobs"][0]) == set(Job.__dataclass_fields__)


def test_no_torch_is_needed(work: Path, root: Path) -> None:
    begun(work, PlayConfig(env="rooms"))
    plan = "import sys; from agentopcd.cli import app; app(sys.argv[1:], standalone_mode=False)"
    plan += "; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", plan, "status", "--work", str(work)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0 and "play run 1" in done.stdout, done.stderr
