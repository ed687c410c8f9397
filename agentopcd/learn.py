"""What ``agentopcd learn`` does: rounds of play, extract, score and consolidate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentopcd.core.callable_module import make_callable
from agentopcd.core.config import ConsolidateConfig, LearnConfig, PlayConfig, ScoreConfig, pick
from agentopcd.core.config.toml import saved
from agentopcd.core.runs import Run, read_json, write_json
from agentopcd.distil import Distilled, check_launch, distil_context
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge.database import now
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.workspace.experience.choose import choose, result_of
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.paths import inside, written_down
from agentopcd.workspace.ready import to_learn
from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round of ``learn``."""

    number: int
    model: str
    played: dict[str, Any]
    confirmed: bool
    distilled: Distilled | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"distilled": self.distilled.to_dict() if self.distilled else None}


def learn(
    config: LearnConfig, work: Path, *, say: Callable[[str], None] = print, progress: Progress = no_progress
) -> list[Round]:
    """Run rounds of play, extract, score and consolidate; each round starts from the last student.

    Round 1 starts from ``config.model``. A round whose candidates do not beat the empty context on the
    confirm tasks trains nothing unless ``force`` is set; the next round continues with the same model.
    """
    check_launch(pick(config, ConsolidateConfig), Ranks.current().count)
    run = Run(work, "learn", run_config(config), saved(config)[0])
    with contextlib.closing(Hold(work, run.folder.name)) as hold:
        if hold.shared:
            say("warning: another process runs this command; let one of the two do it")
        return _rounds(config, run, work, say, progress)


def _rounds(config: LearnConfig, run: Run, work: Path, say: Callable[[str], None], progress: Progress) -> list[Round]:
    rounds: list[Round] = []
    start = run.folder / "start.json"
    began = now()
    if run.result is None and start.is_file():  # resumed after a kill: the newest student may be this run's own
        known = read_json(start, f"remove {run.folder} to begin again")
        written, began = known["model"], known.get("started_at", began)
        here = inside(work, written)
        name = str(here) if here is not None and here.is_dir() else written  # the workspace may have been moved
        first = written
    else:
        with Session(pick(config, PlayConfig), work, say=say) as session:
            to_learn(session, config)  # what cannot be ranked, for example, is refused before anything is played
            name = session.model_name()[0]
        (run.folder / "result.json").unlink(missing_ok=True)
        first = written_down(work, name)
    for number in range(1, config.rounds + 1):
        write_json(start, {"model": first, "round": number, "started_at": began})
        say(f"round {number} of {config.rounds}")
        settings = dataclasses.replace(config, model=name, seed=config.seed + number - 1)
        done = _round(settings, number, work, say, progress)
        rounds.append(done)
        name = done.distilled.folder if done.distilled else done.model
    run.finish({"rounds": [one.to_dict() for one in rounds]})
    return rounds


def _round(config: LearnConfig, number: int, work: Path, say: Callable[[str], None], progress: Progress) -> Round:
    play = pick(config, PlayConfig, episodes=config.episodes_per_round)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = session.ledger.stage("play", round=number)
        gathered = gather(session, play, run_id=run_id)
        session.ledger.finish(run_id, gathered.to_dict())
        say(f"played {gathered.rate}; {len(gathered.items)} items, {len(gathered.candidates)} candidate contexts")
        model = str(session.loaded.folder)
        waiting = len(session.store.items(ids=gathered.items, status="pending"))
        if waiting:
            say(f"{waiting} items wait for a person: agentopcd knowledge list items --status pending --work {work}")
        if not gathered.candidates:
            why = "none of the items is approved" if waiting else "no item could be read from the extractor's replies"
            say(f"{why}, so there is nothing to score")
            return Round(number=number, model=model, played=gathered.to_dict(), confirmed=False, distilled=None)
        run_id = session.ledger.stage("score", round=number)
        ranking, outcome = choose(session, pick(config, ScoreConfig), gathered.candidates, run_id=run_id)
        assert outcome is not None
        session.ledger.finish(run_id, result_of(ranking, outcome) | {"text": str(outcome)})
        distilled = None
        if outcome.passed or config.force:
            context = session.store.get_context(ranking.best.context_id)
            session.check_handover(context)
            distilled = distil_context(session, pick(config, ConsolidateConfig), context)
        else:
            say("nothing was confirmed, so nothing is consolidated (--force consolidates anyway)")
        return Round(
            number=number, model=model, played=gathered.to_dict(), confirmed=outcome.passed, distilled=distilled
        )


make_callable(__name__)  # agentopcd.learn(...) works, too
