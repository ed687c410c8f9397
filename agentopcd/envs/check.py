"""Check that an environment keeps the contract, including what Gymnasium's own checker cannot detect."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from agentopcd.core.errors import AgentOpcdError, EnvError
from agentopcd.core.text import first_line
from agentopcd.envs import registry
from agentopcd.envs.views import join_parts, parts_of, succeeded, task_key

MAX_REPLIES = 30
"""Replies per episode while checking, for environments without a limit of their own."""
SLOW_STEP_S = 1.0
SLOW_BUILD_S = 2.0
HANG_S = 10.0

_EMPTY_WORDS = ("", "[", "x" * 10_000, "ünïcödé 你好 🙂", "</think>")
_JUNK = (*_EMPTY_WORDS, "[]", "[up] or [down]", "<think>[right]", "\\boxed{", "Answer:", "-1", "\x00")
"""Replies that must never raise. The first few are meaningless, so they must not win either."""

Maker = Callable[[], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class CheckReport:
    """Findings of a check."""

    errors: list[str]
    """Breaches of the contract: results from this environment would be wrong."""
    warnings: list[str]
    """Worth knowing before a run."""
    seeds: int
    distinct: int
    """Different tasks among the seeds."""
    random_success: float
    """Share of episodes won by random replies: listed moves if there are any, else junk."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors


def assert_env_ok(make: Maker | str, n: int = 32) -> None:
    """Raise EnvError with every error that :func:`check_env` finds; for use in your own tests."""
    report = check_env(make, n)
    if not report.ok:
        raise EnvError("; ".join(report.errors))


def check_env(make: Maker | str, n: int = 32) -> CheckReport:
    """Check an environment.

    Args:
        make: builds a fresh instance, or a reference such as ``frozen-lake``.
        n: number of seeds to check, 0 to n - 1.

    Returns:
        A report; faults of the environment are recorded in it, not raised.

    Raises:
        AgentOpcdError: the environment cannot be built.
    """
    if n < 2:
        raise EnvError(f"n must be 2 or more, got {n}")
    maker: Maker = partial(registry.make, make) if isinstance(make, str) else make
    python_rng, numpy_rng = random.getstate(), np.random.get_state()
    probe = _Probe(maker, n)
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe.run()
    finally:
        random.setstate(python_rng)
        np.random.set_state(numpy_rng)
    if written.getvalue().strip():
        probe.warn(f"writes to stdout: {written.getvalue().strip()[:60]!r}")
    return CheckReport(probe.errors, probe.warnings, n, len(probe.keys), probe.wins / n)


class _Probe:
    """Runs every test on one environment and collects the findings."""

    def __init__(self, make: Maker, n: int) -> None:
        self.make, self.n = make, n
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.keys: set[str] = set()
        self.wins = 0

    def error(self, text: str) -> None:
        if text not in self.errors:
            self.errors.append(text)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def run(self) -> None:
        began = time.perf_counter()
        self.make().close()
        if (took := time.perf_counter() - began) > SLOW_BUILD_S:
            self.warn(f"importing and building took {took:.1f} s")
        tests = (
            self.gymnasium,
            self.episodes,
            self.global_rng,
            self.history,
            self.instances,
            self.processes,
            self.junk,
            self.solutions,
        )
        for test in tests:
            try:
                test()
            except Exception as error:  # the environment's fault, whatever it is
                self.error(f"{test.__name__}: {type(error).__name__}: {_line(error)}")

    def gymnasium(self) -> None:
        """Gymnasium's own checker."""
        from gymnasium.utils.env_checker import check_env as gymnasium_check

        env = self.make().unwrapped
        try:
            gymnasium_check(env, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            self.error(f"Gymnasium's check: {_line(error)}")

    def episodes(self) -> None:
        """Random episodes: texts, parts, info, rewards, ends."""
        for seed in range(self.n):
            env = self.make()
            last: Any = None
            for last in _walk(env, seed):
                self._look_at(*last)
            if last is not None and last[3]:
                self._look_at_end(last)
            env.close()
        if len(self.keys) == 1:
            self.warn("one task for every seed: pass first(key=...) if they differ")
        elif len(self.keys) < self.n:
            self.warn(f"{len(self.keys)} distinct tasks in {self.n} seeds")
        if self.wins > self.n / 2:
            self.warn(f"random replies won {self.wins} of {self.n} episodes")

    def _look_at(self, obs: Any, reward: Any, terminated: bool, over: bool, info: Any, took: float) -> None:
        if not isinstance(obs, str):
            self.error(f"an observation must be text, got {type(obs).__name__}")
            return
        if reward is None:  # what reset returned
            self.keys.add(task_key(obs, info))
            if not obs.strip():
                self.error("the first observation is empty")
        elif not math.isfinite(float(reward)):
            self.error(f"the reward {reward} is not a finite number")
        if "\x1b[" in obs:
            self.error("an observation holds ANSI escapes")
        if join_parts(parts_of(obs, info)) != obs:
            self.error("info['parts'], joined by blank lines, are not the observation")
        try:
            json.dumps(info)
        except (TypeError, ValueError) as error:
            self.error(f"info cannot be written as JSON: {error}")
        if took > SLOW_STEP_S:
            self.warn(f"a step took {took:.1f} s; set slow=True in the spec")

    def _look_at_end(self, last: tuple[Any, ...]) -> None:
        _, reward, terminated, _, info, _ = last
        said = info.get("success")
        if said is not None and not isinstance(said, bool):
            self.error(f"info['success'] must be True or False, got {said!r}")
        if said is None and terminated and 0 < float(reward) < 1:
            self.error(f"no info['success'] at the end, and a reward of {reward} does not say")
        if said is not None and terminated and said != (float(reward) >= 1):
            self.warn(f"info['success'] is {said} with reward {reward}")
        self.wins += succeeded(reward, terminated, info)

    def global_rng(self) -> None:
        """The global generators are neither changed nor used."""
        texts = []
        for salt in (1, 2):
            random.seed(salt)
            np.random.seed(salt)
            before = _global_state()
            texts.append(_transcript(self.make(), 3))
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
            _transcript(used, seed)
        if _transcript(used, 0) != _transcript(self.make(), 0):
            self.error("reset(seed) after other episodes differs from a fresh instance: something is kept")

    def instances(self) -> None:
        """Two instances side by side do not influence each other."""
        alone = _transcript(self.make(), 0)
        walks = [_walk(self.make(), 0), _walk(self.make(), 1)]
        beside: list[Any] = []
        while walks:
            for walk in list(walks):
                step = next(walk, None)
                if step is None:
                    walks.remove(walk)
                elif walk is walks[0] and len(walks) == 2:
                    beside.append(_told(step))
        if beside != alone[: len(beside)]:
            self.error("two instances side by side influence each other")

    def processes(self) -> None:
        """Texts and keys are the same in processes with different hash seeds."""
        try:
            job = pickle.dumps(self.make)
        except Exception:  # a local function; only importable functions can be sent to another process
            return
        runs = [_child(job, hash_seed) for hash_seed in ("1", "2")]
        if None not in runs and runs[0] != runs[1]:
            self.error("the same seed gives different episodes in different processes (hash() of a string?)")

    def junk(self) -> None:
        """No reply may raise or hang."""
        for reply in _JUNK:
            env = self.make()
            env.reset(seed=0)
            try:
                with _alarm():
                    _, reward, terminated, truncated, info = env.step(reply)
            except Exception as error:
                shown = reply if len(reply) < 30 else f"{reply[:10]}… ({len(reply)} characters)"
                self.error(f"the reply {shown!r} raised {type(error).__name__}: {_line(error)}")
                continue
            if reply in _EMPTY_WORDS and (terminated or truncated) and succeeded(reward, terminated, info):
                self.warn(f"the reply {reply[:10]!r} wins")

    def solutions(self) -> None:
        """The replies of ``solution()`` win."""
        too_long = 0
        for seed in range(self.n):
            env = self.make()
            inner = env.unwrapped
            if not hasattr(inner, "solution"):
                return
            env.reset(seed=seed)
            replies = inner.solution()
            if replies is None:
                continue
            inner.reset(seed=seed)
            if not _wins(inner, replies):
                self.error(f"solution() of seed {seed} does not solve it")
            elif not _wins(env, replies, seed):
                too_long += 1
        if too_long:
            self.warn(f"{too_long} of {self.n} tasks cannot be won within the step limit")


def _global_state() -> tuple[Any, list[int]]:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist()


def _wins(env: Any, replies: Sequence[str], seed: int | None = None) -> bool:
    if seed is not None:
        env.reset(seed=seed)
    for reply in replies:
        _, reward, terminated, truncated, info = env.step(reply)
        if terminated or truncated:
            return succeeded(reward, terminated, info)
    return False


def _walk(env: Any, seed: int) -> Iterator[tuple[Any, Any, bool, bool, Any, float]]:
    """Play one episode with replies that depend on the seed alone."""
    rng = random.Random(seed)
    began = time.perf_counter()
    obs, info = env.reset(seed=seed)
    yield obs, None, False, False, info, time.perf_counter() - began
    for _ in range(MAX_REPLIES):
        reply = rng.choice(info.get("legal_actions") or [f"[{rng.randint(1, 100)}]", *_JUNK])
        began = time.perf_counter()
        obs, reward, terminated, truncated, info = env.step(reply)
        over = bool(terminated or truncated)
        yield obs, reward, bool(terminated), over, info, time.perf_counter() - began
        if over:
            return


def _told(step: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values on which two equal episodes must agree."""
    obs, reward, terminated, over, info, _ = step
    key = task_key(obs, info) if reward is None else ""
    return obs, None if reward is None else float(reward), terminated, over, key, info.get("success")


def _transcript(env: Any, seed: int) -> list[tuple[Any, ...]]:
    return [_told(step) for step in _walk(env, seed)]


_CHILD = """
import json, pickle, sys
from agentopcd.envs.check import _transcript
with open(sys.argv[1], "rb") as job:
    make = pickle.load(job)
print("@@" + json.dumps([_transcript(make(), seed) for seed in range(3)]))
"""


def _child(job: bytes, hash_seed: str) -> str | None:
    """Return the transcripts that another process gets; ``None`` if it cannot import the environment."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        file.write(job)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, file.name],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    return done.stdout.rpartition("@@")[2] if done.returncode == 0 else None


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Interrupt a call that hangs; this works only in the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no answer within {HANG_S:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> str:
    if isinstance(error, AgentOpcdError):
        return str(error)
    return first_line(error, otherwise="(no message)")
