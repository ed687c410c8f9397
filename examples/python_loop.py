"""The whole circle in Python: play, score and confirm, consolidate, load.

    python examples/python_loop.py

What the commands `play`, `knowledge score` and `consolidate` do, on the cave of the quickstart, with `pocket`. It takes
minutes on two cores. A killed script goes on where it stopped when it is started again: a stage that is done is read
back, not repeated.
"""

from __future__ import annotations

from pathlib import Path

from agentopcd import ConsolidateConfig, Session, distil_context, find_context, load_model
from agentopcd.core.config import PlayConfig, ScoreConfig
from agentopcd.workspace.evaluation.table import lines
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.experience.choose import choose
from agentopcd.workspace.experience.gather import gather

CAVE = f"{Path(__file__).with_name('cave.py')}:Cave"
NOTES = "T is the goal. X is a hole, never step on it. All moves work as named."


def play(work: Path, episodes: int) -> None:
    """Play on extract tasks, and let the model write down what it saw."""
    config = PlayConfig(env=CAVE, model="pocket", episodes=episodes)
    with Session(config, work) as session:
        run_id = session.ledger.stage("play")
        gathered = gather(session, config, run_id=run_id)
        session.ledger.finish(run_id, gathered.to_dict())
        print(f"played: {gathered.rate}")
        for item in session.store.items(ids=gathered.items):
            print(f"  lesson: {item.text}")


def score(work: Path, confirm_tasks: int) -> bool:
    """Rank what the chains have left on select tasks, and confirm the winner; whether it passed."""
    config = ScoreConfig(env=CAVE, model="pocket", confirm_tasks=confirm_tasks)
    with Session(config, work) as session:
        candidates = pool(session)
        run_id = session.ledger.stage("score", pool=[one.id for one in candidates])
        ranking, outcome = choose(session, config, candidates, run_id=run_id)
        assert outcome is not None  # None only with confirm=False
        session.ledger.finish(run_id, outcome.to_dict())
        print(ranking, outcome, sep="\n")
        return outcome.passed


def consolidate(work: Path, steps: int, test_tasks: int, context: str) -> str:
    """Train without the notes towards the model that sees them; the student's folder.

    Args:
        context: a file with notes; empty: the confirmed context.
    """
    config = ConsolidateConfig(
        env=CAVE,
        model="pocket",
        context=context,
        steps=steps,
        batch_size=16,
        select_every=max(1, steps // 2),
        select_tasks=16,
        test_tasks=test_tasks,
    )
    with Session(config, work) as session:
        distilled = distil_context(session, config, find_context(session, config))
    if distilled.evaluation is not None:
        print(*lines(distilled.evaluation), sep="\n")
    return distilled.folder


def main(
    work: Path = Path("loop-work"), episodes: int = 48, confirm_tasks: int = 64, steps: int = 4, test_tasks: int = 32
) -> str:
    """Play, score, consolidate, load; the student's folder."""
    play(work, episodes)
    context = ""
    if not score(work, confirm_tasks):
        print(f"no notes of the model were confirmed, so those of a person are distilled: {NOTES}")
        file = work / "notes.txt"
        file.write_text(NOTES, encoding="utf-8")
        context = str(file)
    folder = consolidate(work, steps, test_tasks, context)
    student = load_model(folder)  # or transformers: AutoModelForCausalLM.from_pretrained(folder)
    print(f"student: {folder}, {sum(weights.numel() for weights in student.model.parameters()):,} weights")
    return folder


if __name__ == "__main__":
    main()
