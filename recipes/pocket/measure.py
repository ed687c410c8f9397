"""The figures of pocket's model card: ``python -m recipes.pocket.measure --model pocket --work measure-work``.

On the real games, rules hidden: without a context, with one that a person wrote (``contexts/``), and with the roles
told in words that no training text used. In the swapped worlds the usual roles and directions lose. With ``--student
FOLDER`` the student plays all arms too, each compared with the base in the same arm: in a swapped world under its
context (obedience) and on the instructions that is what it has forgotten. Every episode is stored, so a killed call
goes on and a repeated one plays nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import EvaluateConfig
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.runs import workspace, write_json
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import places_of
from agentopcd.workspace.evaluation.table import Contestant, Evaluation, evaluate
from agentopcd.workspace.session import Session
from recipes.pocket.wording import HELD_OUT

CONTEXTS = Path(__file__).parent / "contexts"


@dataclasses.dataclass(frozen=True)
class Probe:
    """One environment and what is told about it."""

    env: str
    context: str = ""
    """File with what a person wrote; empty: it is only played without a context."""
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Role → letter, told in held-out words."""
    moves: str = ""
    """What is told about the moves beside them, in ordinary words: no wording of that is held out."""
    forgetting: tuple[str, str] = ("", "")
    """What a student may have lost, and the arm that shows it."""

    def arms(self) -> dict[str, Context]:
        """The base's arms."""
        arms = {"base": EMPTY}
        if self.context:
            arms["in-context"] = Context((CONTEXTS / self.context).read_text(encoding="utf-8").strip())
        if self.roles:
            told = [HELD_OUT[role][0].format(L=letter) for role, letter in self.roles.items()]
            arms["other words"] = Context(" ".join([*told, self.moves]))
        return arms


NAMED, SWAPPED = "All moves work as named.", "Up and down are swapped. Left and right work as named."
PROBES = (
    Probe("frozen-lake-4x4", "frozen-lake.txt", {"goal": "G", "hole": "H"}, NAMED),
    Probe("frozen-lake", "frozen-lake.txt", {"goal": "G", "hole": "H"}, NAMED),
    Probe("sokoban", "sokoban.txt", {"box": "X", "target": "O"}, NAMED),
    Probe("frozen-lake-4x4-swapped", "frozen-lake-swapped.txt", {"goal": "H", "hole": "G"}, SWAPPED,
          ("context obedience", "in-context")),
    Probe("sokoban-swapped", "sokoban-swapped.txt", {"box": "O", "target": "X"}, SWAPPED,
          ("context obedience", "in-context")),
    Probe("conventions", "conventions.txt"),
    Probe("instructions", forgetting=("instruction score", "base")),
)  # fmt: skip


def pairs(arms: Sequence[str], student: bool) -> dict[str, str]:
    """Every arm that is compared, and with which: a context with none, the student with the base in the same arm."""
    found = {arm: "base" for arm in arms if arm != "base"}
    return found | {student_arm(arm): arm for arm in arms if student}


def student_arm(arm: str) -> str:
    return "student" if arm == "base" else f"student, {arm}"


def measure(probe: Probe, config: EvaluateConfig, work: Path) -> Evaluation:
    """Play what is missing of one probe on its test tasks, and tabulate all of it."""
    settings = dataclasses.replace(config, env=probe.env)
    with Session(settings, work, say=lambda line: print(line, file=sys.stderr), progress=progress) as session:
        base, arms = session.loaded, probe.arms()
        contestants = [Contestant(label=arm, model=base, context=context) for arm, context in arms.items()]
        if config.student:
            trained = session.load(config.student)
            contestants += [Contestant(label=student_arm(a), model=trained, context=c) for a, c in arms.items()]
        facts = {one.label: [one.model.id, one.context.id] for one in contestants}
        run_id = session.ledger.stage("measure", arms=facts)
        tasks = session.tasks("test", config.test_tasks)
        reps = -(-config.test_tasks // len(tasks)) if session.manifest.protocol == "shared" else 1
        found = evaluate(session, contestants, tasks, run_id=run_id, reps=reps)
        arm = {one.label: one.arm for one in contestants}
        arena = session.bench(run_id).arena("test", places_of(tasks, reps))
        compared = {f"{one} - {other}": session.store.compare(arm[one], arm[other], arena)
                    for one, other in pairs(list(arms), bool(config.student)).items()}  # fmt: skip
        found = dataclasses.replace(found, comparisons=compared)
        session.ledger.finish(run_id, found.to_dict())
        return found


def table_of(probes: Sequence[Probe], results: Sequence[Evaluation], title: str, student: bool) -> Table:
    table = Table(title=title)
    for column in ("environment", "arm", "success", "95 % interval", "n", "paired difference"):
        table.add_column(column, justify="left" if column in ("environment", "arm") else "right")
    for probe, found in zip(probes, results, strict=True):
        table.add_section()
        against = pairs(list(probe.arms()), student)
        for row in found.rows:
            other = against.get(row.label)
            gap = str(found.comparisons[f"{row.label} - {other}"].difference) if other else ""
            name = found.env if row.label == "base" else ""
            interval = f"[{row.rate.low:.3f}, {row.rate.high:.3f}]"
            table.add_row(name, row.label, f"{row.rate.rate:.3f}", interval, str(row.rate.n), gap)
    return table


def lines(probes: Sequence[Probe], results: Sequence[Evaluation], student: bool) -> list[str]:
    """What stands below the table: what is compared with what, floors, forgetting, notes."""
    known = [found for found in results if found.floors and found.floors.blind is not None]
    out = ["differences: a context to no context; the student to the base in the same arm"]
    out += [f"floors of {found.env}: {found.floors.text}" for found in known if found.floors]
    for probe, found in zip(probes, results, strict=True):
        name, arm = probe.forgetting
        if student and name:
            gap = found.comparisons[f"{student_arm(arm)} - {arm}"]
            rates = f"student {gap.first.rate:.3f}, base {gap.second.rate:.3f}, {gap.difference} (n={gap.n})"
            out.append(f"forgetting, {name} in {found.env}: {rates}")
    for note in dict.fromkeys(note for found in results for note in found.notes):
        about = [found.env for found in results if note in found.notes]
        out.append(f"note: {note}" if len(about) == len(results) else f"note on {', '.join(about)}: {note}")
    return out


def main(arguments: Sequence[str] | None = None, probes: Sequence[Probe] = PROBES) -> None:
    names = [probe.env for probe in probes]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="the base: a built-in name or a folder (default pocket)")
    parser.add_argument("--student", help="folder of a student, to play the same arms")
    parser.add_argument("--work", help="workspace (default agentopcd-work)")
    said = "test episodes: a task each, repeated where too few exist (default 256)"
    parser.add_argument("--tasks", type=int, default=256, help=said)
    parser.add_argument("--env", nargs="+", choices=names, default=names, help="only these environments")
    parser.add_argument("--max-tokens", type=int, help="longest reply, in tokens (default as in agentopcd)")
    parser.add_argument("--temperature", type=float, help="default as in agentopcd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(arguments)
    chosen = [probe for probe in probes if probe.env in args.env]
    models.prepare_process()
    try:
        config = EvaluateConfig.load(
            env=chosen[0].env, model=args.model, student=args.student, test_tasks=args.tasks,
            max_tokens=args.max_tokens, temperature=args.temperature,
        )  # fmt: skip
        results = [measure(probe, config, workspace(args.work)) for probe in chosen]
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    student = bool(args.student)
    title = f"{args.model} and student {args.student}, test tasks" if student else f"{args.model}, test tasks"
    Console(width=118).print(table_of(chosen, results, title, student))
    print("\n".join(lines(chosen, results, student)))
    if args.json:
        told = [{arm: context.text for arm, context in probe.arms().items()} for probe in chosen]
        figures = [found.to_dict() | {"contexts": texts} for found, texts in zip(results, told, strict=True)]
        write_json(args.json, {"settings": config.to_dict(), "figures": figures})
        print(f"figures: {args.json}")


if __name__ == "__main__":
    main()
