"""Play: every turn is recorded in full, a broken environment is never a lost game, nothing depends on the order."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentopcd import envs
from agentopcd.core.errors import EnvError
from agentopcd.core.types import Completion, Context, Episode, Job, Request, Sampling, Task
from agentopcd.envs import TextEnv
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import MAX_REPLY_IN_LOG, Player, play
from agentopcd.rollouts.sampling import InBatches
from tests import tiny

WINNING = ["[right]", "[right]", "[down]", "[down]"]
"""Wins the frozen lake of seed 0."""


class Scripted(InBatches):
    """A sampler that answers with ``reply(prompt text)``."""

    engine = "scripted"

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__()
        self.tokenizer, self.reply = tokenizer, reply
        self.asked: list[list[Request]] = []

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.asked.append(list(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        text = self.reply(self.tokenizer.decode(list(request.prompt_ids)))
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END)
        return Completion(token_ids=ids, logprobs=tuple(-0.5 - i for i in range(len(ids))), finish_reason="stop")


def by_turn(replies: Sequence[str]) -> Callable[[str], str]:
    return lambda prompt: replies[prompt.count("You answered:")]


class Walk(TextEnv):
    """Counts to three. What it does wrong is said by ``faults``: ``(where, seed)`` to how many times."""

    faults: ClassVar[Counter[tuple[str, int]]] = Counter()
    opened: ClassVar[Counter[str]] = Counter()
    seed_now = 0

    def __init__(self) -> None:
        Walk.opened["all"] += 1

    def _maybe(self, where: str) -> None:
        if Walk.faults[where, self.seed_now] > 0:
            Walk.faults[where, self.seed_now] -= 1
            raise RuntimeError(f"the {where} of {self.seed_now} broke")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed_now, self.at = int(seed or 0), 0
        self._maybe("reset")
        return self.first(key=f"walk-{seed}", rules="Secret rules.", state="at 0", actions="say something")

    def step(self, action: str) -> Any:
        self.at += 1
        if self.at == 2:
            self._maybe("step")
        if "lose" in action:
            return self.turn(success=False, feedback="lost")
        if self.at == 3:
            return self.turn(success=True, outcome="You counted to three.", metrics={"steps": self.at})
        return self.turn(state=f"at {self.at}", actions="say something", reward=0.25, invalid="?" in action)

    def close(self) -> None:
        Walk.opened["closed"] += 1
        self._maybe("close")


class Pays(TextEnv):
    """Pays 1 each turn and never ends: what the cut makes of it must not be a success."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key="pays", state="go on")

    def step(self, action: str) -> Any:
        return self.turn(state="go on", reward=1.0)


WALK = "tests.rollouts.test_player:Walk"


@pytest.fixture(autouse=True)
def no_faults() -> None:
    Walk.faults.clear()
    Walk.opened.clear()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def player_of(tokenizer: Any, reply: Callable[[str], str], ref: str = WALK, **options: Any) -> Player:
    game = Game(ref=ref, **{name: options.pop(name) for name in ("rules", "max_steps", "history") if name in options})
    sampler = Scripted(tokenizer, reply)
    return Player(game=game, sampler=sampler, chat=Chat(tokenizer), sampling=Sampling(), **options)


def walks(*seeds: int) -> list[Job]:
    return [Job(Task(seed, f"walk-{seed}")) for seed in seeds]


def one(player: Player, job: Job) -> Episode:
    (episode,) = play(player, [job])
    return episode


def lake_job(seed: int = 0) -> Job:
    env = envs.make("frozen-lake")
    return Job(Task(seed, envs.task_key(*env.reset(seed=seed))))


# -- a real game ----------------------------------------------------------------------------------------


def test_a_won_game_is_recorded_in_full(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(WINNING), "frozen-lake")
    episode = one(player, lake_job())
    assert (episode.success, episode.stop_reason, episode.reward, episode.error) == (True, "solved", 1.0, None)
    assert [turn.reply for turn in episode.turns] == WINNING
    assert [turn.reward for turn in episode.turns] == [0, 0, 0, 1]
    for turn in episode.turns:
        answered = player.sampler._answer(Request(prompt_ids=turn.prompt_ids, seed=0))  # type: ignore[attr-defined]
        assert turn.prompt_ids == player.chat.render(turn.messages)
        assert (turn.response_ids, turn.logprobs) == (answered.token_ids, answered.logprobs)
        assert turn.finish_reason == "stop" and not turn.invalid
        assert "P" in dict(turn.parts)["state"]
    assert "goal" in dict(episode.outcome)["outcome"].lower()
    assert episode.output_tokens == sum(len(turn.response_ids) for turn in episode.turns)


def test_later_prompts_hold_the_game_so_far(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake"), lake_job())
    last = episode.turns[-1].messages[0]["content"]
    for turn, move in zip(episode.turns[:-1], WINNING, strict=False):
        assert dict(turn.parts)["state"] in last
        assert f"You answered: {move}" in last


def test_too_few_replies_are_a_cut_and_not_a_win(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake", max_steps=2), lake_job())
    assert (episode.success, episode.stop_reason, len(episode.turns)) == (False, "max_steps", 2)


def test_a_hole_is_a_lost_game(tokenizer: Any) -> None:
    for seed in range(20):
        env = envs.make("frozen-lake")
        env.reset(seed=seed)
        if (1, 0) in env.unwrapped.model().holes:  # type: ignore[attr-defined]
            break
    episode = one(player_of(tokenizer, lambda prompt: "[down]", "frozen-lake"), lake_job(seed))
    assert (episode.success, episode.stop_reason, episode.error) == (False, "failed", None)


# -- endings --------------------------------------------------------------------------------------------


def test_the_three_endings(tokenizer: Any) -> None:
    wins = one(player_of(tokenizer, lambda prompt: "go"), walks(1)[0])
    loses = one(player_of(tokenizer, lambda prompt: "lose"), walks(1)[0])
    cut = one(player_of(tokenizer, lambda prompt: "go", max_steps=2), walks(1)[0])
    assert [(e.stop_reason, e.success) for e in (wins, loses, cut)] == [
        ("solved", True), ("failed", False), ("max_steps", False)
    ]  # fmt: skip
    assert wins.metrics == {"steps": 3.0}
    assert wins.reward == 1.5
    assert wins.outcome == [("outcome", "You counted to three.")]


def test_a_cut_with_reward_is_no_success(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go", "tests.rollouts.test_player:Pays", max_steps=3)
    episode = one(player, Job(Task(0, "pays")))
    assert (episode.stop_reason, episode.success, episode.reward) == ("max_steps", False, 3.0)


def test_invalid_replies_are_marked(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(["?", "go", "go"])), walks(1)[0])
    assert [turn.invalid for turn in episode.turns] == [True, False, False]


# -- broken environments --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_breaks_now_and_then_is_started_afresh(tokenizer: Any, where: str) -> None:
    Walk.faults[where, 2] = 2
    episodes = {e.task.seed: e for e in play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3))}
    assert {seed: (e.stop_reason, e.error, len(e.turns)) for seed, e in episodes.items()} == dict.fromkeys(
        (1, 2, 3), ("solved", None, 3)
    )


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_stays_broken_is_an_error_and_not_a_loss(tokenizer: Any, where: str) -> None:
    Walk.faults[where, 2] = 99
    episodes = {e.task.seed: e for e in play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3))}
    assert [episodes[seed].stop_reason for seed in (1, 2, 3)] == ["solved", "env_error", "solved"]
    assert f"RuntimeError: the {where} of 2 broke" in (episodes[2].error or "")
    assert "Traceback" in (episodes[2].error or "")
    assert not episodes[2].success
    assert 99 - Walk.faults[where, 2] == 3  # the first try and two retries


def test_every_environment_that_was_opened_is_closed(tokenizer: Any) -> None:
    Walk.faults["step", 2] = 99
    list(play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3)))
    assert Walk.opened["closed"] == Walk.opened["all"]


def test_a_close_that_fails_costs_nothing(tokenizer: Any) -> None:
    Walk.faults["close", 1] = 99
    assert one(player_of(tokenizer, lambda prompt: "go"), walks(1)[0]).success


def test_a_task_that_is_not_what_its_key_says_stops_everything(tokenizer: Any) -> None:
    with pytest.raises(EnvError, match="new splits"):
        one(player_of(tokenizer, lambda prompt: "go"), Job(Task(1, "walk-2")))


# -- many at once ---------------------------------------------------------------------------------------


def test_at_most_so_many_are_in_flight_and_each_job_ends_once(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go", concurrency=3)
    episodes = list(play(player, walks(*range(8))))
    assert sorted(e.task.seed for e in episodes) == list(range(8))
    sizes = [len(requests) for requests in player.sampler.asked]  # type: ignore[attr-defined]
    assert sizes == [3, 3, 3, 3, 3, 3, 2, 2, 2]


def test_a_finished_episode_makes_room_at_once(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(["go", "lose"]), concurrency=2)
    player.sampler.reply = lambda prompt: "lose" if len(player.sampler.asked) == 1 else "go"  # type: ignore[attr-defined]
    assert len(list(play(player, walks(1, 2, 3)))) == 3
    assert [len(requests) for requests in player.sampler.asked] == [2, 1, 1, 1]  # type: ignore[attr-defined]


def seeds_of(player: Player, jobs: Sequence[Job]) -> dict[tuple[int, ...], set[int]]:
    list(play(player, jobs))
    found: dict[tuple[int, ...], set[int]] = {}
    for requests in player.sampler.asked:  # type: ignore[attr-defined]
        for request in requests:
            found.setdefault(request.prompt_ids, set()).add(request.seed)
    return found


def test_noise_depends_on_run_task_repetition_and_turn_but_not_on_the_order(tokenizer: Any) -> None:
    jobs = [Job(job.task, rep=rep) for job in walks(1, 2) for rep in range(2)]
    wide = seeds_of(player_of(tokenizer, lambda prompt: "go"), jobs)
    narrow = seeds_of(player_of(tokenizer, lambda prompt: "go", concurrency=1), jobs[::-1])
    other = seeds_of(player_of(tokenizer, lambda prompt: "go", seed=1), jobs)
    assert wide == narrow
    assert len(set.union(*wide.values())) == 12
    assert not set.union(*wide.values()) & set.union(*other.values())


def test_a_retry_plays_the_same_noise(tokenizer: Any) -> None:
    Walk.faults["step", 1] = 1
    broken = seeds_of(player_of(tokenizer, lambda prompt: "go"), walks(1))
    assert broken == seeds_of(player_of(tokenizer, lambda prompt: "go"), walks(1))


# -- what is shown --------------------------------------------------------------------------------------


def test_the_view_decides_about_the_rules(tokenizer: Any) -> None:
    for rules, shown in [("", True), ("full", True), ("hidden", False), ("none", False)]:
        episode = one(player_of(tokenizer, lambda prompt: "go", rules=rules), walks(1)[0])
        assert ("Secret rules." in episode.turns[-1].messages[0]["content"]) is shown
        assert ("rules" in dict(episode.turns[0].parts)) is shown


def test_the_lake_hides_its_rules_behind_neutral_words(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake"), lake_job())
    full = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake", rules="full"), lake_job())
    assert "hole" not in episode.turns[0].messages[0]["content"].lower()
    assert "hole" in full.turns[0].messages[0]["content"].lower()


@pytest.mark.parametrize("history", ["transcript", "chat"])
def test_thinking_is_hidden_from_later_prompts(tokenizer: Any, history: str) -> None:
    player = player_of(tokenizer, lambda prompt: "<think>secret plan</think> go", history=history)
    episode = one(player, walks(1)[0])
    assert len(episode.turns) == 3
    assert all("secret plan" in turn.reply for turn in episode.turns)
    assert not any("secret plan" in message["content"] for turn in episode.turns for message in turn.messages)


def test_a_long_reply_is_cut_in_later_prompts_and_an_empty_one_is_said(tokenizer: Any) -> None:
    long = one(player_of(tokenizer, lambda prompt: "x" * 1000), walks(1)[0])
    empty = one(player_of(tokenizer, lambda prompt: ""), walks(1)[0])
    assert "x" * MAX_REPLY_IN_LOG in long.turns[1].messages[0]["content"]
    assert "x" * (MAX_REPLY_IN_LOG + 1) not in long.turns[1].messages[0]["content"]
    assert "You answered: (nothing)" in empty.turns[1].messages[0]["content"]


def test_a_context_is_in_the_prompt_and_not_in_the_messages(tokenizer: Any) -> None:
    context = Context("count to three")
    episode = one(player_of(tokenizer, lambda prompt: "go"), Job(walks(1)[0].task, context))
    assert episode.context_id == context.id
    for turn in episode.turns:
        assert tokenizer.decode(list(turn.prompt_ids)).count("count to three") == 1
        assert not any("count to three" in message["content"] for message in turn.messages)


# -- names ----------------------------------------------------------------------------------------------


def test_arguments_that_change_tasks_are_part_of_the_name() -> None:
    assert Game(ref="math").label == "math"
    assert Game(ref="math", kwargs={"ops": "+ -", "level": 2}).label == "math,level=2,ops=+-"


def test_an_unknown_view_fails_before_anything_is_loaded() -> None:
    with pytest.raises(EnvError, match="hidden"):
        Game(ref="math", rules="hiden")


def test_a_setup_names_all_that_changes_play(tokenizer: Any) -> None:
    base = player_of(tokenizer, lambda prompt: "go")
    changed = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, sampling=Sampling(temperature=0.1)),
        dataclasses.replace(base, game=Game(ref=WALK, rules="none")),
        dataclasses.replace(base, game=Game(ref=WALK, max_steps=3)),
        dataclasses.replace(base, game=Game(ref=WALK, history="chat")),
        dataclasses.replace(base, chat=Chat(tokenizer, {"enable_thinking": False})),
    ]
    setups = [base.setup(), *(player.setup() for player in changed)]
    assert all(a != b for i, a in enumerate(setups) for b in setups[:i])
    assert dataclasses.replace(base, concurrency=1).setup() == base.setup()


# -- an engine that answers one by one ------------------------------------------------------------------


class OneByOne(Scripted):
    """Answers the newest request first, so that the oldest episode waits for all others."""

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__(tokenizer, reply)
        self.waiting: dict[int, Request] = {}
        self.most = self.count = 0

    def submit(self, request: Request, sampling: Sampling) -> int:
        self.count += 1
        self.waiting[self.count] = request
        self.most = max(self.most, len(self.waiting))
        return self.count

    def collect(self) -> list[tuple[int, Completion]]:
        ticket, request = self.waiting.popitem()
        return [(ticket, self._answer(request))]

    def drop(self, tickets: Any) -> None:
        for ticket in tickets:
            del self.waiting[ticket]


def test_no_episode_waits_for_another_and_all_get_what_they_get_in_batches(tokenizer: Any) -> None:
    in_batches = player_of(tokenizer, by_turn(["1", "2", "3"]))
    one_by_one = dataclasses.replace(in_batches, sampler=OneByOne(tokenizer, by_turn(["1", "2", "3"])), concurrency=3)
    usual, free = list(play(in_batches, walks(*range(6)))), list(play(one_by_one, walks(*range(6))))
    assert [e.task.seed for e in free] != [e.task.seed for e in usual] == list(range(6))
    assert free[0].task.seed == 2 and free[-1].task.seed == 0  # the newest of three first; the first one waits
    assert sorted(free, key=lambda e: e.task.seed) == usual
    assert one_by_one.sampler.most == 3  # type: ignore[attr-defined]
    assert not one_by_one.sampler.waiting  # type: ignore[attr-defined]


def test_whoever_stops_early_leaves_no_request_behind(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(["1", "2", "3"]))
    player = dataclasses.replace(player, sampler=OneByOne(tokenizer, by_turn(["1", "2", "3"])))
    episodes = play(player, walks(*range(6)))
    next(episodes)
    assert len(player.sampler.waiting) == 5  # type: ignore[attr-defined]
    episodes.close()  # type: ignore[attr-defined]
    assert not player.sampler.waiting  # type: ignore[attr-defined]


# -- replies held to a list -----------------------------------------------------------------------------------


def test_legal_actions_go_with_the_request_and_stay_with_the_turn(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(WINNING), "frozen-lake")
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    episode = one(held, lake_job())
    wanted = {(*tokenizer(f"[{move}]", add_special_tokens=False)["input_ids"], tiny.END)
              for move in ("up", "down", "left", "right")}  # fmt: skip
    (first,), *_ = held.sampler.asked  # type: ignore[attr-defined]
    assert set(first.choices) == wanted == set(episode.turns[-1].choices)
    assert all(turn.response_ids in wanted for turn in episode.turns)
    assert held.setup() != player.setup()
    assert not one(player, lake_job()).turns[0].choices


def test_an_environment_that_lists_no_actions_cannot_hold_replies_to_them(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go")
    player = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    with pytest.raises(EnvError, match=r"lists no legal actions .* leave --constrain out"):
        list(play(player, walks(1)))


def test_a_state_can_list_its_own_actions(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Walk.reset

    def reset(self: Walk, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = usual(self, seed=seed)
        return obs, info | {"choices": ["go", "stay"]}

    monkeypatch.setattr(Walk, "reset", reset)
    monkeypatch.setattr(Walk, "step", lambda self, action: self.turn(success=True))
    player = player_of(tokenizer, lambda prompt: "go")
    player = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    (turn,) = one(player, walks(1)[0]).turns
    assert turn.choices == player.chat.choices(["go", "stay"])


# -- slow environments, each in a process of its own --------------------------------------------------------

NAP = '''
import os, pathlib, time
from agentopcd.envs import EnvSpec, TextEnv
from agentopcd.core.errors import EnvError

class Nap(TextEnv):
    """Each step waits for the partner (seed 0 and 1 are one another's) to have come as far."""

    def __init__(self, folder: str = "", exits: int = -1, refuses: bool = False) -> None:
        self.folder, self.exits, self.refuses = pathlib.Path(folder), exits, refuses

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own, self.at = seed, 0
        if self.refuses:
            raise EnvError("no such level")
        return self.first(key=f"nap-{seed}", state="at 0")

    def step(self, action):
        self.at += 1
        if self.exits == self.own:
            os._exit(3)
        if self.own in (0, 1):
            (self.folder / f"{self.own}-{self.at}").touch()
            until = time.monotonic() + 20
            while not (self.folder / f"{1 - self.own}-{self.at}").exists():
                assert time.monotonic() < until, "the partner never came"
                time.sleep(0.01)
        if self.at == 2:
            return self.turn(success=True, outcome=action, metrics={"pid": os.getpid()})
        return self.turn(state=f"at {self.at}")

SLOW = EnvSpec(id="nap", entry_point=Nap, slow=True)
'''


def naps(tokenizer: Any, folder: Path, *, concurrency: int = 64, retries: int = 1, **kwargs: Any) -> Player:
    (folder / "nap.py").write_text(NAP)
    game = Game(ref=f"{folder / 'nap.py'}:SLOW", kwargs={"folder": str(folder), **kwargs})
    return Player(
        game=game, sampler=Scripted(tokenizer, lambda prompt: "[go]"), chat=Chat(tokenizer), sampling=Sampling(),
        concurrency=concurrency, retries=retries,
    )  # fmt: skip


def test_slow_environments_step_at_the_same_time_each_in_its_own_process(tokenizer: Any, tmp_path: Path) -> None:
    jobs = [Job(Task(seed, f"nap-{seed}")) for seed in range(4)]
    episodes = list(play(naps(tokenizer, tmp_path), jobs))
    assert {episode.stop_reason for episode in episodes} == {"solved"}, [episode.error for episode in episodes]
    assert sorted(episode.task.seed for episode in episodes) == [0, 1, 2, 3]
    assert all(dict(episode.outcome)["outcome"] == "[go]" and len(episode.turns) == 2 for episode in episodes)
    assert len({episode.metrics["pid"] for episode in episodes} | {os.getpid()}) == 5
    assert not multiprocessing.active_children()


def test_a_process_that_dies_costs_its_episode_only(tokenizer: Any, tmp_path: Path) -> None:
    jobs = [Job(Task(seed, f"nap-{seed}")) for seed in (2, 3, 4)]
    episodes = {e.task.seed: e for e in play(naps(tokenizer, tmp_path, exits=3, concurrency=2), jobs)}
    assert {seed: e.stop_reason for seed, e in episodes.items()} == {2: "solved", 3: "env_error", 4: "solved"}
    assert "the environment's process died (exit code 3)" in str(episodes[3].error)
    assert not multiprocessing.active_children()


def test_what_a_slow_environment_refuses_ends_the_run_and_leaves_no_process(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="no such level"):
        list(play(naps(tokenizer, tmp_path, refuses=True), [Job(Task(2, "nap-2")), Job(Task(3, "nap-3"))]))
    with pytest.raises(EnvError, match="gave task nap-2, the splits say other"):
        list(play(naps(tokenizer, tmp_path), [Job(Task(2, "other"))]))
    assert not multiprocessing.active_children()


def test_whoever_stops_early_leaves_no_process_behind(tokenizer: Any, tmp_path: Path) -> None:
    playing: Any = play(naps(tokenizer, tmp_path, concurrency=4), [Job(Task(s, f"nap-{s}")) for s in (2, 3, 4, 0)])
    assert next(playing).task.seed in (2, 3, 4)
    playing.close()  # seed 0 waits for a partner that never comes
    assert not multiprocessing.active_children()
