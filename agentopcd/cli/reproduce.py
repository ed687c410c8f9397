"""``agentopcd reproduce``: an experiment of the paper, in one command."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from agentopcd.cli.options import DRY_RUN, JSON, WORK, Call, goes_on, progress


def reproduce(
    recipe: Annotated[str, typer.Argument(help="A recipe of this package, such as table2, or a .toml file.")],
    size: Annotated[str, typer.Option(help="mini: small models on two cores; full: the paper's, on GPUs.")] = "mini",
    report: Annotated[
        str,
        typer.Option(help="select: choose checkpoints on select tasks; paper: also report the best on test."),
    ] = "select",
    row: Annotated[str, typer.Option(help="Only run rows whose name contains this text.")] = "",
    work: WORK = None,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Run a recipe: train every arm and play it on test tasks. All arms play the same tasks, and results are printed
    beside the published figures.

    Example: agentopcd reproduce table2 --size mini
    """
    from agentopcd import models
    from agentopcd.cli.paper.plan import REPORTS, SIZES, find_recipe, read
    from agentopcd.cli.paper.report import lines
    from agentopcd.cli.paper.run import run, say_plan
    from agentopcd.core.errors import AgentOpcdError, ConfigError, did_you_mean
    from agentopcd.core.runs import Run, workspace, write_json
    from agentopcd.workspace.holding import Hold

    call = Call(work, as_json, dry_run)
    if report not in REPORTS:
        raise ConfigError(f"report is {report!r}{did_you_mean(report, REPORTS)}")
    file = find_recipe(recipe)
    title, plans = read(file, size)
    if not plans:
        others = " and ".join(other for other in SIZES if read(file, other)[1])
        raise ConfigError(f"{file.stem} has no row at size {size}; its rows are at size {others}")
    chosen = [plan for plan in plans if row.lower() in plan.name.lower()]
    if not chosen:
        names = ", ".join(plan.name for plan in plans) or "none"
        raise ConfigError(f"no row of {file.stem} at size {size} contains {row!r} in its name; the rows are: {names}")
    models.prepare_process()
    folder = workspace(work)
    files = {plan.name: _file(folder, f"{file.stem}-{size}-{plan.slug}", title, plan.name) for plan in chosen}
    call.say(title)
    if dry_run:
        lacking = []
        for plan in chosen:
            try:
                say_plan(plan, folder, call.say)
            except AgentOpcdError as error:  # the other rows may be ready
                call.say(f"{plan.name}: cannot run yet: {error}")
                lacking.append(plan.name)
        if lacking:
            raise ConfigError(f"{len(lacking)} of {len(chosen)} rows cannot run yet ({', '.join(lacking)}); see above")
        call.say("dry run: nothing was played or trained; leave out --dry-run to start")
        return
    results: list[dict[str, Any]] = []
    words = shlex.join([recipe, "--size", size, "--report", report, *(["--row", row] if row else [])])
    whole = Run(folder, "reproduce", {"recipe": file.stem, "words": words})
    with goes_on(), contextlib.closing(Hold(folder, whole.folder.name, "this command")):
        (whole.folder / "result.json").unlink(missing_ok=True)
        for plan in chosen:
            result = run(plan, folder, report=report, say=call.say, progress=progress)
            results.append(result.to_dict())
            out = files[plan.name]
            out.parent.mkdir(exist_ok=True)
            write_json(out, {"title": title, "size": size} | results[-1])
            for line in lines(result):
                call.say(line)
            call.say(f"written: {out}")
    whole.finish({"rows": [plan.name for plan in chosen]})
    call.show(results)


def _file(work: Path, name: str, title: str, row: str) -> Path:
    """Where the result of a row goes; a result of another recipe, or of another row, is not written over."""
    from agentopcd.core.errors import ConfigError
    from agentopcd.core.files import is_file
    from agentopcd.core.runs import read_json

    out = work / "reproduce" / f"{name}.json"
    if is_file(out):
        found = read_json(out, "move it away")
        told = [found.get(key) for key in ("title", "row")] if isinstance(found, dict) else []
        if told != [title, row]:
            raise ConfigError(
                f"{out} holds the result of another recipe ({', '.join(map(str, told)) or 'unknown'}); move it away, "
                "rename this recipe's file, or give another --work"
            )
    return out
