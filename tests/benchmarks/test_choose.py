"""The benchmarks of choosing: what they read from the matrix, and what they count as a promotion."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest

from agentopcd.core.types import EMPTY, MARKER, Context, Task
from agentopcd.knowledge import halving, score
from benchmarks import choose, null_rounds


def matrix(rates: list[float], tasks: int) -> choose.Matrix:
    rng = random.Random(0)
    contexts = [Context(f"{MARKER} Rule {i} says so.") for i in range(len(rates))]
    drawn = [Task(i, f"task {i}") for i in range(tasks)]
    won = {(c.id, t.key): rng.random() < rate for c, rate in zip(contexts, rates, strict=True) for t in drawn}
    return choose.Matrix("world", contexts, drawn, won | {(EMPTY.id, t.key): False for t in drawn})


ARGS = argparse.Namespace(model="m", select=120, uniform_tasks=40, confirm=60)


def test_regret_is_measured_on_tasks_that_chose_nothing() -> None:
    world = matrix([0.1] * 7 + [0.9], 400)
    for method in (halving, score):
        chosen = choose.repetition(world, 0, ARGS, method)
        assert chosen.regret == 0 and chosen.confirmed.n == 60 and 0.8 < chosen.truth < 1
    assert choose.repetition(world, 0, ARGS, halving).episodes == 8 * 8 + 4 * 10 + 2 * 10
    assert choose.repetition(world, 0, ARGS, score).episodes == 9 * 40


def test_uniform_scoring_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = matrix([0.1] * 3 + [0.9], 400)
    monkeypatch.setattr(choose, "played", lambda args: world)
    monkeypatch.setattr(choose.models, "prepare_process", lambda: None)
    for uniform, said in (("0", "(all 2)"), ("1", "(first 1 repetitions), ")):
        file = tmp_path / f"{uniform}.json"
        monkeypatch.setattr(
            "sys.argv",
            ["choose", "--repetitions", "2", "--select", "120", "--uniform", uniform, "--json", str(file)],
        )
        choose.main()
        printed = capsys.readouterr().out
        assert said in printed and ("uniform" in printed) == (uniform == "1")
        found = json.loads(file.read_text())
        assert len(found["halving"]) == 2 and len(found["uniform"]) == int(uniform)


def test_a_wrong_choice_costs_what_the_best_one_has_more() -> None:
    world = matrix([0.2, 0.8], 400)

    def worst(bench, contexts, tasks):  # type: ignore[no-untyped-def]
        ranking = halving(bench, contexts, tasks)
        return type(ranking)(ranking.rows[::-1], None, 2, 0, 0, {})

    tasks = random.Random("order 0").sample(world.tasks, 400)[120 + 60 :]
    wanted = world.rate(world.contexts[1], tasks) - world.rate(world.contexts[0], tasks)
    assert choose.repetition(world, 0, ARGS, worst).regret == wanted > 0.5


def test_a_perfect_interval_covers_a_noisy_truth_less_often() -> None:
    assert choose.expected_coverage(64, 216) == pytest.approx(0.9148, abs=1e-4)
    rng = random.Random(0)
    drawn = [(rng.gauss(0, 1 / 64**0.5), rng.gauss(0, 1 / 216**0.5)) for _ in range(20_000)]
    covered = sum(abs(seen - truth) < 1.96 / 64**0.5 for seen, truth in drawn) / len(drawn)
    assert covered == pytest.approx(choose.expected_coverage(64, 216), abs=0.006)


def test_ten_null_rounds_share_their_looks() -> None:
    args = argparse.Namespace(base=0.0, pool=2, confirm=6)
    ten = null_rounds.simulated(3, args)
    assert [one.look for one in ten] == list(range(1, 11)) and all(one.verdict != "pass" for one in ten)
    assert len({one.context_id for one in ten}) == 10
    assert [one.verdict for one in null_rounds.simulated(3, args)] == [one.verdict for one in ten]


def test_a_foreign_context_keeps_its_form_and_none_of_its_words() -> None:
    context = Context(f"{MARKER} [up] moves P up.\n{MARKER} Reach G.", "system")
    other = null_rounds.foreign(context, random.Random(0))
    assert other.placement == "system" and len(other.lines) == 2 and other.text.endswith(".")
    assert [len(line.split()) for line in other.lines] == [4, 2]
    assert not {"up", "moves", "P", "Reach", "G"} & set(other.text.replace(".", "").split())
