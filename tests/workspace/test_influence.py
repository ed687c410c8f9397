"""How much each item of a context moves the model: against plain forward passes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentopcd.cli import main
from agentopcd.core.config import PlayConfig, ScoreConfig, pick
from agentopcd.core.errors import ConfigError, TaskLeak
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Job, Message
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.knowledge import Found, best_ref, identify, render, without
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.experience import influence as module
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.experience.influence import Influence, divergences, influence, shown_context
from agentopcd.workspace.lineage.audit import Reader
from agentopcd.workspace.session import Session
from tests import tiny

ONE, TWO = "say seven", "left, then up and down"
TEMPERATURE = 5.0


class Lab:
    """A workspace with some episodes of a model that hears its context, played without one."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.model = tiny.build(folder / "model", tie=False, hearing=4.0)
        self.settings: dict[str, Any] = {
            "env": tiny.questions(folder / "rows.jsonl"), "model": str(self.model), "compute": "float32",
            "max_tokens": 6, "temperature": TEMPERATURE,
        } | settings  # fmt: skip
        self.work, self.lines = folder / "w", []

    def open(self, **settings: Any) -> Session:
        config = ScoreConfig(method="influence", **self.settings | settings)
        return Session(config, self.work, say=self.lines.append)

    def play(self, episodes: int = 6) -> None:
        config = PlayConfig(episodes=episodes, extract=False, **self.settings)
        with Session(config, self.work, say=self.lines.append) as session:
            gather(session, config, run_id=session.ledger.begin("play"))

    def influence(self, context: Context, **settings: Any) -> module.Influences:
        with self.open(**settings) as session:
            session.store.add_context(context)
            assert isinstance(session.config, ScoreConfig)
            return influence(session, session.config, context)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def by_hand(model: Any, chat: Chat, turns: Sequence[Episode], whole: Context, arm: Context) -> list[float]:
    """One reply at a time: whole forward passes, a softmax over what was allowed, a sum."""
    found = []
    for episode in turns:
        (turn,), total = episode.turns, 0.0
        rows = []
        for context in (whole, arm):
            prompt = chat.render(turn.messages, context)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *turn.response_ids]])).logits[0]
            rows.append(logits[len(prompt) - 1 : -1] / TEMPERATURE)
        for at, (one, two) in enumerate(zip(*rows, strict=True)):
            so_far = turn.response_ids[:at]
            may = {c[at] for c in turn.choices if len(c) > at and c[:at] == so_far} or set(range(len(one)))
            p, q = one[sorted(may)].log_softmax(-1), two[sorted(may)].log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
        found.append(total)
    return found


@pytest.mark.parametrize("constrain", [False, True])
def test_divergences_are_those_of_plain_forward_passes(tmp_path: Path, constrain: bool) -> None:
    lab = Lab(tmp_path, **({"env": "frozen-lake-4x4", "constrain": True, "max_steps": 2} if constrain else {}))
    lab.play()
    whole = Context(render([ONE, TWO]))
    arms = {"same": whole, "minus one": Context(render([TWO])), "none": EMPTY}
    with lab.open(turns=5) as session:
        loaded, chat = session.loaded, session.player.chat
        assert isinstance(session.config, ScoreConfig)
        teacher = FrozenTeacher(loaded, loaded, compute=session.compute)
        turns = module._turns(session, teacher, whole, session.config)
        assert len(turns) == 5
        found = divergences(teacher, chat, turns, whole, arms, temperature=TEMPERATURE)
        assert found["same"] == [0.0] * 5
        for name in ("minus one", "none"):
            assert min(found[name]) > 1e-6
            assert found[name] == pytest.approx(by_hand(loaded.model, chat, turns, whole, arms[name]), rel=1e-3)


@pytest.mark.filterwarnings("ignore:this chat template has no place for tools")
def test_a_system_message_and_tools_begin_what_is_read_once(lab: Lab) -> None:
    lab.play(3)
    tool: Any = {"type": "function", "function": {"name": "look", "description": "look around", "parameters": {}}}
    whole, told = (
        Context(render([ONE, TWO])),
        Message(role="system", content="You are a careful player. Take your time."),
    )
    with lab.open() as session:
        loaded, chat = session.loaded, session.player.chat
        turns = list[Episode]()
        for row in session.store.episodes():
            episode = session.store.transcript(row["id"])
            messages = [told, *episode.turns[0].messages]
            ids = chat.render(messages, EMPTY, [tool])
            turn = dataclasses.replace(episode.turns[0], messages=messages, tools=[tool], prompt_ids=ids)
            turns.append(dataclasses.replace(episode, turns=[turn]))
        teacher = FrozenTeacher(loaded, loaded, compute=session.compute)
        divergences(teacher, chat, turns, whole, {"whole": whole}, temperature=TEMPERATURE)
        prompts = [chat.render(one.turns[0].messages, whole, [tool]) for one in turns]
        audited: Any = SimpleNamespace(items=0, turns=turns, chat=chat, teacher=SimpleNamespace(model=loaded.model))
        Reader._show(audited, whole)
    for (prefix,) in (teacher.prefixes, audited.teacher.prefixes):
        assert TWO in chat.tokenizer.decode(prefix.ids)
        assert all(prefix.begins(prompt) == len(prefix.ids) for prompt in prompts)


def test_figures_are_means_over_tokens_and_shares_of_the_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.play()
    given = {identify(ONE): [3.0, 1.0], identify(TWO): [0.002, 0.002], EMPTY.id: [2.0, 2.0]}
    monkeypatch.setattr(module, "divergences", lambda *args, **named: dict(given))
    found = lab.influence(Context(render([ONE, TWO])), turns=2)
    one, two = found.items
    assert (one.text, one.share, two.text, two.share) == (ONE, 1.0, TWO, pytest.approx(0.001))
    # Residuals 3 - 2 and 1 - 2, so sqrt(2 / 1 * 2) / 4 is the error of the share.
    assert (one.low, one.high) == pytest.approx((1 - 12.706205 / 2, 1 + 12.706205 / 2), rel=1e-6)
    assert found.kl_nats == pytest.approx(4 / found.tokens) and one.kl_nats == pytest.approx(4 / found.tokens)
    assert two.high == pytest.approx(0.001) and two.inert and not one.inert
    assert "1 of 2 items are inert" in found.lines()[-1] and ", inert: " in found.lines()[2]
    assert [row["inert"] for row in found.to_dict()["items"]] == [False, True]
    json.dumps(found.to_dict())


def test_an_item_is_inert_below_a_hundredth_only() -> None:
    kl = (0.1, 0.1, 0.1)
    assert Influence("a", "a", *kl, 0.001, -0.002, 0.0099).inert
    assert not Influence("a", "a", *kl, 0.001, -0.002, 0.01).inert


def test_turns_come_from_play_without_a_context_on_tasks_to_learn_from(lab: Lab, tmp_path: Path) -> None:
    lab.play(3)
    with lab.open() as session:
        rows, context = session.store.episodes(), Context(render([ONE]))
        assert {row["split"] for row in rows} == {"extract"}
        assert isinstance(session.config, ScoreConfig)
        run_id = session.ledger.begin("score")
        bench = session.bench(run_id)
        bench.prepare([context], session.tasks("select", 2), "select")
        bench.play_missing(
            "select", [Job(task, arm) for task in session.tasks("select", 2) for arm in (EMPTY, context)]
        )
        session.store.add_context(context)
        bench.play_missing("play", [Job(task, context) for task in session.tasks("extract", 4)])
        found = influence(session, session.config, context)
    assert found.turns == 3


def test_the_same_seed_draws_the_same_turns_and_another_one_others(lab: Lab) -> None:
    lab.play(8)
    context = Context(render([ONE]))
    first = lab.influence(context, turns=3)
    assert lab.influence(context, turns=3) == first
    # The setup depends on the seed of play, so another draw is another config of the same session.
    with lab.open(turns=3) as session:
        other = pick(session.config, ScoreConfig, seed=1)
        assert influence(session, other, context).kl_nats != first.kl_nats


def test_without_an_item_the_rest_stays_and_repeats_go_too() -> None:
    text = f"Read this.\n{MARKER} {ONE}\n{MARKER} {TWO}\n\n{MARKER}  {ONE}"
    assert without(Context(text, "system"), [identify(ONE)]) == Context(f"Read this.\n{MARKER} {TWO}\n", "system")
    assert without(Context(render([ONE])), [identify(ONE)]) == EMPTY


def test_a_leak_is_refused(lab: Lab) -> None:
    with lab.open() as session:
        task, run_id = session.tasks("select")[0], session.ledger.begin("score")
        session.store.add_items(run_id, [Found(ONE)], env=session.env, task_key=task.key)
        context = Context(render([ONE, TWO]))
        session.store.add_context(context)
        config = pick(session.config, ScoreConfig, context=context.id[:12])
        with pytest.raises(TaskLeak, match=f"{identify(ONE)[:12]}, which came from select task"):
            shown_context(session, config)


def test_which_context_is_looked_at(lab: Lab) -> None:
    newest, best, named = (Context(render([text])) for text in ("a", "b", "c"))
    with lab.open() as session:
        assert isinstance(session.config, ScoreConfig)
        store, config = session.store, session.config
        with pytest.raises(ConfigError, match=r"in the store; run `agentopcd play .* --work \S+`"):
            shown_context(session, config)
        for context in (newest, best, named):
            store.add_context(context)
        store.move(f"{session.env}/pool/00/01", newest.id, "extract")
        assert shown_context(session, config) == newest
        store.move(best_ref(session.env), best.id, "confirm")
        assert shown_context(session, config) == best
        assert shown_context(session, pick(config, ScoreConfig, context=named.id[:12])) == named
        store.add_context(Context("just text"))
        with pytest.raises(ConfigError, match="holds no items"):
            shown_context(session, pick(config, ScoreConfig, context=Context("just text").id[:12]))


def test_without_stored_turns_there_is_nothing_to_read(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"wants two or more turns .* got 0; run `agentopcd play .* --work \S+`"):
        lab.influence(Context(render([ONE])))


def test_a_context_that_moves_nothing_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.play(3)
    given = {identify(ONE): [0.0] * 3, EMPTY.id: [0.0] * 3}
    monkeypatch.setattr(module, "divergences", lambda *args, **named: dict(given))
    with pytest.raises(ConfigError, match=r"does not move .* at all"):
        lab.influence(Context(render([ONE])))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "uniform", "context": "x"}, "--context is for --method influence"),
        ({"method": "subsets", "turns": 9}, "--turns is for --method influence"),
        ({"method": "subsets", "candidates": 4}, "--candidates is for --method halving or uniform"),
        ({"method": "influence", "by": "reward"}, "--by is for --method halving, uniform or subsets"),
        ({"method": "influence", "turns": 1}, "turns is 1; an interval takes two"),
        ({"method": "influence", "turns": -2}, "turns is -2"),
        ({"method": "influence", "traces": 9}, "traces is 9"),
        ({"method": "influence", "engine": "api", "server": "http://x", "model": "m"}, "has no weights here"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ScoreConfig(env="math", **settings)


def test_settings_that_fit() -> None:
    ScoreConfig(env="math", method="subsets", by="success")
    ScoreConfig(env="math", method="uniform", by="reward", candidates=4)


def test_the_command_moves_no_name_and_plays_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.play()
    with lab.open() as session:
        context = Context(render([ONE, TWO]))
        session.store.add_context(context)
        session.store.move(best_ref(session.env), context.id, "confirm")
        before = (session.store.moves(), len(session.store.episodes()))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in lab.settings.items()]

    def call(*more: str) -> str:
        command = ["agentopcd", "knowledge", "score", "--method", "influence", "--turns", "4", *words, *more]
        monkeypatch.setattr(sys, "argv", [*command, "--work", str(lab.work)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    assert "plan: up to 4 stored turns are read behind 4 contexts" in call("--dry-run")
    said = call()
    assert f"context {context.id[:12]} against none: " in said and "tokens of 4 stored turns)" in said
    found = json.loads(call("--json"))
    assert {row["text"] for row in found["items"]} == {ONE, TWO} and found["turns"] == 4
    with lab.open() as session:
        assert (session.store.moves(), len(session.store.episodes())) == before
        assert json.loads(session.store.runs("score")[-1]["result"])["items"] == found["items"]


@pytest.mark.slow
def test_what_pocket_does_not_need_is_told_from_what_it_needs(tmp_path: Path) -> None:
    """The moves are told once, then twice, so that either sentence can go; the aside says nothing."""
    goal, hole, moves, aside = "G is the goal.", "H is a hole.", "All moves work as named.", "Be careful."
    lab = Lab(tmp_path, env="frozen-lake-4x4", model="pocket", max_tokens=128, temperature=0.7)
    lab.play(8)
    once, twice = (
        {one.text: one.share for one in lab.influence(Context(render([goal, hole, *told, aside]))).items}
        for told in ([moves], [moves, "Every move does what it says."])
    )
    assert once[moves] > 10 * once[aside]
    assert twice[moves] < once[moves] / 3
