"""Several contexts at once, the turns of stored episodes instead of games, and every checkpoint kept."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig, PlayConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import CHECKPOINTS, unsealed
from agentopcd.core.types import Context, Episode, Job, Mixture, Task
from agentopcd.distil import Distilled, distil_context
from agentopcd.distillation import deal, methods, played
from agentopcd.distillation.samples import Sample
from agentopcd.knowledge.students import move_student
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.experience.find_context import find_context, shares
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.ledger import Ledger
from agentopcd.workspace.session import Session
from tests import tiny
from tests.training import LESSONS, Killed, train

OTHERS = Context("- EXPERIENCE ITEM: numbers that end in five are never right, whatever the question was about")
BOTH = Mixture((LESSONS, OTHERS), (0.75, 0.25))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("handover") / "model", tie=False, hearing=4.0)


# -- mixture --------------------------------------------------------------------------------------------


def test_a_mixture_draws_by_its_weights_and_always_the_same() -> None:
    places = [(Task(seed, str(seed)), rep) for seed in range(500) for rep in range(2)]
    drawn = [BOTH.drawn(*place) for place in places]
    assert drawn == [BOTH.drawn(*place) for place in places]
    assert 0.70 < Counter(drawn)[LESSONS] / len(drawn) < 0.80
    assert {BOTH.drawn(Task(1, "1"), rep) for rep in range(20)} == {LESSONS, OTHERS}  # not one context for each task
    assert BOTH.id != Mixture((LESSONS, OTHERS), (0.5, 0.5)).id
    assert shares(BOTH) == {LESSONS.id: 0.75, OTHERS.id: 0.25} and shares(LESSONS) == {LESSONS.id: 1.0}


def test_a_mixture_of_one_is_that_context(model_dir: Path, tmp_path: Path) -> None:
    one = train(model_dir, tmp_path / "one", context=Mixture((LESSONS,), (2.0,)), share=True)
    assert one.weights == train(model_dir, tmp_path / "two", share=True).weights


def test_each_episode_is_scored_with_the_context_it_drew(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Episode, Sample]] = []
    batches: list[list[Sample]] = []
    samples_of, micro_batches = played.samples_of, deal.micro_batches

    def spy(episodes: Sequence[Episode], *args: Any, **how: Any) -> Any:
        found = samples_of(episodes, *args, **how)
        seen.extend((episodes[0], sample) for sample in found[0])
        return found

    def batched(*args: Any, **how: Any) -> Any:
        found = list(micro_batches(*args, **how))
        batches.extend(samples for samples, _ in found)
        return found

    monkeypatch.setattr(played, "samples_of", spy)
    monkeypatch.setattr(deal, "micro_batches", batched)
    # The budget takes a step's samples at once, so only their contexts part them.
    plain = train(model_dir, tmp_path / "plain", context=BOTH, batch_size=6, tokens_per_batch=4000)
    text = Chat(plain.student.tokenizer).tokenizer.decode
    assert {sample.context for _, sample in seen} == {LESSONS.id, OTHERS.id}
    for episode, sample in seen:
        for part in BOTH.parts:
            wanted = part == BOTH.drawn(episode.task, episode.rep)
            assert (part.lines[0] in text(sample.teacher_ids)) == wanted == (sample.context == part.id)
            assert part.lines[0] not in text(sample.student_ids)
    assert all(len({sample.context for sample in samples}) == 1 for samples in batches)
    assert sum(map(len, batches)) == len(seen)
    shared = train(model_dir, tmp_path / "shared", context=BOTH, batch_size=6, tokens_per_batch=4000, share=True)
    used = [prefix for prefix in shared.teacher.prefixes if "state" in vars(prefix)]
    assert len(used) == 2  # each context was read once, and both were of use
    for one, other in zip(plain.steps, shared.steps, strict=True):
        assert one["loss/value_nats"] == pytest.approx(other["loss/value_nats"], rel=1e-3, abs=1e-6)


def test_a_killed_run_with_a_mixture_ends_bit_equal(model_dir: Path, tmp_path: Path) -> None:
    whole = train(model_dir, tmp_path / "whole", context=BOTH)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "killed", context=BOTH, kill_at=4)
    assert train(model_dir, tmp_path / "killed", context=BOTH).weights == whole.weights


def test_baselines_answer_with_the_context_that_is_drawn(model_dir: Path, tmp_path: Path) -> None:
    config = ConsolidateConfig(env="math", method="seqkd")
    jobs = [Job(Task(seed, str(seed))) for seed in range(40)]

    class Deaf:
        def play(self, jobs: Sequence[Job]) -> Any:
            for job in jobs:
                yield Episode(
                    env="math", task=job.task, rep=job.rep, context_id=job.context.id, turns=[], outcome=[],
                    success=True, reward=1.0, stop_reason="solved",
                )  # fmt: skip

    player: Any = Deaf()
    found = methods.answers(config, player, BOTH, jobs, tmp_path, Ranks())
    assert {e.context_id for e in found} == {LESSONS.id, OTHERS.id}
    assert all(e.context_id == BOTH.drawn(e.task, e.rep).id for e in found)


@pytest.fixture
def session(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Questions that a player answers right where its prompt holds the clue."""

    def player_for(session: Session, loaded: Any) -> Player:
        chat = Chat(loaded.tokenizer)
        return Player(
            game=session.game, sampler=tiny.Clued(loaded.tokenizer), chat=chat, sampling=session.config.sampling
        )

    monkeypatch.setattr(Session, "player_for", player_for)
    rows = tiny.questions(tmp_path / "rows.jsonl")
    config = ConsolidateConfig(env=rows, model=str(tiny_model_dir), steps=1, test_tasks=0, mix=2)
    return Session(config, tmp_path / "w", say=lambda line: None)


def test_the_store_weighs_what_is_mixed(session: Session) -> None:
    store, config = session.store, session.config
    assert isinstance(config, ConsolidateConfig)
    tasks = session.tasks("select", 8)
    good, better, useless = Context(f"a: {tiny.CLUE}"), Context(f"b: {tiny.CLUE}"), Context("c: say nothing")
    run_id = session.ledger.begin("score")
    for step, context in enumerate((good, better, useless)):
        store.add_context(context)
        store.move(f"{session.env}/pool/00/{step:02d}", context.id, "extract")
        session.bench(run_id).play_missing("select", [Job(task, context) for task in tasks])
    with pytest.raises(ConfigError, match="confirm gate"):
        find_context(session, config)
    found = find_context(session, dataclasses.replace(config, force=True))
    assert isinstance(found, Mixture) and set(found.parts) == {good, better} and found.weights == (1.0, 1.0)
    key = {"env": session.env, "model_id": None, "context_id": better.id, "setup": None, "plan": "one"}
    store.end_look(store.begin_look(key, {})["id"], "pass", {})
    assert find_context(session, config) == found
    with pytest.raises(ConfigError, match=r"--mix 3 wants .* got 2; run `agentopcd knowledge score --candidates 3"):
        find_context(session, dataclasses.replace(config, mix=3))
    session._by = "reward"  # of which a context that wins nothing may have some
    found = find_context(session, dataclasses.replace(config, mix=3))
    assert isinstance(found, Mixture) and found.parts[2] == useless and found.weights == (1.0, 1.0, 1.0)
    with pytest.raises(ConfigError, match=r"--mix 4 wants as many contexts that have played a select task .* got 3"):
        find_context(session, dataclasses.replace(config, mix=4))


def test_a_mixture_of_new_contexts_starts_from_the_student_that_they_were_scored_with(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated command goes on with its first mixture and model, but a new pool is not the first call again."""
    store, base = session.store, session.loaded
    session.config = config = dataclasses.replace(session.config, model="", force=True)
    assert isinstance(config, ConsolidateConfig)
    tasks = session.tasks("select", 8)

    def scored(step: int, name: str, model_id: str) -> Context:
        context = Context(f"{name}: {tiny.CLUE}")
        store.add_context(context)
        store.move(f"{session.env}/pool/00/{step:02d}", context.id, "extract")
        bench = dataclasses.replace(session.bench(session.ledger.begin("score")), model_id=model_id)
        bench.play_missing("select", [Job(task, context) for task in tasks])
        return context

    first = {scored(0, "a", base.id), scored(1, "b", base.id)}
    mixed = find_context(session, config)
    assert isinstance(mixed, Mixture) and {*mixed.parts} == first
    run_id = session.ledger.begin("consolidate", context_id=mixed.id, folder="runs/one")
    store.add_model("student", "student", str(base.folder), base.id, run_id)
    move_student(store, session.env, "student", "gate")
    session.use(None)
    assert find_context(session, config) == mixed and session.model_name()[0] == str(base.folder)
    session._resumed_model = ""
    new = {scored(2, "c", "student"), scored(3, "d", "student")}
    session.use(None)
    monkeypatch.setattr(session, "load", lambda name: dataclasses.replace(base, id="student"))
    found = find_context(session, config)
    assert isinstance(found, Mixture) and {*found.parts} == new and session._resumed_model == ""
    session.ledger.close()
    run_id = session.ledger.begin("consolidate", context_id=found.id, folder="runs/two")
    store.add_model("younger", "younger", str(base.folder), "student", run_id)
    move_student(store, session.env, "younger", "gate")
    session.use(None)
    assert find_context(session, config) == found, "the newest call is repeated, and not the first one"


def test_what_it_says_to_run_keeps_the_settings_and_the_workspace(session: Session) -> None:
    assert isinstance(session.config, ConsolidateConfig)
    config = dataclasses.replace(session.config, mix=0, by="reward", select_tasks=8)
    work, one = f" --by reward --work {session.work}`", Context("say nothing")

    def refused(config: ConsolidateConfig) -> str:
        with pytest.raises(ConfigError) as error:
            find_context(session, config)
        return str(error.value)

    said = refused(config)
    assert "run `agentopcd knowledge score --env" in said and work in said and "--select-tasks" not in said
    assert "--by" not in refused(dataclasses.replace(config, by="distance"))  # contexts are not ranked by it
    forced = dataclasses.replace(config, force=True)
    assert "run `agentopcd play --env" in (said := refused(forced)) and f" --work {session.work}`" in said
    session.store.add_context(one)
    name = one.id[:12]
    said = refused(dataclasses.replace(config, context=name))
    assert f"run `agentopcd knowledge confirm --context {name} --env" in said and work in said
    assert work in refused(dataclasses.replace(config, mix=3))


def test_a_mixture_and_a_named_context_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--context"):
        ConsolidateConfig(env="math", mix=2, context="best")
    with pytest.raises(ConfigError, match="mix is -1"):
        ConsolidateConfig(env="math", mix=-1)


# -- prefix replay, and checkpoints -----------------------------------------------------------------------


def trained(folder: Path, model: Path, **changes: Any) -> Distilled:
    context = folder / "context.txt"
    context.write_text(LESSONS.text)
    config = ConsolidateConfig(
        env="frozen-lake-4x4", model=str(model), context=str(context), method="prefix-replay", steps=2, batch_size=6,
        max_tokens=3, select_tasks=2, test_tasks=2, gate_tasks=4, compute="float32", max_steps=3, select_every=1,
        **changes,
    )  # fmt: skip
    session = Session(config, folder / "w", say=lambda line: None)
    with session:
        return distil_context(session, config, find_context(session, config))


def test_replay_answers_stored_turns_of_train_tasks_and_plays_no_game(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"agentopcd play --split train --no-extract --env frozen-lake.* --work "):
        trained(tmp_path, model_dir)
    play = PlayConfig(
        env="frozen-lake-4x4", model=str(model_dir), split="train", extract=False, episodes=4, max_tokens=3,
        compute="float32", max_steps=3,
    )  # fmt: skip
    with Session(play, tmp_path / "w", say=lambda line: None) as session:
        run_id = session.ledger.begin("play")
        gather(session, play, run_id=run_id)
        rows = session.store.episodes(run_id=run_id)
        stored = {row["id"]: session.store.transcript(row["id"]) for row in rows}
    asked: list[Episode] = []
    replay = methods.PrefixReplay.play

    def spy(self: Any, jobs: Sequence[Job]) -> Any:
        for episode in replay(self, jobs):
            asked.append(episode)
            yield episode

    monkeypatch.setattr(methods.PrefixReplay, "play", spy)
    done = trained(tmp_path, model_dir, keep_checkpoints=True)
    assert len(asked) == 12 and all(len(e.turns) == 1 for e in asked)
    prompts = {e.task: [turn.prompt_ids for turn in e.turns] for e in stored.values()}
    assert all(e.turns[0].prompt_ids in prompts[e.task] for e in asked)
    assert len({len(e.turns[0].messages[-1]["content"]) for e in asked}) > 1  # not only first turns
    replies = {(e.task, turn.prompt_ids): turn.response_ids for e in stored.values() for turn in e.turns}
    assert any(e.turns[0].response_ids != replies[e.task, e.turns[0].prompt_ids] for e in asked)  # fresh ones
    run = Path(done.folder).parent
    _, first, _ = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert "rollout/success" not in first and first["rollout/response_tokens_mean"] > 0
    # A second call trains nothing; the student that was kept at the best step is the one that came out.
    kept = sorted(folder.name for folder in (run / CHECKPOINTS).iterdir())
    assert kept == ["000001", "000002"]
    best = run / CHECKPOINTS / f"{done.best_step:06d}" / "model.safetensors"
    assert best.read_bytes() == (Path(done.folder) / "model.safetensors").read_bytes()


def test_replayed_replies_are_the_students_own(model_dir: Path, tmp_path: Path) -> None:
    play = PlayConfig(
        env="frozen-lake-4x4", model=str(model_dir), split="train", extract=False, episodes=3, max_tokens=3,
        compute="float32", max_steps=3,
    )  # fmt: skip
    with Session(play, tmp_path / "w", say=lambda line: None) as session:
        gather(session, play, run_id=session.ledger.begin("play"))
    run = Path(trained(tmp_path, model_dir, learning_rate=1e-2).folder).parent
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    # The trainer's log-probabilities are the sampler's, after an update, too.
    assert [one["step"] for one in steps] == [1, 2]
    assert all(one["engine/logprob_gap_max_nats"] < 1e-3 for one in steps)


def test_a_run_killed_between_its_folder_and_its_row_is_settled_when_the_workspace_is_opened(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ConsolidateConfig(
        env="math", model=str(model_dir), steps=1, batch_size=2, max_tokens=3, select_tasks=2, test_tasks=2,
        compute="float32",
    )  # fmt: skip

    def killed(*arguments: Any) -> None:
        raise Killed

    with Session(config, tmp_path / "w", say=lambda line: None) as session, monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", killed)
        with pytest.raises(Killed):
            distil_context(session, config, LESSONS)
        assert session.newest_student() is None
        assert [row["status"] for row in session.store.runs("consolidate")] == ["running"]
    (file,) = (tmp_path / "w" / "runs").glob("consolidate-*/result.json")
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        assert session.newest_student() == str(file.parent / "student")
        (row,) = session.store.runs("consolidate")
        assert (row["status"], json.loads(row["result"])) == ("done", unsealed(json.loads(file.read_text())))
        assert distil_context(session, config, LESSONS).repeated
        assert len(session.store.runs("consolidate")) == 1
