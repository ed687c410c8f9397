"""Flags from settings: each field of a config class becomes an option, its docstring the help text."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from agentopcd.config import DICT_FLAGS, Config, field_docs
from agentopcd.errors import ConfigError

WORK = Annotated[
    Path | None,
    typer.Option("--work", envvar="AGENTOPCD_WORK", help="Workspace folder.", show_default="agentopcd-work"),
]
JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, everything else on stderr.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no model is loaded.")]
CONFIG = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; flags win over it.")]


@dataclasses.dataclass(frozen=True)
class Call:
    """How a command was called, besides its settings."""

    work: Path | None
    as_json: bool
    dry_run: bool

    def say(self, line: str) -> None:
        """A line for people; stdout belongs to the result under ``--json``."""
        print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def show(self, result: Any) -> None:
        """The result for machines, on request."""
        if self.as_json:
            print(json.dumps(result, indent=1, sort_keys=True))


def configured(config: type[Config], run: Callable[[Any, Call], None], *, dry_run: bool = True) -> Callable[..., None]:
    """A Typer command whose options are the fields of ``config``.

    Args:
        run: called with the settings and the :class:`Call`. Its docstring is the help text.
        dry_run: offer ``--dry-run``.
    """
    docs, hints = field_docs(config), get_type_hints(config)

    def command(**given: Any) -> None:
        call = Call(given.pop("work"), given.pop("json"), given.pop("dry_run", False))
        file = given.pop("config")
        for name, flag in DICT_FLAGS.items():
            if name in given:
                given[name] = parse_env_args(given[name], flag) if given[name] else None
        run(config.load(file, **given), call)

    fixed = {"work": WORK, "json": JSON, "config": CONFIG} | ({"dry_run": DRY_RUN} if dry_run else {})
    fields = dataclasses.fields(config)
    parameters = [_parameter(field, hints[field.name], docs.get(field.name, "")) for field in fields]
    parameters += [_keyword(name, note, False if name in ("json", "dry_run") else None) for name, note in fixed.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def parse_env_args(pairs: Iterable[str], flag: str = "--env-arg") -> dict[str, Any]:
    """Read ``--env-arg name=value`` pairs; the value is JSON, or else the text as it stands.

    Raises:
        ConfigError: a pair without ``=``, or a name given twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{flag} wants NAME=VALUE, got {pair!r}; write it like level=2")
        if name in arguments:
            raise ConfigError(f"{flag} {name} is given twice")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _parameter(field: dataclasses.Field[Any], hint: Any, doc: str) -> inspect.Parameter:
    if field.name in DICT_FLAGS:
        option = typer.Option(DICT_FLAGS[field.name], help=doc, metavar="KEY=VALUE")
        return _keyword(field.name, Annotated[list[str] | None, option], None)
    flag = f"--{field.name.replace('_', '-')}"
    flag = f"{flag}/--no-{flag[2:]}" if hint is bool else flag
    default = None if field.default in ("", dataclasses.MISSING) else str(field.default)
    if hint is bool:
        default = flag.split("/")[0 if field.default else 1]
    option = typer.Option(flag, help=doc, show_default=default if default is not None else False)
    return _keyword(field.name, Annotated[hint | None, option], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


PLAIN_EVERY_S = 30.0
"""Seconds between lines of progress where stderr is a file."""


def progress(label: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """A progress bar on stderr when a person is looking, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        for count, item in enumerate(items, start=1):
            bar.advance(task)
            if not console.is_terminal and time.monotonic() - said > PLAIN_EVERY_S:
                said = time.monotonic()
                print(f"{label}: {count}/{total}", file=sys.stderr, flush=True)
            yield item
