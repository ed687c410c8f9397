"""Floors and ceiling of a result: a random player, a blind player, and the share of tasks that can be won.

For games with a known model (``env.unwrapped.model()``), the random player's success is exact, by dynamic
programming over states; for other games with listed moves, random episodes are played, unless steps take long. The
blind player makes the same moves whatever it sees; its floor is the best such sequence on the given tasks.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from agentopcd.core.errors import GameFault
from agentopcd.core.types import Task
from agentopcd.envs.games.solvers import Model, shortest
from agentopcd.envs.guard import Hang, faults
from agentopcd.envs.registry import get_spec, make
from agentopcd.envs.spec import EnvSpec

PLAYED_EPISODES = 1000
"""Random episodes to play if the exact share is unknown; the standard error is then below 1.6 points."""
BEAM = 4000
"""Openings kept per length in the search for blind moves; the bundled games need fewer, so theirs is exact."""


@dataclasses.dataclass(frozen=True, slots=True)
class Floors:
    """Shares of the given tasks, 0 to 1; ``None`` if unknown."""

    random: float | None
    """Won by drawing each reply uniformly from the listed moves."""
    blind: float | None
    """Won by the best fixed sequence of moves."""
    blind_moves: tuple[str, ...]
    """That sequence, in the words the player has to say."""
    solvable: float | None
    """Winnable within the step limit."""
    n: int
    """Number of tasks."""
    random_episodes: int = 0
    """Episodes behind ``random``; 0 when it is exact."""

    @property
    def text(self) -> str:
        """The known shares, in one line."""
        parts = []
        if self.random is not None:
            parts.append(f"uniform random {self.random:.3f}")
        if self.blind is not None:
            parts.append(f"best blind sequence {self.blind:.3f}")
        if self.solvable is not None:
            parts.append(f"solvable within the limit {self.solvable:.3f}")
        return ", ".join(parts) or "none can be computed for this environment"


def floors(
    ref: str,
    env_kwargs: Mapping[str, Any] | None,
    tasks: Iterable[Task],
    *,
    max_steps: int | None = None,
    success_when: str = "",
) -> Floors:
    """Compute the floors and the ceiling of an environment on some tasks.

    Args:
        ref: the environment.
        env_kwargs: its arguments.
        tasks: the tasks that a result is about.
        max_steps: replies per episode; the spec's own by default.
        success_when: a rule for success in place of what the environment says.
    """
    tasks, spec = list(tasks), get_spec(ref)
    limit = spec.step_limit if max_steps is None else max_steps
    env = make(ref, max_steps=limit, **dict(env_kwargs or {}))
    try:
        models, solutions, moves = _read(env, tasks, spec)
        if not tasks or not models:
            quick = tasks and moves and not (spec.slow or spec.waits)
            played, episodes = _played(env, tasks, moves, spec, success_when) if quick else (None, 0)
            return Floors(
                random=played,
                blind=None,
                blind_moves=(),
                solvable=_share_within(solutions, limit) if moves else None,
                n=len(tasks),
                random_episodes=episodes,
            )
    finally:
        env.close()
    wins, sequence = best_blind(models, limit)
    word_for = getattr(env.unwrapped, "word_for", str)  # models move in true directions
    return Floors(
        random=sum(random_win(model, limit) for model in models) / len(models),
        blind=wins / len(models),
        blind_moves=tuple(word_for(move) for move in sequence),
        solvable=_share_within([shortest(model) for model in models], limit),
        n=len(tasks),
    )


def solvable_share(
    ref: str, env_kwargs: Mapping[str, Any] | None, tasks: Iterable[Task], *, max_steps: int | None = None
) -> float | None:
    """Return the share of tasks that can be won within the step limit, ``None`` if it is unknown.

    The share says nothing about episodes of a single reply, so it is ``None`` for them too.
    """
    spec = get_spec(ref)
    limit = spec.step_limit if max_steps is None else max_steps
    env = make(ref, max_steps=limit, **dict(env_kwargs or {}))
    try:
        models, solutions, moves = _read(env, list(tasks), spec)
    finally:
        env.close()
    if models:
        solutions = [shortest(model) for model in models]
    return _share_within(solutions, limit) if moves and limit > 1 else None


def _read(env: Any, tasks: Sequence[Task], spec: EnvSpec) -> tuple[list[Model], list[Sequence[str] | None], list[str]]:
    """Reset every task once; return the models and solutions, where available, and the listed moves.

    Without listed moves nothing follows from the tasks, so only the first is reset: resets can be slow. Where a model
    or a solution raises, neither is known of any task, with a warning.
    """
    models: list[Model] = []
    solutions: list[Sequence[str] | None] = []
    moves: list[str] = []
    inner, asks = env.unwrapped, True
    for task in tasks:
        try:
            _, info = env.reset(seed=task.seed)
        except GameFault:  # counted by whoever plays it
            continue
        moves = spec.moves(info)
        try:
            model = _asked(env, "model") if asks else None
            if _is_model(model):
                models.append(model)
            elif asks and callable(getattr(inner, "solution", None)) and moves:
                found = _asked(env, "solution")
                if found is not None and not isinstance(found, Sequence):
                    raise GameFault(f"solution() must return a list of replies or None, got {found!r:.60}")
                solutions.append(found)
            elif not moves:
                break
        except GameFault as fault:
            warnings.warn(f"the ceiling of {spec.id} stays unknown: {fault}", stacklevel=3)
            asks, models, solutions = False, [], []
    return models, solutions, moves


def _asked(env: Any, name: str) -> Any:
    """What a solver's method of an environment returns; ``None`` if there is no such method.

    Raises:
        GameFault: it raised or gave no answer.
    """
    method = getattr(env.unwrapped, name, None)
    if not callable(method):
        return None
    with faults(f"{name}()", env.limit_s):
        return method()


def _is_model(found: Any) -> TypeGuard[Model]:
    """Whether it has what a solver looks for: ``model`` means other things in many a game."""
    return all(hasattr(found, name) for name in ("start", "moves", "move", "two_invalid_end"))


def _share_within(solutions: Sequence[Sequence[str] | None], limit: int) -> float | None:
    if not solutions or all(solution is None for solution in solutions):
        return None
    return sum(solution is not None and len(solution) <= limit for solution in solutions) / len(solutions)


def random_win(model: Model, steps: int) -> float:
    """Return the exact probability that uniformly drawn moves win within ``steps``."""
    mass: dict[tuple[Any, bool], float] = {(model.start, False): 1.0}
    won = 0.0
    for _ in range(steps):
        following: dict[tuple[Any, bool], float] = {}
        for (state, was_invalid), chance in mass.items():
            for name in model.moves:
                share = chance / len(model.moves)
                after, event = model.move(state, name)
                invalid = event == "invalid" and model.two_invalid_end
                if event == "won":
                    won += share
                elif event != "lost" and not (invalid and was_invalid):
                    following[after, invalid] = following.get((after, invalid), 0.0) + share
        mass = following
    return won


_Live = tuple[Any, ...]
"""For each task: (state, whether the last move was invalid), or ``None`` once its episode is over."""


def best_blind(models: Sequence[Model], steps: int, beam: int = BEAM) -> tuple[int, tuple[str, ...]]:
    """Return the most tasks that one fixed sequence of moves wins, and the shortest such sequence.

    Openings that leave all tasks in the same states are merged, and openings that can no longer beat the best
    sequence are dropped. If more than ``beam`` openings of one length remain, only the most promising are kept,
    and the answer is a lower bound.
    """
    start: _Live = tuple((model.start, False) for model in models)
    layer: dict[_Live, tuple[int, tuple[str, ...]]] = {start: (0, ())}
    best: tuple[int, tuple[str, ...]] = (0, ())
    for _ in range(steps):
        following: dict[_Live, tuple[int, tuple[str, ...]]] = {}
        for live, (won, opening) in layer.items():
            for name in models[0].moves if models else ():
                after, wins = _advance(models, live, name)
                reached = (won + wins, (*opening, name))
                if reached[0] > following.get(after, (-1, ()))[0]:
                    following[after] = reached
                if reached[0] > best[0]:
                    best = reached
        layer = _promising(following, best[0], beam)
    return best


def _advance(models: Sequence[Model], live: _Live, name: str) -> tuple[_Live, int]:
    """Make one move in every task that still runs."""
    after: list[Any] = []
    wins = 0
    for model, running in zip(models, live, strict=True):
        if running is None:
            after.append(None)
            continue
        state, event = model.move(running[0], name)
        invalid = event == "invalid" and model.two_invalid_end
        wins += event == "won"
        over = event in ("won", "lost") or (invalid and running[1])
        after.append(None if over else (state, invalid))
    return tuple(after), wins


def _promising(
    layer: dict[_Live, tuple[int, tuple[str, ...]]], best: int, beam: int
) -> dict[_Live, tuple[int, tuple[str, ...]]]:
    def reach(entry: tuple[_Live, tuple[int, tuple[str, ...]]]) -> int:
        live, (won, _) = entry
        return won + sum(running is not None for running in live)

    open_ended = [(reach(entry), entry) for entry in layer.items()]
    open_ended = [scored for scored in open_ended if scored[0] > best]
    open_ended.sort(key=lambda scored: -scored[0])
    return dict(entry for _, entry in open_ended[:beam])


def _played(
    env: Any, tasks: Sequence[Task], moves: Sequence[str], spec: EnvSpec, success_when: str
) -> tuple[float | None, int]:
    """Return the share of random episodes that were won, and their number, playing each task equally often.

    Episodes that the game breaks are left out, with a warning. The share is ``None`` if nothing says what success is.
    """
    rng = random.Random(0)
    wins = played = 0
    broken: list[GameFault] = []
    for task in list(tasks) * max(1, PLAYED_EPISODES // len(tasks)):
        try:
            won = _random_episode(env, task, moves, rng, spec, success_when)
        except GameFault as fault:
            broken.append(fault)
            if isinstance(fault, Hang):
                break
            continue
        if won is None:
            return None, 0
        wins, played = wins + won, played + 1
    if broken:
        warnings.warn(f"{len(broken)} random episodes of {spec.id} broke off ({broken[0]}); not counted", stacklevel=3)
    return (wins / played, played) if played else (None, 0)


def _random_episode(
    env: Any, task: Task, moves: Sequence[str], rng: random.Random, spec: EnvSpec, success_when: str
) -> bool | None:
    """Whether one random episode was won; ``None`` if nothing says so."""
    _, info = env.reset(seed=task.seed)
    rewards: list[float] = []
    over = terminated = False
    while not over:
        _, reward, terminated, truncated, info = env.step(rng.choice(spec.moves(info) or moves))
        rewards.append(reward)
        over = terminated or truncated
    return spec.solved(rewards, terminated, info, success_when)
