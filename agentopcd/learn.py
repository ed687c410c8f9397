"""What ``agentopcd learn`` does: rounds of play, extract, score and consolidate."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.callable_module import make_callable
from agentopcd.core.config import ConsolidateConfig, LearnConfig, PlayConfig, ScoreConfig, pick, since_of
from agentopcd.core.config.toml import saved
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.files import path_of
from agentopcd.core.runs import Run, read_json, work_flag, write_json, written_down
from agentopcd.core.text import counted
from agentopcd.core.types import EMPTY, Context, Job
from agentopcd.distil import Distilled, check_launch, distil_context, pilot
from agentopcd.distillation.distance import DISTANCE
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge import Ranking, Store
from agentopcd.knowledge.database import now
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.students import student_ref
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.workspace.checks import check_method
from agentopcd.workspace.evaluation.rounds import Stage, stages
from agentopcd.workspace.experience.carry import carried
from agentopcd.workspace.experience.chains import Gathered, chains_of
from agentopcd.workspace.experience.choose import choose, result_of
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.experience.teach import context_to_teach
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.paths import inside
from agentopcd.workspace.ready import to_learn
from agentopcd.workspace.recorded import new_snapshot, recording_of
from agentopcd.workspace.session import Session

WAYS: Mapping[str, Mapping[str, Any]] = {
    "opcd": {"method": "opcd", "answers": "once", "turn_decay": 0.0},
    "prefix-replay": {"method": "prefix-replay", "answers": "once"},
    "context-distillation": {
        "method": "context-distillation", "anchor": 0.0, "direction": "", "importance_cap": 0.0, "turn_items": 0,
        "turn_decay": 0.0,
    },
    "mixed": {"method": "mixed", "turn_items": 0, "turn_decay": 0.0},
    "opcd, anchored": {"method": "opcd", "answers": "once", "turn_decay": 0.0, "anchor": 0.5},
}  # fmt: skip
"""Ways to train that are tried when a student does not pass its gate, and what each changes in the settings: settings
that are about the teacher's answers, the student's own, or stored turns are left out where there are none."""

REPLAYED = 64
"""Train episodes that are played for prefix replay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round of ``learn``."""

    number: int
    model: str
    """The model that it started from."""
    played: dict[str, Any]
    confirmed: bool
    distilled: Distilled | None
    """The last student that it trained; None if nothing was confirmed."""
    tried: Sequence[str] = ()
    """The ways in which it trained students, in order."""
    why: str = ""
    """Of a recording that nothing grades: why this context is distilled, or none."""
    stages: Sequence[Stage] = ()
    """The first base and the students up to this round, on the same test tasks."""

    @property
    def player(self) -> str:
        """The folder of the model that plays after this round."""
        return self.distilled.folder if self.distilled and self.distilled.plays else self.model

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number, "model": self.model, "played": self.played, "confirmed": self.confirmed,
            "distilled": self.distilled.to_dict() if self.distilled else None, "tried": [*self.tried],
            "stages": [stage.to_dict() for stage in self.stages], **({"why": self.why} if self.why else {}),
        }  # fmt: skip


@dataclasses.dataclass
class _Past:
    """What earlier rounds of this call leave to the next one."""

    students: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)
    """Label, model id, and whether it was promoted, of the first base and every student."""
    candidates: list[Context] = dataclasses.field(default_factory=list)
    """Where the chains of earlier rounds ended, the newest round first."""
    start: list[Context] = dataclasses.field(default_factory=list)
    """What the next round's chains begin with."""
    last: tuple[Gathered, Ranking | None] | None = None


def learn(
    config: LearnConfig, work: str | Path, *, say: Callable[[str], None] = print, progress: Progress = no_progress
) -> list[Round]:
    """Run rounds of play, extract, score and consolidate; each round starts from the student that plays.

    Round 1 starts from ``config.model``. A round whose candidates do not beat the empty context on the
    confirm tasks trains nothing unless ``force`` is set, and a student that does not pass its gate
    (:mod:`agentopcd.workspace.ratchet`) plays no further round. Tasks, seeds of tests, and the pool of contexts go on
    from round to round; play takes new tasks, and training takes new noise.

    Of a recording, sessions are read in place of play. Where nothing grades its replies, no context is ranked, and
    :func:`agentopcd.workspace.experience.teach.context_to_teach` says which one is distilled.
    """
    work, config = path_of(work), dataclasses.replace(config, since=since_of(config.since))
    check_launch(pick(config, ConsolidateConfig), Ranks.current().count)
    run = Run(work, "learn", run_config(config), saved(config)[0])
    with contextlib.closing(Hold(work, run.folder.name, "this command")):
        return _rounds(config, run, work, say, progress)


def _rounds(config: LearnConfig, run: Run, work: Path, say: Callable[[str], None], progress: Progress) -> list[Round]:
    rounds: list[Round] = []
    start = run.folder / "start.json"
    began = now()
    if run.result is None and start.is_file():  # resumed after a kill: the newest student may be this run's own
        known = read_json(start, f"remove {run.folder} to begin again")
        written, began = known["model"], known.get("started_at", began)
        places = inside(work, written), work / written  # the workspace may have been moved
        name = next((str(place) for place in places if place is not None and place.is_dir()), written)
        first, snapshot = written, known.get("snapshot", "")
    else:
        snapshot = _snapshot(config, work)
        with Session(_play_config(config), work, say=say, snapshot=snapshot, by=config.by) as session:
            to_learn(session, config)  # what cannot be ranked, for example, is refused before anything is played
            name = session.model_name()[0]
        first = written_down(work, name)
    past = _Past()
    for number in range(1, config.rounds + 1):
        kept = {"snapshot": snapshot} if snapshot else {}
        write_json(start, {"model": first, "round": number, "started_at": began, **kept})
        # Not before: without a result, a repeated command goes on from the model that the start names.
        (run.folder / "result.json").unlink(missing_ok=True)
        say(f"round {number} of {config.rounds}")
        done = _round(dataclasses.replace(config, model=name), number, past, work, say, progress, snapshot)
        rounds.append(done)
        name = done.player
    run.finish({"rounds": [one.to_dict() for one in rounds]})
    return rounds


def _round(
    config: LearnConfig, number: int, past: _Past, work: Path, say: Callable[[str], None], progress: Progress,
    snapshot: str,
) -> Round:  # fmt: skip
    play = _play_config(config)
    with Session(play, work, say=say, progress=progress, snapshot=snapshot, by=config.by) as session:
        _carry(session, past)
        if session.recording and not session.tasks("extract"):
            session.say("note: no recorded session is for extraction, so none is read for lessons")
            return _without_ranking(session, config, number, past, {})
        # By other settings another ranking may have handed on other items.
        begun = {"carried": [context.id for context in past.start]} if past.start and _scoring(config) else {}
        run_id = session.ledger.stage("play", round=number, **begun)
        gathered = gather(session, play, run_id=run_id, start=past.start)
        session.ledger.finish(run_id, gathered.to_dict())
        say(
            f"{'read' if session.recording else 'played'} {gathered.rate}; {counted(len(gathered.items), 'item')}, "
            f"{counted(len(gathered.candidates), 'candidate context')}"
        )
        if session.recording and not session.game.graded:
            return _without_ranking(session, config, number, past, gathered.to_dict())
        past.last = gathered, None
        model = str(session.loaded.folder)
        if not past.students:
            past.students.append(("base", session.loaded.id, True))
        done = Round(number=number, model=model, played=gathered.to_dict(), confirmed=False, distilled=None)
        candidates = _candidates(session, config, gathered, past)
        if not candidates:
            return dataclasses.replace(done, stages=_stages(session, config, past))
        run_id = session.ledger.stage("score", round=number, **_scoring(config))
        ranking, outcome = choose(session, pick(config, ScoreConfig, context=""), candidates, run_id=run_id)
        assert outcome is not None
        session.ledger.finish(run_id, result_of(ranking, outcome) | {"text": str(outcome)})
        past.last = gathered, ranking
        done = dataclasses.replace(done, confirmed=outcome.passed)
        if outcome.passed or config.force:
            context = session.store.get_context(ranking.best.context_id)
            session.check_handover(context)
            done = _taught(session, config, number, context, done, past)
        else:
            say("nothing was confirmed, so nothing is consolidated (--force consolidates anyway)")
        return dataclasses.replace(done, stages=_stages(session, config, past))


def _without_ranking(session: Session, config: LearnConfig, number: int, past: _Past, played: dict[str, Any]) -> Round:
    """A round with a recording that nothing grades."""
    model = str(session.loaded.folder)
    if not past.students:
        past.students.append(("base", session.loaded.id, True))
    context, why = context_to_teach(session, pick(config, ConsolidateConfig))
    done = Round(number=number, model=model, played=played, confirmed=False, distilled=None, why=why)
    if context is None:
        session.say(f"nothing is consolidated: {why}")
        return done
    session.say(f"context {context.id[:12]}: {why}")
    return _taught(session, config, number, context, done, past)


def _snapshot(config: LearnConfig, work: Path) -> str:
    """The copy of the recording that all rounds read; '' if the environment is none."""
    if not recording_of(config.env):
        return ""
    with Store.open(work / "store.db") as store:
        return new_snapshot(store, work, config.env, config.since)


def _scoring(config: LearnConfig) -> dict[str, Any]:
    """How contexts are ranked, as far as a person has said so; the other settings of the stage are those of play."""
    names = ("by", "candidates", "confirm_tasks", "select_tasks")
    return {name: value for name in names if (value := getattr(config, name)) != getattr(LearnConfig, name)}


def _play_config(config: LearnConfig) -> PlayConfig:
    return pick(config, PlayConfig, episodes=config.episodes_per_round, context="")


def _taught(session: Session, config: LearnConfig, number: int, context: Context, done: Round, past: _Past) -> Round:
    """The round with its student: by ``config.method`` and, if that does not pass the gate, by the best other way."""
    training = pick(config, ConsolidateConfig, seed=config.seed + number - 1)  # new noise; tests keep theirs
    distilled, tried = distil_context(session, training, context), [training.method]
    past.students.append((f"round {number}", distilled.model_id, distilled.promoted))
    if distilled.taken_back:
        session.say(
            f"student {distilled.model_id[:12]} of round {number} is no longer {student_ref(session.env)}, and what is "
            f"that was not trained from it, so it plays no further round; to put it back, and then repeat this: "
            f"agentopcd rollback {shlex.quote(session.env)} --to {distilled.model_id[:12]}{work_flag(session.work)}"
        )
    again = not (distilled.passed or config.one_method or session.by == DISTANCE)
    found = another_way(session, training, context, round_number=number) if again else None
    if found is not None:
        name, other = found
        session.say(f"training again by the way whose pilot did best: {name}")
        distilled = distil_context(session, other, context)
        tried.append(name)
        past.students.append((f"round {number}, {name}", distilled.model_id, distilled.promoted))
    return dataclasses.replace(done, distilled=distilled, tried=tried)


def another_way(
    session: Session, training: ConsolidateConfig, context: Context, *, round_number: int
) -> tuple[str, ConsolidateConfig] | None:
    """The way to train whose pilot did best on select tasks, and its settings; None if no other way can be taken.

    A pilot takes a quarter of the steps, and of those that warm up, from the same parent.
    """
    found: dict[str, tuple[float, ConsolidateConfig]] = {}
    known = [check_method(session, training)]
    for name, changes in WAYS.items():
        try:
            config = check_method(session, dataclasses.replace(training, **changes))
        except ConfigError as error:
            session.say(f"no pilot of {name}: {error}")
            continue
        if config in known:
            continue
        known.append(config)
        steps = max(1, config.steps // 4)
        short = dataclasses.replace(
            config,
            steps=steps,
            select_every=steps,
            warmup_steps=config.warmup_steps * steps // config.steps,
            patience=0,
        )
        if short.replays and not session.game.spec.logged:
            _play_to_replay(session, round_number)
        session.say(f"pilot of {name}: {steps} steps")
        try:
            found[name] = pilot(session, short, context), config
        except TrainingError as error:
            session.say(f"pilot of {name}: {error}")
        else:
            session.say(f"pilot of {name}: {found[name][0]:.3f} on select tasks")
    if not found:
        return None
    best = max(found, key=lambda name: found[name][0])
    return best, found[best][1]


def _play_to_replay(session: Session, number: int) -> None:
    """Play train tasks without a context, whose turns are replayed."""
    run_id = session.ledger.stage("play", replay=number)
    jobs = [Job(task) for task in session.tasks("train", REPLAYED)]
    session.bench(run_id).play_missing("play to replay", jobs)
    session.ledger.finish(run_id, {"episodes": len(jobs)})


def _carry(session: Session, past: _Past) -> None:
    """What the last round's chains hand on to those of this one."""
    if past.last is None:
        return
    gathered, ranking = past.last
    row = session.store.run(gathered.run_id)
    row |= {"config": read_object(row["config"], f"the config of run {row['id']}")}
    past.start = carried(session.store, row, ranking, session.loaded.id)
    if any(context.text for context in past.start):
        lines = sum(len(context.lines) for context in past.start)
        session.say(
            f"{counted(lines, 'item')} of the last round {'goes' if lines == 1 else 'go'} on in the chains of this one"
        )
    ends = dict.fromkeys(steps[-1] for steps in chains_of(session.store, row))
    past.candidates = [*(session.store.get_context(id_) for id_ in ends if id_ != EMPTY.id), *past.candidates]


def _candidates(session: Session, config: LearnConfig, gathered: Gathered, past: _Past) -> list[Context]:
    """The contexts to rank: where this round's chains ended, where earlier rounds ended, then this round's others.

    Left out are contexts that the model has in its weights, and those with an item that may not be learned (any more).
    """
    waiting = len(session.store.items(ids=gathered.items, status="pending"))
    if waiting:
        listed = f"agentopcd knowledge list items --status pending{work_flag(session.work)}"
        session.say(f"{counted(waiting, 'item')} {'waits' if waiting == 1 else 'wait'} for a person: {listed}")
    store, known = session.store, session.store.learned(session.loaded.id)
    ends = gathered.candidates[: config.chains]  # of many candidates, the last ones may not compete
    ordered = dict.fromkeys([*ends, *past.candidates, *gathered.candidates])
    found = [one for one in ordered if one.id not in known and not store.blocked(one.id)]
    if not found:
        why = "none of the items is approved" if waiting else "no item could be read from the extractor's replies"
        if carried := sum(one.id in known for one in ordered):
            why = f"the model has {carried} of {len(ordered)} candidate contexts in its weights already"
        if blocked := len(ordered) - carried:
            held = f"{blocked} of {len(ordered)} candidate contexts hold an item that is retired or waits"
            why = f"{why}, and {held}" if carried else held
        session.say(f"{why}, so there is nothing to score")
    return found


def _stages(session: Session, config: LearnConfig, past: _Past) -> list[Stage]:
    if not config.test_tasks or len(past.students) < 2:
        return []
    return stages(session, past.students, session.tasks("test", config.test_tasks))


make_callable(__name__)  # agentopcd.learn(...) works, too
