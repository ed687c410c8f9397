"""Read, check and write settings: from TOML and flags to a frozen dataclass, and from there to JSON.

The string under each field is its documentation and its help text on the command line. Contradictory
settings fail here, before a model is loaded.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import math
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.files import path_of

C = TypeVar("C", bound="Config")

LARGEST = {"seed": 2**63 - 1, "async_steps": 1}
"""The largest whole number that a setting may be, if it is not :data:`LARGEST_INT`; the store holds no larger seed."""
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3.4e38
COLDEST = 1e-30
"""The smallest temperature besides 0. Logits divided by less than this would be infinite in float32."""
MAY_BE_INFINITE = ("importance_cap", "clip_norm")
"""Settings for which infinity means: no limit."""
VERBS: dict[str, type[Config]] = {}
"""The settings of each verb, under the verb's name, which is that of its section in a settings file."""
_SENTINEL = re.compile(r"(?P<text>.+)[;.] (?:empty|0): (?P<default>.+)\.")
"""A documentation that ends in what an empty text or a 0 stands for."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character. Python reads bytes that are no UTF-8 as such halves, and JSON can spell them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of all settings: built from TOML and flags, written as JSON."""

    def __init_subclass__(cls, *, verb: str = "") -> None:
        if verb:
            VERBS[verb] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field, value := getattr(self, field.name))
            _check_value(field.name, value)
            if type(value) is int and hints(type(self))[field.name] is float:  # one setting has one form in JSON
                object.__setattr__(self, field.name, float(value))
        for name, known in choices(type(self)).items():
            got = getattr(self, name)
            if got not in known:
                raise ConfigError(f"{name} is {got!r}{did_you_mean(str(got), known)}")

    @classmethod
    def load(cls, file: Path | None = None, **flags: Any) -> Self:
        """Build settings from the defaults, then the TOML ``file``, then the flags that are not ``None``.

        Raises:
            ConfigError: the file cannot be read, a key or a section is unknown, or a value is invalid.
        """
        values = {} if file is None else _of_verb(cls, read_toml(path_of(file), "settings"))
        values = _over(values, {name: value for name, value in flags.items() if value is not None})
        _refuse_unknown(cls, values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: equal settings give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def _positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")

    def _temperature(self, name: str) -> None:
        value = getattr(self, name)
        if value < 0 or 0 < value < COLDEST:
            raise ConfigError(f"{name} is {value}; it must be 0, or {COLDEST} or more")

    def _not_negative(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    def _only_with(self, name: str, on: bool, wanted: str) -> None:
        """Refuse a setting that has no effect without another one, rather than ignore it."""
        if not on and getattr(self, name) != getattr(type(self), name):
            raise ConfigError(f"--{name.replace('_', '-')} is for {wanted}; leave it out, or add that")


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """What a TOML file says; TOML is UTF-8, whatever the machine's own encoding is.

    Raises:
        ConfigError: the file cannot be read; the message calls it ``what``.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"cannot read {what} from {str(file)!r}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {what} from {str(file)!r}: {error}") from error


def _of_verb(config: type[Config], content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one verb in a file: what stands above the sections, then its own section, which overrides it.

    The keys of the other sections are checked, too: a typing error there would only show when that verb runs.

    Raises:
        ConfigError: a section or a key is unknown, or a setting above the sections is not one of this verb.
    """
    known = {name for other in (config, *VERBS.values()) for name in hints(other)}
    tables = {name: v for name, v in content.items() if isinstance(v, dict) and (name in VERBS or name not in known)}
    for name, section in tables.items():
        if name not in VERBS:
            close = did_you_mean(f"[{name}]", [f"[{verb}]" for verb in VERBS])
            raise ConfigError(f"unknown section [{name}] in the settings{close}")
        _refuse_unknown(VERBS[name], section, f" in [{name}]")
    common = {name: value for name, value in content.items() if name not in tables}
    for name in (name for name in common if name in known and name not in hints(config)):
        owners = [f"[{verb}]" for verb, other in VERBS.items() if name in hints(other)]
        raise ConfigError(f"{name} is no setting of {_named(config)}; write it under {' or '.join(owners)}")
    return _over(common, next((tables[verb] for verb in tables if VERBS[verb] is config), {}))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them: of two tables, the names that only the lower one has stay.

    Arguments of one environment are of no use to another: where that changes, its own replace them.
    """
    tables = {name for name in above if isinstance(above[name], dict) and isinstance(below.get(name), dict)}
    if above.get("env", below.get("env")) != below.get("env"):
        tables.discard("env_args")
    return {**below, **above, **{name: below[name] | above[name] for name in tables}}


def _named(config: type[Config]) -> str:
    return next((f"`{verb}`" for verb, other in VERBS.items() if other is config), config.__name__)


def _refuse_unknown(config: type[Config], values: Iterable[str], where: str = "") -> None:
    known = {field.name for field in dataclasses.fields(config)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{where or f' for {_named(config)}'}{did_you_mean(name, known)}")


def _check_value(name: str, value: Any) -> None:
    """Refuse a value that could not be computed with, stored as JSON, or hashed as UTF-8."""
    match value:
        case bool() | None:
            return
        case int() if abs(value) > LARGEST.get(name, LARGEST_INT):
            raise ConfigError(f"{name} is {value}; it must be at most {LARGEST.get(name, LARGEST_INT)}")
        case float() if math.isnan(value) or (math.isinf(value) and name not in MAY_BE_INFINITE):
            raise ConfigError(f"{name} is {value}; wanted a finite number")
        case float() if LARGEST_FLOAT < abs(value) < math.inf:
            raise ConfigError(f"{name} is {value}; it must be at most {LARGEST_FLOAT}, the largest number in float32")
        case str() if SURROGATE.search(value):
            raise ConfigError(f"{name} holds bytes that are no UTF-8 text, or half a character: {value!r}")
        case dict():
            for key, entry in value.items():
                _check_argument(f"{name}: {key}", key)
                _check_argument(f"{name}: {key}", entry)


def _check_argument(name: str, value: Any) -> None:
    """Refuse an argument of an environment or a template that JSON does not have, such as a date."""
    match value:
        case bool() | int() | None:
            return
        case str() | float():
            _check_value(name, value)
        case list() | tuple():
            for entry in value:
                _check_argument(name, entry)
        case dict():
            for key, entry in value.items():
                _check_argument(name, key)
                _check_argument(f"{name}.{key}", entry)
        case _:
            raise ConfigError(
                f"{name} is {value} ({type(value).__name__}); wanted text, a number, true or false, a list or a table: "
                "put it in quotes to give it as text"
            )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Default value of a setting."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _check_type(field: dataclasses.Field[Any], value: Any) -> None:
    """Require the type of the field's default. An int is accepted for a float; a bool is never taken for a number."""
    default = default_of(field)
    wanted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, wanted) or isinstance(default, bool) != isinstance(value, bool):
        raise ConfigError(f"{field.name} is {value!r}; wanted a value like {default!r} ({type(default).__name__})")


@functools.cache
def hints(config: type[Config]) -> Mapping[str, Any]:
    """The type of each field."""
    return get_type_hints(config)


@functools.cache
def choices(config: type[Config]) -> Mapping[str, tuple[str, ...]]:
    """The legal values of each field whose type lists them: a ``Literal``, or a union of ``Literal`` types."""
    listed = {field.name: _literals(hints(config)[field.name]) for field in dataclasses.fields(config)}
    return {name: known for name, known in listed.items() if known}


def _literals(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return tuple(itertools.chain.from_iterable(_literals(part) for part in get_args(hint)))
    return ()


def pick(config: Config, wanted: type[C], **changes: Any) -> C:
    """Build the settings of another verb from the fields of ``config`` that have the same name and type.

    The type counts because two verbs can use one name differently: ``method`` of training is not ``method`` of
    scoring.
    """
    field_types = {field.name: field.type for field in dataclasses.fields(config)}
    values = config.to_dict()
    shared = {f.name: values[f.name] for f in dataclasses.fields(wanted) if field_types.get(f.name) == f.type}
    return wanted(**shared | changes)


def about(config: type[Config], name: str) -> tuple[str, str]:
    """What a setting does, and what is used in place of an empty text or a 0; ``""`` if the default says it itself.

    Legal values that the text does not name are listed at its end.
    """
    doc, known = " ".join(field_docs(config)[name].split()), [one for one in choices(config).get(name, ()) if one]
    found = _SENTINEL.fullmatch(doc)
    text, default = (f"{found['text']}.", found["default"]) if found else (doc, "")
    if not all(re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", doc) for choice in known):
        text = f"{text} One of: {', '.join(known)}."
    return text, default


def field_docs(config: type[Config]) -> dict[str, str]:
    """The string under each field of a settings class and its bases."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            docs |= _own_docs(cls)
    return docs


@functools.cache
def _own_docs(cls: type) -> Mapping[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in itertools.pairwise(body.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=doc)):
                docs[name] = inspect.cleandoc(str(doc))
    return docs
