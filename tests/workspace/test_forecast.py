"""What is said before a training: is there a gain to distil? Measured by a command, or read from what is stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.cli.options import Call
from agentopcd.cli.verbs import forecast as command
from agentopcd.core.calibration import Calibration
from agentopcd.core.config import ConfirmConfig, EvaluateConfig, ForecastConfig, flags_for
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Difference, Rate
from agentopcd.core.types import EMPTY, Context, Episode, Job, Task
from agentopcd.distillation.positions import response_logits
from agentopcd.knowledge import Store, placebo
from agentopcd.knowledge.students import CANARY
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace import forecast as module
from agentopcd.workspace.forecast import Forecast, forecast, is_format, past_trainings, short, shown_context
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.session import Session
from tests import tiny

CLUE = Context("Be brief.")
SEVEN = Context(tiny.CLUE)


# -- from what is stored --------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path, tiny_model_dir: Path) -> Any:
    config = EvaluateConfig(env=tiny.questions(tmp_path / "rows.jsonl"), model=str(tiny_model_dir))
    with Session(config, tmp_path / "w w", say=lambda line: None) as session:
        session.store.add_context(CLUE)
        yield session


def looked(session: Session, verdict: str, model: str = "", **result: Any) -> None:
    model_id = model or session.loaded.id
    key = {"env": session.env, "model_id": model_id, "context_id": CLUE.id, "setup": "s", "plan": verdict}
    session.store.end_look(session.store.begin_look(key, {})["id"], verdict, result)


def played(session: Session, context: Context, wins: int, n: int = 12) -> None:
    """Games on select tasks of which the first ``wins`` were won."""
    run_id = session.ledger.begin("score")
    session.store.add_context(context)
    for number, task in enumerate(session.tasks("select", n)):
        episode = Episode(
            env=session.env, task=Task(task.seed, task.key), rep=0, context_id=context.id, turns=[], outcome=[],
            success=number < wins, reward=0.0, stop_reason="failed",
        )  # fmt: skip
        session.store.add_episodes(run_id, session.loaded.id, session.setup(), [episode])


def test_nobody_has_measured_it(session: Session) -> None:
    said = short(session, CLUE, flags_for(session.config, ConfirmConfig))
    assert said.startswith(f"forecast: not known: whether context {CLUE.id[:12]} helps this model was never measured")
    assert f"agentopcd forecast --context {CLUE.id[:12]} --env {session.env} --model" in said
    assert said.endswith(f"--work '{session.work}' would tell")


def test_its_own_look_decides(session: Session) -> None:
    played(session, CLUE, 0), played(session, EMPTY, 12)
    looked(session, "pass", against={"empty": {"difference": 0.5, "low": 0.4, "high": 0.6}})
    said = short(session, CLUE)
    assert said.startswith("forecast: train: ")
    assert "passed the confirm gate, +0.500 [+0.400, +0.600] to none (look 1)" in said
    looked(session, "not better", against={"empty": {"difference": 0.1, "low": -0.1, "high": 0.3}})
    assert short(session, CLUE).startswith("forecast: collect better notes: ")
    looked(session, "form only", against={"empty": {"difference": -0.2, "low": -0.3, "high": -0.1}})
    assert short(session, CLUE).startswith("forecast: do not: ") and "no gain to distil" in short(session, CLUE)
    even = {"difference": 0.0, "low": -0.06, "high": 0.06, "n": 64, "score": 1.0}
    looked(session, "not better ", against={"empty": even}, by="success")
    assert "do not: " in (said := short(session, CLUE)) and "the model wins without it: 1.000 [0.943, 1.000]" in said


def test_looks_of_canaries_and_of_students_are_no_looks_of_a_context(session: Session) -> None:
    before = short(session, CLUE)
    for context, setup in ((CLUE, CANARY), (EMPTY, "s")):
        key = {"env": session.env, "model_id": session.loaded.id, "context_id": context.id, "setup": setup, "plan": "p"}
        session.store.end_look(session.store.begin_look(key, {})["id"], "pass", {})
    assert short(session, CLUE) == before and "passed the confirm gate" not in short(session, EMPTY)
    trained(session.store, session.env, 0.4, 0.3, model_id=session.loaded.id)
    looked(session, "form only", against={"placebo": {"difference": 0.0, "low": -0.1, "high": 0.1}})
    key |= {"context_id": CLUE.id, "setup": CANARY, "plan": "q"}
    session.store.end_look(session.store.begin_look(key, {})["id"], "worse", {})
    assert [one.beyond and one.beyond.diff for one in past_trainings(session.store)] == [0.0]


@pytest.mark.parametrize("other", ["env", "context_id", "model_id", "imported"])
def test_only_its_own_forecast_is_quoted(session: Session, other: str) -> None:
    ids = {"env": session.env, "context_id": CLUE.id, "model_id": session.loaded.id}
    run_id = session.store.start("forecast", ids | ({other: "another"} if other in ids else {}), 0)
    session.store.finish(run_id, {"advice": "train", "why": "it helps"})
    if other == "imported":
        with session.store.write():
            session.store.change("UPDATE run SET imported = 1 WHERE id = ?", (run_id,))
    assert "never measured" in short(session, CLUE)
    run_id = session.store.start("forecast", ids, 0)
    session.store.finish(run_id, {"advice": "train", "why": "it helps"})
    assert short(session, CLUE) == f"forecast: train: it helps (context {CLUE.id[:12]}, run {run_id})"


@pytest.mark.parametrize(("changed", "same"), [({"rules": "full"}, False), ({"max_tokens": 7}, False), ({}, True)])
def test_what_was_measured_by_other_settings_is_not_quoted(session: Session, changed: Any, same: bool) -> None:
    """Another seed and another engine are no other question."""
    settings = run_config(session.config) | {"seed": 5, "engine": "vllm", "env": session.env} | changed
    ids = {"context_id": CLUE.id, "model_id": session.loaded.id}
    run_id = session.store.start("forecast", settings | ids, 0)
    session.store.finish(run_id, {"advice": "train", "why": "it helps"})
    assert short(session, CLUE).startswith("forecast: train: it helps" if same else "forecast: not known")
    key = {"env": session.env, "setup": "s", "plan": "p", **ids}
    session.store.end_look(session.store.begin_look(key, {"run_id": run_id})["id"], "pass", {})
    said = "helps this model: it passed" if same else "passed the confirm gate, but with another model, or played oth"
    assert said in short(session, CLUE)


def test_a_look_of_schema_1_has_no_figures(session: Session) -> None:
    looked(session, "incumbent stays")
    assert "it passed the confirm gate (look 1)" in short(session, CLUE)


@pytest.mark.parametrize(
    ("wins", "twin", "says"),
    [(12, None, "train: the context helps: "), (12, 0, "train: the context helps, and more than its placebo: "),
     (12, 11, "collect better notes: the context helps, but is not shown to help more than its placebo"),
     (0, 0, "do not: the context does not help, so there is no gain to distil"),
     (7, 0, "collect better notes: it is not shown that the context helps")],
)  # fmt: skip
def test_games_on_select_tasks_are_evidence(session: Session, wins: int, twin: int | None, says: str) -> None:
    played(session, CLUE, wins), played(session, EMPTY, 6 if wins else 12)
    if twin is not None:
        played(session, placebo(CLUE), twin)
    said = short(session, CLUE)
    assert said.startswith(f"forecast: {says}") and "(n=12); not confirmed" in said


@pytest.mark.parametrize(
    ("verdict", "says"), [("pass", "passed the confirm gate, but with another model"), ("form only", "another model")]
)
def test_looks_of_another_model_are_hearsay(session: Session, verdict: str, says: str) -> None:
    looked(session, verdict, model="m" * 64)
    assert says in short(session, CLUE) and short(session, CLUE).startswith("forecast: not known: ")


def test_where_nothing_is_graded_nothing_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(session.game), "graded", property(lambda game: False))
    assert short(session, CLUE) == ""


def trained(store: Store, env: str, gain: float, student: float, **config: Any) -> int:
    def pair(value: float) -> dict[str, Any]:
        return {"difference": value, "low": value - 0.1, "high": value + 0.1, "n": 256}

    given = {"env": env, "context_id": CLUE.id, "model_id": "m" * 64} | config
    run_id = store.start("consolidate", given, 0)
    table = {"differences": {"in-context - base": pair(gain), "student - base": pair(student)}}
    store.finish(run_id, {"evaluation": table})
    return run_id


def test_earlier_trainings_are_read_from_their_tables(session: Session) -> None:
    store = session.store
    trained(store, session.env, 0.4, 0.3), trained(store, session.env, 0.05, 0.3)
    trained(store, session.env, 0.4, 0.0, placebo=True)  # no student
    store.finish(store.start("consolidate", {"env": session.env, "context_id": CLUE.id}, 0), {"evaluation": None})
    first, second = past_trainings(store)
    assert (first.advice, first.gained, first.beyond) == ("train", True, None)
    assert (second.advice, second.gained) == ("collect better notes", True)
    looked(session, "form only", model="m" * 64, against={"placebo": {"difference": 0.0, "low": -0.1, "high": 0.1}})
    assert past_trainings(store)[0].advice == "collect better notes"
    assert Calibration.of(past_trainings(store)).trained.n == 0


# -- measured -------------------------------------------------------------------------------------------


@pytest.fixture
def clued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Questions that are answered right where the prompt holds the clue; a random model scores the replies."""
    asked: list[tiny.Clued] = []

    def player_for(session: Session, loaded: Any) -> Player:
        asked.append(tiny.Clued(loaded.tokenizer))
        return Player(
            game=session.game, sampler=asked[-1], chat=Chat(loaded.tokenizer), sampling=session.config.sampling
        )

    monkeypatch.setattr(Session, "player_for", player_for)
    tiny.build(tmp_path / "model", tie=False, hearing=4.0)
    (tmp_path / "clue.txt").write_text(SEVEN.text)
    config = ForecastConfig(
        env=tiny.questions(tmp_path / "rows.jsonl"), model=str(tmp_path / "model"), compute="float32", episodes=9,
        context=str(tmp_path / "clue.txt"), temperature=1.0,
    )  # fmt: skip
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        yield session, asked


def ahead(session: Session) -> Forecast:
    context = shown_context(session, session.config)  # type: ignore[arg-type]
    return forecast(session, session.config, context, run_id=session.ledger.begin("forecast"))  # type: ignore[arg-type]


def test_a_context_that_helps_beyond_its_form_is_to_be_trained_on(clued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, asked = clued
    counted: list[int] = []
    monkeypatch.setattr(module, "estimate", lambda session, episodes, steps: counted.append(episodes) or "")
    found = ahead(session)
    assert found.advice == ("train", "the context helps, and more than its placebo")
    assert counted[0] == 3 * len(session.tasks("test")) < 3 * 256, "the test split holds fewer"
    assert found.gain is not None and found.beyond is not None
    assert (found.gain.difference.diff, found.gain.n, found.beyond.difference.diff) == (1.0, 9, 1.0)
    assert sum(one.asked for one in asked) == 27
    assert {row["split"] for row in session.store.episodes()} == {"select"}
    ahead(session)
    assert sum(one.asked for one in asked) == 27  # read back


def test_games_that_chose_a_context_are_not_its_forecast(clued: Any) -> None:
    session, _ = clued
    run_id, store = session.ledger.begin("score"), session.store
    store.add_context(SEVEN)
    session.bench(run_id).play_missing("select", [Job(task, SEVEN) for task in session.tasks("select")])
    ranked = [{"context": SEVEN.id}, {"context": CLUE.id}, {"context": Context("Think.").id}]
    session.ledger.finish(run_id, {"ranking": ranked, "competed": 3})
    known = {row["id"] for row in store.episodes()}
    found = ahead(session)
    assert found.best_of == 3 and found.to_dict()["best_of"] == 3
    assert any(line.startswith("it was ranked among 3 contexts on these tasks") for line in found.lines())
    assert {row["rep"] for row in store.episodes() if row["id"] not in known} == {3_000_000}
    assert found.gain is not None and found.gain.n == 9 and len(store.episodes()) == len(known) + 27
    assert not any("ranked among" in line for line in dataclasses.replace(found, best_of=1).lines())


def test_a_model_that_wins_already_needs_no_better_notes(clued: Any) -> None:
    session, _ = clued
    found = ahead(session)
    assert found.gain is not None
    even = dataclasses.replace(found.gain, second=Rate(64, 64), difference=Difference(0.0, -0.06, 0.06, 64))
    assert dataclasses.replace(found, gain=even).advice[1].startswith("the model wins without it: 1.000")
    config = dataclasses.replace(session.config, env=tiny.questions(session.work / "many.jsonl", 400))
    with Session(config, session.work, say=lambda line: None) as other:
        played(other, SEVEN, 64, 64), played(other, EMPTY, 64, 64)
        assert "do not: the model wins without it: 1.000" in short(other, SEVEN)


def test_a_context_that_helps_by_its_form_alone_is_not(clued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "CLUE", "seven")  # the placebo holds this word, too, in another place
    found = ahead(clued[0])
    assert found.gain is not None and found.beyond is not None
    assert (found.gain.difference.diff, found.beyond.difference.diff) == (1.0, 0.0)
    assert found.advice[0] == "collect better notes" and "form only" in found.advice[1]


def test_the_divergence_is_that_of_plain_forward_passes(clued: Any) -> None:
    session, _ = clued
    found, model, chat = ahead(session).moved, session.loaded.model, session.player.chat
    nats, marks = [], []
    for row in session.store.episodes(context_id=EMPTY.id):
        for turn in session.store.transcript(row["id"]).turns:
            with torch.no_grad():
                own, shown = (
                    response_logits(model, [(prompt, turn.response_ids)], 0).log_softmax(-1)
                    for prompt in chat.prompts(turn.messages, SEVEN)
                )
            nats += (own.exp() * (own - shown)).sum(-1).tolist()
            texts = [session.loaded.tokenizer.decode([token]) for token in turn.response_ids]
            marks += [text == "<|im_end|>" or not any(map(str.isalnum, text)) for text in texts]
    assert found.all.rate == pytest.approx(sum(nats) / len(nats), rel=1e-4) and found.all.n == 9
    assert found.turns == {"1": found.all}
    share = sum(one for one, mark in zip(nats, marks, strict=True) if mark) / sum(nats)
    assert 0 < share < 1 and found.format.rate == pytest.approx(share, rel=1e-4)
    assert found.format_tokens == pytest.approx(sum(marks) / len(marks))


def test_a_token_is_form_if_it_says_nothing(tiny_model_dir: Path) -> None:
    from agentopcd import models

    tokenizer = models.load_model(str(tiny_model_dir)).tokenizer
    ids = [*tokenizer("go é: [7]\n", add_special_tokens=False)["input_ids"], tiny.END]
    flags = [is_format(tokenizer, ids, place) for place in range(len(ids))]
    texts = tokenizer.convert_ids_to_tokens(ids)
    said = {text for text, flag in zip(texts, flags, strict=True) if not flag}
    assert {"7"} < said and not said & {":", "]", "Ċ", "<|im_end|>"}


def chats(tmp_path: Path) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"Box {i}?"}, {"role": "assistant", "content": "Up."},
                      {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Down."}]}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "chats.jsonl")


@pytest.mark.parametrize(("hearing", "advice"), [(4.0, "train"), (0.0, "do not")])
def test_without_a_grader_the_distance_decides(hearing: float, advice: str, tmp_path: Path) -> None:
    """A model whose attention adds nothing cannot be moved by what stands before."""
    tiny.build(tmp_path / "model", tie=False, hearing=hearing)
    (tmp_path / "clue.txt").write_text("Say left. " * 4)
    config = ForecastConfig(
        env=chats(tmp_path), model=str(tmp_path / "model"), compute="float32", episodes=6, max_tokens=4,
        context=str(tmp_path / "clue.txt"), placement="system", temperature=1.0,
    )  # fmt: skip
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        found = ahead(session)
        assert found.advice[0] == advice and found.gain is None and found.smallest is None
        assert list(found.moved.turns) == ["1", "2"] and found.moved.turns["1"].n == 6
        text = "\n".join(found.lines())
        assert "by turn: 1: " in text and "calibration" not in text and f"verdict: {advice}: " in text
        assert {row["context_id"] for row in session.store.episodes()} == {EMPTY.id}


def test_the_command_prints_it_and_a_training_says_it_first(
    clued: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, _ = clued
    trained(session.store, session.env, 0.4, 0.2), trained(session.store, session.env, 0.4, 0.4)
    call = Call(session.work, False, False)
    command(session.config, call)
    printed = capsys.readouterr().out
    for wanted in (
        "success against none: 1.000 against 0.000, ", "on 9 select tasks (n=9)", "lies on format tokens",
        "training of 24 steps, time: ", "four times in five", "calibration on 2 earlier trainings",
        "predicted gain of a student: +0.750 [", "verdict: train: the context helps, and more than its placebo",
        "next: agentopcd consolidate --context ",
    ):  # fmt: skip
        assert wanted in printed, wanted
    command(dataclasses.replace(session.config, context=SEVEN.id[:12]), call)  # of the store, so it has to be confirmed
    assert f"next: agentopcd knowledge confirm --context {SEVEN.id[:12]} --env " in capsys.readouterr().out
    assert short(session, SEVEN).startswith("forecast: train: the context helps, and more than its placebo (context ")
    command(session.config, dataclasses.replace(call, dry_run=True))
    assert "plan: 9 select tasks with the context, without it, and with its placebo" in capsys.readouterr().out


def test_what_cannot_be_forecast_is_refused(session: Session) -> None:
    config = ForecastConfig(env=session.env, model=session.config.model)
    with pytest.raises(ConfigError, match=r"no context of .* was confirmed; name one with --context"):
        shown_context(session, config)
    with pytest.raises(ConfigError, match="the empty context moves no model"):
        shown_context(session, dataclasses.replace(config, context="empty"))
    with pytest.raises(ConfigError, match="episodes is 0"):
        dataclasses.replace(config, episodes=0)
