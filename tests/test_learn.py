"""Rounds: each starts from the last student, a repeated call trains nothing again, and the gate holds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agentopcd import learn as learning
from agentopcd.core.config import ConsolidateConfig, LearnConfig, PlayConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.runs import Run, write_json
from agentopcd.core.stats import Rate
from agentopcd.core.types import MARKER, Context
from agentopcd.distil import check_method, pilot
from agentopcd.knowledge import Store, identify
from agentopcd.knowledge.students import current_student, move_student
from agentopcd.learn import WAYS, learn
from agentopcd.workspace.experience.chains import Gathered
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.session import Session
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("learn") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def config(model: Path) -> LearnConfig:
    return LearnConfig(
        env="math", model=str(model), rounds=2, episodes_per_round=6, chains=2, chain_steps=2, extract_tokens=12,
        candidates=2, select_tasks=4, confirm_tasks=6, test_tasks=5, steps=2, batch_size=3, select_every=1,
        save_every=1, max_tokens=4, temperature=1.0, learning_rate=3e-4, compute="float32", gate_tasks=0,
    )  # fmt: skip


@pytest.fixture
def unflagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes what has flags, and would wait for a person."""
    monkeypatch.setattr(sys.modules["agentopcd.knowledge.ingest"], "flags", lambda text, **_: ())


def test_two_forced_rounds_and_the_same_again(config: LearnConfig, tmp_path: Path, unflagged: None) -> None:
    said: list[str] = []
    forced = dataclasses.replace(config, force=True)
    rounds = learn(forced, tmp_path, say=said.append)
    first, second = (one.distilled for one in rounds)
    assert first is not None and second is not None
    assert not any(one.confirmed for one in rounds)  # a random model's items help nobody
    assert second.parent_id == first.model_id != first.parent_id
    assert rounds[1].model == first.folder
    assert second.evaluation is not None and second.evaluation.rate("base").n == 5
    made = (Path(first.folder) / "README.md").read_text(encoding="utf-8").partition("## How it was made")[2]
    assert all(words in made for words in ("--steps 2 ", "--batch-size 3 ", "--select-every 1 ")), "of the training"
    with Store.open(tmp_path / "store.db") as store:
        episodes = len(store.episodes())
        assert [tmp_path / row["path"] for row in store.models("math", trained=True)] == [
            Path(second.folder),
            Path(first.folder),
        ]
        played = store.query("SELECT task_key FROM episode e JOIN run r ON r.id = e.run_id WHERE r.verb = 'play'")
        assert len({row["task_key"] for row in played}) == 12  # the second round took unused tasks
    again = learn(forced, tmp_path, say=said.append)
    assert [one.distilled and one.distilled.repeated for one in again] == [True, True]
    assert [one.player for one in again] == [first.folder, second.folder]
    with Store.open(tmp_path / "store.db") as store:
        assert len(store.episodes()) == episodes
        move_student(store, "math", first.model_id, "rollback")
    again = learn(forced, tmp_path, say=said.append)
    assert again[1].distilled and again[1].distilled.taken_back == "math"
    assert [one.player for one in again] == [first.folder, first.folder], "the second was taken back, the first was not"
    back = f"agentopcd rollback math --to {second.model_id[:12]} --work {tmp_path}"
    assert any("of round 2 is no longer math/student" in line and line.endswith(back) for line in said)


def test_nothing_is_consolidated_when_nothing_was_confirmed(
    config: LearnConfig, tmp_path: Path, unflagged: None
) -> None:
    said: list[str] = []
    (one,) = learn(dataclasses.replace(config, rounds=1), tmp_path, say=said.append)
    assert not one.confirmed and one.distilled is None
    assert any("nothing was confirmed, so nothing is consolidated" in line for line in said)
    assert not list(tmp_path.glob("runs/consolidate-*"))


def test_a_finished_command_that_is_killed_as_it_begins_anew_begins_anew_again(
    config: LearnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "learn", run_config(config))
    write_json(run.folder / "start.json", {"model": "the first base", "round": 2})
    run.finish({"rounds": []})
    began: list[str] = []

    def killed(*args: Any) -> None:
        began.append("killed")
        raise KeyboardInterrupt

    def begun(config: LearnConfig, *args: Any) -> None:
        began.append(config.model)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learning, "write_json", killed)
        learn(config, tmp_path, say=lambda line: None)
    monkeypatch.setattr(learning, "_round", begun)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            learn(config, tmp_path, say=lambda line: None)
        assert run.result is None
    assert began == ["killed", config.model, config.model]


def test_rounds_choose_by_what_is_asked_for(config: LearnConfig, tmp_path: Path, unflagged: None) -> None:
    by_reward = dataclasses.replace(config, by="reward", rounds=1, force=True, test_tasks=2)
    (one,) = learn(by_reward, tmp_path, say=lambda line: None)
    (again,) = learn(dataclasses.replace(by_reward, confirm_tasks=5), tmp_path, say=lambda line: None)
    assert one.distilled and one.distilled.evaluation and one.distilled.evaluation.by == "reward" and again.distilled
    with Store.open(tmp_path / "store.db") as store:
        scored = [json.loads(row["result"])["confirmation"] for row in store.runs("score")]
        assert [found["by"] for found in scored] == ["reward"] * 2
        assert sorted(found["score"]["n"] for found in scored) == [5, 6], "the first ranking stays as it was"
        (trained,) = store.runs("consolidate")
        assert json.loads(trained["config"])["by"] == "reward"
    with pytest.raises(ConfigError, match="no episode of math reports 'style'; wanted one of: success, reward"):
        learn(dataclasses.replace(by_reward, by="style"), tmp_path / "other", say=lambda line: None)


def test_play_that_begins_with_other_items_is_another_play(
    config: LearnConfig, tmp_path: Path, unflagged: None
) -> None:
    said: list[str] = []
    learn(config, tmp_path, say=said.append)  # with settings of its own for the ranking
    with Store.open(tmp_path / "store.db") as store:
        first, second = (json.loads(row["config"]) for row in store.runs("play"))
        assert "carried" not in first
        carried = [store.get_context(id_) for id_ in second["carried"]]
    assert f"{sum(len(one.lines) for one in carried)} items of the last round go on in the chains of this one" in said


def test_a_pilot_that_fails_leaves_its_weights_to_nobody(
    config: LearnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def fails(assignment: Any, student: Any, *_: Any) -> None:
        given.append(student)
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(sys.modules["agentopcd.distil"], "train_student", fails)
    training = ConsolidateConfig(env="math", model=config.model, max_tokens=4)
    with Session(training, tmp_path, say=lambda line: None) as session:
        with pytest.raises(TrainingError, match="not finite"):
            pilot(session, training, Context(f"{MARKER} Say it."))
        assert session.loaded is not given[0]


def test_a_pilot_is_the_training_at_a_quarter_of_the_steps(
    config: LearnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[ConsolidateConfig] = []
    monkeypatch.setattr(learning, "_play_to_replay", lambda *_: None)
    monkeypatch.setattr(learning, "pilot", lambda session, short, context: tried.append(short) or 0.5)
    training = ConsolidateConfig(
        env="math", model=config.model, steps=16, select_every=2, patience=2, warmup_steps=8, decay="linear"
    )
    for given in ({}, {"warmup_steps": 15}, {"steps": 3, "patience": 0, "warmup_steps": 2}):
        one = dataclasses.replace(training, **given)
        with Session(one, tmp_path, say=lambda line: None) as session:
            learning.another_way(session, one, Context(f"{MARKER} Say it."), round_number=1)
    assert [(one.steps, one.warmup_steps, one.patience) for one in tried] == [
        *[(4, 2, 0)] * 4, *[(4, 3, 0)] * 4, *[(1, 0, 0)] * 4,
    ]  # fmt: skip


def test_no_pilot_holds_a_student_to_a_teacher_that_moves(
    config: LearnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[ConsolidateConfig] = []
    said: list[str] = []
    monkeypatch.setattr(learning, "_play_to_replay", lambda *_: None)
    monkeypatch.setattr(learning, "pilot", lambda session, short, context: tried.append(short) or 0.5)
    training = ConsolidateConfig(env="math", model=config.model, teacher_kind="live")
    with Session(training, tmp_path, say=said.append) as session:
        learning.another_way(session, training, Context(f"{MARKER} Say it."), round_number=1)
    assert [(one.method, one.anchor) for one in tried] == [("prefix-replay", 0.0)]
    assert any(line.startswith("no pilot of opcd, anchored: --anchor wants a teacher that stands") for line in said)


@pytest.mark.slow
def test_a_student_that_does_not_pass_its_gate_plays_no_further_round(
    config: LearnConfig, tmp_path: Path, unflagged: None
) -> None:
    said: list[str] = []
    held = dataclasses.replace(config, force=True, gate_tasks=16)  # fewer could not pass at the later looks
    rounds = learn(held, tmp_path, say=said.append)
    first, second = (one.distilled for one in rounds)
    assert first is not None and second is not None and not first.promoted and not second.promoted
    assert second.parent_id == first.parent_id and rounds[1].model == rounds[0].model == rounds[0].player
    assert rounds[0].tried[0] == "opcd" and rounds[0].tried[1] in WAYS, "another way to train was tried"
    pilots = [line for line in said if line.startswith("pilot of ") and "on select tasks" in line]
    assert len(pilots) == 2 * (len(WAYS) - 1)
    assert not list(tmp_path.glob("runs/pilot-*/student")), "pilots leave no students behind"
    labels = [(stage.label, stage.promoted) for stage in rounds[1].stages]
    assert labels[0] == ("base", True) and len(labels) == 5 and not any(promoted for _, promoted in labels[1:])
    assert all(stage.rate.n == 5 for stage in rounds[1].stages)
    with Store.open(tmp_path / "store.db") as store:
        assert current_student(store, "math") is None
        episodes = len(store.episodes())
    learn(held, tmp_path, say=said.append)
    with Store.open(tmp_path / "store.db") as store:
        assert len(store.episodes()) == episodes


@pytest.mark.slow
def test_one_method_tries_no_other(config: LearnConfig, tmp_path: Path, unflagged: None) -> None:
    held = dataclasses.replace(config, force=True, gate_tasks=6, one_method=True, rounds=1)
    (one,) = learn(held, tmp_path, say=lambda line: None)
    assert one.tried == ["opcd"] and not list(tmp_path.glob("runs/pilot-*"))


def test_earlier_ends_compete_before_this_round_s_steps_and_blocked_contexts_do_not(
    config: LearnConfig, tmp_path: Path
) -> None:
    contexts = [Context(f"{MARKER} lesson {n}") for n in range(6)]
    ended, step, before, retired, known, other = contexts
    with Session(PlayConfig(env="math", model=config.model), tmp_path, say=lambda line: None) as session:
        for one in contexts:
            session.store.add_context(one)
        session.store.event(identify("lesson 3"), "retire", "person")
        for n in (0, 1, 2, 4, 5):
            session.store.event(identify(f"lesson {n}"), "approve", "person")
        session.store.change("INSERT INTO model_context VALUES (?, ?, 1)", (session.loaded.id, known.id))
        gathered = Gathered(
            run_id=1, rate=Rate(0, 4), items=[], flagged=0, unparsed=0, candidates=[ended, step, other, known, retired]
        )
        past = learning._Past(candidates=[before, retired])
        found = learning._candidates(session, dataclasses.replace(config, chains=1), gathered, past)
        assert found == [ended, before, step, other]
        lines: list[str] = []
        session.say = lines.append
        for left, why in (
            ([known], "the model has 1 of 1 candidate contexts in its weights already"),
            ([retired], "1 of 1 candidate contexts hold an item that is retired or waits"),
            ([known, retired], "in its weights already, and 1 of 2 candidate contexts hold an item that is retired"),
            ([], "no item could be read from the extractor's replies"),
        ):
            given = dataclasses.replace(gathered, candidates=left)
            assert learning._candidates(session, config, given, learning._Past()) == [] and why in lines[-1]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"method": "context-distillation", "answers": "fresh"},
        {"method": "mixed"},
        {"anchor": 0.25},
        {"method": "prefix-replay", "turn_decay": 0.1},
        {"direction": "forward"},
        {"importance_cap": 2.0},
        {"turn_items": 3},
    ],
    ids=str,
)
def test_every_way_can_be_tried_from_every_other(given: dict[str, Any], tmp_path: Path) -> None:
    config = ConsolidateConfig(env="math", **given)
    with Session(config, tmp_path, say=lambda line: None) as session:
        tried = [check_method(session, dataclasses.replace(config, **changes)) for changes in WAYS.values()]
    assert [one.method for one in tried] == ["opcd", "prefix-replay", "context-distillation", "mixed", "opcd"]
