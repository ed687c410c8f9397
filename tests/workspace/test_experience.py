"""From episodes to a chosen context, with a player that needs the clue it extracts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli import verbs
from agentopcd.cli.options import Call
from agentopcd.core.config import LearnConfig, PlayConfig, ScoreConfig, pick
from agentopcd.core.crossed import rate_of
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Turn
from agentopcd.knowledge.exchange import ELSEWHERE
from agentopcd.learn import learn
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.experience import chains
from agentopcd.workspace.experience import choose as choosing
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session
from tests import tiny


class Killed(BaseException):
    pass


class Lab:
    """One workspace; sessions whose replies come from :class:`tests.tiny.Clued`."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.work, self.model = tiny.questions(folder / "rows.jsonl"), folder / "w", str(model)
        self.lines: list[str] = []
        self.samplers: list[tiny.Clued] = []

        def player_for(session: Session, loaded: Any) -> Player:
            self.samplers.append(tiny.Clued(loaded.tokenizer))
            return Player(
                game=session.game, sampler=self.samplers[-1], chat=Chat(loaded.tokenizer),
                sampling=session.config.sampling, seed=session.config.seed,
            )  # fmt: skip

        monkeypatch.setattr(Session, "player_for", player_for)

    def config(self, **settings: Any) -> PlayConfig:
        own = {"env": self.rows, "model": self.model, "episodes": 4, "chains": 2, "chain_steps": 2}
        return PlayConfig(**own | settings)

    def open(self, config: Any = None, *, kill_after: int = 0) -> Session:
        def progress(label: str, items: Iterable[Any], total: int) -> Iterable[Any]:
            for number, item in enumerate(items, start=1):
                yield item
                if number == kill_after and not label.startswith("tasks of"):
                    raise Killed

        return Session(config or self.config(), self.work, say=self.lines.append, progress=progress)

    def play(self, **settings: Any) -> chains.Gathered:
        config = self.config(**settings)
        with self.open(config) as session:
            run_id = session.ledger.begin("play")
            done = gather(session, config, run_id=run_id)
            session.store.finish(run_id, done.to_dict())
            return done

    def count(self, table: str) -> int:
        with self.open() as session:
            return session.store.query(f"SELECT count(*) AS n FROM {table}")[0]["n"]


@pytest.fixture
def lab(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, tiny_model_dir, monkeypatch)


def test_play_leaves_episodes_items_and_named_contexts(lab: Lab) -> None:
    done = lab.play()
    clue = Context(f"{MARKER} {tiny.CLUE}")
    assert (done.rate.wins, done.rate.n, done.flagged, done.unparsed) == (0, 4, 0, 0)
    assert done.candidates == [clue]
    with lab.open() as session:
        store = session.store
        assert [item.text for item in store.items(ids=done.items)] == [tiny.CLUE]
        assert set(store.refs(f"{lab.rows}/pool/").values()) == {clue.id}
        rows = store.episodes(run_id=done.run_id)
        assert {row["split"] for row in rows} == {"extract"}
        assert all(store.transcript(row["id"]).turns[0].reply == "Answer: 1" for row in rows)


def test_an_extractor_that_forgets_the_marker_is_asked_again_with_it_as_opening(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tiny.Clued._answer

    def forgets(self: tiny.Clued, prompt: str) -> Any:
        reply = answer(self, prompt)
        marker = self.tokenizer(MARKER, add_special_tokens=False)["input_ids"]
        if list(reply.token_ids[: len(marker)]) != marker:
            return reply
        opened = prompt.endswith(f"assistant\n{MARKER}")
        text = f" {tiny.CLUE}\n{MARKER} second line" if opened else "I would rather not."
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END)
        return dataclasses.replace(reply, token_ids=ids, logprobs=(-1.0,) * len(ids))

    monkeypatch.setattr(tiny.Clued, "_answer", forgets)
    done = lab.play()
    with lab.open() as session:
        assert tiny.CLUE in [item.text for item in session.store.items(ids=done.items)]
    assert done.unparsed == 0


@pytest.mark.parametrize("nothing", ["", "<think>no lesson here</think>"])
def test_an_extractor_that_says_nothing_is_taken_at_its_word(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, nothing: str
) -> None:
    answer = tiny.Clued._answer

    def silent(self: tiny.Clued, prompt: str) -> Any:
        reply = answer(self, prompt)
        if MARKER not in self.tokenizer.decode(list(reply.token_ids)):
            return reply
        assert not prompt.endswith(MARKER)  # not asked again
        ids = (*self.tokenizer(nothing, add_special_tokens=False)["input_ids"], tiny.END)
        return dataclasses.replace(reply, token_ids=ids, logprobs=(-1.0,) * len(ids))

    monkeypatch.setattr(tiny.Clued, "_answer", silent)
    done = lab.play()
    assert (done.items, done.candidates, done.unparsed) == ([], [], 4)


def test_the_next_run_takes_tasks_that_were_not_used(lab: Lab) -> None:
    lab.play(extract=False)
    lab.play(extract=False)
    with lab.open() as session:
        rows = session.store.episodes()
        assert len({row["task_key"] for row in rows}) == len(rows) == 8


def test_used_tasks_come_again_with_fresh_noise_and_are_announced(lab: Lab) -> None:
    lab.play(extract=False, episodes=10)
    lab.play(extract=False, episodes=4)
    with lab.open() as session:
        assert sorted(row["rep"] for row in session.store.episodes())[-4:] == [1, 1, 1, 1]
    assert any("repeat" in line for line in lab.lines)


def test_a_run_with_a_context_can_be_repeated_too(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "clue.txt").write_text(tiny.CLUE)
    first = lab.play(context=str(tmp_path / "clue.txt"))
    second = lab.play(context=str(tmp_path / "clue.txt"))
    assert (first.rate.wins, second.rate.wins, second.rate.n) == (4, 4, 4)
    with lab.open() as session:
        assert len({row["task_key"] for row in session.store.episodes()}) == 8


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_run_loses_and_doubles_nothing(lab: Lab, after: int) -> None:
    config = lab.config()
    with lab.open(config, kill_after=after) as session, pytest.raises(Killed):
        gather(session, config, run_id=session.ledger.begin("play"))
    assert 0 < lab.count("episode") < 4
    done = lab.play()
    assert lab.count("episode") == lab.count("transcript") == 4
    assert done.run_id == 1 and done.rate.n == 4
    assert lab.count("item") == 1


@pytest.mark.parametrize("stored", [(1, 0, 2), (2, 1, 0)])
def test_the_episodes_of_a_killed_play_are_read_in_the_order_of_an_unbroken_one(lab: Lab, stored: Any) -> None:
    """More games than are played at once end in another order after a kill: a running one begins again."""
    lengths = (2, 1, 2)
    turn = Turn(
        parts=[], messages=[], prompt_ids=(), response_ids=(), logprobs=(), reply="", finish_reason="stop", reward=0.0,
        invalid=False,
    )  # fmt: skip
    with lab.open() as session:
        tasks, run_id = session.tasks("extract"), session.store.start("play", {}, 0)
        for number in stored:
            episode = Episode(
                env=session.env, task=tasks[number], rep=0, context_id=EMPTY.id, turns=[turn] * lengths[number],
                outcome=[], success=False, reward=0.0, stop_reason="failed",
            )  # fmt: skip
            session.store.add_episodes(run_id, session.loaded.id, "s", [episode])
        seeds = {row["id"]: row["seed"] for row in session.store.episodes(run_id=run_id)}
        assert [seeds[id_] for id_ in chains._in_order(session, run_id)] == [tasks[n].seed for n in (1, 0, 2)]


def test_extracting_again_adds_nothing(lab: Lab) -> None:
    config = lab.config()
    with lab.open(config) as session:
        run_id = session.ledger.begin("play")
        first = gather(session, config, run_id=run_id)
        tables = ("episode", "item", "item_source", "context", "ref_move")
        before = [session.store.query(f"SELECT count(*) AS n FROM {table}") for table in tables]
        again = gather(session, config, run_id=run_id)
        assert again == first
        assert [session.store.query(f"SELECT count(*) AS n FROM {table}") for table in tables] == before


@pytest.mark.parametrize("episodes", [4, 40])
def test_a_finished_run_is_read_back(lab: Lab, episodes: int) -> None:
    done = lab.play(episodes=episodes, extract=False)
    asked = lab.samplers[-1].asked
    with lab.open() as session:
        assert gather(session, lab.config(), run_id=done.run_id) == done
        tasks = {row["task_key"] for row in session.store.episodes()}
    assert lab.samplers[-1].asked == asked
    assert done.rate == rate_of(("", task, False) for task in tasks for _ in range(done.rate.n // len(tasks)))


def test_chains_of_two_runs_get_names_of_their_own(lab: Lab) -> None:
    lab.play()
    lab.play()
    with lab.open() as session:
        names = session.store.refs(f"{lab.rows}/pool/")
    assert {name.split("/")[-2] for name in names} == {"00", "01", "02", "03"}


def test_two_plays_at_once_keep_their_names_apart(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one extracts, from start to end, while the first waits for its first reply."""
    ask, second = chains._ask, []

    def meanwhile(*asked: Any) -> Any:
        if not second:
            second.append(None)
            second[0] = lab.play(seed=1)
        return ask(*asked)

    monkeypatch.setattr(chains, "_ask", meanwhile)
    first = lab.play()
    with lab.open() as session:
        moves = session.store.moves(f"{lab.rows}/pool/")
        named = {
            run: {m["name"].split("/")[-2] for m in moves if m["run_id"] == run} for run in {m["run_id"] for m in moves}
        }
        assert named == {first.run_id: {"00", "01"}, second[0].run_id: {"02", "03"}}
        own = [context.id for context in chains.pool(session, first.run_id)]
        session.store.move(f"{lab.rows}/pool/00/02", EMPTY.id, "person")  # what others do to a name is not this run's
        assert [context.id for context in chains.pool(session, first.run_id)] == own


def test_a_chain_without_an_item_keeps_its_number_when_the_run_goes_on(lab: Lab) -> None:
    lab.play()  # chains 0 and 1
    with lab.open() as session:
        store, run_id = session.store, session.store.start("play", {}, 0)
        store.add_context(Context("x"))
        store.move(f"{lab.rows}/pool/03/01", Context("x").id, "extract", run_id=run_id)  # its chain 2 found nothing yet
        assert chains._first_chain(session, run_id) == 2
        assert chains._first_chain(session, run_id + 1) == 4


def choose(lab: Lab, candidates: list[Context], method: str = "uniform", **kill: int) -> Any:
    config = pick(lab.config(), ScoreConfig, select_tasks=10, confirm_tasks=20, method=method)
    with lab.open(config, **kill) as session:
        return choosing.choose(session, config, candidates, run_id=session.ledger.begin("score"))


def test_the_context_with_the_clue_is_chosen_and_confirmed(lab: Lab) -> None:
    clue, noise = Context(tiny.CLUE), Context("say nothing")
    ranking, outcome = choose(lab, [noise, clue])
    assert [row.context_id for row in ranking.rows] == [clue.id, noise.id]
    assert (ranking.rows[0].count.rate.wins, ranking.empty.rate.wins, ranking.competed) == (10, 0, 2)
    assert outcome.passed
    with lab.open() as session:
        assert session.store.refs(f"{lab.rows}/best") == {f"{lab.rows}/best": clue.id}
        assert session.confirmed(clue)
        splits = {row["split"] for row in session.store.episodes()}
    assert splits == {"select", "confirm"}


def test_by_default_the_better_half_plays_on(lab: Lab) -> None:
    clue, noise = Context(tiny.CLUE), [Context(f"say nothing {number}") for number in range(3)]
    ranking, outcome = choose(lab, [*noise, clue], "halving")
    assert ranking.best.context_id == clue.id and ranking.best.count.rate.wins == 10 + 10 and outcome.passed
    assert outcome.against["placebo"].wins == 20  # "seven say" is no clue
    with lab.open() as session:
        assert {row["split"] for row in session.store.episodes(context_id=EMPTY.id)} == {"confirm"}


def test_a_context_that_helps_nothing_is_not_confirmed(lab: Lab) -> None:
    assert not choose(lab, [Context("say nothing")])[1].passed
    with lab.open() as session:
        assert session.store.refs(f"{lab.rows}/best") == {}


def test_scoring_killed_and_repeated_plays_each_pair_once(lab: Lab) -> None:
    with pytest.raises(Killed):
        choose(lab, [Context(tiny.CLUE)], kill_after=7)
    assert lab.count("episode") == 7 or lab.count("episode") == 6
    choose(lab, [Context(tiny.CLUE)])
    assert lab.count("episode") == 2 * 10 + 3 * 20
    asked = sum(sampler.asked for sampler in lab.samplers)
    choose(lab, [Context(tiny.CLUE)])
    assert sum(sampler.asked for sampler in lab.samplers) == asked


def test_candidates_come_latest_step_and_newest_chain_first_and_each_once(lab: Lab) -> None:
    with lab.open() as session:
        store = session.store
        texts = {"00/01": "a", "00/02": "b", "00/10": "c", "01/01": "a", "01/02": "d"}
        for place, text in texts.items():
            store.add_context(Context(text))
            store.move(f"{lab.rows}/pool/{place}", Context(text).id, "extract")
        assert [context.text for context in chains.pool(session)] == ["d", "c", "a", "b"]


def test_the_empty_context_is_no_candidate(lab: Lab) -> None:
    from agentopcd.core.errors import ConfigError

    with pytest.raises(ConfigError, match="nothing to score"):
        choose(lab, [EMPTY])


def test_raw_traces_are_ranked_and_never_win(lab: Lab) -> None:
    lab.play()
    config = pick(
        lab.config(), ScoreConfig, select_tasks=10, confirm_tasks=20, method="uniform", traces=400, confirm=False
    )
    noise = Context("say nothing")
    with lab.open(config) as session:
        run_id = session.ledger.begin("score", traces=True)
        ranking, _ = choosing.choose(session, config, [noise], run_id=run_id)
        assert [row.context_id for row in ranking.rows] == [noise.id]
        raw = choosing.raw_traces(session, 400, "user")
        assert raw.text.count("Your answer: Answer: 1") >= 2 and "What is" in raw.text
        assert session.player.chat.count_tokens(raw.text) <= 400
        played = session.store.episodes(context_id=raw.id)
        assert len(played) == 10 and {row["split"] for row in played} == {"select"}
        with pytest.raises(Exception, match="raise --traces"):
            choosing.raw_traces(session, 3, "user")
        # Had they won, --json would still show the reward of the best candidate.
        session.store.change("DROP TRIGGER episode_frozen")
        session.store.change("UPDATE episode SET success = 1, reward = 1 WHERE context_id = ?", (raw.id,))
        ranking, _ = choosing.choose(session, config, [noise], run_id=run_id)
        assert (ranking.best.context_id, ranking.means["reward"].rate) == (noise.id, 0)
    assert any("is the raw traces: a baseline" in line for line in lab.lines)
    with pytest.raises(Exception, match="wanted a number of tokens"):
        ScoreConfig(env="math", method="subsets", traces=5)


def test_raw_traces_are_those_of_this_store(lab: Lab) -> None:
    lab.play()
    with lab.open() as session:
        own = choosing.raw_traces(session, 400, "user").text
        theirs = session.store.episodes()[-1] | {"setup": f"{ELSEWHERE}x"}
        session.store.insert("episode", {k: v for k, v in theirs.items() if k not in ("id", "split")})
        assert len(session.store.episodes()) > len(choosing.traced(session))
        assert choosing.raw_traces(session, 400, "user").text == own  # and needs no transcript of theirs


def test_raw_traces_of_a_run_do_not_depend_on_what_else_was_played(lab: Lab) -> None:
    first = lab.play().run_id
    with lab.open() as session:
        alone = choosing.raw_traces(session, 400, "user", first).text
    lab.play(seed=1)
    with lab.open() as session:
        assert choosing.raw_traces(session, 400, "user").text != alone
        assert choosing.raw_traces(session, 400, "user", first).text == alone


def test_without_an_episode_there_are_no_raw_traces(lab: Lab) -> None:
    with lab.open() as session, pytest.raises(Exception, match="play first"):
        choosing.raw_traces(session, 400, "user")


def test_only_what_the_gate_lets_through_gets_into_contexts(lab: Lab) -> None:
    assert lab.play(gate="review", seed=1).candidates == []
    gathered = lab.play(gate="support>=2", seed=2)
    with lab.open() as session:
        (item,) = session.store.items()
        assert item.status == "active" and item.support >= 2
    assert [context.lines for context in gathered.candidates] == [[tiny.CLUE]]


def test_play_says_how_many_items_wait_and_how_to_see_them(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.play(lab.config(gate="review"), Call(lab.work, False, False))
    said = capsys.readouterr().out
    pending = f"agentopcd knowledge list items --status pending --work {lab.work}"
    assert "1 item waits for a person; read them, approve those that are right, and play again\n" in said
    assert said.endswith(f"next: {pending}\n")
    verbs.play(lab.config(seed=1), Call(lab.work, False, False))
    assert "wait for a person" not in capsys.readouterr().out  # nobody had decided, and this gate lets it through


def test_learn_says_that_what_it_found_waits(lab: Lab) -> None:
    lab.work = lab.work / "my work"
    config = pick(lab.config(gate="review"), LearnConfig, episodes_per_round=4)
    (done,) = learn(config, lab.work, say=lab.lines.append)
    assert not done.confirmed and "none of the items is approved, so there is nothing to score" in lab.lines
    shown = f"agentopcd knowledge list items --status pending --work '{lab.work}'"
    assert f"1 item waits for a person: {shown}" in lab.lines
