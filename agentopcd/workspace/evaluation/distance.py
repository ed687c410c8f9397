"""How far replies are from those of the model that sees the context: the figures, from stored replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from agentopcd import models
from agentopcd.core.groups import closed_share, mean_of_groups
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import Context, Episode, Job, Mixture, Task
from agentopcd.distillation.compare import compare
from agentopcd.distillation.distance import Totals, totals_nats
from agentopcd.distillation.positions import response_hidden
from agentopcd.distillation.samples import BATCH_TOKENS, Batch, Sample, micro_batches, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.knowledge import Place
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT
from agentopcd.workspace.evaluation.spoken import Distances, Spoken
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.session import Session


def distances(
    session: Session, contestants: Sequence[Contestant], prompted: LoadedModel, context: Context | Mixture,
    tasks: Sequence[Task], *, setup: str, known: dict[str, list[Totals]] | None = None,
) -> Distances:  # fmt: skip
    """The distances of contestants to ``prompted`` with ``context``, on their stored replies to the
    test ``tasks``.

    The model itself, which is shown a context, has a distance of 0. Another one that is shown a context is left out,
    and so is one that is shown a single context of a mixture.

    Args:
        known: the sums of each contestant's replies, by label; those that are missing are computed and added.
    """
    rows, totals = {}, {} if known is None else known
    for contestant in contestants:
        if contestant.context.text and (contestant.model.id != prompted.id or len(context.parts) > 1):
            other = "a mixture of contexts" if contestant.model.id == prompted.id else "another model"
            session.say_once(f"{contestant.label}: its distance to {other} is not measured")
            continue
        played = played_by(session, contestant, tasks, setup=setup, rep=session.manifest.first_rep("test"))
        if contestant.label in totals:
            rows[contestant.label] = _spoken(played, totals[contestant.label], shown=bool(contestant.context.text))
            continue
        chat = session.player_for(contestant.model).chat
        if prompted.id != contestant.model.id:
            chat.taught_by(prompted.tokenizer)
        found = reply_totals(session, contestant, prompted, context, played, chat)
        rows[contestant.label] = _spoken(played, found, shown=bool(contestant.context.text))
        totals[contestant.label] = found
    sized = {label: [(one.key, one.kl, one.tokens) for one in found] for label, found in totals.items()}

    def closed(label: str, left_by: str) -> Mean | None:
        return closed_share(sized[label], sized[left_by]) if {label, left_by} <= set(sized) else None

    return Distances(
        rows=rows, closed=closed("student", "base"), placebo=closed(PLACEBO_STUDENT, "base"),
        beyond=closed("student", PLACEBO_STUDENT),
    )  # fmt: skip


def nats_by_place(
    session: Session, contestant: Contestant, prompted: LoadedModel, context: Context | Mixture, jobs: Sequence[Job],
    *, setup: str,
) -> dict[Place, float]:  # fmt: skip
    """The distance of a contestant's stored replies to ``prompted`` with ``context``, in nats a token, by place.

    A place without a reply is left out.
    """
    found: dict[Place, float] = {}
    chat = session.player_for(contestant.model).chat
    if prompted.id != contestant.model.id:
        chat.taught_by(prompted.tokenizer)
    places = {job.task.key: (job.task.key, job.task.seed, job.rep) for job in jobs}
    played = played_by(session, contestant, [job.task for job in jobs], setup=setup, rep=jobs[0].rep)
    sums: dict[str, tuple[float, int]] = {}
    for one in reply_totals(session, contestant, prompted, context, played, chat):
        nats, tokens = sums.get(one.key, (0.0, 0))
        sums[one.key] = nats + one.kl, tokens + one.tokens
    for key, (nats, tokens) in sums.items():
        if tokens:
            found[places[key]] = nats / tokens
    return found


def played_by(
    session: Session, contestant: Contestant, tasks: Sequence[Task], *, setup: str, rep: int = 0
) -> list[Episode]:
    arm, wanted = contestant.arm, {(task.key, task.seed, rep) for task in tasks}
    rows = session.store.episodes(model_id=arm.model_id, context_id=arm.context_id, env=session.env, setup=setup)
    ids = [row["id"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in wanted]
    return [session.store.transcript(id_) for id_ in ids]


@torch.no_grad()
def reply_totals(
    session: Session, contestant: Contestant, prompted: LoadedModel, context: Context | Mixture,
    played: Sequence[Episode], chat: Chat,
) -> list[Totals]:  # fmt: skip
    """The sums of each reply of a contestant, in nats, and its tokens one by one.

    Args:
        prompted: the model that sees ``context``.
        played: the contestant's episodes.
        chat: renders its prompts, and those of ``prompted``.
    """
    shown, model = bool(contestant.context.text), contestant.model
    opening, tools = next(((t.messages, t.tools) for e in played for t in e.turns), ([], []))
    judge = chat.teacher or chat
    prefixes = [judge.prefix(part, opening, tools) for part in context.parts]
    teacher = FrozenTeacher(prompted, model, compute=session.compute, prefixes=prefixes)  # a copy, if it is the model
    keyed: list[tuple[str, Sample]] = []
    for episode in played:
        some = samples_of([episode], chat, context, "keep", by_teacher=shown, fits=teacher.fits)[0]
        keyed += [(episode.task.key, sample) for sample in some]
    samples, keys = [sample for _, sample in keyed], {id(sample): key for key, sample in keyed}
    pad_id = model.tokenizer.pad_token_id
    for line in teacher.compare(samples):
        session.say_once(line)
    pairs = [(s.student_ids, s.response_ids) for s in samples]
    if not shown:
        with models.autocast(session.device, session.compute):
            for line in compare(model.model, pairs, pad_id, session.compute, name=model.name):
                session.say_once(line)
    temperature = session.config.temperature or 1.0  # greedy play (0) is measured on the untempered distribution
    out: list[Totals] = []
    for chosen, weights in micro_batches(samples, [1.0] * len(samples), BATCH_TOKENS, teacher.reads):
        batch = Batch(samples=chosen, weights_N=weights)
        hidden_NH = None
        if not shown:
            with models.autocast(session.device, session.compute):
                hidden_NH = response_hidden(model.model, [(s.student_ids, s.response_ids) for s in chosen], pad_id)
        out += totals_nats(batch, hidden_NH, model.model, teacher, temperature, keys)
    return out


def _spoken(played: Sequence[Episode], found: Sequence[Totals], *, shown: bool) -> Spoken:
    turns = [turn for episode in played for turn in episode.turns]
    tools = [turn for turn in turns if turn.tools]
    return Spoken(
        distance=Mean(0.0, 0.0, 0.0, len(found)) if shown else mean_of_groups((t.key, t.kl, t.tokens) for t in found),
        entropy=mean_of_groups((one.key, one.entropy, one.tokens) for one in found),
        reply_tokens=sum(turn.output_tokens for turn in turns) / max(1, len(turns)),
        cut=_share(turn.finish_reason == "length" for turn in turns),
        calls=_share(turn.calls > 0 for turn in tools) if tools else None,
    )


def _share(facts: Iterable[bool]) -> Rate:
    listed = list(facts)
    return Rate(sum(listed), len(listed))
