"""Command-line options from settings: each field of a config class becomes an option, its docstring the help text."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from agentopcd.cli import pulse, spoken
from agentopcd.cli.completion import offer_for
from agentopcd.cli.help import help_all
from agentopcd.core.config import (
    DICT_FLAGS,
    USUAL,
    VERBS,
    Config,
    LearnConfig,
    about,
    choices,
    default_of,
    flag_of,
    has_flag,
    hints,
    panels,
    read_toml,
    since_of,
)
from agentopcd.core.config.flags import meant_as
from agentopcd.core.config.toml import saved
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import path_of
from agentopcd.core.launch import launched
from agentopcd.core.runs import write_new
from agentopcd.core.terminal import Guarded, emit, only_results, without_password


def _only_results(ctx: typer.Context, wanted: bool) -> bool:
    """With ``--json``, whatever a game or a library prints must not come between the lines of the result."""
    if wanted and not ctx.resilient_parsing:
        ctx.call_on_close(only_results())
    return wanted


def json_option(text: str) -> Any:
    """The option ``--json`` with this help text."""
    return typer.Option("--json", metavar="", help=text, callback=_only_results)


WORK = Annotated[
    Path | None,
    typer.Option("--work", envvar="AGENTOPCD_WORK", show_default="agentopcd-work", help="Workspace folder."),
]
JSON = Annotated[bool, json_option("Print the result as JSON on stdout, all else on stderr.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", metavar="", help="Print the plan and stop; no model is loaded.")]
CONFIG = Annotated[
    Path | None,
    typer.Option("--config", help="Settings in TOML, see `agentopcd config init`; flags override them."),
]
SAVE_CONFIG = Annotated[
    Path | None,
    typer.Option("--save-config", help="Write the settings of this command into a new file, for --config."),
]
HELP_ALL = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, expose_value=False, callback=help_all, help="Show all options and exit."),
]


NOT_PROMOTED = 3
"""Exit code of a command that asks whether something is promoted, if nothing is."""


@contextlib.contextmanager
def goes_on() -> Iterator[dict[str, str]]:
    """Around a command that may take long, and goes on where it was stopped when it is given again: it shows that it is
    alive, and whoever stops it is told how it goes on.

    Yields:
        Flags that would stand for something else when the command is given again, and what they stand for now; for the
        command to fill.
    """
    fixed: dict[str, str] = {}
    try:
        with pulse.beating():
            yield fixed
    except KeyboardInterrupt as error:
        alone = launched() == 1  # else the command begins with a launcher
        words = ["agentopcd", *sys.argv[1:]]
        for flag, value in fixed.items():
            words = _with_flag(words, flag, value)
        command = f": {without_password(shlex.join(words))}" if alone else ""
        raise typer.Abort(f"stopped; the same command goes on from here{command}") from error


def _with_flag(words: Sequence[str], flag: str, value: str) -> list[str]:
    """A command with this value of a flag, in the place of any other."""
    places = {at for at, word in enumerate(words) if word == flag}
    places |= {at + 1 for at in places} | {at for at, word in enumerate(words) if word.startswith(f"{flag}=")}
    return [*(word for at, word in enumerate(words) if at not in places), flag, value]


@dataclasses.dataclass(frozen=True)
class Call:
    """How a command was called, besides its settings."""

    work: Path | None
    as_json: bool
    dry_run: bool
    save_config: Path | None = None
    begun: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))
    """From here ``--since 24h`` counts back."""
    _said: set[str] = dataclasses.field(default_factory=set)

    def keep(self, config: Config, notes: Mapping[str, str]) -> None:
        """Write the settings into the file of ``--save-config``, if that is given.

        Args:
            notes: what settings that were left open came out as, see :func:`agentopcd.core.config.toml.saved`.

        Raises:
            ConfigError: the file is there and holds something else, or it cannot be written.
        """
        if self.save_config is None:
            return
        file, (text, left_out) = path_of(self.save_config), saved(config, notes)
        if file.exists():  # the same command may be given again, to go on with its run
            with contextlib.suppress(ConfigError):
                if read_toml(file, "settings") == tomllib.loads(text):
                    return
        write_new(file, text)
        self.say(f"settings: {file}")
        for what in left_out:
            self.say(f"note: {file} is without {what}")

    def say(self, line: str) -> None:
        """Print a line for people, a note only once; with ``--json``, stdout is kept for the result."""
        if line.startswith(spoken.ONCE):
            if line in self._said:
                return
            self._said.add(line)
        pulse.said(line)
        spoken.write(without_password(line), sys.stderr if self.as_json else sys.stdout)

    def show(self, result: Any) -> None:
        """Print the result as JSON, if requested."""
        if self.as_json:
            emit(result, indent=1, sort_keys=True)


def configured(config: type[Config], run: Callable[[Any, Call], None], *, dry_run: bool = True) -> Callable[..., None]:
    """Build a Typer command whose options are the fields of ``config``.

    Args:
        run: called with the settings and the :class:`Call`. Its docstring is the help text.
        dry_run: offer ``--dry-run``.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        call = Call(values["work"], values["json"], values.get("dry_run", False), values["save_config"])
        with goes_on() as fixed:
            settings = config.load(values["config"], **_given(ctx, config, values))
            if isinstance(settings, LearnConfig) and settings.since:
                fixed["--since"] = since_of(settings.since, call.begun)
            run(settings, call)

    fixed = [_keyword("work", WORK, None), _keyword("config", CONFIG, None), _keyword("save_config", SAVE_CONFIG, None)]
    fixed += [_keyword("json", JSON, False), *([_keyword("dry_run", DRY_RUN, False)] if dry_run else [])]
    settings = (_options(config, panel, fields) for panel, fields in panels(config).items())
    parameters = [_keyword("ctx", typer.Context), *itertools.chain(*settings), *fixed]
    parameters.append(_keyword("help_all", HELP_ALL, False))
    command.usual = next((USUAL[verb] for verb, known in VERBS.items() if known is config), ())  # type: ignore[attr-defined]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def plain(config: type[Config], run: Callable[[Any, Path | None], None]) -> Callable[..., None]:
    """Build a Typer command whose options are the fields of ``config``: no verb, so neither settings file nor result.

    Args:
        run: called with the settings and the workspace. Its docstring is the help text.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        run(config.load(None, **_given(ctx, config, values)), values["work"])

    settings = (_options(config, panel, fields) for panel, fields in panels(config).items())
    parameters = [_keyword("ctx", typer.Context), *itertools.chain(*settings), _keyword("work", WORK, None)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def _given(ctx: typer.Context, config: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings given on the command line, without defaults, which would override the file."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT" and name in hints(config):
            given[name] = parse_env_args(value, DICT_FLAGS[name]) if name in DICT_FLAGS else value
    return given


def parse_env_args(pairs: Iterable[str], flag: str = "--env-arg") -> dict[str, Any]:
    """Read ``--env-arg name=value`` pairs; the value is JSON, or else plain text.

    Raises:
        ConfigError: a pair without ``=``, a name given twice, or a value that is JSON but for its capitals.
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
            if meant := meant_as(value):
                raise ConfigError(
                    f"{flag} {name}: {value!r} is text; write {name}={meant} (JSON), or '{name}=\"{value}\"' for text"
                ) from None
            arguments[name] = value
        except RecursionError:
            raise ConfigError(f"the value of {flag} {name} is nested too deeply to be read") from None
    return arguments


def _options(config: type[Config], panel: str, fields: Iterable[dataclasses.Field[Any]]) -> Iterator[inspect.Parameter]:
    """The options of one panel."""
    for field in fields:
        name, default, hint = field.name, default_of(field), hints(config)[field.name]
        if not has_flag(config, name):
            continue
        flag, known = flag_of(name), choices(config).get(name, ())
        doc, stands_for = about(config, name)
        option = functools.partial(
            typer.Option, help=doc, rich_help_panel=panel, show_default=stands_for or True,
            autocompletion=offer_for(name, known),
        )  # fmt: skip
        if name in DICT_FLAGS:
            yield _keyword(name, Annotated[list[str] | None, option(flag, metavar="KEY=VALUE")], None)
        elif hint is bool:
            yield _keyword(name, Annotated[bool, option(f"{flag}/--no-{flag[2:]}")], default)
        else:
            values = "|".join(choice for choice in known if choice)
            short = f"<{values}>" if 0 < len(values) <= SHORT else None
            yield _keyword(name, Annotated[str if known else hint, option(flag, metavar=short)], default)


SHORT = 18
"""The most characters of a list of values that stands beside its option; a longer one is in the help text alone."""


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def progress(label: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """Show progress on stderr: a bar on a terminal, else a line from time to time (see :mod:`agentopcd.cli.pulse`)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=getattr(sys.stderr, "rich_proxied_file", sys.stderr))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown, apart = console.is_terminal, not sys.stdout.isatty()
    bars = Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=not apart)
    with pulse.beating(), bars as bar:
        if shown:  # rich now prints what is written to these streams, above its bar and unguarded
            sys.stdout = sys.stdout if apart else Guarded(sys.stdout, "stdout")
            sys.stderr = Guarded(sys.stderr, "stderr")
        task = bar.add_task(label, total=total)
        pulse.moved(f"{label}: 0/{total}")
        for count, item in enumerate(items, start=1):
            bar.advance(task)
            pulse.moved(f"{label}: {count}/{total}")
            yield item
