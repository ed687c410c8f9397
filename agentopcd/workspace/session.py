"""The session that every verb opens: the workspace's store, an environment with its splits, and a model to play it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.config import PlayerConfig
from agentopcd.core.errors import ConfigError, GameFault
from agentopcd.core.files import path_of
from agentopcd.core.runs import kept, writing
from agentopcd.core.text import first_line
from agentopcd.core.types import SPLITS, Context, Episode, Job, Placement, Task
from agentopcd.envs.chats.rows import raw_rows, stamps
from agentopcd.envs.manifest import Manifest
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.envs.splits import build_splits, hashed_splits
from agentopcd.knowledge import USEFUL, Bench, Store, home, setup_id
from agentopcd.knowledge.extract import Kind
from agentopcd.knowledge.students import student_ref
from agentopcd.models.process import give_back_memory
from agentopcd.rollouts.engine import check_engine, engine_of, game_of, player_of
from agentopcd.rollouts.fault_log import fault_log
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.unread import Unread
from agentopcd.workspace.day import day_of
from agentopcd.workspace.extraction import Extraction
from agentopcd.workspace.handover import check_handover
from agentopcd.workspace.ledger import Ledger
from agentopcd.workspace.named import context_named, model_named
from agentopcd.workspace.paths import existing, inside, playing, student_folder
from agentopcd.workspace.recorded import open_recording, recording_of

DEFAULT_MODEL = "smollm2-135m"
"""The model for environments that name none."""


class Session:
    """What one verb works on: a store, an environment with its splits, and a model that plays it.

    The model is loaded on first use, so that a plan can be printed without it.

    Args:
        config: the verb's settings.
        work: the workspace folder.
        say: takes lines for people.
        progress: shows progress bars.
        snapshot: of an environment that is a recording, which copy to read; '': see
            :func:`agentopcd.workspace.recorded.open_recording`.
        by: what is compared, where the verb's settings do not say it; '': the environment's choice.
    """

    def __init__(
        self, config: PlayerConfig, work: str | Path, *, say: Callable[[str], None] = print,
        progress: Progress = no_progress, snapshot: str = "", by: str = "",
    ) -> None:  # fmt: skip
        self.config, self.work, self.say, self.progress = config, path_of(work), say, progress
        self._by = getattr(config, "by", "") or by
        self.store = Store.open(self.work / "store.db")
        self.recording = recording_of(config.env)
        self.snapshot = open_recording(self.store, self.work, config, snapshot) if self.recording else ""
        self.game = game_of(config)
        self.env = self.game.label
        self.kind: Kind = "single" if self.game.step_limit == 1 else "game"
        self.extraction = Extraction.of(config)
        self.ledger = Ledger(
            store=self.store, config=config, env=self.env, kind=self.kind, work=self.work,
            model_id=lambda: self.loaded.id, say=say, shortcuts=self._shortcuts_found, extraction=self.extraction.facts,
            snapshot=self.snapshot,
        )  # fmt: skip
        self.ledger.settle()
        self._model: models.LoadedModel | None = None
        self._player: Player | None = None
        self._resumed_model = ""
        self._said: set[str] = set()
        self._shortcuts: dict[str, models.Shortcuts] = {}
        self.manifest = self._manifest()
        if self.manifest.protocol != "disjoint":
            why = {"shared": "too few tasks to split", "paper": "the paper's own seeds"}[self.manifest.protocol]
            self.say(f"note: {why}: tasks are selected, confirmed, trained and reported on without being held out")
        self._register_tasks()

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # not a person's Ctrl-C: that run is unfinished, not failed
            with contextlib.suppress(Exception):  # the store itself may be what failed
                self.ledger.fail(first_line(error, type(error).__name__))
        self.close()

    # -- model --------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        return models.pick_device(self.config.device)

    @cached_property
    def compute(self) -> torch.dtype:
        return models.pick_compute(self.config.compute, self.device)

    def model_name(self) -> tuple[str, str]:
        """The model's name, and the reason for the choice.

        Raises:
            ConfigError: it is ENV/student, which is gone.
        """
        if self._resumed_model:
            return self._resumed_model, "as when this command was given first"
        if self.config.model:
            return self.named(self.config.model), "as given"
        if (current := playing(self.store, self.work, self.env)) is not None:
            return current, f"{student_ref(self.env)}, the student of this workspace for this environment"
        return self.default_model, "the built-in model; no student of this environment yet"

    def named(self, name: str) -> str:
        """The name to load a model by: of ENV/student, its folder."""
        return student_folder(self.store, self.work, name) or name

    @property
    def default_model(self) -> str:
        """The built-in model for this environment."""
        return self.game.spec.model or DEFAULT_MODEL

    def newest_student(self) -> str | None:
        """The folder of the newest student of this environment that still exists, if there is one."""
        newest, gone = existing(self.store, self.work, [row["id"] for row in self.store.models(self.env, trained=True)])
        if gone:
            self.say_once(f"warning: newer students of this environment are missing: {', '.join(gone)}")
        return newest

    @property
    def may_resume(self) -> bool:
        """Whether the model may be that of an earlier call of this command: none is loaded, and none named for good."""
        return self._model is None and (not self.config.model or self.named(self.config.model) != self.config.model)

    def resume_model(self, verb: str, context_id: str) -> None:
        """Take the model that this command started from when it was first given, if it was given before."""
        if self.may_resume:
            self._resumed_model = self.ledger.started_from(verb, context_id) or ""

    @property
    def loaded(self) -> models.LoadedModel:
        """The model that plays, loaded on first use."""
        if self._model is None:
            name, why = self.model_name()
            self.say(f"model: {name} ({why})")
            self._model = self.load(name)
        return self._model

    def check(self, *others: str) -> None:
        """Refuse what would be refused later, as far as it shows without loading a model; for a plan.

        Args:
            others: names of the models that are needed besides the one that plays.

        Raises:
            AgentOpcdError: a device, an engine, a server or a model is not there, or of no use.
        """
        _ = self.compute  # a device that is not there is refused here
        check_engine(self.config)
        names = (self.model_name()[0], *others) if self.config.engine != "api" else ()
        for not_here in (*(models.check_files(name) for name in names if name), self.extraction.check()):
            if not_here:
                self.say(f"note: {not_here}")

    def use(self, model: models.LoadedModel | None) -> None:
        """Play with ``model`` from now on; None: load a model again on the next use."""
        self._model, self._player = model, None
        if model is None:
            give_back_memory()  # a training has left more than the next model takes

    def load(self, name: str, *, engine: str = "") -> models.LoadedModel:
        """Load a model and register it in the store.

        Args:
            engine: what samples its replies; '': the engine of the settings.
        """
        if (engine or self.config.engine) == "api":
            loaded = models.behind_api(name)
            self.store.add_model(loaded.id, name)
            return loaded
        name = self.named(name)
        loaded = model_named(self.store, self.work, name, self.device)
        if loaded.note:
            self.say_once(f"note: {loaded.note}")
        self._shortcuts[loaded.id] = models.shortcuts_of(loaded.model)
        if name not in (self.config.model, getattr(self.config, "student", ""), getattr(self.config, "extractor", "")):
            self._refuse_changed(loaded)
        return loaded

    def _refuse_changed(self, loaded: models.LoadedModel) -> None:
        """Refuse a student of this workspace whose files are no longer those that were trained.

        Raises:
            ConfigError: the files were changed.
        """
        here = self.work / kept(self.work, loaded.folder)
        rows = [row for row in self.store.models() if row["run_id"] and row["path"]]
        trained = {row["id"] for row in rows if inside(self.work, row["path"]) == here}
        if trained and loaded.id not in trained:
            raise ConfigError(
                f"{loaded.name} is not the model that was trained there: its files were changed; put them back, or "
                "name a model with --model"
            )

    def _shortcuts_found(self) -> dict[str, Any]:
        """The shortcuts that each loaded model does without.

        How far each was off is printed and not stored: it is measured again when a killed run goes on, and a run's
        result must not depend on that.
        """
        found = {id_: known.to_dict() for id_, known in self._shortcuts.items()}
        kept = {id_: {name: one[name] for name in ("set_aside", "decoding")} for id_, one in found.items() if one}
        return {id_: one for id_, one in kept.items() if one["set_aside"] or one["decoding"] != "fast"}

    @property
    def player(self) -> Player:
        """A player of this environment with the loaded model."""
        if self._player is None:
            self._player = self.player_for(self.loaded)
        return self._player

    def extractor(self) -> Player:
        """Who answers the extraction prompts. A model that plays, too, is not loaded again; another one is, each time.

        Raises:
            AgentOpcdError: the extractor cannot be loaded.
        """
        own = self.extraction.extractor
        if own is None or (own.engine != "api" and self.extraction.extractor_id == self.loaded.id):
            return self.player
        self.say(f"extractor: {own.model}")
        return self.player_for(self.load(own.model, engine=own.engine), own)

    def player_for(self, loaded: models.LoadedModel, config: PlayerConfig | None = None) -> Player:
        """A player of this environment with replies from ``loaded``, by default with the settings of the session."""
        config = config or self.config
        engine, why = engine_of(config, loaded)
        self.say_once(f"engine: {engine} ({why})")
        player = player_of(config, loaded, self.compute, functools.partial(day_of, self.work), self.say_once)
        if player.chat.says_day:
            self.say_once(f"note: the chat template says what day it is; in this workspace it stays {player.chat.day}")
        return player

    def setup(self, player: Player | None = None) -> str:
        """A hash of everything that affects play besides model, context and task."""
        return setup_id((player or self.player).setup() | {"packages": dict(self.manifest.packages)})

    def bench(self, run_id: int, model: models.LoadedModel | None = None) -> Bench:
        """A bench that tries contexts for a run, with ``model`` or, if None, the loaded model."""
        player = self.player_for(model) if model else self.player
        player = dataclasses.replace(player, faults=fault_log(self.work, self.env, str(run_id)))
        return Bench(
            store=self.store, env=self.env, setup=self.setup(player), model_id=(model or self.loaded).id,
            run_id=run_id, play=functools.partial(self._play, player),
        )  # fmt: skip

    def _play(self, player: Player, label: str, jobs: Sequence[Job]) -> Iterator[Episode]:
        """Play the jobs, show the progress, and record the episodes that the environment breaks."""
        errors = self.ledger.env_errors
        before, unread = len(errors), Unread()
        for episode in self.progress(label, player.play(jobs), len(jobs)):
            if episode.stop_reason == "env_error":
                errors.append(episode.error or "")
            unread.add(episode.turns)
            yield episode
        for line in unread.lines(self.config.max_tokens, graded=self.game.graded):
            self.say(line)
        if broken := errors[before:]:
            last = re.sub(r"^[\w.]*(GameFault|Hang): ", "", broken[0].strip().splitlines()[-1])
            where = f"; in full: {player.faults.file}" if player.faults else ""
            self.say(f"warning: {len(broken)} of {len(jobs)} episodes broke off ({last}); not counted{where}")

    def say_once(self, line: str) -> None:
        """Say a line, unless this session has said it before."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def kind_of(self, episode: Episode) -> Kind:
        """How an episode was played. Of recorded sessions, some have a single reply and some have several."""
        return "single" if self.recording and len(episode.turns) == 1 else self.kind

    # -- tasks --------------------------------------------------------------------------------------

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """The first ``n`` tasks of a split, or all tasks if there are fewer or ``n`` is None."""
        return self.manifest.tasks(split)[:n]

    def needed(self, split: str, n: int | None = None) -> list[Task]:
        """The same, of a split that has to hold some.

        Raises:
            ConfigError: it holds none.
        """
        if tasks := self.tasks(split, n):
            return tasks
        found = f"its {self.manifest.distinct:,} tasks"
        why = (
            f"{found} leave none for it; cut others with `agentopcd envs splits REF -o FILE`, and name them with "
            "--splits in a new workspace (--work)"
        )
        if self.recording:
            why = f"none of {found} fell into that split, which the hash of a task decides; record more sessions"
        raise ConfigError(f"no {split} tasks of {self.env}: {why}")

    def refuse_changed_game(self) -> None:
        """Refuse a game whose first task is no longer that of the splits, before a model is loaded to play it.

        The other tasks are looked at when they are played. A task that the game breaks costs its own episode.

        Raises:
            EnvError: its seed now makes another task.
        """
        with contextlib.suppress(GameFault):
            self.manifest.verify(next(([tasks[0]] for tasks in self.manifest.splits.values() if tasks), []))

    def recorded_rows(self) -> list[Mapping[str, Any]]:
        """The conversations of the snapshot that is read, where the environment is a recording."""
        return [row for _, row in raw_rows(stamps(self.game.spec.kwargs["rows"]))]

    def _manifest(self) -> Manifest:
        """The splits: from the given file, else those that the workspace made when it first met the environment."""
        if self.config.splits:
            manifest = Manifest.load(path_of(self.config.splits))
            if (manifest.env, dict(manifest.kwargs)) != (self.game.ref, dict(self.game.kwargs)):
                raise ConfigError(
                    f"{self.config.splits} holds the splits of {manifest.env} {dict(manifest.kwargs)}, wanted "
                    f"{self.game.ref} {dict(self.game.kwargs)}; make them with `agentopcd envs splits`"
                )
            return manifest
        if self.recording:
            return hashed_splits(self.game.ref, self.game.kwargs)
        file = self.work / "splits" / f"{hashlib.sha256(self.env.encode()).hexdigest()[:12]}.json"
        if file.is_file():
            return Manifest.load(file)
        manifest = build_splits(self.game.ref, self.game.kwargs, progress=self.progress)
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            manifest.save(file)
        return manifest

    def _register_tasks(self) -> None:
        """Record the split of every task before anything is played.

        Raises:
            TaskLeak: a task is already recorded in another split.
        """
        with self.store.write():
            for split in SPLITS:
                recorded = "shared" if self.manifest.protocol != "disjoint" else split
                self.store.add_tasks(self.env, self.manifest.tasks(split), recorded)

    @property
    def by(self) -> str:
        """What contexts and checkpoints are chosen by: success, reward or a metric; a checkpoint also by distance."""
        return self._by or (self.game.spec.judged_by if self.game.graded else "distance")

    @property
    def score(self) -> str:
        """What games are compared by: :attr:`by`, or success where that is a distance."""
        return "success" if self.by == "distance" else self.by

    # -- contexts -----------------------------------------------------------------------------------

    def context(self, name: str, placement: Placement = "user") -> tuple[Context, bool]:
        """See :func:`agentopcd.workspace.named.context_named`."""
        return context_named(self.store, name, placement)

    def confirmed(self, context: Context) -> bool:
        """Whether this store has found this context to be useful in this environment, with any model.

        Only looks count; they come with an import only where a person trusts the file (``--gate keep``).
        """
        looks = [look for look in self.store.looks(self.env, context.id) if look["env"] in (self.env, home(self.env))]
        return any(look["verdict"] in USEFUL for look in looks)  # of a canary, too; not by another grader

    def last_verdict(self, context: Context) -> str:
        """What the last look at this context has shown, in words; '' if nobody has looked."""
        looks = [look for look in self.store.looks(self.env, context.id) if look["verdict"]]
        return f"{looks[-1]['verdict']} (look {looks[-1]['number']})" if looks else ""

    def check_handover(self, context: Context, *, force: bool = False) -> None:
        """The gate before training, see :func:`agentopcd.workspace.handover.check_handover`."""
        check_handover(self.store, self.work, context, force=force)
