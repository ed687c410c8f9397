"""Random episodes for the checker: replies that depend on the seed alone, and what two equal episodes must agree on."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from agentopcd.envs.guard import Guarded
from agentopcd.envs.spec import EnvSpec
from agentopcd.envs.views import task_key

MAX_REPLIES = 30
"""Replies per episode while checking, for environments without a limit of their own."""
CHECK_LIMIT_S = 20.0
"""Seconds after which a reset or step counts as hung while checking."""

MEANINGLESS = ("", "[", "x" * 10_000, "ünïcödé 你好 🙂", "</think>")
"""Replies that must not win."""
JUNK = (*MEANINGLESS, "[]", "[up] or [down]", "<think>[right]", "\\boxed{", "Answer:", "-1", "\x00")
"""Replies that must never raise."""

_BRACKETS = re.compile(r"\[[^\[\]\n]{1,40}\]")
"""What a text names as a reply, as in "Say [go]."."""

UNKNOWN = EnvSpec(id="", entry_point="")
"""Of an environment that lists its moves in its episodes, or nowhere."""

Maker = Callable[[], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one reset or step returned."""

    obs: str
    reward: float | None
    """``None`` for a reset."""
    terminated: bool
    over: bool
    info: dict[str, Any]
    took_s: float

    @property
    def told(self) -> tuple[Any, ...]:
        """The values on which two equal episodes must agree."""
        key = task_key(self.obs, self.info) if self.reward is None else ""
        return self.obs, self.reward, self.terminated, self.over, key, self.info.get("success")


def guarded(env: Any, limit: int = MAX_REPLIES, patience_s: float = 0.0) -> Guarded:
    """Put an environment behind the door, with the checker's patience.

    Args:
        env: it may be there already.
        limit: replies in an episode of one that is not there yet.
        patience_s: seconds for a reset or a step, if its spec asks for them.
    """
    if not isinstance(env, Guarded):
        env = Guarded(env, limit, patience_s or CHECK_LIMIT_S)
    env.limit_s = min(env.limit_s, patience_s or CHECK_LIMIT_S)
    return env


def walk(
    env: Any, seed: int, *, replies: int | None = None, most: int = MAX_REPLIES, spec: EnvSpec = UNKNOWN
) -> Iterator[Step]:
    """Play one episode.

    Args:
        env: an environment behind the door.
        seed: of the start state.
        replies: seed of the replies; by default the same.
        most: replies after which the episode is left.
        spec: what lists the moves where the episode does not.
    """
    rng = random.Random(seed if replies is None else replies)
    began = time.perf_counter()
    obs, info = env.reset(seed=seed)
    named = list(dict.fromkeys(_BRACKETS.findall(obs)))[:20]
    yield Step(obs, None, False, False, info, time.perf_counter() - began)
    for _ in range(most):
        sensible = [f"[{rng.randint(1, 100)}]", *named]
        reply = rng.choice(spec.moves(info) or [*sensible * 4, *JUNK])
        began = time.perf_counter()
        obs, reward, terminated, truncated, info = env.step(reply)
        yield Step(obs, reward, terminated, terminated or truncated, info, time.perf_counter() - began)
        if terminated or truncated:
            return


def transcript(env: Any, seed: int, *, replies: int | None = None) -> list[tuple[Any, ...]]:
    """What an episode told."""
    return [step.told for step in walk(env, seed, replies=replies)]


_CHILD = """
import json, pickle, sys
from agentopcd.envs.walks import guarded, transcript
with open(sys.argv[1], "rb") as job:
    make, patience_s = pickle.load(job)
print("@@" + json.dumps([transcript(guarded(make(), patience_s=patience_s), seed) for seed in range(3)]))
"""


def in_another_process(job: bytes, hash_seed: str) -> str | None:
    """Return the transcripts that another process gets; ``None`` if it cannot import the environment."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        file.write(job)
        file.flush()
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, file.name],
                env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
    return done.stdout.rpartition("@@")[2] if done.returncode == 0 else None
