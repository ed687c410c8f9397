"""Assign tasks to splits by the content of their start state, never by their seed.

The environment is reset with each seed, and seeds are grouped by task key; the first seed of a key stands for
it. Keys are sorted by a salted hash and cut into ``test``, ``confirm``, ``select``, ``extract`` and ``train``,
so no key is in two splits. Different seeds are *not* different tasks: Frozen Lake 3x3 with 2 holes has 19 boards.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from typing import Any

from agentopcd.core.errors import EnvError, TaskLeak, did_you_mean
from agentopcd.core.text import counted
from agentopcd.core.types import SPLITS, Task
from agentopcd.envs.manifest import SHARED, Manifest, versions
from agentopcd.envs.registry import ROW_SPLITS, get_spec, make
from agentopcd.envs.scan import Progress, no_progress, rules_hash, scan
from agentopcd.envs.spec import EnvSpec
from agentopcd.envs.views import hash_text, task_key

MIN_DISTINCT = 100
"""Fewer tasks than this are not split: with a handful of test tasks, no statistical test can pass."""

_SHARE = {"test": 0.26, "confirm": 0.17, "select": 0.16, "extract": 0.08}
_CAP = {"test": 500, "confirm": 256, "select": 300, "extract": 1000}
"""Default size of a split: a share of the distinct tasks, at most the cap."""


def build_splits(
    ref: str,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    seeds: int | None = None,
    salt: str = "0",
    sizes: Mapping[str, int] | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Cut an environment's tasks into splits.

    A seed whose reset fails is left out, with a warning. Looking at a slow environment stops when there are enough
    tasks, with a warning, unless ``seeds`` or ``sizes`` ask for more.

    Args:
        ref: the environment.
        env_kwargs: its arguments.
        seeds: number of seeds to scan, from 0; by default the spec's number, or all rows of a file.
        salt: changes the assignment of tasks to splits.
        sizes: tasks per split; ``train`` takes the rest unless given.
        progress: takes (label, items, number of items), shows how far the iteration is, and yields the items.

    Raises:
        EnvError: unknown splits, sizes beyond the number of distinct tasks, no seed that can be reset, or an
            environment that ignores its seed.
        TaskLeak: a file puts one question into two splits.
    """
    spec = get_spec(ref)
    kwargs = _as_json(ref, env_kwargs or {})
    sizes = _checked_sizes(sizes)
    env = make(ref, **kwargs)
    try:
        if spec.split_seeds:
            return _fixed(ref, kwargs, spec, env, bool(sizes) or seeds is not None)
        count = _seed_count(spec, env, seeds)
        may_stop = seeds is None and not sizes and not hasattr(env.unwrapped, "num_tasks")
        seen = scan(env, ref, count, may_stop=may_stop, progress=progress)
        found, rows_say = seen.first, _named_splits(seen.named)
    finally:
        env.close()
    if rows_say:
        splits, protocol = _completed(rows_say, found, salt, spec, sizes, ref), "disjoint"
    elif len(found) < MIN_DISTINCT and not sizes:
        _tell_set_aside(spec, {}, len(found), ref)
        splits, protocol = {SHARED: _ranked(found, salt)}, "shared"
    else:
        splits, protocol = _cut(_ranked(found, salt), _sizes(spec, sizes, len(found), ref), ref), "disjoint"
    return Manifest(
        env=ref,
        kwargs=kwargs,
        packages=versions(_packages(env)),
        rules_sha256=seen.rules_sha256,
        salt=salt,
        seeds=(0, seen.count),
        distinct=len(found),
        splits=splits,
        protocol=protocol,
    )


def hashed_splits(ref: str, env_kwargs: Mapping[str, Any] | None = None, *, salt: str = "0") -> Manifest:
    """The splits of a recording, which grows: the hash of a task's key alone says which split the task is in.

    So a task keeps its split when others come, and few tasks are cut as many are. All conversations of a task are in
    its split.

    Args:
        ref: an environment whose ``rows`` have a ``seed`` each (:class:`agentopcd.envs.chats.recorded.RecordedEnv`).
    """
    kwargs = _as_json(ref, env_kwargs or {})
    env = make(ref, **kwargs)
    try:
        rows = [Task(row.source["seed"], row.key) for row in env.unwrapped.rows]  # type: ignore[attr-defined]
        packages = versions(_packages(env))
    finally:
        env.close()
    splits: dict[str, list[Task]] = {name: [] for name in SPLITS}
    for task in sorted(rows, key=lambda task: (hash_text(f"{salt}:{task.key}"), task)):
        place, split = int(hash_text(f"{salt}:{task.key}"), 16) / 2**64, "train"
        for name, share in _SHARE.items():
            if place < share:
                split = name
                break
            place -= share
        splits[split].append(task)
    return Manifest(
        env=ref, kwargs=kwargs, packages=packages, rules_sha256="", salt=salt, seeds=(0, max(rows).seed + 1),
        distinct=len({task.key for task in rows}), splits=splits,
    )  # fmt: skip


def _as_json(ref: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as a JSON file gives them back, with tuples as lists."""
    try:
        return json.loads(json.dumps(dict(kwargs)))
    except (TypeError, ValueError) as error:
        raise EnvError(f"the arguments of {ref} cannot be written to a manifest: {error}") from None


def _checked_sizes(sizes: Mapping[str, int] | None) -> dict[str, int]:
    for name, size in (sizes or {}).items():
        if name not in SPLITS:
            raise EnvError(f"no split {name!r}{did_you_mean(name, SPLITS)}")
        if size < 0:
            raise EnvError(f"split {name!r} cannot have {size} tasks")
    return dict(sizes or {})


def _seed_count(spec: EnvSpec, env: Any, seeds: int | None) -> int:
    count = seeds if seeds is not None else getattr(env.unwrapped, "num_tasks", spec.seeds)
    if count < 1:
        raise EnvError(f"seeds must be above 0, got {count}")
    return count


def _named_splits(named: Mapping[str, Mapping[str, int]]) -> dict[str, list[Task]]:
    owner: dict[str, str] = {}
    for split, keys in named.items():
        if split not in SPLITS:
            raise EnvError(
                f"info['split'] of seed {next(iter(keys.values()))} is {split!r}; splits are {', '.join(SPLITS)}"
            )
        for key, seed in keys.items():
            if owner.setdefault(key, split) != split:
                raise TaskLeak(f"the question of seed {seed} is in both {owner[key]!r} and {split!r}")
    if not named:
        return {}
    return {name: [Task(seed, key) for key, seed in named.get(name, {}).items()] for name in SPLITS}


def _completed(
    named: Mapping[str, list[Task]],
    found: Mapping[str, int],
    salt: str,
    spec: EnvSpec,
    given: Mapping[str, int],
    ref: str,
) -> dict[str, list[Task]]:
    """The splits that the rows name, and those that they do not name, cut from the tasks that are left.

    Left are the tasks without a split and, for all but ``test``, those of ``train``: who names only train and test
    still needs tasks to choose on. Too few tasks are not cut; those without a split are then ``train``, too.

    Raises:
        EnvError: a size is given for a split that the rows name, or more is asked for than is left.
    """
    if clash := [name for name in given if named[name] and name != "train"]:
        raise EnvError(f"the rows of {ref} say which are {clash[0]!r}, so its size cannot be given")
    taken = {task.key for tasks in named.values() for task in tasks}
    loose = {key: seed for key, seed in found.items() if key not in taken}
    pool = loose | {task.key: task.seed for task in named["train"]}
    absent = [name for name in SPLITS if not named[name] and name != "train" and (loose or name != "test")]
    if not pool or (len(pool) < MIN_DISTINCT and not given):
        absent = []
    if not loose and not absent:
        return dict(named)
    cut_from = (
        f"{', '.join(absent)} are cut from {'the others' if loose else 'train'}" if absent else "the others are train"
    )
    warnings.warn(f"{ref} names a split for {len(taken)} of {len(found)} tasks; {cut_from}", stacklevel=3)
    usual = _sizes(spec, given, len(pool), ref)
    sizes = {name: usual[name] if name in absent else 0 for name in SPLITS if name != "train"}
    test = _ranked(loose, salt)[: sizes["test"]]
    rest = {key: seed for key, seed in pool.items() if key not in {task.key for task in test}}
    train = {"train": usual["train"]} if "train" in usual else {}
    cut = _cut(_ranked(rest, salt), {**sizes, "test": 0, **train}, ref)
    return {name: named[name] if named[name] and name != "train" else cut[name] for name in SPLITS} | (
        {"test": test} if test else {}
    )


def _ranked(found: Mapping[str, int], salt: str) -> list[Task]:
    return [Task(found[key], key) for key in sorted(found, key=lambda key: hash_text(f"{salt}:{key}"))]


def _sizes(spec: EnvSpec, given: Mapping[str, int], distinct: int, ref: str) -> dict[str, int]:
    """Return the size of every split except ``train``, and of ``train`` if it was given.

    The spec's sizes are used only if there are enough tasks for them: a quarter is left, for ``train``.
    """
    shares = {name: min(_CAP[name], int(distinct * _SHARE[name])) for name in _SHARE}
    wanted = {**shares, **spec.split_sizes}
    held = sum(size for name, size in wanted.items() if name != "train")
    fits = held < distinct * 0.75 and sum(wanted.values()) <= distinct
    if not fits:
        _tell_set_aside(spec, given, distinct, ref)
    return {**(wanted if fits else shares), **given}


def _tell_set_aside(spec: EnvSpec, given: Mapping[str, int], distinct: int, ref: str) -> None:
    """Say that the sizes of the spec do not fit; those of question files are for large ones and meant for no other."""
    unused = {name: size for name, size in spec.split_sizes.items() if name not in given}
    if unused and spec.split_sizes != ROW_SPLITS:
        listed = ", ".join(f"{name} {size}" for name, size in unused.items())
        warnings.warn(
            f"{ref} has {counted(distinct, 'distinct task')}, too few for its split_sizes ({listed}), which are set"
            " aside; look at more seeds, or make them smaller",
            stacklevel=4,
        )


def _cut(ranked: list[Task], sizes: Mapping[str, int], ref: str) -> dict[str, list[Task]]:
    wanted = sum(sizes.values())
    if wanted > len(ranked):
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise EnvError(
            f"{ref} has {len(ranked)} distinct tasks, fewer than the {wanted} asked for ({listed});"
            " look at more seeds or ask for less"
        )
    splits: dict[str, list[Task]] = {}
    start = 0
    for name in SPLITS:
        size = sizes.get(name, len(ranked) - start)  # SPLITS ends with train, which takes the rest
        splits[name] = ranked[start : start + size]
        start += size
    return splits


def _fixed(ref: str, kwargs: dict[str, Any], spec: EnvSpec, env: Any, resized: bool) -> Manifest:
    """Build the manifest of an environment whose seeds are fixed by a published protocol."""
    if resized:
        raise EnvError(f"the splits of {ref} are fixed by its seeds; sizes and seeds cannot be given")
    keys: dict[int, str] = {}
    rules = ""
    for seed in sorted({seed for seeds in spec.split_seeds.values() for seed in seeds}):
        obs, info = env.reset(seed=seed)
        rules = rules or rules_hash(obs, info)
        keys[seed] = task_key(obs, info)
    return Manifest(
        env=ref,
        kwargs=kwargs,
        packages=versions(_packages(env)),
        rules_sha256=rules,
        salt="",
        seeds=(min(keys), max(keys) + 1),
        distinct=len(set(keys.values())),
        splits={name: [Task(seed, keys[seed]) for seed in spec.split_seeds[name]] for name in SPLITS},
        protocol="paper",
    )


def _packages(env: Any) -> Iterable[str]:
    from agentopcd.envs.games.gym_bridge import FromGym

    inner = env.unwrapped
    module = type(inner.game).__module__ if isinstance(inner, FromGym) else ""  # gym:PACKAGE:ID is of that package
    owners = packages_distributions().get(module.partition(".")[0], ()) if module else ()
    return ("gymnasium", *getattr(inner, "packages", ()), *owners)
