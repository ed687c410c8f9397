"""Samples: the turns that count, and the batches they come in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agentopcd.core.errors import AlignmentError
from agentopcd.distillation import samples
from agentopcd.distillation.samples import Sample, micro_batches
from tests import tiny
from tests.training import LESSONS, play_some, turn_sample

SEEN = ("The goal is far.", "A wall to the left.")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


def test_a_prompt_that_was_not_the_one_answered_is_refused(model_dir: Path) -> None:
    episodes, chat = play_some(model_dir)
    turn = episodes[0].turns[0]
    other = dataclasses.replace(episodes[0], turns=[dataclasses.replace(turn, prompt_ids=turn.prompt_ids[1:])])
    with pytest.raises(AlignmentError, match="another prompt"):
        samples.samples_of([other], chat, LESSONS, "keep")


def test_broken_episodes_and_empty_or_cut_replies_are_left_out(model_dir: Path) -> None:
    episodes, chat = play_some(model_dir)
    cut = sum(turn.finish_reason == "length" for e in episodes for turn in e.turns)
    assert cut
    broken = dataclasses.replace(episodes[0], stop_reason="env_error")
    empty = dataclasses.replace(
        episodes[0], turns=[dataclasses.replace(episodes[0].turns[0], response_ids=(), logprobs=())]
    )
    assert samples.samples_of([broken], chat, LESSONS, "keep") == ([], 0)
    assert samples.samples_of([empty], chat, LESSONS, "keep") == ([], 1)
    assert len(samples.samples_of(episodes, chat, LESSONS, "keep")[0]) == len(episodes)
    assert samples.samples_of(episodes, chat, LESSONS, "drop")[1] == cut


def test_the_teacher_sees_the_items_of_the_turn_and_the_student_none(model_dir: Path) -> None:
    episodes, chat = play_some(model_dir)
    turns = [dataclasses.replace(e.turns[0], parts=[("state", text)]) for e, text in zip(episodes, SEEN, strict=False)]
    changed = [dataclasses.replace(e, turns=[turn]) for e, turn in zip(episodes, turns, strict=False)]
    whole, _ = samples.samples_of(changed, chat, LESSONS, "keep")
    found, _ = samples.samples_of(changed, chat, LESSONS, "keep", items=1)
    assert [one.student_ids for one in found] == [turn.prompt_ids for turn in turns]
    assert [one.student_ids for one in found] == [one.student_ids for one in whole]
    read = [chat.tokenizer.decode(list(one.teacher_ids)) for one in found]
    assert [("always go left" in text, "the goal is down" in text) for text in read] == [(False, True), (True, False)]
    assert {one.context for one in found} == {LESSONS.id}
    assert samples.samples_of(changed, chat, LESSONS, "keep", items=2) == (whole, 0)
    assert all("always go left" in chat.tokenizer.decode(list(one.teacher_ids)) for one in whole)


def test_batches_keep_to_the_budget_and_hold_every_sample_once_with_its_weight() -> None:
    lengths = [5, 40, 7, 90, 6, 41, 8]
    sampled = [turn_sample(range(n), range(n), [1] * (1 + i)) for i, n in enumerate(lengths)]
    batches = list(micro_batches(sampled, [float(i) for i in range(7)], 100))
    found = [sampled.index(sample) for batch, _ in batches for sample in batch]
    assert sorted(found) == list(range(7))
    for batch, weights in batches:
        padded = len(batch) * max(len(s.student_ids) + s.num_tokens for s in batch)
        assert padded <= 100 or len(batch) == 1
        assert weights.tolist() == [float(sampled.index(s)) for s in batch for _ in s.response_ids]
    assert len(batches) == 3


def test_sequences_to_score_come_in_batches_of_similar_length() -> None:
    # The longest has 5 tokens, so two rows of 5 fit ten tokens; then three of 3; the one of 20 stands alone.
    assert samples.in_batches([3, 5, 20, 3, 4, 3], budget=10) == [[2], [1, 4], [0, 3, 5]]
    assert samples.in_batches([]) == []


def test_what_the_teacher_reads_counts_too() -> None:
    sampled = [turn_sample([1] * 5, [1] * 95, [1] * 5) for _ in range(4)]
    reads = lambda sample: len(sample.teacher_ids) + sample.num_tokens  # noqa: E731
    assert [len(batch) for batch, _ in micro_batches(sampled, [1.0] * 4, 200, reads)] == [2, 2]
    assert [len(batch) for batch, _ in micro_batches(sampled, [1.0] * 4, 200)] == [4]


def test_prompts_that_begin_alike_stay_together_if_both_models_can_read_them_so() -> None:
    def turn(n: int) -> Sample:  # the log of a game: each prompt is the one before it but for its end
        log = [3, *range(20, 20 + 10 * n)]
        return turn_sample([*log, 5, 6], [7, 8, *log, 5, 6], range(100, 104))

    sampled = [*map(turn, (3, 4, 5)), turn_sample(range(200, 240), range(201, 240), [1])]
    assert [len(batch) for batch, _ in micro_batches(sampled, [1.0] * 4, 70)] == [1, 1, 1, 1]
    ((alone, _), (game, weights)) = micro_batches(sampled, [1.0, 2.0, 3.0, 4.0], 70, branch=True)
    assert alone == sampled[3:] and game == sampled[:3]
    assert weights.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    changed = dataclasses.replace(sampled[1], teacher_ids=(9, *sampled[1].teacher_ids[1:]))
    batches = micro_batches([sampled[0], changed], [1.0] * 2, 50, branch=True)
    assert [len(batch) for batch, _ in batches] == [1, 1]  # the teacher could not read them in one row


def test_the_length_of_a_row_counts_all_its_tokens_on_both_sides() -> None:
    log = list(range(20, 70))
    sampled = [turn_sample([*log[:n], 5], [7, *log[:n], 5], range(100, 110)) for n in (30, 40, 50)]
    seen: list[int] = []

    def reads(sample: Sample) -> int:
        seen.append(len(sample.teacher_ids) + sample.num_tokens)
        return seen[-1] - 1  # one token is shared by all prompts

    (turns,) = [samples._Turns(sampled[0])]
    assert all(turns.take(i, one, reads, branch=True, budget=83) for i, one in enumerate(sampled))
    assert turns.length == 50 + 3 * 11 == 83  # the log once, and each turn's own end and reply


@pytest.mark.parametrize("begins", [(40, 20), (20, 40)])
def test_prompts_that_begin_alike_stay_together_within_the_budget(begins: tuple[int, int]) -> None:
    mine, theirs = (list(range(20, 20 + n)) for n in begins)
    sampled = [turn_sample([*mine, 100 + n], [*theirs, 100 + n], range(200, 210)) for n in range(6)]
    reads = lambda sample: len(sample.teacher_ids) + sample.num_tokens  # noqa: E731
    whole = 40 + 6 * 11  # the longer beginning once, and each prompt's own end and reply
    for budget, sizes in ((whole, [6]), (whole - 1, [1, 5]), (1, [1] * 6)):
        batches = micro_batches(sampled, [1.0] * 6, budget, reads, branch=True)
        assert [len(batch) for batch, _ in batches] == sizes


def test_a_growing_chat_stays_in_one_row_whatever_the_budget() -> None:
    chat = [turn_sample([5, *range(9 * t)], [7, 5, *range(9 * t)], range(9 * t, 9 * t + 4)) for t in range(3)]
    ((batch, _),) = micro_batches(chat, [1.0] * 3, 1, branch=True)
    assert batch == chat


def test_turns_that_one_pass_cannot_read_are_counted() -> None:
    grows = [turn_sample([5, *range(9 * t)], [7, 5, *range(9 * t)], range(9 * t, 9 * t + 4)) for t in range(3)]
    turns = [dataclasses.replace(sample, turn=t) for t, sample in enumerate(grows)]
    assert samples.read_apart(turns) == 0
    changed = dataclasses.replace(turns[2], teacher_ids=(8, *turns[2].teacher_ids[1:]))
    assert samples.read_apart([*turns[:2], changed]) == 1
    assert samples.read_apart([turns[0], turns[2], turns[1]]) == 1  # the third begins with the first, too


def test_turns_of_a_growing_chat_stay_together_in_order() -> None:
    def game(first: int) -> list[Sample]:
        prompts = [[first, *range(9 * turn)] for turn in range(3)]
        return [turn_sample(ids, [7, *ids], range(9 * t, 9 * t + 4)) for t, ids in enumerate(prompts)]

    sampled = [*game(50), *game(60), turn_sample([1], [7, 1], [2])]
    batches = list(micro_batches(sampled, [1.0] * 7, 50))
    assert [len(batch) for batch, _ in batches] == [4, 3]  # the single one is shortest and goes with the first game
    for batch, _ in batches:
        places = [sampled.index(sample) for sample in batch]
        assert places[-3:] == list(range(places[-3], places[-3] + 3))
