"""Which context a consolidation distils: the confirmed one of the store, one that a person gives, or a mixture."""

from __future__ import annotations

import dataclasses

from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, PlayConfig, PlayerConfig, ScoreConfig, flags_for
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.types import Context, Mixture
from agentopcd.distillation.distance import DISTANCE
from agentopcd.knowledge import Arena, Arm, best_ref
from agentopcd.knowledge.students import current_student
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.experience.choose import ranked_by
from agentopcd.workspace.session import Session


def find_context(session: Session, config: ConsolidateConfig) -> Context | Mixture:
    """The context to distil. A file is taken as it is; a context of the store must have passed the confirm gate.

    Raises:
        ConfigError: no context was confirmed and ``force`` is not set, or there is no context at all.
    """
    if config.mix:
        return mixture(session, config)
    if config.context:
        context, by_person = session.context(config.context, config.placement)
        if by_person:
            return context
    else:
        best = session.store.ref(best_ref(session.env))
        if best is None and not config.force:
            if not session.game.graded:
                ranked_by(session)  # which says what to do where nothing is right or wrong
            raise ConfigError(
                f"no context of {session.env} was confirmed; run `{_command(session, config, 'knowledge score')}`, "
                "name one with --context, or distil the best guess with --force"
            )
        candidates = [session.store.get_context(best)] if best else pool(session)
        if not candidates:
            again = _command(session, config, "play")
            raise ConfigError(f"no context of {session.env} in the store; run `{again}`")
        context = candidates[0]
    session.resume_model("consolidate", context.id)
    if not (config.force or session.confirmed(context)):
        name, verdict = context.id[:12], session.last_verdict(context)
        if verdict:
            raise ConfigError(f"context {name} did not pass the confirm gate: {verdict}; insist with --force")
        again = _command(session, config, f"knowledge confirm --context {name}")
        raise ConfigError(f"context {name} never passed the confirm gate; run `{again}`, or insist with --force")
    session.check_handover(context, force=config.force)
    return context


def mixture(session: Session, config: ConsolidateConfig) -> Mixture:
    """The ``config.mix`` contexts of the pool that did best on select tasks with this model, weighted by their success.

    By reward or a metric, which may be negative, all have the same weight. At least one of them must have passed the
    confirm gate, unless ``force`` is set. A repeated command gets the mixture and the model of an earlier call, unless
    as many contexts have been scored with the student that plays since.

    Raises:
        ConfigError: too few contexts have won a select task (by another score: played one), or none of the best was
            confirmed.
    """
    found = _of_an_earlier_call(session, config)
    if found is None:
        found = _ranked(session, config, session.loaded.id)
    if len(found.parts) < config.mix:
        did = "won" if session.score == "success" else "played"
        raise ConfigError(
            f"--mix {config.mix} wants as many contexts that have {did} a select task with this model and settings, "
            f"got {len(found.parts)}; run "
            f"`{_command(session, config, f'knowledge score --candidates {config.mix}')}`"
        )
    for context in found.parts:
        session.check_handover(context, force=config.force)
    if not config.force and not any(session.confirmed(context) for context in found.parts):
        raise ConfigError(
            f"none of these {len(found.parts)} contexts passed the confirm gate; run "
            f"`{_command(session, config, 'knowledge score')}`, or insist with --force"
        )
    return found


def _of_an_earlier_call(session: Session, config: ConsolidateConfig) -> Mixture | None:
    """The mixture of an earlier call of this command, whose model is then taken, too; None if there is none."""
    plays = current_student(session.store, session.env)
    if not session.may_resume or (plays and len(_ranked(session, config, plays).parts) == config.mix):
        return None
    for model_id, context_id in reversed(session.ledger.earlier("consolidate")):  # the newest call is repeated
        if (found := _ranked(session, config, model_id)).id == context_id:  # else the pool has changed
            session.resume_model("consolidate", context_id)
            return found
    return None


def _ranked(session: Session, config: ConsolidateConfig, model_id: str) -> Mixture:
    """The best contexts with a model, which may be fewer than are wanted."""
    by = session.score
    candidates, arena = pool(session), Arena(session.env, session.setup(), "select", by=by)
    arms = {context: Arm(model_id, context.id) for context in candidates}
    counts = session.store.counts(arms.values(), arena)
    rates = {context: counts[arm].rate for context, arm in arms.items()}
    able = [context for context in candidates if (rates[context].rate if by == "success" else rates[context].n)]
    # By the lower end of the interval: after halving, some have played a few games only.
    ranked = sorted(able, key=lambda context: rates[context].low, reverse=True)[: config.mix]
    weights = (rates[context].rate if by == "success" else 1.0 for context in ranked)
    return Mixture(tuple(ranked), tuple(weights))


def _command(session: Session, config: ConsolidateConfig, words: str) -> str:
    """Another command, in this workspace and with every setting that both have.

    Left out are a distance, by which contexts are not ranked, and tasks of each evaluation, which halving does not ask.
    """
    verbs: dict[str, type[PlayerConfig]] = {"play": PlayConfig, "score": ScoreConfig, "confirm": ConfirmConfig}
    verb = verbs[words.partition(" --")[0].split()[-1]]
    by = "" if config.by == DISTANCE else config.by
    config = dataclasses.replace(config, by=by, select_tasks=ScoreConfig.select_tasks)
    return f"agentopcd {words} {flags_for(config, verb)}" + work_flag(session.work)


def shares(context: Context | Mixture) -> dict[str, float]:
    """The share of each context in a training, by context id; the shares sum to 1."""
    if isinstance(context, Context):
        return {context.id: 1.0}
    total = sum(context.weights)
    return {part.id: weight / total for part, weight in zip(context.parts, context.weights, strict=True)}
