"""``agentopcd report`` and ``agentopcd view``: what a workspace holds, as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentopcd.cli.knowledge import WORK, Work, read_store, refuse_store
from agentopcd.core.files import is_dir, is_file, path_of

PORT = 8642


def report(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[RUN|REF|STUDENT]",
            help="A run's number or folder, a ref or context id, a student's folder or id, or a file or folder with "
            "results of `agentopcd reproduce`. Default: the whole workspace.",
            show_default=False,
        ),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", callback=path_of)] = Path(
        "report.html"
    ),
    work: Work = WORK,
) -> None:
    """Write one HTML file about a workspace, a run, a student or a context.

    Tables with intervals, curves, contexts, items, episodes side by side, and what the loss saw at each token. It needs
    no network and no program but a browser.

    Example: agentopcd report sokoban/best -o page.html
    """
    from agentopcd.cli.page import report as pages
    from agentopcd.cli.page.overview import paper_rows
    from agentopcd.core.runs import write_text

    refuse_store(output, work)
    # The folders of runs and students hold JSON files, too.
    if (name.endswith(".json") and is_file(name)) or (name and is_dir(name) and paper_rows(path_of(name))[0]):
        text = pages.paper_report(path_of(name))
    else:
        with read_store(work) as store, store.read():
            text = pages.report(store, work, name)
    write_text(output, text)
    print(f"wrote {output} ({len(text.encode()) / 1000:.0f} kB); open it in a browser")


def view(
    work: Work = WORK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on this machine; 0 takes a free one.")] = PORT,
) -> None:
    """Show the same pages live while a run goes on, on this machine alone and for reading alone. Ctrl-C ends it.

    Example: agentopcd view
    """
    from agentopcd.cli.page.serve import HOST, server_of

    with server_of(work, port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/ shows {work}; Ctrl-C ends it", flush=True)
        server.serve_forever()
