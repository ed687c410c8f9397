"""What is in the weights, whether it stays, and whether it can be taken out: on pocket, from an empty workspace.

    OMP_NUM_THREADS=1 python -m benchmarks.forgetting --work forgetting

trains pocket on three items in one game, then the student on two items in another game; audits both students; lets
the second one forget an item; and audits what comes of it. Each stage is kept in --work, so a call that was stopped
goes on. Add --json FILE for all figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.runs import workspace, write_json
from agentopcd.core.types import Context
from agentopcd.distil import Distilled, distil_context
from agentopcd.knowledge import Store, identify, render
from agentopcd.workspace.lineage.audit import audit
from agentopcd.workspace.lineage.forget import forget, plan_of
from agentopcd.workspace.lineage.found import Audit, audits, curves
from agentopcd.workspace.session import Session

FORGOTTEN = "All moves work as named."
ROUNDS = (
    ("frozen-lake-4x4", ["G is the goal.", "H is a hole, never step on it.", FORGOTTEN]),
    ("sokoban", ["X is the box and O is the target.", "Push X onto O."]),
)
"""The environment of each training, and its items."""


def train(args: argparse.Namespace, env: str, items: Sequence[str], model: str) -> Distilled:
    """One training; a finished one is read back."""
    context = Context(render(items))
    config = ConsolidateConfig(
        env=env, model=model, context=context.id, steps=args.steps, batch_size=args.batch_size,
        select_every=args.steps, select_tasks=args.tasks, test_tasks=args.tasks, gate_tasks=0,
        seed=args.seed,
    )  # fmt: skip
    with Session(config, args.work, progress=progress) as session:
        session.store.add_context(context, {"order": "benchmark"})
        return distil_context(session, config, context)


def look(store: Store, args: argparse.Namespace, student: str, others: Sequence[str] = ()) -> Audit:
    """An audit, printed."""
    row = store.lookup("model", id=student)
    assert row is not None
    found = audit(store, args.work, row, turns=args.turns, others=others, progress=progress)
    print("\n".join(found.lines()), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the workspace")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--steps", type=int, default=6, help="steps of each training")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=24, help="select tasks, and test tasks")
    parser.add_argument("--turns", type=int, default=128, help="stored turns of each audit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args(arguments)
    models.prepare_process()
    try:
        args.work, model = workspace(args.work), args.model
        students: list[str] = []
        for env, items in ROUNDS:
            made = train(args, env, items, model)
            model = made.folder
            students.append(made.model_id)
        figures: dict[str, Any] = {}
        with Store.open(args.work / "store.db") as store:
            figures["before"] = [look(store, args, student).to_dict() for student in students]
            print("\n".join(curves(audits(store, students[-1]))))
            last = store.lookup("model", id=students[-1])
            assert last is not None
            plan = plan_of(store, args.work, last, [store.item(identify(FORGOTTEN))])
            done = forget(store, args.work, plan, distil=distil_context, progress=progress)
            print("\n".join([*plan.lines(), *done.lines()]), flush=True)
            figures["forgotten"] = done.to_dict()
            figures["after"] = look(store, args, done.student, done.items).to_dict()
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
