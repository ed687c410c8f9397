"""The command line: thin commands that import heavy modules only when they run."""

from __future__ import annotations

import os
import sys
import warnings

if __name__ != "agentopcd.cli":
    raise ImportError("import this package as agentopcd.cli; the link at the root is only for readers")

from typing import Annotated, Any

import typer

from agentopcd.cli import config, envs, knowledge, reproduce, store, verbs
from agentopcd.core.errors import AgentOpcdError

app = typer.Typer(
    name="agentopcd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Let an agent keep what it learns by playing: episodes, experience, a scored context, weights.",
    epilog="Example: agentopcd learn --env frozen-lake-4x4",
)
verbs.add_to(app, knowledge.app)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(envs.app, name="envs")
app.add_typer(knowledge.app, name="knowledge")
app.add_typer(store.app, name="store")
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        import agentopcd

        typer.echo(f"agentopcd {agentopcd.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an error of this package or of the parser is one line on stderr and exit code 2."""
    warnings.showwarning = _warn
    try:
        sys.exit(_run() or 0)
    except AgentOpcdError as error:
        _refuse(str(error))
    except typer.TyperException as error:
        usage: Any = error
        if not usage.format_message():
            usage.show()  # a group called without a command shows its help
            sys.exit(2)
        _refuse(f"{usage.format_message()} (see --help)")
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; repeat the command to resume", file=sys.stderr)
        sys.exit(130)


def _run() -> Any:
    """Run the command. If a launcher started several processes, only the first runs it; the others help it train."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return app(standalone_mode=False)
    from agentopcd import models
    from agentopcd.distil import follow
    from agentopcd.models.parallel.ranks import Ranks

    ranks = Ranks.current()
    if not ranks.main:
        models.prepare_process()
        return follow()
    try:
        return app(standalone_mode=False)
    finally:
        ranks.dismiss()


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the code location that Python adds."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _refuse(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
