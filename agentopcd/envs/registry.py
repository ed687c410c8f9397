"""The registry of environments, and how a reference such as ``--env sokoban`` is resolved.

The form of a reference decides how it is resolved; the kinds are never tried in turn:

1. a registered id: ``frozen-lake``, ``math``;
2. a scheme: ``gym:ID``, ``gym:PACKAGE:ID``, ``textarena:ID``, ``twx:GAME``, ``rg:TASK``,
   ``openenv:URL``, ``verifiers:ID``, ``recorded:NAME``;
3. a path that ends like a file of rows (:data:`FILE_ENDINGS`), or several with commas between them: their questions
   or conversations;
4. ``pkg.mod:attr`` or ``path/file.py:attr``: a class, a factory or an :class:`EnvSpec`;
5. a name that an installed package declares in the entry-point group ``agentopcd.envs``.

gymnasium is imported only when an environment is built, so that listing stays fast.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from agentopcd.core.config import RECORDED
from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.files import is_file
from agentopcd.envs.chats.rows import chat_fields
from agentopcd.envs.load import importing, load
from agentopcd.envs.look import builds_environment, class_of
from agentopcd.envs.questions.files import row_files
from agentopcd.envs.spec import EnvSpec, settings_of, written_on

if TYPE_CHECKING:
    import gymnasium

GROUP = "agentopcd.envs"
FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Ends of the names of question files, in any case. What such a file is, its content says."""
_PACKED = re.compile(r"\.(gz|xz|bz2|zst)$")
"""What a file that has to be unpacked first ends with; its reader says so."""
ROW_SPLITS = {"test": 1000, "select": 1000}
"""Sizes of the splits of question files that have rows enough, as many as the paper plays in mathematics."""
SCHEMES = {
    "gym": ("agentopcd.envs.games.gym_bridge:from_id", "env_id"),
    "textarena": ("agentopcd.envs.games.textarena:TextArenaEnv", "env_id"),
    "twx": ("agentopcd.envs.games.textworld:TextWorldExpress", "game"),
    "rg": ("agentopcd.envs.questions.reasoning:ReasoningGym", "task"),
    "openenv": ("agentopcd.envs.hub.openenv_env:OpenEnv", "url"),
    "verifiers": ("agentopcd.envs.hub.verifiers_env:VerifiersEnv", "env_id"),
}
"""Scheme → entry point, and the argument that takes the text after the colon."""

_SPECS: dict[str, EnvSpec] = {}
_PROVIDED: dict[str, EnvSpec] = {}
_GIVEN: dict[str, Mapping[str, Any]] = {}
"""What was given to :func:`register` beside an entry point that is a text, by id: its class is not imported yet."""


def register(id: str, entry_point: Any = None, /, **spec: Any) -> Any:
    """Register an environment under a short id; return its spec, or the class when used as a decorator.

    Raises:
        EnvError: the id is taken, empty, or has the form of another kind of reference.
    """
    if entry_point is None:

        def decorate(cls: Any) -> Any:
            register(id, cls, **spec)
            return cls

        return decorate
    if id in _specs():
        raise EnvError(f"an environment {id!r} is already registered; choose another id")
    if not id or ":" in id or is_rows(id):
        raise EnvError(f"environment id {id!r} must not be empty, hold ':' or end like a file")
    if isinstance(entry_point, str):
        _GIVEN[id] = spec
    return _add(EnvSpec(id=id, entry_point=entry_point, **{**written_on(entry_point), **spec}))


def _add(spec: EnvSpec) -> EnvSpec:
    _SPECS[spec.id] = spec
    return spec


def _specs() -> dict[str, EnvSpec]:
    if not _SPECS:
        from agentopcd.envs.builtin import SPECS

        for spec in SPECS:
            _add(spec)
    return _SPECS


def provide(spec: EnvSpec) -> None:
    """Say what a reference stands for that names something of a workspace; the last word counts in this process."""
    _PROVIDED[spec.id] = spec


def registered() -> Mapping[str, EnvSpec]:
    """The specs registered in this process, by id."""
    return _specs()


def list_envs() -> list[EnvSpec]:
    """Return the registered environments, then those that installed packages declare, without importing them."""
    plugins = [EnvSpec(id=entry.name, entry_point=entry.value) for entry in _plugins()]
    return [*_specs().values(), *sorted(plugins, key=lambda spec: spec.id)]


def _plugins() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def get_spec(ref: str) -> EnvSpec:
    """Return the spec that a reference stands for.

    Raises:
        EnvError: no environment has this name; the message gives close matches.
    """
    ref = str(ref)
    if ref in _specs():
        if ref in _GIVEN:
            written = written_on(load(str(_specs()[ref].entry_point)))
            _add(dataclasses.replace(_specs()[ref], **{**written, **_GIVEN.pop(ref)}))
        return _specs()[ref]
    if ref.startswith(RECORDED):
        return _recorded_spec(ref)
    scheme, colon, rest = ref.partition(":")
    if colon and scheme in SCHEMES:
        return _scheme_spec(ref, scheme, rest)
    if is_rows(ref):
        return _rows_spec(ref)
    if colon:
        return _object_spec(ref)
    return _plugin_spec(ref)


def _scheme_spec(ref: str, scheme: str, rest: str) -> EnvSpec:
    if not rest:
        raise EnvError(f"{ref!r} names no environment after {scheme}:")
    entry_point, argument = SCHEMES[scheme]
    spec = EnvSpec(id=ref, entry_point=entry_point, kwargs={argument: rest})
    if scheme == "rg":
        return dataclasses.replace(spec, max_steps=1, history="chat")
    if scheme == "openenv":
        return dataclasses.replace(spec, waits=True, history="chat")
    if scheme == "verifiers":
        return dataclasses.replace(spec, waits=True, history="chat", max_steps=32, success_at=1.0)
    if scheme == "gym":
        from agentopcd.envs.games.gym_bridge import preset_fields

        return dataclasses.replace(spec, play_format="[{}]", **preset_fields(rest))
    if scheme == "twx":
        from agentopcd.envs.games.textworld import spec_fields

        return dataclasses.replace(spec, **spec_fields(rest))
    return spec


def _recorded_spec(ref: str) -> EnvSpec:
    if ref not in _PROVIDED:
        raise EnvError(
            f"{ref} is of a workspace, and this command opens none; `agentopcd consolidate --env {ref}` and the other "
            "commands with --work do"
        )
    return _PROVIDED[ref]


def is_rows(ref: str) -> bool:
    """Whether a reference names files with questions."""
    return all(_PACKED.sub("", name.lower()).endswith(FILE_ENDINGS) for name in ref.split(","))


def _rows_spec(ref: str) -> EnvSpec:
    for file in row_files(ref):
        if not is_file(file):
            raise EnvError(f"no file {file!r} with questions")
    if chat := chat_fields(ref):
        return EnvSpec(id=ref, entry_point="agentopcd.envs.chats.env:ConversationEnv", kwargs={"rows": ref}, **chat)
    entry_point = "agentopcd.envs.questions.env:DatasetEnv"
    return EnvSpec(
        id=ref, entry_point=entry_point, kwargs={"rows": ref}, max_steps=1, history="chat", split_sizes=ROW_SPLITS
    )


def _object_spec(ref: str) -> EnvSpec:
    target = load(ref)
    if isinstance(target, EnvSpec):
        return _with_class(target)
    for spec in _specs().values():
        if spec.entry_point is target:  # the file also calls register(): keep the fields given there
            return dataclasses.replace(spec, id=ref)
    if callable(target) and not builds_environment(target):
        raise EnvError(
            f"{ref} does not look like an environment, so it is not called; wanted a class with reset and step, or a "
            "function that builds one (say so with its annotation: -> gymnasium.Env)"
        )
    return EnvSpec(id=ref, entry_point=target, **written_on(target))


def _plugin_spec(name: str) -> EnvSpec:
    hits = [entry for entry in _plugins() if entry.name == name]
    if not hits:
        known = [*_specs(), *(entry.name for entry in _plugins())]
        raise EnvError(
            f"no environment {name!r}{did_you_mean(name, known)}"
            " (or give pkg.mod:Class, file.py:Class, gym:ID, textarena:ID, twx:GAME, rg:TASK, openenv:URL,"
            " verifiers:ID, or a .jsonl file)"
        )
    if len({entry.value for entry in hits}) > 1:
        owners = ", ".join(f"{entry.dist.name if entry.dist else '?'} ({entry.value})" for entry in hits)
        raise EnvError(f"environment {name!r} is declared more than once: {owners}; remove one package")
    with importing(f"environment {name!r} ({hits[0].value})"):
        target = hits[0].load()
    if isinstance(target, EnvSpec):
        return dataclasses.replace(_with_class(target), id=name)
    return EnvSpec(id=name, entry_point=target, **written_on(target))


def _with_class(spec: EnvSpec) -> EnvSpec:
    """A spec that somebody wrote, with what stands on its class for what it leaves at the default."""
    target = load(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    usual = EnvSpec(id=spec.id, entry_point=target)
    left = {name: value for name, value in written_on(target).items() if getattr(spec, name) == getattr(usual, name)}
    return dataclasses.replace(spec, **left)


def make(ref: str | EnvSpec, *, max_steps: int | None = None, **kwargs: Any) -> gymnasium.Env[str, str]:
    """Build an environment whose episodes are cut off after ``max_steps`` replies.

    Args:
        ref: a reference, or a spec.
        max_steps: replies per episode; ``None`` means the spec's limit.
        **kwargs: arguments of the environment; they override the spec's.

    Raises:
        EnvError: the reference or an argument is invalid, or the result is not an environment.
        GameFault: the environment's own code raised or hung while it was built.
        DependencyError: an optional package is missing.
    """
    spec = _with_class(ref) if isinstance(ref, EnvSpec) else get_spec(ref)
    limit = spec.step_limit if max_steps is None else max_steps
    if not isinstance(limit, int) or limit < 1:
        raise EnvError(f"max_steps must be a whole number above 0, got {limit!r}")
    from agentopcd.envs.guard import SLOW_STEP_LIMIT_S, STEP_LIMIT_S, Guarded

    limit_s = spec.limit_s or (SLOW_STEP_LIMIT_S if spec.slow else STEP_LIMIT_S)
    return Guarded(_build(spec, kwargs, limit_s), limit, limit_s)


def _build(spec: EnvSpec, kwargs: Mapping[str, Any], limit_s: float) -> gymnasium.Env[str, str]:
    import gymnasium

    from agentopcd.envs.guard import BUILD_LIMIT_S, faults

    target = load(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if not callable(target):
        raise EnvError(f"{spec.id} is a {type(target).__name__}, not a class or a function that builds one")
    _look_first(spec.id, target)
    arguments = {**spec.kwargs, **kwargs}
    check_arguments(spec.id, target, arguments)
    with faults(f"building {spec.id}", BUILD_LIMIT_S, ours=True):
        env = target(**arguments)
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{spec.id} built a {type(env).__name__}; an environment is a gymnasium.Env")
    _tell_unused(spec, target, type(env.unwrapped))
    return _as_text(env, (target, repr(sorted(arguments.items()))), limit_s)


def _tell_unused(spec: EnvSpec, target: Any, built: type) -> None:
    """Say what stands on the class of an environment and does not count, since what builds it does not name the class.

    Functions of this package are no concern of the user's.
    """
    if class_of(target) is built or str(getattr(target, "__module__", "")).startswith("agentopcd."):
        return
    usual = EnvSpec(id=spec.id, entry_point=target)
    for name, value in settings_of(built).items():
        if value != getattr(usual, name) == getattr(spec, name):
            warnings.warn(
                f"{spec.id}: {built.__name__}.{name} is {value!r:.60} and does not count, as nothing says that"
                f" {built.__name__} is built; annotate the function with -> {built.__name__}, or give an EnvSpec",
                stacklevel=4,
            )


def _look_first(name: str, target: Callable[..., Any]) -> None:
    """Refuse a class that cannot be an environment before it is called; :mod:`.look` has looked at references.

    Raises:
        EnvError: another class.
    """
    import gymnasium

    if isinstance(target, type) and not issubclass(target, gymnasium.Env):
        raise EnvError(f"{name} is the class {target.__qualname__}; an environment is a gymnasium.Env")


def _as_text(env: gymnasium.Env[Any, Any], game: Hashable, limit_s: float) -> gymnasium.Env[str, str]:
    """Return a text environment; wrap any other in the Gymnasium bridge.

    Where no space is declared, text is assumed: that is what people write first.
    """
    from gymnasium.spaces import Text

    from agentopcd.envs.base import AnyText
    from agentopcd.envs.games.gym_bridge import FromGym

    for name in ("observation_space", "action_space"):
        if getattr(env, name, None) is None:
            setattr(env.unwrapped, name, AnyText())
        if not isinstance(getattr(env, name), Text):
            env = FromGym(env)
            break
    if isinstance(env, FromGym):
        env.look(game, limit_s)
    return env


def check_arguments(name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that ``target`` does not take, and missing ones; the message shows its signature.

    Raises:
        EnvError: the arguments do not fit.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # builtins without a signature: let the call itself decide
        return
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for argument in arguments:
            if argument not in signature.parameters:
                close = did_you_mean(argument, signature.parameters)
                raise EnvError(f"{name} takes no argument {argument!r}{close}; it takes {signature}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise EnvError(f"{name}: {error}; it takes {signature}") from None
