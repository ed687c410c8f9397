"""How many of an extractor's lessons say something: found by play, not by another model's opinion.

    python -m benchmarks.lessons --work lessons --env frozen-lake-4x4 --model pocket --prompt game

plays --episodes extract tasks, lets the model draw its lessons with one prompt, and then plays each lesson alone and
the placebo of each lesson (the same text with its content words permuted) on the same --tasks select tasks with the
same noise. A lesson says something if it wins against its placebo with p < .05 (one-sided). Of lessons that say
nothing, one in twenty does so by chance. Besides, each lesson gets a value from random halves of all of them.

Episodes go through the store of --work, one folder for each prompt, so a call that was stopped goes on. Add --json FILE
for every lesson with its figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from agentopcd import models
from agentopcd.cli.options import parse_env_args, progress
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError, did_you_mean
from agentopcd.core.quantiles import t_quantile
from agentopcd.core.runs import write_json
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import EMPTY, MARKER, Context, Job
from agentopcd.knowledge import placebo, places_of, subsets
from agentopcd.knowledge.extract import TEMPLATES
from agentopcd.knowledge.store import PLACEBO
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One lesson alone, its placebo, and its value among the others."""

    text: str
    placebo: str
    success: float
    placebo_success: float
    difference: float
    p: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Value with its 95 % interval; None if no values were asked for."""

    @property
    def says_something(self) -> bool:
        return self.p < ALPHA


def prompt_file(name: str, folder: Path) -> str:
    """The file of a prompt: that of a person, or one with the built-in prompt of this name.

    Raises:
        ConfigError: there is neither.
    """
    if Path(name).is_file():
        return name
    if name not in TEMPLATES:
        raise ConfigError(f"{name!r} is no file and no built-in prompt{did_you_mean(name, list(TEMPLATES))}")
    file = folder / f"prompt-{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TEMPLATES[name], encoding="utf-8")  # type: ignore[index]
    return str(file)


def lessons(session: Session, config: PlayConfig, tasks: int, value_tasks: int) -> tuple[list[Lesson], Rate | Mean]:
    """The lessons of one play run with their figures, and the success without any.

    Raises:
        ConfigError: no lesson could be read from the replies.
    """
    run_id = session.ledger.stage("play")
    gathered = gather(session, config, run_id=run_id)
    session.ledger.finish(run_id, gathered.to_dict())
    store = session.store
    items = [item for item in store.items(ids=gathered.items) if item.status == "active"]
    if not items:
        raise ConfigError(f"none of the {gathered.unparsed} replies holds a lesson that is not flagged")
    alone = {item.id: Context(f"{MARKER} {item.text}") for item in items}
    twins = {item.id: placebo(alone[item.id], config.seed) for item in items}
    select = session.tasks("select", tasks)
    bench = session.bench(session.ledger.stage("lessons", play=run_id, tasks=len(select)))
    contexts = [EMPTY, *alone.values(), *twins.values()]
    bench.prepare(alone.values(), select, "select", {"order": "lessons"})
    bench.prepare(twins.values(), select, "select", {"order": PLACEBO})
    bench.play_missing("lessons and placebos", [Job(task, context) for context in contexts for task in select])
    values = {}
    if value_tasks and len(items) > 1:
        found = subsets(bench, items, session.tasks("select", value_tasks), seed=config.seed)
        values = {one.item_id: (one.value, one.low, one.high) for one in found}
    arena = bench.arena("select", places_of(select))
    rows = []
    for item in items:
        pair = store.compare(bench.arm(alone[item.id]), bench.arm(twins[item.id]), arena)
        rows.append(
            Lesson(
                item.text, twins[item.id].lines[0], pair.first.rate, pair.second.rate, pair.difference.diff, pair.p,
                *values.get(item.id, (None, None, None)),
            )
        )  # fmt: skip
    session.ledger.finish(bench.run_id, {"lessons": [dataclasses.asdict(row) for row in rows]})
    return rows, store.counts([bench.arm()], arena)[bench.arm()].rate


def summary(rows: Sequence[Lesson], base: Rate | Mean) -> list[str]:
    """What came out, as lines for people."""
    share = Rate(sum(row.says_something for row in rows), len(rows))
    gains = [row.difference for row in rows]
    half = t_quantile(len(gains) - 1) * stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else float("nan")
    lines = [
        f"without a lesson: {base}",
        f"a lesson alone {fmean(row.success for row in rows):.3f}, its placebo "
        f"{fmean(row.placebo_success for row in rows):.3f}, difference {fmean(gains):+.3f} "
        f"[{fmean(gains) - half:+.3f}, {fmean(gains) + half:+.3f}] (mean of {len(rows)} lessons)",
        f"say something (p < {ALPHA} against the placebo): {share}",
    ]
    valued = [row for row in rows if row.low is not None]
    if valued:
        good = Rate(sum((row.low or 0.0) > 0 for row in valued), len(valued))
        lines.append(f"value above 0 among the others (95 % interval): {good}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the workspaces")
    parser.add_argument("--env", required=True)
    parser.add_argument("--env-arg", action="append", default=[], help="as of agentopcd play")
    parser.add_argument("--model", required=True, help="plays, and draws the lessons")
    parser.add_argument("--extractor", default="", help="another model that draws the lessons")
    parser.add_argument("--prompt", required=True, help=f"one of {', '.join(TEMPLATES)}, or a file")
    parser.add_argument("--splits", default="", help="as of agentopcd play")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest reply of the player")
    parser.add_argument("--episodes", type=int, default=16, help="episodes to draw lessons from")
    parser.add_argument("--tasks", type=int, default=32, help="select tasks that each lesson and each placebo plays")
    parser.add_argument("--values", type=int, default=0, help="select tasks for values; 0: no values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every lesson with its figures here")
    args = parser.parse_args(arguments)
    models.prepare_process()
    try:
        work = args.work / hashlib.sha256(f"{args.env}\0{args.model}\0{args.prompt}".encode()).hexdigest()[:8]
        config = PlayConfig(
            env=args.env, env_args=parse_env_args(args.env_arg), model=args.model, extractor=args.extractor,
            extract_prompt=prompt_file(args.prompt, args.work), splits=args.splits, max_tokens=args.max_tokens,
            episodes=args.episodes, chains=1, chain_steps=args.episodes, seed=args.seed,
        )  # fmt: skip
        work.mkdir(parents=True, exist_ok=True)
        with Session(config, work, progress=progress) as session:
            rows, base = lessons(session, config, args.tasks, args.values)
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    for row in sorted(rows, key=lambda row: row.p):
        value = "" if row.value is None else f"  value {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        print(f"{row.success:.3f} against {row.placebo_success:.3f}, p {row.p:.3f}{value}  {row.text}")
    print(f"{args.model} on {args.env}, prompt {args.prompt}, {args.episodes} episodes, {args.tasks} tasks")
    print("\n".join(summary(rows, base)))
    if args.json:
        facts: dict[str, Any] = {"settings": config.to_dict(), "lessons": [dataclasses.asdict(row) for row in rows]}
        write_json(args.json, facts)


if __name__ == "__main__":
    main()
