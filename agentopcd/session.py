"""What every verb opens: the workspace's store, the environment with its splits, and a model that plays it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.chat import ApiChat, Chat
from agentopcd.config import PlayerConfig
from agentopcd.envs.splits import Manifest, build_splits
from agentopcd.errors import ConfigError, StoreError
from agentopcd.knowledge import TEMPLATE_VERSION, Store, check_leaks, setup_id
from agentopcd.ranks import launched
from agentopcd.rollouts import Game, Player
from agentopcd.sampling import vllm_engine
from agentopcd.sampling.transformers_engine import TransformersSampler
from agentopcd.types import SPLITS, Context, Episode, Job, Placement, Task

DEFAULT_MODEL = "smollm2-135m"
"""For environments that name no model of their own."""

YOUNGER = ("keep_checkpoints", "mix")
"""Settings that came after the first workspaces; each is false or 0 where it is not used."""

Progress = Callable[[str, Iterable[Episode], int], Iterable[Episode]]
"""Shows how far an iteration is: (label, items, how many there will be) → the same items."""


def no_progress(label: str, items: Iterable[Episode], total: int) -> Iterable[Episode]:
    return items


def game_of(config: PlayerConfig) -> Game:
    """The environment of these settings, and how it is shown and cut off."""
    return Game(
        ref=config.env,
        kwargs=config.env_args,
        rules=config.rules,
        max_steps=config.max_steps,
        history=config.history,
        constrain=config.constrain,
    )


def engine_of(config: PlayerConfig, loaded: models.LoadedModel) -> tuple[str, str]:
    """The engine that samples from ``loaded``, and why it was taken.

    Raises:
        ConfigError: vLLM or servers are wanted in several processes: the one would set up its own group of them, the
            others would get weights from each of them.
    """
    several = launched() > 1
    engine = "server" if config.server and config.engine == "auto" else config.engine
    if engine in ("vllm", "server", "api") and several:
        raise ConfigError(f"--engine {engine} with {launched()} processes is not supported; take --engine transformers")
    if engine != "auto":
        return engine, config.server if config.server else "as given"
    device = next(loaded.model.parameters()).device.type
    if device != "cuda":
        return "transformers", "no GPU"
    if several or not vllm_engine.installed():
        return "transformers", "several processes" if several else "vLLM is not installed"
    kind = type(loaded.model).__name__
    try:
        return ("vllm", "installed") if vllm_engine.supports(kind) else ("transformers", f"vLLM does not know {kind}")
    except (ImportError, OSError) as error:
        return "transformers", f"vLLM cannot be imported: {error}"


def player_of(config: PlayerConfig, loaded: models.LoadedModel, compute: Any) -> Player:
    """A player of the environment of these settings whose replies come from ``loaded``."""
    engine = engine_of(config, loaded)[0]
    chat = ApiChat(config.template_args) if engine == "api" else Chat(loaded.tokenizer, config.template_args)
    make: Any = vllm_engine.sampler_of if engine == "vllm" else TransformersSampler
    if engine == "server":
        from agentopcd.sampling import vllm_server

        make = functools.partial(vllm_server.sampler_of, urls=config.servers)
    elif engine == "api":
        from agentopcd.sampling import chat_api

        make = functools.partial(chat_api.ApiSampler, urls=config.servers, template_args=config.template_args)
    return Player(
        game=game_of(config),
        sampler=make(loaded, compute=compute, batch_size=config.sample_batch),
        chat=chat,
        sampling=config.sampling,
        seed=config.seed,
    )


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
        self.resumed_model = ""
        self.game = game_of(config)
        self.env = self.game.label
        self.store = Store.open(work / "store.db")
        self.env_errors: list[str] = []
        """Tracebacks of the episodes that the environment broke in spite of retries."""
        self.manifest = self._manifest()
        if self.manifest.protocol != "disjoint":
            why = {"shared": "too few tasks to split", "paper": "the paper's own seeds"}[self.manifest.protocol]
            self.say(f"note: {why}: tasks are selected, confirmed, trained and reported on without being held out")
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
        if self.resumed_model:
            return self.resumed_model, "as when this command was given first"
        if newest := self.newest_student():
            return newest, "the newest student of this workspace for this environment"
        return self.default_model, "the built-in model; no student of this environment yet"

    @property
    def default_model(self) -> str:
        """The built-in model for this environment."""
        return self.game.spec.model or DEFAULT_MODEL

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
        if self.config.engine == "api":
            loaded = models.behind_api(name)
            self.store.add_model(loaded.id, name)
            return loaded
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
        engine, why = engine_of(self.config, loaded)
        line = f"engine: {engine} ({why})"
        if line not in self.notes:
            self.notes.add(line)
            self.say(line)
        return player_of(self.config, loaded, self.compute)

    def setup(self, player: Player | None = None) -> str:
        """Hash of all that changes play besides model, context and task."""
        return setup_id((player or self.player).setup() | {"packages": dict(self.manifest.packages)})

    def plays(self, label: str, player: Player | None = None) -> Callable[[Sequence[Job]], Iterator[Episode]]:
        """The hook that scoring and evaluation call with the jobs they lack."""

        def play(jobs: Sequence[Job]) -> Iterator[Episode]:
            before = len(self.env_errors)
            for episode in self.progress(label, (player or self.player).play(jobs), len(jobs)):
                if episode.stop_reason == "env_error":
                    self.env_errors.append(episode.error or "")
                yield episode
            if broken := self.env_errors[before:]:
                last = broken[0].strip().splitlines()[-1]
                self.say(f"warning: {len(broken)} of {len(jobs)} episodes broke off ({last}); not counted")

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
            try:
                text = Path(name).read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise ConfigError(f"context file {name!r} is not UTF-8 text ({error})") from error
            if not text:
                raise ConfigError(f"context file {name!r} is empty; write the context into it")
            context = Context(text, placement)
            self.store.add_context(context, {"order": "file", "file": name})
            return context, True
        try:
            return self.store.get_context(self.store.resolve(name)), False
        except StoreError as error:
            raise StoreError(f"{error} (and there is no file {name!r})") from error

    def confirmed(self, context: Context) -> bool:
        """Whether this context ever passed the confirm gate for this environment, whatever the model."""
        moves = [m for m in self.store.log(f"{self.env}/best") if m["context_id"] == context.id]
        passed = [m for m in moves if m["actor"] == "confirm"]
        runs = {m["run_id"] for m in passed} - {None}
        with_whom = {json.loads(self.store.run(run)["config"]).get("model_id") for run in runs}
        if with_whom and self.loaded.id not in with_whom:
            self.say(f"note: context {context.id[:12]} passed the confirm gate with another model than this student")
        return bool(passed)

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
        found = self.unfinished(verb, **facts)
        if found is not None:
            self.say(f"resuming {verb} run {found}")
            return found
        return self.store.start(verb, self._identity(facts), self.config.seed)

    def unfinished(self, verb: str, **facts: Any) -> int | None:
        """The run of the same settings and model that has not ended, if there is one."""
        return self.store.find_run(verb, self._identity(facts))

    def forget_model(self) -> None:
        """Load the model afresh on its next use."""
        for name in ("loaded", "player"):
            self.__dict__.pop(name, None)

    def finished(self, verb: str, **facts: Any) -> int | None:
        """The finished run of the same settings and model, if there is one."""
        return self.store.find_run(verb, self._identity(facts), status="done")

    def finish(self, run_id: int, result: dict[str, Any]) -> None:
        """Close a run with its conclusions and what the environment broke."""
        broken = {"env_errors": len(self.env_errors), "env_error_samples": self.env_errors[:3]}
        self.store.finish(run_id, result | broken)

    def started_from(self, verb: str, context_id: str | None) -> str | None:
        """The model that a run of these very settings on this context (None: on any) started from, finished or not.

        Without ``--model`` a repeated command would else take the student that its first call has made.
        """
        wanted = run_config(self.config) | {"env": self.env}
        wanted |= {} if context_id is None else {"context_id": context_id}
        rows = self.store.query("SELECT config FROM run WHERE verb = ? ORDER BY id", (verb,))
        for config in (json.loads(row["config"]) for row in rows):
            if all(config.get(name) == value for name, value in wanted.items()):
                model = self.store.lookup("model", id=config["model_id"])
                return model["path"] if model else None
        return None

    def resume_model(self, verb: str, context_id: str | None = None) -> None:
        """Take the model that this command started from when it was given first, if it was."""
        if not self.config.model and "loaded" not in self.__dict__:
            self.resumed_model = self.started_from(verb, context_id) or ""

    def result(self, run_id: int) -> dict[str, Any] | None:
        """What a run concluded, or None while it is unfinished."""
        row = self.store.run(run_id)
        return json.loads(row["result"]) if row["status"] == "done" and row["result"] else None

    def _identity(self, facts: dict[str, Any]) -> dict[str, Any]:
        kind = "single" if self.game.step_limit == 1 else "game"
        own = {"env": self.env, "model_id": self.loaded.id, "kind": kind, "template": TEMPLATE_VERSION}
        return run_config(self.config) | own | facts


def stage(session: Session, verb: str, **facts: Any) -> int:
    """The run row of one stage of a longer job: an unfinished or finished one of the same settings, else a new one."""
    done = session.finished(verb, **facts)
    return session.begin(verb, **facts) if done is None else done


def run_config(config: PlayerConfig) -> dict[str, Any]:
    """Settings as JSON, with the environment's own name kept apart from the label that replaces it.

    Without the address of a server, since a run goes on at another one, and without :data:`YOUNGER` settings that are
    not used, so that runs of an older version go on.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config))) | {"env_ref": config.env}
    return {name: value for name, value in settings.items() if name != "server" and (value or name not in YOUNGER)}
