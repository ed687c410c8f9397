"""How long something will take, from what the same model and environment took in this workspace before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import fmean

from agentopcd.core.runs import read_records
from agentopcd.knowledge.faults import read_object
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session

LATEST = 5
"""Earlier runs that count, the newest: the machine may have been another one before."""
PAUSE_S = 3600.0
"""Seconds without an episode after which a run counts as stopped: killed in the evening and resumed in the morning."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """What was measured; None where nothing was."""

    episode_s: float | None
    """Seconds for an episode."""
    step_s: float | None
    """Seconds for a training step."""


def pace(session: Session) -> Pace:
    """How fast the session's model has played and learned in its environment, in the newest finished runs."""
    name, _ = session.model_name()
    ids = {row["id"] for row in session.store.models() if name in (row["name"], recall(session.work, row))}
    rows = [
        (row, config)
        for row in session.store.headlines()
        if row["status"] == "done"
        and (config := read_object(row["config"], f"the config of run {row['id']}")).get("env") == session.env
        and config.get("model_id") in ids
    ]
    counts = session.store.played_by([row["id"] for row, _ in rows])
    spans = session.store.spans(sorted(id_ for id_, played in counts.items() if played["n"] > 1)[-LATEST:], PAUSE_S)
    trained = {row["id"] for row, _ in rows if row["verb"] == "consolidate"}
    # The longest pause between the episodes of a consolidation is its training, which the steps count.
    aside = [span for span in spans if span["run_id"] in trained]
    counted = sum(span["n"] for span in spans) - len(aside)
    seconds = sum(span["seconds"] for span in spans) - sum(span["longest"] for span in aside)
    logs = [session.work / "runs" / Path(config["folder"]).name for _, config in rows if config.get("folder")]
    steps = [
        record["time/step_s"]
        for folder in logs[-LATEST:]
        for record in read_records(folder / "metrics.jsonl")
        if "time/step_s" in record
    ]
    return Pace(seconds / counted if counted else None, fmean(steps) if steps else None)


def estimate(session: Session, *, episodes: int, steps: int = 0) -> str:
    """How long it will take at most, as one line.

    Args:
        episodes: those to play, at most; what is stored already is not played again.
        steps: training steps.
    """
    found = pace(session)
    missing = [f"{session.config.sample_batch} episodes"] if episodes and found.episode_s is None else []
    missing += [f"{steps} steps"] if steps and found.step_s is None else []
    if missing:
        return f"time: not known here yet; a first run of {' and '.join(missing)} will tell"
    seconds = episodes * (found.episode_s or 0.0) + steps * (found.step_s or 0.0)
    rates = [f"{60 / found.episode_s:.0f} episodes a minute"] if episodes and found.episode_s else []
    rates += [f"{found.step_s:.1f} s a step"] if steps and found.step_s else []
    return (
        f"time: up to {seconds / 60:.0f} min at {' and '.join(rates)}, as in earlier runs here; extraction not counted"
    )
