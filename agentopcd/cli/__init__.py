"""The command line: thin commands that import heavy modules only when they run."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from pathlib import Path

if __name__ != "agentopcd.cli":
    raise ImportError("import this package as agentopcd.cli; the link at the root is only for readers")

from typing import Annotated, Any, NoReturn

import typer

from agentopcd.cli import (
    canary,
    config,
    decisions,
    envs,
    knowledge,
    lineage,
    look_up,
    new_env,
    pages,
    push,
    reproduce,
    rollback,
    serve,
    status,
    store,
    verbs,
)
from agentopcd.cli.help import App
from agentopcd.core import terminal
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.launch import launched
from agentopcd.core.terminal import without_password
from agentopcd.core.text import first_line

NAME = "agentopcd"
COMPLETION = f"_{NAME.upper()}_COMPLETE"
"""The environment variable by which a shell asks for completions."""
INSTALLING = (["--install-completion"], ["--show-completion"])
"""Options that Typer adds; they end the program themselves."""
STOPPED = 130
"""Exit code of a command that was interrupted."""
OF_THE_MACHINE = (OSError, ImportError, MemoryError, OverflowError, RecursionError, UnicodeError)
"""Errors that come from files, packages, memory or other people's text, and from SQLite. Most of them are told where
they arise, with a remedy; these are the others."""

app = App(
    name=NAME,
    pretty_exceptions_enable=False,
    help="Let an agent keep what it learns by playing: episodes, experience, a scored context, weights.",
    epilog="""First: agentopcd envs list
Then: agentopcd learn --env frozen-lake-4x4 --dry-run
Then: agentopcd learn --env frozen-lake-4x4
Your own: agentopcd envs new mine.py""",
)
verbs.add_to(app, knowledge.app)
decisions.add_to(knowledge.app)
look_up.add_to(knowledge.app)
lineage.add_to(knowledge.app)
new_env.add_to(envs.app)
app.command("push")(push.push)
app.command("reproduce")(reproduce.reproduce)
app.command("rollback")(rollback.rollback)
app.command("canary")(canary.canary)
app.command("status")(status.status)
app.command("report", epilog="Example: agentopcd report sokoban/best -o page.html")(pages.report)
app.command("view", epilog="Example: agentopcd view")(pages.view)
serve.add_to(app)
app.add_typer(envs.app, name="envs")
app.add_typer(knowledge.app, name="knowledge")
app.add_typer(store.app, name="store")
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        import agentopcd

        print(f"agentopcd {agentopcd.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an error of this package, of the parser or of the machine is one line on stderr and exit code 2."""
    if COMPLETION in os.environ:  # the shell asks in the middle of a line that is being typed
        _complete()
    terminal.guard()
    warnings.showwarning = _warn
    try:
        code = _run() or 0
        sys.stdout.flush()  # a full disk shows now, or never
    except AgentOpcdError as error:
        _refuse(str(error))
    except typer.TyperException as error:
        usage: Any = error
        if not usage.format_message():
            usage.show()  # a group called without a command shows its help
            sys.exit(2)
        _refuse(f"{usage.format_message()} (see --help)")
    except (KeyboardInterrupt, typer.Abort) as stop:
        _stop(str(stop))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the reader has seen enough, as `head` has
            _leave("", 1)
        if sys.argv[1:2] in INSTALLING:
            sys.exit(end.code)
        _refuse(f"an environment or a library ended the program (exit code {end.code!r}); it must not call exit()")
    except BrokenPipeError:
        _leave("", 1)
    except Exception as error:
        if not (isinstance(error, OF_THE_MACHINE) or type(error).__module__ == "sqlite3"):
            raise  # a fault of ours: its traceback helps to mend it
        _refuse(f"{_reason(error)}; mend that, and give the command again")
    if code == STOPPED:  # the parser returns this where it was interrupted
        _stop()
    sys.exit(code)


def _complete() -> NoReturn:
    """Answer the shell that completes a line, and never write anything else between its characters."""
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    os.environ["COLUMNS"] = "1000"  # a help text of several lines would be several offers
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):
        app(prog_name=NAME)  # leaves with an exit code
    sys.exit(1)


def _run() -> Any:
    """Run the command. If a launcher started several processes, only the first runs it; the others help it train."""
    if launched() == 1:
        return app(standalone_mode=False, prog_name=NAME)
    from agentopcd import models
    from agentopcd.distil import follow
    from agentopcd.models.parallel.ranks import Ranks

    ranks = Ranks.current()
    if not ranks.main:
        models.prepare_process()
        return follow()
    try:
        return app(standalone_mode=False, prog_name=NAME)
    finally:
        ranks.dismiss()


def _reason(error: Exception) -> str:
    """What happened, to which file or else in which line of ours."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "agentopcd" in frame.filename] or frames
    where = f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {first_line(error, 'no reason given')}{where}"


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the code location that Python adds."""
    print(f"warning: {_line(str(message))}", file=sys.stderr)


def _refuse(message: str) -> NoReturn:
    _leave(f"error: {_line(message)}", 2)


def _stop(message: str = "") -> NoReturn:
    _leave(message or "stopped", STOPPED)


def _leave(line: str, code: int) -> NoReturn:
    """End with a line on stderr, if any. What cannot be written is dropped: Python would complain about it later."""
    for number, stream, text in ((1, sys.stdout, ""), (2, sys.stderr, line)):
        try:
            print(text, file=stream, end="\n" if text else "", flush=True)
        except (AgentOpcdError, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.exit(code)


def _line(message: str) -> str:
    return without_password(" ".join(message.split()))
