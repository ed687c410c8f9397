"""Scoring on a fake player: what is played, what is counted, what is promoted, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.core.errors import ConfigError, TaskLeak
from agentopcd.core.types import EMPTY, Context, Job
from agentopcd.knowledge import (
    Found,
    PoolStep,
    add_to_pool,
    check_leaks,
    confirm,
    identify,
    places_of,
    score,
    subsets,
)


def contexts(kit, n: int) -> list[Context]:
    return [kit.context(f"Rule number {number}.") for number in range(n)]


def test_score_ranks_on_common_tasks(kit) -> None:
    store = kit.open()
    pool = contexts(kit, 4)
    rates = {EMPTY.id: 0.2, pool[0].id: 0.2, pool[1].id: 0.5, pool[2].id: 0.8, pool[3].id: 0.3}
    play = kit.player(lambda context: rates[context.id])
    ranking = score(kit.bench(store, play), [*pool, pool[0], EMPTY], kit.tasks(100))
    assert [row.context_id for row in ranking.rows[:2]] == [pool[2].id, pool[1].id]
    assert ranking.empty is not None and ranking.best.against_empty is not None
    assert ranking.best.count.rate.n == ranking.empty.rate.n == ranking.best.against_empty.n == 100
    assert ranking.best.against_empty.difference.low > 0.4
    assert ranking.competed == 4 and len(play.played) == 500  # equal contexts are one, empty is always there
    assert "best of 4 on select" in str(ranking) and "biased upward" in str(ranking)
    assert store.split_of(kit.env, "board-00000") == "select"
    score(kit.bench(store, kit.player(lambda _: 0.1)), [kit.context("One more.")], kit.tasks(100))
    assert score(kit.bench(store, play), pool[:1], kit.tasks(100)).competed == 5  # earlier rivals still count
    assert len(play.played) == 500


def test_nothing_to_score(kit) -> None:
    store = kit.open()
    play = kit.player(lambda _: 1.0)
    with pytest.raises(ConfigError, match="no context besides the empty one"):
        score(kit.bench(store, play), [EMPTY], kit.tasks(3))
    with pytest.raises(ConfigError, match="no select task of lake"):
        score(kit.bench(store, play), contexts(kit, 1), [])
    with pytest.raises(ConfigError, match="the empty context cannot be confirmed"):
        confirm(kit.bench(store, play), EMPTY, kit.tasks(3))
    with pytest.raises(ConfigError, match="no confirm task"):
        confirm(kit.bench(store, play), contexts(kit, 1)[0], [])
    with pytest.raises(ConfigError, match="got 1, two are needed"):
        subsets(kit.bench(store, play), [kit.item(store, "One.")], kit.tasks(3))
    broken = kit.player(lambda _: 1.0, broken=range(3))
    with pytest.raises(ConfigError, match="all 6 episodes broke off"):
        score(kit.bench(store, broken), contexts(kit, 1), kit.tasks(3))
    with pytest.raises(ConfigError, match="all 9 episodes broke off"):
        confirm(kit.bench(store, kit.player(lambda _: 1.0, broken=range(20))), contexts(kit, 1)[0], kit.tasks(3, 9))
    assert play.played == [] and store.episodes() == []


def test_an_outcome_marked_error_changes_no_number(kit) -> None:
    pool = contexts(kit, 3)

    def rate(context: Context) -> float:
        return 0.6 if context.text else 0.2

    clean = kit.open()
    wanted = score(kit.bench(clean, kit.player(rate)), pool, kit.tasks(30))
    store = kit.open()
    broken = kit.player(rate, broken=range(30, 45))
    found = score(kit.bench(store, broken), pool, kit.tasks(45))
    assert found.errors == 4 * 15 and wanted.errors == 0
    assert (found.rows, found.empty) == (wanted.rows, wanted.empty)
    assert len(store.episodes()) == 4 * 30
    # They stay open: the next call plays exactly those again.
    repaired = kit.player(rate)
    assert score(kit.bench(store, repaired), pool, kit.tasks(45)).errors == 0
    assert {job.task.seed for job in repaired.played} == set(range(30, 45)) and len(repaired.played) == 60


@pytest.mark.slow
def test_a_null_pool_is_hardly_ever_promoted(kit) -> None:
    """Equal arms: the best of twelve on select, confirmed on fresh tasks, in 100 worlds."""
    pool, promoted, flattered = contexts(kit, 12), 0, 0.0
    for world in range(100):
        store = kit.open()
        play = kit.player(lambda _: 0.25, seed=world)
        ranking = score(kit.bench(store, play), pool, kit.tasks(16))
        best = store.get_context(ranking.best.context_id)
        result = confirm(kit.bench(store, play), best, kit.tasks(64, 1000))
        promoted += result.passed
        flattered += ranking.best.count.rate.rate - 0.25
        store.close()
    assert promoted <= 5
    assert flattered / 100 > 0.1  # and this is why the select score is not the one that is printed


def test_a_good_context_is_found_and_promoted(kit) -> None:
    pool, promoted = contexts(kit, 12), 0
    for world in range(20):
        store = kit.open()
        play = kit.player(lambda shown: 0.6 if shown == pool[7] else 0.25, seed=world)
        best = store.get_context(score(kit.bench(store, play), pool, kit.tasks(32)).best.context_id)
        promoted += best == pool[7] and confirm(kit.bench(store, play), best, kit.tasks(64, 1000)).passed
        store.close()
    assert promoted >= 18


# -- leaks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["select", "confirm", "test"])
def test_an_item_from_a_forbidden_task_is_refused(kit, split: str) -> None:
    store = kit.open()
    store.add_tasks(kit.env, ["seen"], split)
    store.add_items(1, [Found("Turn left at the lake.")], env=kit.env, task_key="seen")
    context, play = kit.context("Fine.", "Turn left at the lake."), kit.player(lambda _: 1.0)
    message = f"{identify('Turn left at the lake.')[:12]}, which came from {split} task seen"
    with pytest.raises(TaskLeak, match=message):
        score(kit.bench(store, play), [context], kit.tasks(3))
    with pytest.raises(TaskLeak, match=message):
        confirm(kit.bench(store, play), context, kit.tasks(3))
    items = [*store.items(), kit.item(store, "Fine.")]
    with pytest.raises(TaskLeak, match=message):
        subsets(kit.bench(store, play), items, kit.tasks(3))
    assert play.played == []
    context_id = store.add_context(context)
    assert [(leak.key, leak.split) for leak in store.leaks(context_id)] == [("seen", split)]
    with pytest.raises(TaskLeak):
        check_leaks(store, context_id)


@pytest.mark.parametrize("split", ["extract", "train", "shared"])
def test_other_tasks_do_not_leak(kit, split: str) -> None:
    store = kit.open()
    store.add_tasks(kit.env, ["seen"], split)
    store.add_items(1, [Found("Avoid holes.")], env=kit.env, task_key="seen")
    score(kit.bench(store, kit.player(lambda _: 1.0)), [kit.context("Avoid holes.")], kit.tasks(3))


def test_tasks_of_another_split_are_not_scored_on(kit) -> None:
    store = kit.open()
    store.add_tasks(kit.env, [kit.tasks(3)[1]], "test")
    with pytest.raises(TaskLeak, match="'test' and was about to be used for 'select'"):
        score(kit.bench(store, kit.player(lambda _: 1.0)), contexts(kit, 1), kit.tasks(3))


# -- resume ------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from conftest import FakePlayer, Kit
from agentopcd.knowledge import score
store = Kit.open(sys.argv[1])
inner = FakePlayer(lambda context: 0.5 if context.text else 0.2)
def play(jobs):
    for number, episode in enumerate(inner(jobs)):
        if number == 37:
            os.kill(os.getpid(), signal.SIGKILL)
        yield episode
score(Kit.bench(store, play), [Kit.context(f"Rule number {n}.") for n in range(3)], Kit.tasks(20))
"""


def test_a_killed_score_is_resumed_and_plays_nothing_twice(kit, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)], check=False)
    assert killed.returncode == -9

    def rate(context: Context) -> float:
        return 0.5 if context.text else 0.2

    store = kit.open(path)
    before = {(row["context_id"], row["seed"]) for row in store.episodes()}
    assert len(before) == 37
    play = kit.player(rate)
    resumed = score(kit.bench(store, play), contexts(kit, 3), kit.tasks(20))
    assert len(play.played) == 4 * 20 - 37
    assert not before & {(job.context.id, job.task.seed) for job in play.played}
    fresh = kit.open()
    whole = score(kit.bench(fresh, kit.player(rate)), contexts(kit, 3), kit.tasks(20))
    assert (resumed.rows, resumed.empty, resumed.competed) == (whole.rows, whole.empty, whole.competed)
    store.close()


def test_repetitions_are_pairs_of_their_own(kit) -> None:
    store = kit.open()
    context = contexts(kit, 1)[0]
    store.add_tasks(kit.env, kit.tasks(10), "select")
    store.add_context(context)
    bench = kit.bench(store, kit.player(lambda _: 0.5))
    jobs = [Job(task, arm, rep) for task in kit.tasks(10) for rep in range(3) for arm in (EMPTY, context)]
    assert bench.play_missing("select", jobs) == 0
    arena = bench.arena("select", places_of(kit.tasks(10), reps=3))
    found = store.compare(bench.arm(context), bench.arm(), arena)
    assert (found.n, found.tasks, found.test) == (30, 10, "sign_flip")
    outcomes = store.outcomes(bench.arm(context), arena)
    assert len(outcomes) == 30 and {rep for _, _, rep in outcomes} == {0, 1, 2}
    assert sum(outcomes.values()) == found.first.wins
    assert store.outcomes(bench.arm(context), bench.arena("confirm")) == {}


def test_shared_tasks_stand_for_every_split(kit) -> None:
    store = kit.open()
    store.add_tasks(kit.env, kit.tasks(10), "shared")
    context = contexts(kit, 1)[0]
    ranking = score(kit.bench(store, kit.player(lambda _: 0.5)), [context], kit.tasks(10))
    assert ranking.best.count.rate.n == 10
    assert confirm(kit.bench(store, kit.player(lambda _: 0.5)), context, kit.tasks(10)).comparison.n == 10


def test_chains_are_refs(kit) -> None:
    store = kit.open()
    one, two = kit.context("One."), kit.context("One.", "Two.")
    assert add_to_pool(store, PoolStep("lake", 3, 7), one, run_id=1, origin={"order": "chain"}) == "lake/pool/03/07"
    add_to_pool(store, PoolStep("lake", 3, 8), two)
    add_to_pool(store, PoolStep("lake", 3, 8), two)  # a resumed run repeats it
    add_to_pool(store, PoolStep("lake", 3, 9), two)  # a step that added nothing is the same row
    assert store.refs("lake/pool/") == {
        "lake/pool/03/07": one.id,
        "lake/pool/03/08": two.id,
        "lake/pool/03/09": two.id,
    }
    assert len(store.log("lake/pool/03/08")) == 1
    assert len(store.contexts()) == 3


def test_a_job_is_played_once_even_if_asked_twice(kit) -> None:
    store = kit.open()
    play = kit.player(lambda _: 0.5)
    score(kit.bench(store, play), contexts(kit, 1), [*kit.tasks(5), *kit.tasks(5)])
    assert len(play.played) == 10 and play.played[0] == Job(kit.tasks(1)[0], EMPTY, 0)
