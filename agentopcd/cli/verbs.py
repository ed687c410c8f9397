"""The commands play, consolidate, evaluate and learn, and the two knowledge commands that need a model."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from agentopcd.cli import closing, plans
from agentopcd.cli.options import NOT_PROMOTED, Call, configured, progress
from agentopcd.core.config import (
    RECORDED,
    ConfirmConfig,
    ConsolidateConfig,
    EvaluateConfig,
    ForecastConfig,
    LearnConfig,
    PlayConfig,
    PlayerConfig,
    ScoreConfig,
    flags_for,
    player_flags,
    since_of,
)
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_file
from agentopcd.core.terminal import without_password
from agentopcd.core.text import counted

if TYPE_CHECKING:
    from agentopcd.core.types import Context
    from agentopcd.workspace.session import Session


def add_to(app: typer.Typer, knowledge: typer.Typer) -> None:
    """Add the commands to their Typer apps."""
    app.command("play")(configured(PlayConfig, play))
    app.command("forecast")(configured(ForecastConfig, forecast))
    app.command("consolidate")(configured(ConsolidateConfig, consolidate))
    app.command("evaluate")(configured(EvaluateConfig, evaluate))
    app.command("learn")(configured(LearnConfig, learn))
    knowledge.command("score")(configured(ScoreConfig, score))
    knowledge.command("confirm")(configured(ConfirmConfig, confirm))


def play(config: PlayConfig, call: Call) -> None:
    """Play episodes, store every turn, and let the model extract experience items from them.

    Example: agentopcd play --env sokoban --episodes 64
    """
    with _open(config, call) as session:
        from agentopcd.workspace import ready
        from agentopcd.workspace.pace import estimate

        ready.to_play(session, config)  # what is wrong is told before a model is loaded, with --dry-run and without
        if call.dry_run:
            plan = [f"{counted(config.episodes, 'episode')} of at most {session.game.step_limit} replies"]
            if session.recording:
                plan = [f"at most {config.episodes} of {len(session.tasks(config.split))} recorded conversations"]
            if config.extract:
                steps = counted(config.chain_steps, "extraction")
                plan.append(f"{counted(config.chains, 'chain')} of {steps}{closing.extractor(config)}")
            time = "" if session.recording else estimate(session, episodes=config.episodes)
            return _plan(session, call, plan, time)
        from agentopcd.workspace.experience.gather import gather

        run_id = session.ledger.begin("play")
        result = gather(session, config, run_id=run_id)
        session.ledger.finish(run_id, result.to_dict())
        call.show(result.to_dict())
        graded = session.game.graded
        came = f"success {result.rate}" if graded else f"{result.rate.n} conversations, nothing graded"
        if session.recording:
            came = f"{result.rate.n + result.unrated} recorded sessions, {result.rate.n} rated as success or failure"
            came += f", success {result.rate}" if result.rate.n else ""
        call.say(f"run {run_id}: {came}, {counted(len(result.items), 'item')}, {result.flagged} flagged")
        waiting = len(session.store.items(ids=result.items, status="pending"))
        if config.extract and not result.items:
            call.say(f"no item could be read from the extractor's {result.unparsed} replies")
        closing.after_play(
            call, config, waiting=waiting, candidates=len(result.candidates), items=len(result.items), graded=graded
        )


def score(config: ScoreConfig, call: Call) -> None:
    """Score candidate contexts on select tasks and confirm the winner. Or value every item and assemble the best
    (--method subsets), or find items that do nothing, without playing (--method influence).

    Example: agentopcd knowledge score --env frozen-lake-4x4 --candidates 8
    """
    with _open(config, call) as session:
        if config.method == "influence":
            return _influence(session, config, call)
        from agentopcd.workspace import ready
        from agentopcd.workspace.experience.chains import pool
        from agentopcd.workspace.experience.choose import ranked_by
        from agentopcd.workspace.pace import estimate

        if not session.game.graded:
            ranked_by(session)  # before candidates are asked for
        candidates = pool(session, prefix=config.pool)
        if not candidates:
            again = closing.command(call, "play", flags_for(config, PlayConfig))
            raise ConfigError(f"no candidate context of {session.env} to score; run `{again}`")
        candidates = ready.to_score(session, config, candidates)
        if config.method == "halving" and config.select_tasks != ScoreConfig.select_tasks:
            call.say("note: halving shares out all select tasks, so --select-tasks changes nothing (it is for uniform)")
        if config.method == "subsets":
            return _values(session, config, call, candidates)
        if call.dry_run:
            plan = plans.scoring(session, config, len(candidates))
            return _plan(session, call, plan.lines, estimate(session, episodes=plan.episodes))
        from agentopcd.workspace.experience.choose import choose, result_of

        run_id = session.ledger.begin("score", pool=[c.id for c in candidates])
        ranking, outcome = choose(session, config, candidates, run_id=run_id)
        result = result_of(ranking, outcome)
        session.ledger.finish(run_id, result)
        call.show(result)
        closing.after_gate(call, config, ranking.best.context_id, outcome)


def _values(session: Session, config: ScoreConfig, call: Call, candidates: Sequence[Context]) -> None:
    """What ``score --method subsets`` does."""
    from agentopcd.workspace.experience.worth import plan_of, value_items

    if call.dry_run:
        return _plan(session, call, plan_of(session, config, candidates), "")
    run_id = session.ledger.begin("score", pool=[c.id for c in candidates])
    worth = value_items(session, config, candidates, run_id=run_id)
    session.ledger.finish(run_id, worth.to_dict())
    call.show(worth.to_dict())
    for line in worth.lines():
        call.say(line)
    if worth.context.text:
        words = f"knowledge confirm --context {shlex.quote(worth.ref)}"
        closing.next_is(call, closing.command(call, words, flags_for(config, ConfirmConfig)))
    else:
        closing.next_is(call, closing.command(call, "knowledge list items", ""))


def _influence(session: Session, config: ScoreConfig, call: Call) -> None:
    """What ``score --method influence`` does."""
    from agentopcd.workspace.experience.influence import TURNS, influence, shown_context

    context = shown_context(session, config)
    if call.dry_run:
        arms = len(session.store.items(context_id=context.id)) + 2
        return _plan(session, call, [f"up to {config.turns or TURNS} stored turns are read behind {arms} contexts"], "")
    run_id = session.ledger.begin("score", context_id=context.id)
    found = influence(session, config, context)
    session.ledger.finish(run_id, found.to_dict())
    call.show(found.to_dict())
    for line in found.lines():
        call.say(line)
    closing.next_is(call, closing.command(call, "knowledge score --method subsets", player_flags(config)))


def confirm(config: ConfirmConfig, call: Call) -> None:
    """Play one context on confirm tasks, against none, its placebo and ENV/best; on a pass ENV/best moves to it.

    Example: agentopcd knowledge confirm --context sokoban/pool/00/08 --env sokoban
    """
    if not config.context:
        known = closing.command(call, "knowledge list refs", "")
        raise ConfigError(f"no context given; add --context FILE or REF (see `{known}`)")
    with _open(config, call) as session:
        from agentopcd.workspace import ready
        from agentopcd.workspace.pace import estimate

        context = ready.to_confirm(session, config)
        if call.dry_run:
            time = estimate(session, episodes=plans.confirm_episodes(session, config))
            return _plan(session, call, [plans.confirming(session, config, "the context")], time)
        from agentopcd.workspace.experience.choose import confirm_one

        run_id = session.ledger.begin("confirm", context_id=context.id)
        outcome = confirm_one(session, config, context, run_id=run_id)
        session.ledger.finish(run_id, outcome.to_dict())
        call.show(outcome.to_dict())
        closing.after_gate(call, config, context.id, outcome)


def forecast(config: ForecastConfig, call: Call) -> None:
    """Say before training whether there is a gain to distil: train, collect better notes, or do not.

    Example: agentopcd forecast --env frozen-lake-4x4 --context notes.txt
    """
    with _open(config, call) as session:
        from agentopcd.workspace.checks import check_unseen
        from agentopcd.workspace.forecast import forecast as ahead
        from agentopcd.workspace.forecast import shown_context
        from agentopcd.workspace.pace import estimate

        context = shown_context(session, config)
        check_unseen(session, context.parts)
        arms, n = (3 if session.game.graded else 1), len(session.tasks("select", config.episodes))
        if call.dry_run:
            with_what = "with the context, without it, and with its placebo" if arms == 3 else "without the context"
            return _plan(session, call, [f"{n} select tasks {with_what}"], estimate(session, episodes=arms * n))
        run_id = session.ledger.begin("forecast", context_id=context.id)
        found = ahead(session, config, context, run_id=run_id)
        session.ledger.finish(run_id, found.to_dict())
        call.show(found.to_dict())
        for line in found.lines():
            call.say(line)
        by_person = bool(config.context) and is_file(config.context)
        graded = session.game.graded
        usable = by_person or session.confirmed(context) or not graded  # nothing confirms there
        closing.after_forecast(call, config, context.id, found.advice[0], confirmed=usable, graded=graded)


def consolidate(config: ConsolidateConfig, call: Call) -> None:
    """Distil a context into the student's weights. Test tasks are evaluated before and after.

    Example: agentopcd consolidate --env math --context prompt.txt --model smollm2-135m
    """
    with _open(config, call) as session:
        from agentopcd.distil import check_launch, check_method, distil_context
        from agentopcd.models.parallel.ranks import launched
        from agentopcd.workspace import ready
        from agentopcd.workspace.checks import check_unseen
        from agentopcd.workspace.experience.find_context import find_context
        from agentopcd.workspace.pace import estimate

        check_launch(config, launched())
        ready.to_train(session, config)
        if call.dry_run:
            if not config.mix:  # which contexts are mixed depends on what this model won with them
                check_unseen(session, find_context(session, config).parts)
            check_method(session, config)
            plan = plans.training(session, config)
            time = estimate(session, episodes=plan.episodes, steps=plan.steps)
            return _plan(session, call, plan.lines, time, config.teacher)
        result = distil_context(session, config, find_context(session, config))
        call.show(result.to_dict())
        closing.after_training(call, config, result)


def evaluate(config: EvaluateConfig, call: Call) -> None:
    """Compare base, in-context and student on the same test tasks, with intervals and floors.

    Example: agentopcd evaluate --env math
    """
    with _open(config, call) as session:
        from agentopcd.workspace import ready
        from agentopcd.workspace.pace import estimate

        student = ready.to_evaluate(session, config)
        if call.dry_run:
            n = len(session.tasks("test", config.test_tasks))
            return _plan(
                session, call, [f"up to three arms on {n} test tasks"], estimate(session, episodes=3 * n), student
            )
        from agentopcd.workspace.evaluation.drift import drift_dict, drift_lines
        from agentopcd.workspace.evaluation.student import evaluate_student
        from agentopcd.workspace.evaluation.table import lines

        result, moved = evaluate_student(session, config)
        call.show(result.to_dict() | drift_dict(moved))
        for line in (*result.header, *lines(result), *drift_lines(moved)):
            call.say(line)
        closing.after_evaluation(call, config, result)


def learn(config: LearnConfig, call: Call) -> None:
    """Run the whole loop, round after round: play, extract, score, confirm, consolidate.

    Example: agentopcd learn --env frozen-lake-4x4 --rounds 2
    """
    _check_env(config)
    if call.dry_run:
        from agentopcd.distil import check_launch
        from agentopcd.models.parallel.ranks import launched
        from agentopcd.workspace import ready
        from agentopcd.workspace.pace import estimate

        check_launch(config, launched())
        with _open(config, call) as session:
            ready.to_learn(session, config)
            if session.recording and not session.game.graded:
                return _plan(session, call, plans.recorded(session, config), "")
            plan = plans.rounds(session, config)
            time = estimate(session, episodes=plan.episodes, steps=plan.steps)
            return _plan(session, call, plan.lines, time)
    from agentopcd import models
    from agentopcd.core.runs import workspace
    from agentopcd.learn import learn as run

    models.prepare_process()
    if call.save_config:  # with --since as it was given: tomorrow, 24h is another moment
        _open(config, call).close()
    config = dataclasses.replace(config, since=since_of(config.since, call.begun))
    rounds = run(config, workspace(call.work), say=call.say, progress=progress)
    call.show([one.to_dict() for one in rounds])
    closing.after_rounds(call, config, rounds)
    if config.since and not closing.after_night(call, config, rounds):
        raise typer.Exit(NOT_PROMOTED)


def _check_env(config: PlayerConfig) -> None:
    """Refuse a mistyped name at once: torch, which a run imports, takes seconds."""
    from agentopcd.envs.registry import get_spec

    if not config.env.startswith(RECORDED):
        get_spec(config.env)


def _open(config: PlayerConfig, call: Call) -> Session:
    _check_env(config)
    from agentopcd import models
    from agentopcd.core.runs import workspace
    from agentopcd.workspace.resolved import resolved
    from agentopcd.workspace.session import Session

    models.prepare_process()
    session = Session(config, workspace(call.work), say=call.say, progress=progress)
    call.keep(config, resolved(session) if call.save_config else {})
    return session


def _plan(session: Session, call: Call, steps: list[str], time: str, *models: str) -> None:
    """Print what would be done with the player's model and ``models``, without doing it; refuse what cannot be done."""
    session.check(*models)
    name, why = session.model_name()
    settings = session.config.to_dict()
    settings |= {name: without_password(settings[name]) for name in ("server", "extractor") if name in settings}
    call.show({"settings": settings, "plan": steps, "model": name, "time": time})
    call.say(f"model: {name} ({why})")
    for step in steps:
        call.say(f"plan: {step}")
    if time:
        call.say(time)
    call.say("dry run: nothing was played or trained; leave out --dry-run to start")
