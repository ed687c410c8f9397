"""The command line: thin commands; what is heavy is imported when a command runs."""

from __future__ import annotations

import sys

if __name__ != "agentopcd.cli":
    raise ImportError("import this package as agentopcd.cli; the link at the root is only for readers")

from typing import Annotated

import typer

from agentopcd.cli import envs, knowledge, verbs
from agentopcd.errors import AgentOpcdError

app = typer.Typer(
    name="agentopcd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="An agent that plays keeps what it learned: episodes, experience, a scored context, weights.",
    epilog="Example: agentopcd learn --env math --model smollm2-135m",
)
verbs.add_to(app, knowledge.app)
app.add_typer(envs.app, name="envs")
app.add_typer(knowledge.app, name="knowledge")


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
    """Entry point: what this package refuses is one line on stderr and exit code 2."""
    try:
        app()
    except AgentOpcdError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
