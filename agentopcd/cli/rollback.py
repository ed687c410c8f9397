"""``agentopcd rollback``: ENV/student goes back to the student before, or to one that is named."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentopcd.cli.knowledge import WORK, Work, open_store, read_store
from agentopcd.cli.options import DRY_RUN, JSON, Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentopcd.knowledge import Store
    from agentopcd.knowledge.database import Row


def rollback(
    env: Annotated[
        str, typer.Argument(metavar="[ENV]", help="The environment, or ENV/student; needed if several have a student.")
    ] = "",
    to: Annotated[str, typer.Option("--to", metavar="STUDENT", help="A student's folder or id; 'base': none.")] = "",
    work: Work = WORK,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Put ENV/student back to the student before it, or to another one. Nothing is deleted, and it can be taken back.

    ENV/student is the model that plays where no --model is named.

    Example: agentopcd rollback frozen-lake-4x4
    """
    from agentopcd.core.errors import ConfigError
    from agentopcd.knowledge.students import move_student, past_students, student_moves, student_ref
    from agentopcd.workspace.lineage.recorded import forgotten

    call = Call(work, as_json, dry_run)
    with _opened(work, to_read=dry_run) as store:
        name = _env(store, env, trained=bool(to))
        past = past_students(student_moves(store, name))
        now = past[-1] if past else None
        if to:
            target = None if to == "base" else _model(store, work, to, name)
            if target == now:
                raise ConfigError(
                    f"{student_ref(name)} is at {to!r} already; agentopcd status{_flag(work)} lists the others"
                )
        elif now is None and len(past) < 2:
            raise ConfigError(f"{student_ref(name)} has no student before it; name one with --to")
        else:
            target = past[-2] if len(past) > 1 else None
        if target is not None:
            _check_here(store, work, target, name, past)
        if not dry_run:
            move_student(store, name, target, "person" if to else "rollback", f"from {now[:12] if now else 'none'}")
        spoken, held = _spoken(store, target), forgotten(store, target) if target else []
        call.show({"env": name, "from": now, "to": target, **({"forgotten": [one.id for one in held]} if held else {})})
    call.say(f"{'dry run: ' if dry_run else ''}{student_ref(name)}: {_short(now)} -> {spoken}")
    for one in held:
        call.say(f"warning: it has item {one.id[:12]} in its weights, which was to be forgotten: {one.text}")
    if not dry_run:
        back = f"agentopcd rollback {shlex.quote(name)} --to {now[:12] if now else 'base'}{_flag(work)}"
        call.say(f"undo: {back}")
        call.say(f"log: agentopcd knowledge log {shlex.quote(student_ref(name))}{_flag(work)}")


@contextlib.contextmanager
def _opened(work: Path, *, to_read: bool) -> Iterator[Store]:
    with read_store(work) if to_read else open_store(work) as store, store.read() if to_read else store.write():
        yield store


def _env(store: Store, given: str, *, trained: bool) -> str:
    """The environment that is meant.

    Args:
        trained: with a student that is named, environments count whose students never took ENV/student, too.

    Raises:
        ConfigError: it has no student, or several have one and none is named.
    """
    from agentopcd.core.errors import ConfigError, did_you_mean
    from agentopcd.knowledge.refs import home
    from agentopcd.knowledge.students import student_moves

    envs = {move["env"] for move in student_moves(store)}
    if trained:
        envs |= {env for row in store.models(trained=True) if (env := home(_run(store, row).get("env", "")))}
    known = sorted(envs)
    name = home(given.removesuffix("/student"))
    if name in known:
        return name
    if given:
        raise ConfigError(f"no student of {name!r} in {store.path}{did_you_mean(name, known)}")
    if len(known) == 1:
        return known[0]
    raise ConfigError(f"which environment? {', '.join(known)}" if known else f"no student in {store.path} yet")


def _run(store: Store, row: Row) -> dict[str, Any]:
    """The settings of the run that trained a model; empty if the store does not know it."""
    from agentopcd.knowledge.faults import read_object

    run_id = row["run_id"]
    return read_object(store.run(run_id)["config"], f"the config of run {run_id}") if run_id else {}


def _model(store: Store, work: Path, name: str, env: str) -> str:
    """The id of a student of an environment, by its folder, or by its id or the beginning of it.

    Raises:
        ConfigError: there is no such student, or several; or it was trained on another environment, or on a placebo,
            and ENV/student was never there: the gates of later students would ask of it what it has not learned.
    """
    from agentopcd.core.errors import ConfigError
    from agentopcd.core.runs import kept
    from agentopcd.knowledge.refs import home
    from agentopcd.knowledge.students import student_moves

    rows = [row for row in store.models() if row["parent_id"]]
    folder = kept(work, name) if Path(name).is_dir() else name
    found = [row for row in rows if row["path"] in (folder, name) or (len(name) > 3 and row["id"].startswith(name))]
    if len(found) != 1:
        many = "more than one" if found else "no"
        raise ConfigError(f"{name!r} is {many} student here; agentopcd status{_flag(work)} lists them")
    id_, made = found[0]["id"], _run(store, found[0])
    if id_ not in {move["model_id"] for move in student_moves(store, env)}:  # a canary may have put it there
        if made.get("placebo"):
            raise ConfigError(f"{name!r} is a placebo student: it has a context's form and none of its content")
        if home(made.get("env", env)) != env:
            raise ConfigError(
                f"{name!r} was trained on {made['env']}, not on {env}; to play with it, give it as --model"
            )
    return id_


def _check_here(store: Store, work: Path, target: str, env: str, past: Sequence[str | None]) -> None:
    """Refuse to move ENV/student to a model that could not play.

    Raises:
        ConfigError: its folder is gone.
    """
    from agentopcd.core.errors import ConfigError
    from agentopcd.workspace.paths import recall

    def here(model_id: str | None) -> bool:
        return model_id is None or ((row := store.lookup("model", id=model_id)) and recall(work, row)) is not None

    if not here(target):
        other = next((one for one in reversed(past[:-1]) if here(one)), None)
        which, name = ("the newest one before it that is here", other[:12]) if other else ("none", "base")
        raise ConfigError(
            f"{_spoken(store, target)} is gone; put it back, or take {which}: agentopcd rollback {shlex.quote(env)} "
            f"--to {name}{_flag(work)}"
        )


def _spoken(store: Store, model_id: str | None) -> str:
    row = store.lookup("model", id=model_id) if model_id else None
    return f"{row['path']} {row['id'][:12]}" if row else "none, so the environment's base model plays"


def _short(model_id: str | None) -> str:
    return model_id[:12] if model_id else "none"


def _flag(work: Path) -> str:
    from agentopcd.core.runs import work_flag

    return work_flag(work)
