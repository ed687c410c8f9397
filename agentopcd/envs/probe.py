"""The tests that a check consists of, and what they find."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import pickle
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agentopcd.core.errors import AgentOpcdError, GameFault
from agentopcd.core.text import first_line
from agentopcd.envs.guard import KNOWN_INFO, SLOW_STEP_LIMIT_S, Guarded, Hang, faults
from agentopcd.envs.spec import EnvSpec
from agentopcd.envs.success import WAYS
from agentopcd.envs.views import join_parts, parts_of, task_key
from agentopcd.envs.walks import (
    JUNK,
    MAX_REPLIES,
    MEANINGLESS,
    Maker,
    Step,
    guarded,
    in_another_process,
    transcript,
    walk,
)

SLOW_STEP_S = 1.0
SLOW_BUILD_S = 2.0
LONG_S = 5.0
"""Seconds spent on finding out whether an episode ever ends."""
LONG_REPLIES = 2000
"""The most replies of that search."""
ALIKE = 4
"""Episodes with the same replies that must be the same for seeds of one task key."""
MORE_SEEDS, RESETS_S = 300, 3.0
"""Seeds beyond those that are played, which are only reset, and the seconds spent on it."""
_seedless = functools.partial(re.compile(r"(?<=seed=)\d+").sub, "")  # what goes wrong with every seed is one error


class Probe:
    """Runs every test on one environment and collects the findings."""

    def __init__(self, make: Maker, n: int, spec: EnvSpec, success_when: str) -> None:
        self.maker, self.n, self.spec, self.success_when = make, n, spec, success_when
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.keys: dict[str, list[int]] = {}
        """Task key → its seeds."""
        self.wins = 0
        self.slowest_s = [0.0, 0.0]
        """Of two steps. One alone may be the first, which imports something."""
        self.patience_s = spec.limit_s or (SLOW_STEP_LIMIT_S if spec.slow else 0.0)
        """What the environment asks for; the checker's own otherwise."""
        self._open: list[Guarded] = []
        """What was built and is not closed yet."""
        self.ended = self.said = self.proven = self.faulty = False
        """Whether an episode came to an end of its own, whether anything ever said or paid for a result, whether a
        solution won, and whether the game broke."""

    def make(self) -> Guarded:
        """A new instance. The end of the test closes it, unless :meth:`close` does before."""
        self._open.append(guarded(self.maker(), self.spec.max_steps or MAX_REPLIES, self.patience_s))
        return self._open[-1]

    def close(self, env: Guarded) -> None:
        self._open.remove(env)
        env.close()

    @contextlib.contextmanager
    def one(self) -> Iterator[Guarded]:
        """A new instance for a moment, where many are needed one after another."""
        env = self.make()
        try:
            yield env
        finally:
            self.close(env)

    def transcript(self, seed: int, *, replies: int | None = None) -> list[tuple[Any, ...]]:
        """What an episode of a new instance told."""
        with self.one() as env:
            return transcript(env, seed, replies=replies)

    def error(self, text: str) -> None:
        if _seedless(text) not in map(_seedless, self.errors):
            self.errors.append(text)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def fault(self, fault: GameFault, before: str = "") -> None:
        """Record what a game did wrong, once. A hang ends the check, which would only wait again."""
        self.faulty = True
        if _seedless(str(fault)) not in map(_seedless, self.errors):
            self.error(f"{before}{fault}")
        if isinstance(fault, Hang):
            raise fault

    def run(self) -> None:
        began = time.perf_counter()
        self.close(self.make())
        if (took := time.perf_counter() - began) > SLOW_BUILD_S:
            self.warn(f"importing and building took {took:.1f} s")
        # What compares two episodes says nothing of a game that breaks, so these come last.
        comparisons = (self.gymnasium, self.global_rng, self.history, self.instances, self.processes, self.alike)
        try:
            for test in (self.episodes, self.resets, self.actions, self.junk, self.solutions):
                self._run(test)
            for test in (self.ends, *comparisons) if not self.faulty else ():
                self._run(test)
        except Hang:
            pass

    def _run(self, test: Any) -> None:
        try:
            test()
        except Hang:
            raise
        except GameFault as fault:
            self.fault(fault)
        except Exception as error:  # the environment's fault, whatever it is
            self.error(f"{test.__name__}: {type(error).__name__}: {_line(error)}")
        finally:
            while self._open:
                self.close(self._open[-1])

    def gymnasium(self) -> None:
        """Gymnasium's own checker."""
        from gymnasium.utils.env_checker import check_env as gymnasium_check

        env = self.make()
        with faults("Gymnasium's check", 3 * env.limit_s):
            try:
                gymnasium_check(env.unwrapped, skip_render_check=True, skip_close_check=True)
            except Exception as error:
                if self.spec.logged and "truncates after 1 step" in str(error):
                    return  # a conversation with one place to answer, and nothing that is right or wrong
                self.error(f"Gymnasium's check: {_line(error)}")

    def episodes(self) -> None:
        """Random episodes: texts, parts, info, rewards, ends."""
        for seed in range(self.n):
            env = self.make()
            steps: list[Step] = []
            try:
                for step in walk(env, seed, spec=self.spec):
                    steps.append(step)
                    self._look_at(step)
                self.wins += self._won(steps)
            except GameFault as fault:
                self.fault(fault)
            if steps:
                self.keys.setdefault(task_key(steps[0].obs, steps[0].info), []).append(seed)
            self.close(env)
        if self.slowest_s[1] > SLOW_STEP_S and not (self.spec.slow or self.spec.waits):
            self.warn(f"a step took {self.slowest_s[0]:.1f} s; set slow=True in the spec")
        if len(self.keys) == 1:
            self.warn("one task for every seed: pass first(key=...) if they differ")
        elif len(self.keys) < self.n and not self.faulty:
            self.warn(f"{len(self.keys)} distinct tasks in {self.n} seeds")
        if self.wins > self.n / 2 + self.n**0.5:  # two standard deviations above one in two
            self.warn(f"random replies won {self.wins} of {self.n} episodes")

    def _won(self, steps: list[Step]) -> bool:
        """Whether an episode was won, if it is over; records what its end says."""
        last = steps[-1]
        if not last.over:
            return False
        rewards = [step.reward for step in steps if step.reward is not None]
        said = last.info.get("success")
        won = self.spec.solved(rewards, last.terminated, last.info, self.success_when)
        if won is None:
            self.error(
                f"no info['success'] at the end, and a last reward of {rewards[-1]:g} does not say; say when it is"
                f" solved, with success_when or --success-when: {WAYS}"
            )
        if said is not None and last.terminated and not self.success_when and said != (rewards[-1] >= 1):
            self.warn(f"info['success'] is {said} with reward {rewards[-1]}")
        self.ended |= last.terminated
        self.said |= bool(won) or said is not None or max(rewards) > 0
        return bool(won)

    def _look_at(self, step: Step) -> None:
        obs, info = step.obs, step.info
        if step.reward is None and not obs.strip():
            self.error("the first observation is empty")
        if "\x1b[" in obs:
            self.error("an observation holds ANSI escapes")
        if join_parts(parts_of(obs, info)) != obs:
            self.error("info['parts'], joined by blank lines, are not the observation")
        for key in info.keys() & set(KNOWN_INFO) - {"metrics"}:  # play takes metrics by float(), and leaves others out
            try:
                json.dumps(info[key], default=_number)
            except (TypeError, ValueError) as error:
                self.error(f"info[{key!r}] cannot be written as JSON: {error}")
        self.slowest_s = sorted([*self.slowest_s, step.took_s], reverse=True)[:2]

    def resets(self) -> None:
        """More seeds can be reset; what cannot is left out of the splits."""
        if self.faulty:
            return
        env, until = self.make(), time.perf_counter() + RESETS_S
        broken: list[str] = []
        for seed in range(self.n, self.n + MORE_SEEDS):
            if time.perf_counter() > until:
                break
            try:
                env.reset(seed=seed)
            except GameFault as fault:
                broken.append(str(fault))
        self.close(env)
        if broken:
            self.warn(f"{len(broken)} of {seed + 1 - self.n} more seeds cannot be reset: {broken[0]}")

    def actions(self) -> None:
        """The actions that the environment lists can be said."""
        for seed in range(3):
            with self.one() as env:
                listed = self.spec.moves(env.reset(seed=seed)[1])
            silent = [action for action in listed[:50] if not self._understood(seed, action)]
            if silent and len(silent) == len(listed[:50]):
                self.error(f"none of the listed actions is understood: {silent[0]!r} counts as invalid")
            elif silent:
                self.warn(f"the listed action {silent[0]!r} counts as invalid at the start")

    def _understood(self, seed: int, action: str) -> bool:
        with self.one() as env:
            env.reset(seed=seed)
            info = env.step(action)[4]
        return not info.get("invalid") or "action" in info

    def junk(self) -> None:
        """No reply may raise or hang."""
        for reply in JUNK:
            try:
                with self.one() as env:
                    env.reset(seed=0)
                    _, reward, terminated, truncated, info = env.step(reply)
            except GameFault as fault:
                shown = reply if len(reply) < 30 else f"{reply[:10]}… ({len(reply)} characters)"
                self.fault(fault, f"the reply {shown!r}: ")
                continue
            over = terminated or truncated
            if reply in MEANINGLESS and over and self.spec.solved([reward], terminated, info, self.success_when):
                self.warn(f"the reply {reply[:10]!r} wins")

    def solutions(self) -> None:
        """The replies of ``solution()`` win."""
        wrong: list[int] = []
        too_long = 0
        for seed in range(self.n):
            with self.one() as env:
                inner = env.unwrapped
                solution = getattr(inner, "solution", None)
                if not callable(solution):  # data of that name is the game's own affair
                    return
                env.reset(seed=seed)
                with faults("solution()", env.limit_s):
                    replies: Any = solution()
                if replies is None:
                    continue
                self.proven = True
                if not self._wins(Guarded(inner, len(replies) + 1, env.limit_s), replies, seed):
                    wrong.append(seed)
                elif not self._wins(env, replies, seed):
                    too_long += 1
        if wrong:
            more = f" ({len(wrong)} of {self.n} seeds)" if len(wrong) > 1 else ""
            self.error(f"solution() of seed {wrong[0]} does not solve it{more}")
        if too_long:
            self.warn(f"{too_long} of {self.n} tasks cannot be won within the step limit")

    def _wins(self, env: Guarded, replies: Sequence[str], seed: int) -> bool:
        env.reset(seed=seed)
        rewards: list[float] = []
        for reply in replies:
            _, reward, terminated, truncated, info = env.step(reply)
            rewards.append(reward)
            if terminated or truncated:
                return bool(self.spec.solved(rewards, terminated, info, self.success_when))
        return False

    def ends(self) -> None:
        """An episode can end, and something says or pays what came of it."""
        if self.spec.logged:
            return  # it ends where the log ends
        rule = self.success_when or self.spec.success_when
        known = bool(rule) or self.proven or self.spec.success_at is not None
        until, left = time.perf_counter() + LONG_S, LONG_REPLIES
        for game in itertools.count():
            if (self.ended and (known or self.said)) or left <= 0 or time.perf_counter() > until:
                break
            with self.one() as env:
                endless = Guarded(env.env, left, env.limit_s)  # without the limit of its own
                steps = list(walk(endless, game % self.n, replies=self.n + game, most=left, spec=self.spec))
            left -= len(steps) - 1
            self._won(steps)
        replies = LONG_REPLIES - left
        if not self.ended and known and "return" not in rule and not self.proven:
            self.warn(f"no episode came to an end of its own in {replies:,} random replies")
        elif not self.ended and not known:
            self.error(
                f"no episode came to an end of its own in {replies:,} replies; end it, as in turn(success=...), or"
                " give solution() if only a good reply can"
            )
        elif not self.said and not known:
            self.error(
                "no reward above 0 and no info['success'] was ever seen; say when an episode is solved, as in"
                f" turn(success=...), or with success_when or --success-when: {WAYS}"
            )

    def global_rng(self) -> None:
        """The global generators are neither changed nor used."""
        texts = []
        for salt in (1, 2):
            random.seed(salt)
            np.random.seed(salt)
            before = _global_state()
            texts.append(self.transcript(3))
            after = _global_state()
            if before[0] != after[0]:
                self.error("changes the global state of random: draw from self.np_random")
            if before[1] != after[1]:
                self.error("changes the global state of numpy.random: draw from self.np_random")
        if texts[0] != texts[1]:
            self.error("depends on the global random state: the same seed gave two different episodes")

    def history(self) -> None:
        """A used instance behaves like a fresh one."""
        used = self.make()
        for seed in (1, 2):
            transcript(used, seed)
        if transcript(used, 0) != self.transcript(0):
            self.error("reset(seed) after other episodes differs from a fresh instance: something is kept")

    def instances(self) -> None:
        """Two instances side by side do not influence each other."""
        alone = self.transcript(0)
        walks = [walk(self.make(), 0), walk(self.make(), 1)]
        beside: list[Any] = []
        while walks:
            for one in list(walks):
                step = next(one, None)
                if step is None:
                    walks.remove(one)
                elif one is walks[0] and len(walks) == 2:
                    beside.append(step.told)
        if beside != alone[: len(beside)]:
            self.error("two instances side by side influence each other")

    def processes(self) -> None:
        """Texts and keys are the same in processes with different hash seeds."""
        try:
            job = pickle.dumps((self.maker, self.patience_s))
        except Exception:  # a local function; only importable functions can be sent to another process
            return
        runs = [in_another_process(job, hash_seed) for hash_seed in ("1", "2")]
        if None not in runs and runs[0] != runs[1]:
            self.error("the same seed gives different episodes in different processes (hash() of a string?)")

    def alike(self) -> None:
        """Seeds with one task key are one task: the same replies give the same episode."""
        for seeds in (seeds[:3] for seeds in self.keys.values() if len(seeds) > 1):
            first, *others = ([self.transcript(seed, replies=replies) for replies in range(ALIKE)] for seed in seeds)
            other = next((seed for seed, told in zip(seeds[1:], others, strict=True) if told != first), None)
            if other is None:
                continue
            found = f"seeds {seeds[0]} and {other} have one task key and go differently"
            if len(self.keys) == 1:  # then every seed is one task, and what is learned of one is known of all
                self.error(f"{found}; pass first(key=...) with what differs, the seed if nothing else does")
            else:
                self.warn(found)


def _number(value: Any) -> Any:
    """A number of numpy as Python's own, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _global_state() -> tuple[Any, list[int]]:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist()


def _line(error: BaseException) -> str:
    if isinstance(error, AgentOpcdError):
        return str(error)
    return first_line(error, otherwise="(no message)")
