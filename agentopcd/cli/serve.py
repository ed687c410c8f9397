"""``agentopcd serve``: a model behind an OpenAI-compatible endpoint, every request kept as it was sampled."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from agentopcd.cli import spoken
from agentopcd.cli.options import plain
from agentopcd.core.config import ServeConfig
from agentopcd.core.terminal import without_password


def add_to(app: typer.Typer) -> None:
    """Add the command to its Typer app."""
    app.command("serve")(plain(ServeConfig, serve))


def serve(config: ServeConfig, work: Path | None) -> None:
    """Answer programs that speak OpenAI's chat API, and keep what they ask.

    With --record every request is kept as it was sampled. Requests of one session are one episode; POST /v1/feedback
    says how it came out.

    Example: agentopcd serve --model pocket --record shop
    """
    from agentopcd import models
    from agentopcd.core.runs import workspace
    from agentopcd.workspace.gateway.serve import serve as run

    def say(line: str) -> None:
        spoken.write(without_password(line), sys.stdout)
        sys.stdout.flush()

    models.prepare_process()
    run(config, workspace(work), say)
