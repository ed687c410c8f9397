"""What items are worth: planted ones are found by halves of the pool, in rounds, and inert ones are rarely named."""

from __future__ import annotations

import dataclasses
from math import inf

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.knowledge import subsets
from agentopcd.knowledge.values import plan, rounds, values_of

GOOD, BAD = {2, 5, 8}, {3, 7}


def planted(context: Context) -> float:
    numbers = {int(line.split()[1]) for line in context.lines}
    return min(max(0.4 + 0.12 * len(numbers & GOOD) - 0.15 * len(numbers & BAD), 0.02), 0.98)


def test_subsets_finds_planted_items(kit) -> None:
    store = kit.open()
    items = [kit.item(store, f"Rule {number} of ten.") for number in range(10)]
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
    items = [kit.item(store, f"Rule {number} of ten.") for number in range(5)]
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
    items = [kit.item(store, f"Rule {number} of ten.") for number in range(10)]
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
    items = [kit.item(store, f"Rule {number} of ten.") for number in range(10)]
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
    assert (one.low, one.high) == pytest.approx((0.75 - 3.182446 / 4, 1.0), abs=1e-6)  # t of three degrees of freedom
    assert (two.item_id, two.value, two.n) == ("b", 0.75, 4)
    assert two.p == 2 / 4  # the sums of its tasks are 2, 1 and 0
    # Residuals of the tasks: 2 - 3/2, 1 - 3/4, 0 - 3/4; their squares add up to 7/8, so sqrt(7/8 * 3/2) / 4.
    assert two.low == pytest.approx(0.75 - 4.302653 * (21 / 16) ** 0.5 / 4, rel=1e-6)
    assert (one.q, two.q) == (0.5, 0.5) and one.verdict == "not shown"
    # Over three rounds: up to half an alpha from leaving after each of two, and a whole one in the last.
    low, high = values_of({"a": {"t": [-1], "u": [-1], "v": [-1]}, "b": {"t": [-1] * 9, "u": [1]}}, {"a": 1, "b": 3})[
        ::-1
    ]
    assert (low.item_id, low.round, low.p, high.p) == ("a", 1, 2 * 2 / 8, 1.0) and high.round == 3


def test_pairs_that_all_came_out_alike_do_not_make_a_sure_value() -> None:
    """Two tasks that the item's half won, thirty that nobody won, and a score that never varied."""
    (both,) = values_of({"a": {"t": [1], "u": [1]}})
    assert both.value == 1 and both.low < 0.2 and both.high == 1 and both.verdict == "not shown"
    (nobody,) = values_of({"a": {str(task): [0] for task in range(30)}})
    assert nobody.value == 0 and nobody.low == pytest.approx(-nobody.high) and 0.1 < nobody.high < 0.2
    (often,) = values_of({"a": {"t": [1] * 50, "u": [1] * 50}})
    assert often.low == pytest.approx(both.low), "tasks count, not their repetitions"
    (score,) = values_of({"a": {"t": [0.5], "u": [0.5]}})
    assert (score.value, score.low, score.high) == (0.5, -inf, inf)


def test_tasks_come_again_with_other_halves_and_count_once(kit) -> None:
    store = kit.open()
    items = [kit.item(store, f"Rule {number} of ten.") for number in range(10)]
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
    items = [kit.item(store, f"Rule {number} of twenty.") for number in range(20)]
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
    items = [kit.item(store, f"Rule {number} of forty.") for number in range(40)]
    values = subsets(kit.bench(store, kit.player(lambda _: 0.5)), items, kit.tasks(300), seed=seed)
    assert max(one.round for one in values) == 3
    assert {one.verdict for one in values} == {"not shown"}


def test_the_plan_says_what_naming_takes() -> None:
    assert plan(26, 64) == (
        "64 pairs of halves, 128 episodes, for 26 items: 5 an item; to name helpful and harmful items takes 20 to 40 "
        "an item or more, 520 to 1040 episodes"
    )


# -- chains ------------------------------------------------------------------------------------------
