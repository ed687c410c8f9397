"""The manifest of an environment's tasks: which task is in which split, for good."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from agentopcd.core.errors import EnvError, TaskLeak, did_you_mean
from agentopcd.core.runs import write_text
from agentopcd.core.types import SPLITS, Task
from agentopcd.envs.registry import make
from agentopcd.envs.views import task_key

HELD_OUT = ("test", "confirm", "select")
SHARED = "shared"
FRESH = {"confirm": 1_000_000, "test": 2_000_000, "forecast": 3_000_000}
"""The first repetition of episodes that decide or report, where their tasks have chosen what they are about: all tasks
where splits share them, and select tasks for a forecast. Nothing else repeats a task that often."""

Protocol = Literal["disjoint", "shared", "paper"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The tasks of one environment and the split that each permanently belongs to."""

    env: str
    kwargs: Mapping[str, Any]
    packages: Mapping[str, str]
    """Versions that could change the tasks, by distribution."""
    rules_sha256: str
    """First 16 digits of the hash of the rules text; empty without a rules text."""
    salt: str
    seeds: tuple[int, int]
    """The range of seeds that was scanned: first, and one past the last."""
    distinct: int
    """Number of distinct task keys."""
    splits: Mapping[str, list[Task]]
    protocol: Protocol = "disjoint"
    """``shared``: too few tasks, so every split holds all of them; ``paper``: fixed seeds, overlaps are reported."""

    @property
    def shared(self) -> bool:
        """Whether every split holds all tasks, so that no result is about unseen tasks."""
        return self.protocol == "shared"

    @property
    def names(self) -> list[str]:
        """The splits that :meth:`tasks` knows."""
        return [*SPLITS, SHARED] if self.shared else list(self.splits)

    def tasks(self, split: str) -> list[Task]:
        """Return the tasks of one split, in the order of use.

        Raises:
            EnvError: there is no such split.
        """
        if split not in self.names:
            raise EnvError(f"no split {split!r} for {self.env}{did_you_mean(split, self.names)}")
        return list(self.splits[SHARED if self.shared else split])

    def first_rep(self, split: str) -> int:
        """The first repetition of the episodes of a split.

        Where splits share their tasks, the confirm and test splits have repetitions of their own: no episode that chose
        a context or a checkpoint is read again.
        """
        return 0 if self.protocol == "disjoint" else FRESH.get(split, 0)

    def verify(self, tasks: Iterable[Task]) -> None:
        """Reset every task again and compare its key.

        Raises:
            EnvError: a seed now yields another task, for example after a package upgrade.
        """
        env = make(self.env, **self.kwargs)
        try:
            for task in tasks:
                key = task_key(*env.reset(seed=task.seed))
                if key != task.key:
                    raise EnvError(
                        f"{self.env} seed {task.seed} now makes task {key}, not {task.key}: {self._drift()}"
                        "; play what it is now in a new workspace (--work), with splits that are cut anew"
                    )
        finally:
            env.close()

    def _drift(self) -> str:
        now = versions(self.packages)
        changed = [f"{name} {was} became {now.get(name)}" for name, was in self.packages.items()
                   if now.get(name) != was]  # fmt: skip
        return ", ".join(changed) or "its code or its arguments changed"

    def guard_training(self, tasks: Iterable[Task]) -> None:
        """Refuse to train on a held-out task. ``shared`` and ``paper`` hold nothing out.

        Raises:
            TaskLeak: a key is in select, confirm or test.
        """
        if self.protocol != "disjoint":
            return
        owner = {task.key: split for split in HELD_OUT for task in self.splits.get(split, [])}
        for task in tasks:
            if task.key in owner:
                raise TaskLeak(
                    f"task {task.key} (seed {task.seed}) of {self.env} is held out for {owner[task.key]!r};"
                    " train on tasks of 'train' or 'extract'"
                )

    def overlap(self) -> tuple[int, float]:
        """Return how many test tasks have a key that is also in train or extract, and their share."""
        if self.shared:
            count = len(self.splits[SHARED])
            return count, float(bool(count))
        trained = {task.key for split in ("train", "extract") for task in self.splits.get(split, [])}
        test = self.splits.get("test", [])
        count = sum(task.key in trained for task in test)
        return count, count / len(test) if test else 0.0

    def to_json(self) -> str:
        """Return the manifest as JSON, each task as ``[seed, key]``."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            EnvError: the text is not a manifest.
        """
        try:
            raw = json.loads(text)
            raw["splits"] = {name: _tasks(entries) for name, entries in raw["splits"].items()}
            raw["seeds"] = tuple(raw["seeds"])
            if missing := {field.name for field in dataclasses.fields(cls)} - raw.keys():
                raise KeyError(*sorted(missing))
            manifest = cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EnvError(
                f"not a splits manifest: {type(error).__name__}: {error}; remove it to cut the tasks again"
            ) from None
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Refuse what :func:`build_splits` would not have written; nothing is guessed.

        Raises:
            EnvError: a field of another type, a split missing or unknown, or a task in two splits.
        """
        wanted: Mapping[str, type] = {
            "env": str, "kwargs": dict, "packages": dict, "rules_sha256": str, "salt": str, "distinct": int
        }  # fmt: skip
        for name, kind in wanted.items():
            if not isinstance(value := getattr(self, name), kind) or isinstance(value, bool):
                raise EnvError(f"not a splits manifest: {name} is {value!r:.60}, wanted {kind.__name__}")
        if len(self.seeds) != 2 or not all(type(seed) is int for seed in self.seeds):
            raise EnvError(f"not a splits manifest: seeds is {list(self.seeds)!r:.60}, wanted two whole numbers")
        if self.protocol not in get_args(Protocol):
            raise EnvError(f"not a splits manifest: protocol is {self.protocol!r}, wanted one of {get_args(Protocol)}")
        names = (SHARED,) if self.shared else SPLITS
        for name in (*self.splits, *names):
            if name not in names or name not in self.splits:
                trouble = "lacks the split" if name in names else "has an unknown split"
                raise EnvError(f"not a splits manifest: it {trouble} {name!r}; wanted {', '.join(names)}")
        owner: dict[str, str] = {}
        for name, tasks in self.splits.items() if self.protocol == "disjoint" else ():
            for task in tasks:
                if owner.setdefault(task.key, name) != name:
                    raise EnvError(f"task {task.key} (seed {task.seed}) is in {owner[task.key]!r} and in {name!r}")

    def save(self, path: str | Path) -> None:
        """Write the manifest to a file."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest file.

        Raises:
            EnvError: the file cannot be read or is not a manifest.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise EnvError(f"cannot read splits {str(path)!r}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise EnvError(f"{path} is no splits manifest: it is not UTF-8 text") from None
        except EnvError as error:
            raise EnvError(f"{path}: {error}") from None
        except ValueError as error:  # a name that no file can have
            raise EnvError(f"cannot read splits {str(path)!r}: {error}") from None


def _tasks(entries: Any) -> list[Task]:
    if not isinstance(entries, list):
        raise TypeError(f"a split is {entries!r:.60}, wanted a list")
    return [_task(entry) for entry in entries]


def _task(entry: Any) -> Task:
    seed, key = entry
    if type(seed) is not int or seed < 0 or not isinstance(key, str):
        raise ValueError(f"a task is [seed, key], a whole number and a text, got {entry!r:.60}")
    return Task(seed, key)


def versions(packages: Iterable[str]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in sorted(set(packages)):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
