"""Scoring on a fake player: what is played, what is counted, what is promoted, what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.core.errors import ConfigError, TaskLeak
from agentopcd.core.types import EMPTY, Context, Job
from agentopcd.knowledge import (
    Found,
    PoolStep,
    Store,
    add_to_pool,
    check_leaks,
    confirm,
    identify,
    places_of,
    score,
    subsets,
)
from agentopcd.knowledge.values import plan, rounds, values_of


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
        subsets(kit.bench(store, play), [item(store, "One.")], kit.tasks(3))
    broken = kit.player(lambda _: 1.0, broken=range(3))
    with pytest.raises(ConfigError, match="all 6 episodes broke off"):
        score(kit.bench(store, broken), contexts(kit, 1), kit.tasks(3))
    with pytest.raises(ConfigError, match="all 9 episodes broke off"):
        confirm(kit.bench(store, kit.player(lambda _: 1.0, broken=range(20))), contexts(kit, 1)[0], kit.tasks(3, 9))
    assert play.played == [] and store.episodes() == []


def item(store: Store, text: str):
    (item_id,) = store.add_items(1, [Found(text)])
    return store.item(item_id)


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
    items = [*store.items(), item(store, "Fine.")]
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


# -- subsets -----------------------------------------------------------------------------------------

GOOD, BAD = {2, 5, 8}, {3, 7}


def planted(context: Context) -> float:
    numbers = {int(line.split()[1]) for line in context.lines}
    return min(max(0.4 + 0.12 * len(numbers & GOOD) - 0.15 * len(numbers & BAD), 0.02), 0.98)


def test_subsets_finds_planted_items(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of ten.") for number in range(10)]
    number_of = {one.id: number for number, one in enumerate(items)}
    values = subsets(kit.bench(store, kit.player(planted)), items, kit.tasks(600))
    order = [number_of[value.item_id] for value in values]
    assert set(order[:3]) == GOOD and set(order[-2:]) == BAD
    truth = {number: 0.12 if number in GOOD else -0.15 if number in BAD else 0.0 for number in range(10)}
    covered = [value.low <= truth[number_of[value.item_id]] <= value.high for value in values]
    assert sum(covered) >= 8
    assert all(value.n == 600 for value in values)


def test_subsets_values_by_a_score_where_nothing_is_ever_won(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of ten.") for number in range(5)]
    good, bad = items[2].text, items[4].text

    def play(jobs):
        for job in jobs:
            reward = (good in job.context.lines) / 3 - 1.2 * (bad in job.context.lines)
            yield dataclasses.replace(kit.episode(job, False), reward=reward, metrics={"boxes": 1.0})

    values = subsets(kit.bench(store, play), items, kit.tasks(600), by="reward")
    assert values[0].item_id == items[2].id and values[-1].item_id == items[4].id
    assert -1.4 < values[-1].low < values[-1].value < -1.1  # a score may be outside [-1, 1]
    assert values[-1].verdict == "harmful"
    by_success = subsets(kit.bench(store, play), items, kit.tasks(600))
    assert {(one.value, one.p) for one in by_success} == {(0.0, 1.0)}
    with pytest.raises(ConfigError, match="no episode of lake reports 'boxs'; wanted one of: success, reward, boxes"):
        subsets(kit.bench(store, play), items, kit.tasks(600), by="boxs")


def test_subsets_is_resumed_and_extended(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of ten.") for number in range(10)]
    play = kit.player(planted)
    first = subsets(kit.bench(store, play), items, kit.tasks(40))
    assert len(play.played) == 80
    for one, other in zip(play.played[::2], play.played[1::2], strict=True):
        assert set(one.context.lines) | set(other.context.lines) == {one.text for one in items}
        assert not set(one.context.lines) & set(other.context.lines) and one.task == other.task
    assert subsets(kit.bench(store, play), items[::-1], kit.tasks(40)) == first and len(play.played) == 80
    assert subsets(kit.bench(store, play), items, kit.tasks(40), pairs=40) == first and len(play.played) == 80
    longer = subsets(kit.bench(store, play), items, kit.tasks(60))
    assert len(play.played) == 120 and longer[0].n == 60
    broken = kit.player(planted, broken=[60])
    assert subsets(kit.bench(store, broken), items, kit.tasks(61)) == longer


def test_what_is_shown_is_named_and_what_is_not_is_not(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of ten.") for number in range(10)]
    number_of = {one.id: number for number, one in enumerate(items)}
    values = subsets(kit.bench(store, kit.player(planted)), items, kit.tasks(600))
    named = {word: {number_of[v.item_id] for v in values if v.verdict == word} for word in ("helpful", "harmful")}
    assert named == {"helpful": GOOD, "harmful": BAD}
    few = subsets(kit.bench(kit.open(), kit.player(planted)), items, kit.tasks(6))
    assert {value.verdict for value in few} == {"not shown"}  # with six pairs the smallest p is 1/32, of ten items
    noise = subsets(kit.bench(kit.open(), kit.player(lambda _: 0.5)), items, kit.tasks(300))
    assert {value.verdict for value in noise} == {"not shown"}


def test_the_value_and_its_test_by_hand() -> None:
    # Item a: 1, 1, 0, 1 on four tasks; item b: 1 twice on one task, then 1 and 0 on two others.
    one, two = values_of({"a": {"t": [1], "u": [1], "v": [0], "w": [1]}, "b": {"t": [1, 1], "u": [1], "v": [0]}})
    assert (one.item_id, one.value, one.n, one.p) == ("a", 0.75, 4, 2 / 8)
    # Variance of 1, 1, 0, 1 is 1/4; of four.
    assert (one.low, one.high) == pytest.approx((0.75 - 1.959964 / 4, 1.0), rel=1e-6)
    assert (two.item_id, two.value, two.n) == ("b", 0.75, 4)
    assert two.p == 2 / 4  # the sums of its tasks are 2, 1 and 0
    # Residuals of the tasks: 2 - 3/2, 1 - 3/4, 0 - 3/4; their squares add up to 7/8, so sqrt(7/8 * 3/2) / 4.
    assert two.low == pytest.approx(0.75 - 1.959964 * (21 / 16) ** 0.5 / 4, rel=1e-6)
    assert (one.q, two.q) == (0.5, 0.5) and one.verdict == "not shown"
    # Over three rounds: up to half an alpha from leaving after each of two, and a whole one in the last.
    low, high = values_of({"a": {"t": [-1], "u": [-1], "v": [-1]}, "b": {"t": [-1] * 9, "u": [1]}}, {"a": 1, "b": 3})[
        ::-1
    ]
    assert (low.item_id, low.round, low.p, high.p) == ("a", 1, 2 * 2 / 8, 1.0) and high.round == 3


def test_tasks_come_again_with_other_halves_and_count_once(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of ten.") for number in range(10)]
    play = kit.player(planted)
    first = subsets(kit.bench(store, play), items, kit.tasks(40))
    values = subsets(kit.bench(store, play), items, kit.tasks(40), pairs=100)
    assert len(play.played) == 200 and values[0].n == 100 and first[0].n == 40
    of_task = [job for job in play.played if job.task.seed == 3]
    assert [job.rep for job in of_task] == [0, 0, 1, 1, 2, 2]
    assert len({job.context.id for job in of_task}) == 6
    with pytest.raises(ConfigError, match="fewer than two tasks"):
        subsets(kit.bench(kit.open(), kit.player(planted)), items, kit.tasks(1), pairs=9)


# -- rounds of subsets -------------------------------------------------------------------------------


def spoilt(context: Context) -> float:
    """Either of two wrong items undoes all; each of six right ones adds to what is left."""
    numbers = {int(line.split()[1]) for line in context.lines}
    return 0.02 if numbers & {18, 19} else 0.04 + 0.16 * len(numbers & set(range(6)))


def test_a_round_has_the_best_of_the_one_before_it() -> None:
    planned = [*range(100)]
    assert [(size, len(part)) for size, part in rounds(43, planned)] == [(43, 33), (26, 33), (16, 34)]
    assert [size for size, _ in rounds(13, planned)] == [13, 8]  # of eight, five would be too few
    assert [size for size, _ in rounds(11, planned)] == [11]
    assert [len(part) for _, part in rounds(43, planned[:5])] == [2, 3] and len(rounds(43, planned[:3])) == 1
    assert [place for _, part in rounds(43, planned) for place in part] == planned


def test_wrong_items_leave_so_that_right_ones_show(kit) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of twenty.") for number in range(20)]
    number_of = {one.id: number for number, one in enumerate(items)}
    play = kit.player(spoilt)
    values = subsets(kit.bench(store, play), items, kit.tasks(1500))
    assert len(play.played) == 3000  # as many as in one round
    assert [sum(one.round == number for one in values) for number in (1, 2, 3)] == [8, 4, 8]
    assert [one.round for one in values] == sorted((one.round for one in values), reverse=True)
    assert {number_of[one.item_id] for one in values[:6]} == set(range(6))
    assert {one.verdict for one in values[:6]} == {"helpful"} and {one.n for one in values} == {500}
    last = [job.context for job in play.played if len(job.context.lines) <= 8][-1000:]
    alive = {f"Rule {number_of[one.item_id]} of twenty." for one in values if one.round == 3}
    assert {line for context in last for line in context.lines} == alive
    assert subsets(kit.bench(store, play), items[::-1], kit.tasks(1500)) == values and len(play.played) == 3000


@pytest.mark.parametrize("seed", range(3))
def test_items_that_do_nothing_are_rarely_named_over_rounds(kit, seed: int) -> None:
    store = kit.open()
    items = [item(store, f"Rule {number} of forty.") for number in range(40)]
    values = subsets(kit.bench(store, kit.player(lambda _: 0.5)), items, kit.tasks(300), seed=seed)
    assert max(one.round for one in values) == 3
    assert {one.verdict for one in values} == {"not shown"}


def test_the_plan_says_what_naming_takes() -> None:
    assert plan(26, 64) == (
        "64 pairs of halves, 128 episodes, for 26 items: 5 an item; to name helpful and harmful items takes 20 to 40 "
        "an item or more, 520 to 1040 episodes"
    )


# -- chains ------------------------------------------------------------------------------------------


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
