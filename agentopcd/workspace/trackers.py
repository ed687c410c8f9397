"""The figures of a training in another program's record as well: trackio, wandb, TensorBoard or MLflow.

Accelerate's trackers write them. The log of a run, ``metrics.jsonl``, stays what counts: a tracker is sent what it
lacks of it, so a run that was killed, or was begun without one, goes on in one record that has every step once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentopcd.core.errors import ConfigError, DependencyError
from agentopcd.core.runs import Run, read_json, write_json
from agentopcd.core.terminal import without_password
from agentopcd.core.text import first_line

PROJECT = "agentopcd"
"""The project, or experiment, of every run."""
BOARDS = "tensorboard"
"""The folder of a workspace that TensorBoard shows: ``tensorboard --logdir WORK/tensorboard``."""


def check_tracker(name: str) -> None:
    """Refuse, before anything is played, a tracker that cannot be written to.

    Raises:
        DependencyError: its package is not installed.
        ConfigError: wandb has no key, and would ask for one in the middle.
    """
    if not name:
        return
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a mere folder of this name, as wandb leaves one, is no package
        raise DependencyError(f"--track {name} needs the package {name}; install it: pip install 'agentopcd[{name}]'")
    if name == "wandb":
        import wandb

        sends = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
        if sends and not wandb.login(prompt=False):
            raise ConfigError("--track wandb has no key; run `wandb login`, or set WANDB_MODE=offline")


@contextlib.contextmanager
def tracking(run: Run, name: str, settings: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Tracking]:
    """Send what ``run`` logs in this block to tracker ``name``; '': to none."""
    followed = Tracking(run, name, settings, say)
    run.follower = followed.take if name else None
    try:
        yield followed
    finally:
        run.follower = None
        followed.close()


class Tracking:
    """One run in one tracker's record.

    A tracker never ends a run: what goes wrong in it is told once, and then it is left alone.

    Args:
        run: the run whose log is sent.
        name: the tracker; '': none.
        settings: what the record says of the run.
        say: takes the warning.
    """

    def __init__(self, run: Run, name: str, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.run, self.name, self.say = run, name, say
        self.settings = plain_settings(settings)
        self._record: Record | None = None
        self._off = not name

    def take(self, record: Mapping[str, Any]) -> None:
        """Send a record that was just logged; the first time, all that the tracker lacks."""
        if self._record is None:
            self._safely(self._open)  # the log holds this record already
        else:
            self._safely(self._record.log, figures(record), record["step"])

    def finish(self, summary: Mapping[str, float]) -> None:
        """Send the figures of the final table, with what the tracker still lacks; once for each run."""
        self._safely(self._finish, summary)

    def close(self) -> None:
        """End the record, whether the run has ended or goes on later; also one that takes no more figures, because the
        libraries begin no other before."""
        if self._record is None:
            return
        if self._off:
            with contextlib.suppress(Exception):
                self._record.tracker.finish()
        else:
            self._safely(self._record.tracker.finish)

    def _open(self) -> None:
        record = RECORDS[self.name](self.run, self.settings)
        self._record = record  # from here on it is closed, too
        for entry in self.run.records():
            if (step := entry.get("step", 0)) > record.held:
                record.log(figures(entry), step)

    def _finish(self, summary: Mapping[str, float]) -> None:
        if self._record is None:
            self._open()
        assert self._record is not None
        last = max((entry.get("step", 0) for entry in self.run.records()), default=0)
        self._record.finish(summary, last)

    def _safely(self, act: Callable[..., None], *arguments: Any) -> None:
        if self._off:
            return
        try:
            act(*arguments)
        except Exception as error:  # the libraries raise whatever they like
            self._off = True
            why = without_password(first_line(error, type(error).__name__))
            self.say(
                f"warning: {self.name} takes no more figures ({why}); the run goes on, and {self.run.metrics_file} has "
                "them: the same command sends them later"
            )


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of ``metrics.jsonl``, by name; the step is where they stand and is left out."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
    return {name: float(value) for name, value in numbers.items()}


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a flat table of numbers and text, without passwords."""
    flat = {}
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        flat[name] = value if isinstance(value, bool | int | float) or value is None else without_password(text)
    return flat


def summary(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a table (:meth:`agentopcd.workspace.evaluation.table.Evaluation.to_dict`), by name."""
    out: dict[str, float] = {}

    def add(name: str, given: Any) -> None:
        if isinstance(given, Mapping):
            for part, value in given.items():
                add(f"{name}/{part}", value)
        elif isinstance(given, int | float):
            out[name] = float(given)

    for row in evaluation["rows"]:
        add(f"test/{row['label']}", row)
    for name, difference in evaluation["differences"].items():
        add(f"test/{name}", difference)
    add("test/recovered", evaluation["recovered"])
    add("test/floors", evaluation["floors"])
    far = evaluation.get("distances") or {"rows": (), "closed": None}
    for row in far["rows"]:
        add(f"test/{row['label']}", row)
    add("test/distance_closed", far["closed"])
    return out


class Record:
    """A run in a tracker. A subclass begins it, or finds it again.

    Args:
        run: the run.
        settings: see :func:`plain_settings`.
    """

    def __init__(self, run: Run, settings: Mapping[str, Any]) -> None:
        self.run, self.file = run, run.folder / "tracking.json"
        self.held = -1
        """The last step that the tracker has."""
        self._started: Any = None
        try:
            self.tracker = self.begin(dict(settings))
        except BaseException:
            if self._started is not None:
                with contextlib.suppress(Exception):
                    self._started.finish()
            raise

    def begin(self, settings: dict[str, Any]) -> Any:
        """Start or resume the record; sets ``held`` and returns the tracker of accelerate."""
        raise NotImplementedError

    def started(self, tracker: Any) -> Any:
        from accelerate import PartialState

        PartialState()  # accelerate's log wants it; where several processes train, Ranks has made it
        self._started = tracker
        tracker.start()
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], step: int) -> None:
        """Send the figures of the final table, unless an earlier call has sent them to this record."""
        name, sent = type(self).__name__, self.noted().get("finished", [])
        if self.held < 0 or name not in sent:  # an empty record is another one than that of the earlier call
            self.log(summary, step)
            self.note(finished=sorted({*sent, name}))

    def note(self, **facts: Any) -> None:
        """Keep facts about this record in the run's folder."""
        write_json(self.file, self.noted() | facts)

    def noted(self) -> dict[str, Any]:
        found = read_json(self.file, "remove it") if self.file.is_file() else {}
        return found if isinstance(found, dict) else {}

    def name(self) -> str:
        """The record's name: the run's folder, and what tells it from the same run in another workspace."""
        noted = self.noted()
        if not isinstance(noted.get("name"), str):
            self.note(name=f"{self.run.folder.name}-{uuid.uuid4().hex[:8]}")
            noted = self.noted()
        return noted["name"]


class Trackio(Record):
    """Trackio keeps runs by name, on this machine unless its environment variables name a Space or a server."""

    def begin(self, settings: dict[str, Any]) -> Any:
        from accelerate.tracking import TrackioTracker

        tracker = self.started(
            TrackioTracker(
                PROJECT, name=self.name(), resume="allow", config=settings, embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )
        )  # fmt: skip
        self.held = tracker.run._next_step - 1  # where trackio itself would go on
        return tracker


class Wandb(Record):
    """Wandb keeps runs by id. Offline it cannot look up what it has, and a kill loses what it had not written yet.

    So the folders that earlier processes left offline are replaced by one with everything, unless they were synced.
    """

    def begin(self, settings: dict[str, Any]) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        name, place = self.name(), Path(wandb.setup().settings.wandb_dir)
        folders = list(place.glob(f"offline-run-*-{name}"))
        synced = [folder for folder in folders if any(folder.glob("*.synced"))]
        for folder in folders if not synced else ():
            shutil.rmtree(folder, ignore_errors=True)
        tracker = self.started(WandBTracker(PROJECT, id=name, name=name, resume="allow", config=settings))
        if tracker.run.resumed:
            self.held = tracker.run.step - 1
        elif synced:
            self.held = self.noted().get("wandb_step", -1)
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        super().log(values, step)
        self.note(wandb_step=step)

    def finish(self, summary: Mapping[str, float], step: int) -> None:
        self.tracker.run.summary.update(dict(summary))


class TensorBoard(Record):
    """TensorBoard's files are written anew from the log whenever a run goes on, so that no step is there twice."""

    def begin(self, settings: dict[str, Any]) -> Any:
        from accelerate.tracking import TensorBoardTracker

        boards, name = self.run.folder.parent.parent / BOARDS, self.run.folder.name
        shutil.rmtree(boards / name, ignore_errors=True)
        tracker = self.started(TensorBoardTracker(name, boards))
        tracker.log({"settings": json.dumps(settings, indent=1)}, step=0)
        return tracker

    def finish(self, summary: Mapping[str, float], step: int) -> None:
        self.log(summary, step)


class MLflow(Record):
    """MLflow gives a run its id, which is noted in the run's folder; another server makes a new one."""

    def begin(self, settings: dict[str, Any]) -> Any:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7, its own default, hold a step up for minutes
        import mlflow
        from accelerate.tracking import MLflowTracker

        client, id_ = mlflow.MlflowClient(), self.noted().get("mlflow_run")
        if id_ is not None and not self._is_there(client, id_):
            id_ = None
        tracker = self.started(MLflowTracker(PROJECT, run_id=id_, run_name=self.name()))
        if id_ is None:
            tracker.store_init_configuration(settings)
            self.note(mlflow_run=tracker.active_run.info.run_id)
        else:
            self.held = max((int(point.step) for point in client.get_metric_history(id_, "step")), default=-1)
        return tracker

    def _is_there(self, client: Any, id_: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return client.get_run(id_).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def log(self, values: Mapping[str, float], step: int) -> None:
        names = {name: re.sub(r"[^\w\-. :/]", "_", name) for name in values}  # an environment names its own figures
        super().log({names[name]: value for name, value in values.items()} | {"step": step}, step)


RECORDS: Mapping[str, type[Record]] = {
    "trackio": Trackio, "wandb": Wandb, "tensorboard": TensorBoard, "mlflow": MLflow,
}  # fmt: skip
