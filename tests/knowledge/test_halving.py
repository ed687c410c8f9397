"""Halving on a fake player: what each round plays, who stays, and what it saves."""

from __future__ import annotations

import dataclasses
import random

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import halving, score


def contexts(kit, n: int) -> list[Context]:
    return [kit.context(f"Rule number {number}.") for number in range(n)]


def test_halving_plays_most_with_the_best(kit) -> None:
    """Eight contexts, three rounds: 1/2, 1/3 and 1/6 of 16 x 8 episodes, so 8, 10 and 10 new tasks."""
    store, pool = kit.open(), contexts(kit, 8)
    play = kit.player(lambda context: 0.9 if context == pool[5] else 0.2)
    ranking = halving(kit.bench(store, play), [*pool, pool[0], EMPTY], kit.tasks(100))
    assert ranking.best.context_id == pool[5].id and ranking.empty is None and ranking.competed == 8
    assert [row.count.rate.n for row in ranking.rows] == [28, 28, 18, 18, 8, 8, 8, 8]
    assert [row.rounds for row in ranking.rows] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert [len(ranking.outcomes[row.context_id]) for row in ranking.rows] == [28, 28, 18, 18, 8, 8, 8, 8]
    assert len(play.played) == ranking.episodes == 8 * 8 + 4 * 10 + 2 * 10
    first = {job.context.id: [] for job in play.played}
    for job in play.played:
        first[job.context.id].append(job.task.seed)
    assert all(seeds == list(range(len(seeds))) for seeds in first.values())  # the same tasks for all, none twice
    assert halving(kit.bench(store, play), pool, kit.tasks(100)) == ranking and len(play.played) == ranking.episodes


def test_halving_goes_on_where_it_was_stopped(kit) -> None:
    pool, whole, rate = contexts(kit, 8), kit.open(), lambda context: (hash_of(context) % 7) / 10
    wanted = halving(kit.bench(whole, kit.player(rate)), pool, kit.tasks(40))
    for moment in (1, 63, 65, 103, 110):
        store, player = kit.open(), kit.player(rate)

        def killed(jobs, player=player, moment=moment):
            for episode in player(jobs):
                if len(player.played) > moment:
                    raise KeyboardInterrupt
                yield episode

        with pytest.raises(KeyboardInterrupt):
            halving(kit.bench(store, killed), pool, kit.tasks(40))
        assert halving(kit.bench(store, kit.player(rate)), pool, kit.tasks(40)) == wanted
        assert len(store.episodes()) == wanted.episodes


def hash_of(context: Context) -> int:
    return int(context.id[:8], 16)


def test_ties_are_broken_by_a_lot_that_follows_the_seed(kit) -> None:
    store, pool = kit.open(), contexts(kit, 8)
    bench, tasks = kit.bench(store, kit.player(lambda _: 0.0)), kit.tasks(40)
    first, again, other = (
        [row.context_id for row in halving(bench, pool, tasks, seed=seed).rows] for seed in (0, 0, 1)
    )
    assert first == again != other and sorted(first) == sorted(other)


def test_halving_plays_few_tasks_again_with_other_noise(kit) -> None:
    store, pool = kit.open(), contexts(kit, 4)
    play = kit.player(lambda _: 0.5)
    ranking = halving(kit.bench(store, play), pool, kit.tasks(5))
    assert ranking.best.count.rate.n == 10 + 10 and ranking.best.count.tasks == 5
    assert max(job.rep for job in play.played) == 3 and len(play.played) == len(set(play.played))


def test_halving_by_reward_and_an_unknown_metric(kit) -> None:
    store, pool = kit.open(), contexts(kit, 4)

    def play(jobs):
        for job in jobs:
            reward = (job.context == pool[2]) / 3
            yield dataclasses.replace(kit.episode(job, False), reward=reward, metrics={"boxes": 1.0})

    asked = []

    def counted(jobs):
        asked.extend(jobs)
        yield from play(jobs)

    assert halving(kit.bench(store, play), pool, kit.tasks(50), by="reward").best.context_id == pool[2].id
    with pytest.raises(ConfigError, match="no episode of lake reports 'boxs'; wanted one of: success, reward, boxes"):
        halving(kit.bench(kit.open(), counted), pool, kit.tasks(50), by="boxs")
    assert len(asked) == 4 * 10  # the first round told


@pytest.mark.parametrize("rank", [halving, score])
def test_a_context_without_a_finished_game_is_last_where_rewards_are_negative(kit, rank) -> None:
    pool = contexts(kit, 3)

    def play(jobs):
        for job in jobs:
            reward = -0.2 if job.context == pool[1] else -1.0
            yield dataclasses.replace(kit.episode(job, False, error=job.context == pool[2]), reward=reward)

    found = rank(kit.bench(kit.open(), play), pool, kit.tasks(50), by="reward")
    assert found.best.context_id == pool[1].id
    assert [row.count.rate.n > 0 for row in found.rows] == [True, True, False]


def test_halving_finds_as_good_a_context_as_uniform_at_a_sixth_of_the_price(kit) -> None:
    """Sixty contexts whose true rates spread as a real pool's do (mean .3, sd .08), in five worlds."""
    regrets = {"halving": 0.0, "uniform": 0.0}
    for world in range(5):
        rng = random.Random(world)
        pool = [kit.context(f"Rule {number} of world {world}.") for number in range(60)]
        truth = {context.id: min(max(rng.gauss(0.3, 0.08), 0.0), 1.0) for context in pool}
        play = kit.player(lambda context, truth=truth: truth.get(context.id, 0.2), seed=world)
        store = kit.open()
        found = halving(kit.bench(store, play), pool, kit.tasks(600))
        assert found.episodes <= 60 * 128 / 6
        regrets["halving"] += max(truth.values()) - truth[found.best.context_id]
        flat = score(kit.bench(kit.open(), play), pool, kit.tasks(found.episodes // 61))  # as many episodes
        regrets["uniform"] += max(truth.values()) - truth[flat.best.context_id]
    assert regrets["halving"] < 0.75 * regrets["uniform"]
