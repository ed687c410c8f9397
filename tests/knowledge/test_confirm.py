"""The gate on a fake player: against nothing, the placebo and the incumbent, at levels that all looks share."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter

import pytest

from agentopcd.core.errors import ConfigError, EnvError, StoreError
from agentopcd.core.types import EMPTY, MARKER, Context
from agentopcd.knowledge import ALPHA, Store, best_ref, confirm, left_after, level_of, placebo


def rates(kit, **by_name: float):
    """A player whose contexts, by text, win with these rates; all others win with the rate ``other``."""

    def rate(context: Context) -> float:
        return by_name.get(context.text.removeprefix(f"{MARKER} ").split(" ")[0].lower(), by_name["other"])

    return kit.player(rate)


def test_it_promotes_what_is_better_than_nothing_and_its_placebo(kit) -> None:
    store, context = kit.open(), kit.context("Holes swallow you.")
    play = rates(kit, holes=0.5, other=0.1)
    result = confirm(kit.bench(store, play), context, kit.tasks(100, 1000))
    assert result.verdict == "pass" and result.passed and result.look == 1 and result.comparison.test == "mid_p"
    assert list(result.against) == ["empty", "placebo"] and all(pair.n == 100 for pair in result.against.values())
    assert store.resolve("lake/best") == context.id
    (move,) = store.log("lake/best")
    assert "100 episodes on 100 tasks" in move["reason"] and "look 1 at level 0.013" in move["reason"]
    again = confirm(kit.bench(store, play), context, kit.tasks(100, 1000))  # the same look, not another one
    assert again.to_dict() == result.to_dict() and len(store.log("lake/best")) == 1 and len(play.played) == 300
    assert str(result).endswith("  look 1 at level 0.013, 0.013 left for later looks\nverdict: pass, lake/best moved")
    (look,) = store.looks(kit.env)
    assert look["verdict"] == "pass" and json.loads(look["result"]) == json.loads(json.dumps(result.to_dict()))


def test_what_helps_by_its_form_alone_is_told_apart(kit) -> None:
    store, context = kit.open(), kit.context("Holes swallow you.")
    play = kit.player(lambda shown: 0.5 if shown.text else 0.1)
    result = confirm(kit.bench(store, play), context, kit.tasks(100, 1000))
    assert result.verdict == "form only" and not result.passed and store.refs() == {}
    assert "form only: it is not shown to be better than its placebo" in str(result)
    assert result.against["empty"].p < 1e-6 < 0.01 < result.against["placebo"].p
    twin = placebo(context)
    assert store.get_context(twin.id) == twin and store.items() == store.items(context_id=context.id)


def test_looks_share_one_budget_across_seeds_and_contexts(kit) -> None:
    store = kit.open()
    first, second = kit.context("One."), kit.context("Two.")
    play = kit.player(lambda _: 0.3)
    assert confirm(kit.bench(store, play), first, kit.tasks(64, 1000)).verdict == "not better"
    result = confirm(kit.bench(store, play), second, kit.tasks(64, 1000))
    assert not result.passed and result.look == 2 and "not promoted" in str(result)
    assert result.level == pytest.approx(0.025 / 6) and result.left == pytest.approx(0.025 / 3)
    assert store.refs() == {}
    assert len(play.played) == 5 * 64  # the empty arm was already played
    third = confirm(kit.bench(store, play), first, kit.tasks(64, 2000))  # other tasks: another look at the same context
    assert third.look == 3 and third.level == pytest.approx(0.025 / 12)
    assert confirm(kit.bench(store, play), first, kit.tasks(64, 1000)).look == 1
    assert sum(look["level"] for look in store.looks(kit.env)) == pytest.approx(ALPHA - left_after(3))


def test_a_later_look_asks_for_more(kit) -> None:
    """0.5 against 0.3 on 64 tasks passes at the first level and not at the tenth."""
    verdicts = []
    for looks_before in (0, 9):
        store = kit.open()
        for number in range(looks_before):
            confirm(
                kit.bench(store, kit.player(lambda _: 0.3)), kit.context(f"Worthless {number}."), kit.tasks(4, 5000)
            )
        play = rates(kit, holes=0.55, other=0.3)
        result = confirm(kit.bench(store, play), kit.context("Holes swallow you."), kit.tasks(64, 1000))
        verdicts.append((result.verdict, level_of(looks_before + 1) == result.level))
    assert verdicts == [("pass", True), ("not better", True)]


def test_a_better_incumbent_stays(kit) -> None:
    store = kit.open()
    good, fair = kit.context("Holes swallow you."), kit.context("Goals win.")
    play = rates(kit, holes=0.9, goals=0.5, other=0.05)
    assert confirm(kit.bench(store, play), good, kit.tasks(100, 1000)).passed
    result = confirm(kit.bench(store, play), fair, kit.tasks(100, 1000))
    assert result.verdict == "incumbent stays" and store.ref(best_ref(kit.env)) == good.id
    assert "confirmed, but not shown to be better than lake/best, which stays" in str(result)
    better = rates(kit, holes=0.4, goals=0.9, other=0.05)  # the other way round, the better one takes its place
    other = kit.open()
    assert confirm(kit.bench(other, better), good, kit.tasks(100, 1000)).passed
    result = confirm(kit.bench(other, better), fair, kit.tasks(100, 1000))
    assert result.passed and list(result.against) == ["empty", "placebo", "incumbent"]
    assert other.ref(best_ref(kit.env)) == fair.id


def test_an_incumbent_in_the_weights_is_no_rival(kit) -> None:
    store = kit.open()
    good, fair = kit.context("Holes swallow you."), kit.context("Goals win.")
    play = rates(kit, holes=0.9, goals=0.5, other=0.05)
    confirm(kit.bench(store, play), good, kit.tasks(100, 1000))
    store.add_model("n" * 64, "student", parent_id=kit.model, contexts={good.id: 1.0})
    store.add_model("o" * 64, "grandchild", parent_id="n" * 64)
    bench = kit.bench(store, play, model="o" * 64)
    result = confirm(bench, fair, kit.tasks(100, 1000))
    assert list(result.against) == ["empty", "placebo"] and result.passed


def test_tasks_that_chose_the_winner_are_played_anew(kit) -> None:
    """Where splits share their tasks, confirm reads none of the episodes that were there before."""
    store, context = kit.open(), kit.context("Holes swallow you.")
    play = kit.player(lambda _: 0.5)
    tasks = kit.tasks(50)
    store.add_tasks(kit.env, tasks, "shared")
    confirm(kit.bench(store, play), context, tasks)
    before = len(play.played)
    result = confirm(kit.bench(store, play), context, tasks, first_rep=1_000_000)
    assert len(play.played) == 2 * before and result.look == 2
    assert {job.rep for job in play.played[before:]} == {1_000_000}


def test_scores_beside_success_decide_where_they_are_asked_for(kit) -> None:
    """Grades of 0, 1/3, 2/3 and 1 with hardly a success: invisible to success, plain to the mean reward."""
    store, context = kit.open(), kit.context("Holes swallow you.")

    def play(jobs):
        for job in jobs:
            grade = (job.task.seed % 3 + (job.context.id == context.id)) / 3
            yield dataclasses.replace(kit.episode(job, False), reward=min(grade, 2 / 3), metrics={"half": grade / 2})

    assert confirm(kit.bench(store, play), context, kit.tasks(60, 1000)).verdict == "not better"
    result = confirm(kit.bench(store, play), context, kit.tasks(60, 1000), by="reward")
    assert result.passed and result.comparison.test == "sign_flip" and result.look == 2
    # Two of three seeds gain a third: on average 2/9.
    assert result.comparison.difference.diff == pytest.approx(2 / 9)
    half = confirm(kit.bench(store, play), context, kit.tasks(60, 1000), by="half")
    assert half.comparison.difference.diff == pytest.approx(1 / 6)
    assert re.search(r"reward: context 0\.556 \[\d.*, empty 0\.333", str(half))


def test_a_late_look_at_scores_can_still_pass(kit) -> None:
    """The level of look 21 is below 1 / 10,000, so it takes more than the usual 9,999 draws of signs."""
    store, context = kit.open(), kit.context("Holes swallow you.")
    store.add_context(context)
    for number in range(20):
        key = {"env": kit.env, "model_id": kit.model, "context_id": context.id, "setup": kit.setup}
        store.begin_look({**key, "plan": f"another {number}"}, {})
    result = confirm(kit.bench(store, rates(kit, holes=0.9, other=0.1)), context, kit.tasks(60, 1000), by="reward")
    assert result.look == 21 and result.level < 1e-4 and result.comparison.test == "sign_flip"
    assert result.passed


def test_a_metric_that_nobody_reports_costs_no_look(kit) -> None:
    store, context = kit.open(), kit.context("Holes swallow you.")
    bench = kit.bench(store, rates(kit, holes=0.9, other=0.1))
    with pytest.raises(ConfigError, match="no episode of lake reports 'boxs'; wanted one of: success, reward"):
        confirm(bench, context, kit.tasks(20, 1000), by="boxs")
    assert store.looks(kit.env) == []
    assert confirm(bench, context, kit.tasks(20, 1000)).look == 1


def test_an_environment_that_breaks_every_episode_costs_no_look(kit) -> None:
    store, context, tasks = kit.open(), kit.context("Holes swallow you."), kit.tasks(20, 1000)
    broken = kit.player(lambda _: 0.5, broken=[task.seed for task in tasks])
    with pytest.raises(EnvError, match="all 60 episodes broke off"):
        confirm(kit.bench(store, broken), context, tasks)
    assert store.looks(kit.env) == []
    result = confirm(kit.bench(store, rates(kit, holes=0.9, other=0.1)), context, tasks)
    assert result.passed and result.look == 1


def test_a_placebo_keeps_the_form_and_moves_the_content() -> None:
    text = f"{MARKER} The holes are marked H, never step there.\n{MARKER} Say [up] when the goal is above you!"
    context = Context(text, "system")
    twin = placebo(context)
    assert twin == placebo(context) != placebo(context, seed=1)
    assert twin.placement == "system" and len(twin.text) == len(text)
    words = re.compile(r"\[\w+\]|\w+")
    assert Counter(map(str.lower, words.findall(twin.text))) == Counter(map(str.lower, words.findall(text)))
    for ours, theirs in zip(twin.text.splitlines(), text.splitlines(), strict=True):
        assert ours.startswith(f"{MARKER} ") and ours[-1] == theirs[-1]
        assert len(ours.split()) == len(theirs.split())
    assert not {*zip(words.findall(twin.text), words.findall(text), strict=True)} & {("H", "H"), ("goal", "goal")}


@pytest.mark.parametrize("text", ["Stop.", "the of and", "跳 过 洞", "x y", "1. 2. 3. 4", "a\n\nb c\u2028d"])
def test_any_text_has_a_placebo(text: str) -> None:
    twin = placebo(Context(text)).text
    assert twin != text and sorted(twin.lower()) == sorted(text.lower())


def test_the_levels_of_any_number_of_looks_sum_to_less_than_alpha() -> None:
    assert [level_of(1), level_of(2), left_after(1)] == pytest.approx([0.0125, 0.025 / 6, 0.0125])
    assert sum(map(level_of, range(1, 1001))) == pytest.approx(ALPHA - left_after(1000)) and left_after(1000) > 0


def test_a_look_that_was_broken_off_is_spent_and_goes_on(kit) -> None:
    store, context = kit.open(), kit.context("Holes swallow you.")
    good = rates(kit, holes=0.9, other=0.1)

    def killed(jobs):
        for number, episode in enumerate(good(jobs)):
            if number == 70:
                raise KeyboardInterrupt
            yield episode

    with pytest.raises(KeyboardInterrupt):
        confirm(kit.bench(store, killed), context, kit.tasks(50, 1000))
    (begun,) = store.looks(kit.env)
    assert begun["verdict"] is None and begun["level"] == level_of(1)
    result = confirm(kit.bench(store, rates(kit, holes=0.9, other=0.1)), context, kit.tasks(50, 1000))
    assert result.passed and result.look == 1 and len(store.episodes()) == 150


def killed_after(play, episodes: int):
    """The player, stopped by a person after so many episodes."""

    def until(jobs):
        for number, episode in enumerate(play(jobs)):
            if number == episodes:
                raise KeyboardInterrupt
            yield episode

    return until


def test_a_context_that_was_never_compared_with_the_best_does_not_take_its_place(kit) -> None:
    """Another context became the best one while this look was interrupted."""
    store, poor, good = kit.open(), kit.context("Walls stop everything."), kit.context("Holes swallow you.")
    play, tasks = rates(kit, holes=0.9, walls=0.45, other=0.1), kit.tasks(100, 1000)
    with pytest.raises(KeyboardInterrupt):
        confirm(kit.bench(store, killed_after(play, 20)), poor, tasks)
    assert confirm(kit.bench(store, play), good, tasks).passed
    late = confirm(kit.bench(store, play), poor, tasks)
    assert late.passed and late.overtaken and list(late.against) == ["empty", "placebo"]
    assert store.ref("lake/best") == good.id == late.at == late.to_dict()["at"]
    assert f"pass, but lake/best was moved to {good.id[:12]} since this look began, so it stays as it is" in str(late)
    fresh = confirm(kit.bench(store, play), poor, kit.tasks(120, 1000))  # as the message says
    assert fresh.verdict == "incumbent stays" and not fresh.overtaken and store.ref("lake/best") == good.id


def test_a_best_that_was_deleted_meanwhile_stays_deleted(kit) -> None:
    store, fair, good = kit.open(), kit.context("Goals win."), kit.context("Holes swallow you.")
    play, tasks = rates(kit, holes=0.9, goals=0.4, other=0.05), kit.tasks(100, 1000)
    assert confirm(kit.bench(store, play), fair, tasks).passed
    with pytest.raises(KeyboardInterrupt):
        confirm(kit.bench(store, killed_after(play, 20)), good, tasks)
    store.move("lake/best", None, "person")
    late = confirm(kit.bench(store, play), good, tasks)
    assert (
        late.overtaken and store.ref("lake/best") is None and "lake/best was deleted since this look began" in str(late)
    )


def test_a_look_that_was_judged_is_not_judged_anew(kit) -> None:
    """Not even after the environment was mended that broke most of its episodes."""
    store, context, tasks = kit.open(), kit.context("Holes swallow you."), kit.tasks(100, 1000)
    play = rates(kit, holes=0.9, other=0.1)

    def breaks(jobs):
        for job in jobs:
            yield kit.episode(job, job.context == context, error=job.context == context and job.task.seed >= 1004)

    first = confirm(kit.bench(store, breaks), context, tasks)
    assert first.verdict == "not better" and first.comparison.n == 4
    again = confirm(kit.bench(store, play), context, tasks)
    assert again.to_dict() == first.to_dict() and not again.passed and play.played == []
    assert store.ref("lake/best") is None and store.looks(kit.env)[0]["verdict"] == "not better"
    *_, found, verdict = str(again).splitlines()
    assert re.search(r"as found on 20\d\d-\d\d-\d\d: the same look again", found) and "not promoted" in verdict
    assert confirm(kit.bench(store, play), context, kit.tasks(120, 1000)).passed  # as that line says


@pytest.mark.parametrize("by", ["success", "reward"])
def test_a_repeated_look_says_where_the_best_is_now(kit, by: str) -> None:
    store, good, poor = kit.open(), kit.context("Holes swallow you."), kit.context("Walls stop everything.")
    bench, tasks = kit.bench(store, rates(kit, holes=0.9, other=0.1)), kit.tasks(100, 1000)
    first = confirm(bench, good, tasks, by=by)
    assert str(confirm(bench, good, tasks, by=by)).endswith("verdict: pass, lake/best is at it")
    store.move("lake/best", store.add_context(poor), "person")
    again = confirm(bench, good, tasks, by=by)
    assert again.passed and again.overtaken and store.ref("lake/best") == poor.id == again.at
    assert f"pass, but lake/best was moved to {poor.id[:12]} since this look began" in str(again)
    shown = [line for line in str(first).splitlines() if "against" in line or "success:" in line or "context " in line]
    assert shown and [line for line in str(again).splitlines() if line in shown] == shown
    assert again.to_dict() == first.to_dict() | {"at": poor.id}


def test_two_processes_with_one_look_judge_it_once(kit, tmp_path) -> None:
    context, tasks = kit.context("Holes swallow you."), kit.tasks(100, 1000)
    play = rates(kit, holes=0.9, other=0.1)
    with kit.open(tmp_path / "store.db") as store, Store.open(tmp_path / "store.db") as other:

        def beside(jobs):
            yield from play(jobs)
            assert confirm(kit.bench(other, play), context, tasks).passed
            other.move("lake/best", None, "person")

        result = confirm(kit.bench(store, beside), context, tasks)
        assert result.overtaken and store.ref("lake/best") is None and len(store.log("lake/best")) == 2


def test_a_look_that_another_process_took_back_promotes_nothing(kit) -> None:
    """Its games were broken off before they began; its row may be another context's look by then."""
    store, context, other = kit.open(), kit.context("Holes swallow you."), kit.context("Look twice.")
    play, stale = rates(kit, holes=0.9, other=0.1), []

    def meanwhile(jobs):
        if not stale:
            stale.extend(store.looks(kit.env))
            store.drop_look(stale[0])
            store.add_context(other, {"order": "chain"})
            key = {name: stale[0][name] for name in ("env", "model_id", "setup")}
            fresh = store.begin_look({**key, "context_id": other.id, "plan": "another"}, {})
            assert fresh["id"] == stale[0]["id"], "SQLite gives the number away again"
        yield from play(jobs)

    with pytest.raises(StoreError, match="another process took look 1 of lake back, since"):
        confirm(kit.bench(store, meanwhile), context, kit.tasks(50, 1000))
    store.drop_look(stale[0])
    (left,) = store.looks(kit.env)
    assert left["context_id"] == other.id and left["verdict"] is None and store.refs() == {}
    result = confirm(kit.bench(store, meanwhile), context, kit.tasks(50, 1000))
    assert result.passed and result.look == 2 and len(play.played) == 150


def test_a_result_that_another_version_kept_is_told(kit) -> None:
    store, context, tasks = kit.open(), kit.context("Holes swallow you."), kit.tasks(20, 1000)
    confirm(kit.bench(store, rates(kit, holes=0.9, other=0.1)), context, tasks)
    store.change("DROP TRIGGER look_frozen")
    store.change("UPDATE look SET result = json_remove(result, '$.against.empty.wins')")
    with pytest.raises(StoreError, match="the result of look 1 of lake is of another version"):
        confirm(kit.bench(store, rates(kit, other=0.1)), context, tasks)


def test_the_empty_context_is_never_the_incumbent(kit) -> None:
    store: Store = kit.open()
    store.move("lake/best", EMPTY.id, "person")
    bench = kit.bench(store, rates(kit, holes=0.9, other=0.1))
    result = confirm(bench, kit.context("Holes swallow."), kit.tasks(50, 9))
    assert list(result.against) == ["empty", "placebo"] and result.passed


def test_confirm_on_few_boards_flips_tasks(kit) -> None:
    """A context that knows one board of four wins many pairs and is still not promoted."""
    store = kit.open()
    context = kit.context("Holes swallow you.")

    def play(jobs):
        for job in jobs:
            yield kit.episode(job, bool(job.context.text) and job.task.key == "board-01000")

    result = confirm(kit.bench(store, play), context, kit.tasks(80, 1000, boards=4))
    assert (result.comparison.wins, result.comparison.losses, result.comparison.tasks) == (20, 0, 4)
    assert result.comparison.test == "sign_flip" and not result.passed
    assert "80 episodes on 4 tasks" in str(result)


def test_a_context_without_a_placebo_spends_no_look(kit) -> None:
    store = kit.open()
    with pytest.raises(ConfigError, match="too short for a placebo"):
        confirm(kit.bench(store, kit.player(lambda _: 0.3)), Context("↑"), kit.tasks(4, 1000))
    assert store.looks(kit.env) == [] and store.episodes() == []
