"""What every verb opens: the workspace's store, the environment with its splits, and a model that plays it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.chat import Chat
from agentopcd.config import PlayerConfig
from agentopcd.envs.splits import Manifest, build_splits
from agentopcd.errors import ConfigError
from agentopcd.knowledge import TEMPLATE_VERSION, Store, check_leaks, setup_id
from agentopcd.rollouts import Game, Player
from agentopcd.sampling.transformers import TransformersSampler
from agentopcd.types import SPLITS, Context, Episode, Job, Placement, Task

DEFAULT_MODEL = "smollm2-135m"

Progress = Callable[[str, Iterable[Episode], int], Iterable[Episode]]
"""Shows how far an iteration is: (label, items, how many there will be) → the same items."""


def no_progress(label: str, items: Iterable[Episode], total: int) -> Iterable[Episode]:
    return items


class Session:
    """One verb at work on one environment.

    Args:
        config: the verb's settings.
        work: the workspace folder.
        say: takes lines for people.
        progress: shows progress bars.

    The model is loaded on first use, so that a plan can be printed without it.
    """

    def __init__(
        self,
        config: PlayerConfig,
        work: Path,
        *,
        say: Callable[[str], None] = print,
        progress: Progress = no_progress,
    ) -> None:
        self.config, self.work, self.say, self.progress = config, work, say, progress
        self.notes: set[str] = set()
        self.game = Game(
            ref=config.env, kwargs=config.env_args, rules=config.rules,
            max_steps=config.max_steps, history=config.history,
        )  # fmt: skip
        self.env = self.game.label
        self.store = Store.open(work / "store.db")
        self.manifest = self._manifest()
        self._register_tasks()

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- model --------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> Any:
        return models.pick_device(self.config.device)

    @cached_property
    def compute(self) -> Any:
        return models.pick_compute(self.config.compute, self.device)

    def model_name(self) -> tuple[str, str]:
        """The model's name and why it was taken."""
        if self.config.model:
            return self.config.model, "as given"
        if newest := self.newest_student():
            return newest, "the newest student of this workspace for this environment"
        return DEFAULT_MODEL, "the built-in model; no student of this environment yet"

    def newest_student(self) -> str | None:
        rows = self.store.models(self.env, trained=True)
        return next((row["path"] for row in rows if row["path"] and Path(row["path"]).is_dir()), None)

    @cached_property
    def loaded(self) -> models.LoadedModel:
        name, why = self.model_name()
        self.say(f"model: {name} ({why})")
        return self.load(name)

    def load(self, name: str) -> models.LoadedModel:
        """Load a model and register it in the store."""
        loaded = models.load_model(name, device=self.device)
        if loaded.note and loaded.note not in self.notes:
            self.notes.add(loaded.note)
            self.say(f"note: {loaded.note}")
        self.register(loaded)
        return loaded

    def register(self, loaded: models.LoadedModel) -> None:
        self.store.add_model(loaded.id, loaded.name, str(loaded.folder), None)

    @cached_property
    def player(self) -> Player:
        return self.player_for(self.loaded)

    def player_for(self, loaded: models.LoadedModel) -> Player:
        """A player of this environment whose replies come from ``loaded``."""
        return Player(
            game=self.game,
            sampler=TransformersSampler(loaded, compute=self.compute, batch_size=self.config.sample_batch),
            chat=Chat(loaded.tokenizer, self.config.template_args),
            sampling=self.config.sampling,
            seed=self.config.seed,
        )

    def setup(self, player: Player | None = None) -> str:
        """Hash of all that changes play besides model, context and task."""
        return setup_id((player or self.player).setup() | {"packages": dict(self.manifest.packages)})

    def plays(self, label: str, player: Player | None = None) -> Callable[[Sequence[Job]], Iterator[Episode]]:
        """The hook that scoring and evaluation call with the jobs they lack."""

        def play(jobs: Sequence[Job]) -> Iterator[Episode]:
            errors = 0
            for episode in self.progress(label, (player or self.player).play(jobs), len(jobs)):
                errors += episode.stop_reason == "env_error"
                yield episode
            if errors:
                self.say(f"warning: the environment broke {errors} of {len(jobs)} episodes; they count for nothing")

        return play

    # -- tasks --------------------------------------------------------------------------------------

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """The first ``n`` tasks of a split (all of them when there are fewer)."""
        tasks = self.manifest.tasks(split)
        return tasks if n is None else tasks[:n]

    def _manifest(self) -> Manifest:
        """The splits: a given file, else those this workspace made when it first met the environment."""
        if self.config.splits:
            manifest = Manifest.load(Path(self.config.splits))
            if (manifest.env, dict(manifest.kwargs)) != (self.game.ref, dict(self.game.kwargs)):
                raise ConfigError(
                    f"{self.config.splits} holds the splits of {manifest.env} {dict(manifest.kwargs)}, wanted "
                    f"{self.game.ref} {dict(self.game.kwargs)}; make them with `agentopcd envs splits`"
                )
            return manifest
        name = hashlib.sha256(self.env.encode()).hexdigest()[:12]
        file = self.work / "splits" / f"{name}.json"
        if file.is_file():
            return Manifest.load(file)
        manifest = build_splits(self.game.ref, self.game.kwargs)
        file.parent.mkdir(exist_ok=True)
        manifest.save(file)
        return manifest

    def _register_tasks(self) -> None:
        """Every task gets its split before anything is played; a key that sat elsewhere raises TaskLeak."""
        with self.store.write():
            for split in SPLITS:
                own = "shared" if self.manifest.protocol != "disjoint" else split
                self.store.add_tasks(self.env, self.manifest.tasks(split), own)

    # -- contexts -----------------------------------------------------------------------------------

    def context(self, name: str, placement: Placement = "user") -> tuple[Context, bool]:
        """A context by file, ref or id, and whether a person gave it as a file.

        Raises:
            ConfigError: an empty file, or neither a file nor a name in the store.
        """
        if Path(name).is_file():
            text = Path(name).read_text().strip()
            if not text:
                raise ConfigError(f"context file {name!r} is empty; write the context into it")
            context = Context(text, placement)
            self.store.add_context(context, {"order": "file", "file": name})
            return context, True
        return self.store.get_context(self.store.resolve(name)), False

    def confirmed(self, context: Context) -> bool:
        """Whether this context ever passed the confirm gate for this environment."""
        moves = self.store.log(f"{self.env}/best")
        return any(move["context_id"] == context.id and move["actor"] == "confirm" for move in moves)

    def check_handover(self, context: Context) -> None:
        """The gate before training: no leak, no item that is pending or retired.

        Raises:
            TaskLeak: an item came from a held-out task.
            ConfigError: an item waits for a person, or was retired.
        """
        check_leaks(self.store, context.id)
        if blocked := self.store.blocked(context.id):
            raise ConfigError(
                f"item {blocked[0].id[:12]} of context {context.id[:12]} is {blocked[0].status} "
                f"({len(blocked)} such items); approve or leave it out before training"
            )

    # -- runs ---------------------------------------------------------------------------------------

    def begin(self, verb: str, **facts: Any) -> int:
        """The run row of this verb: the unfinished one of the same settings and model, else a new one."""
        config = self._identity(facts)
        found = self.store.find_run(verb, config)
        if found is not None:
            self.say(f"resuming {verb} run {found}")
            return found
        return self.store.start(verb, config, self.config.seed)

    def finished(self, verb: str, **facts: Any) -> int | None:
        """The finished run of the same settings and model, if there is one."""
        return self.store.find_run(verb, self._identity(facts), status="done")

    def result(self, run_id: int) -> dict[str, Any] | None:
        """What a run concluded, or None while it is unfinished."""
        row = self.store.run(run_id)
        return json.loads(row["result"]) if row["status"] == "done" and row["result"] else None

    def _identity(self, facts: dict[str, Any]) -> dict[str, Any]:
        kind = "single" if self.game.step_limit == 1 else "game"
        own = {"env": self.env, "model_id": self.loaded.id, "kind": kind, "template": TEMPLATE_VERSION}
        return run_config(self.config) | own | facts


def run_config(config: PlayerConfig) -> dict[str, Any]:
    """Settings as JSON, with the environment's own name kept apart from the label that replaces it."""
    return json.loads(json.dumps(dataclasses.asdict(config))) | {"env_ref": config.env}
