"""What ``agentopcd knowledge audit`` does: how much of each item a student shows without any context."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from agentopcd.core.config import PlayConfig, PlayerConfig, pick, player_flags
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.text import SHORT
from agentopcd.core.types import EMPTY, Context, Episode
from agentopcd.distillation.chunks import CHUNK_LOGITS
from agentopcd.distillation.prefix import prefix_of
from agentopcd.distillation.samples import Sample, in_batches, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.envs.manifest import HELD_OUT
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge import Item, Store, item_ids, placebo, render, without
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.lineage import Carried, carried
from agentopcd.knowledge.nearest import notes_for
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.sampling import choices
from agentopcd.workspace.known import load_known
from agentopcd.workspace.lineage.found import AUDIT, TURNS, Audit, Found, to_audit
from agentopcd.workspace.lineage.measure import Logits, Sums, by_task, shown, sums
from agentopcd.workspace.lineage.recorded import Training, finished, recorded
from agentopcd.workspace.session import Session


def audit(
    store: Store, work: Path, student: Row, *, turns: int = TURNS, others: Collection[str] = (),
    say: Callable[[str], None] = print, progress: Progress = no_progress,
) -> Audit:  # fmt: skip
    """How much of each item in a student's weights it shows without any context; stored as a run of the verb ``audit``.

    The same audit again is read from the store, unless it read fewer turns than it was to and more may be stored now.

    Args:
        student: its row.
        turns: stored turns to read for each context.
        others: ids of items to ask for that the student should not have: they went into a relative of it.

    Raises:
        ConfigError: it carries no item, a model it comes from is gone, or too few turns are stored.
    """
    entries = to_audit(store, student, others)
    name = student["id"][:SHORT]
    settings = {"model_id": student["id"], "env": _env(store, student), "turns": turns, "items": sorted(others)}
    groups: dict[tuple[str, str], list[Carried]] = {}
    for entry in entries:
        groups.setdefault((entry.model_id, entry.context_id), []).append(entry)
    stored = sum(
        row["split"] != "train"
        for parent in {entry.parent_id for entry in entries}
        for row in store.episodes(model_id=parent, context_id=EMPTY.id)
    )
    if (done := finished(store, AUDIT, settings)) is not None:
        before = Audit.from_dict(done[1])
        if before.turns >= turns * len(groups) or done[1].get("stored") == stored:
            say(f"student {name} was audited before, in run {done[0]}")
            return before
    own = {entry.item.id for entry in carried(store, student["id"])}
    found: list[Found] = []
    turns_read = tokens_read = 0
    with recorded(store, work, AUDIT, settings, say) as run_id:
        for group in groups.values():
            training = Training.of(store, work, group[0].model_id)
            played, snapshot = _as_played(training), training.snapshot  # a recording has grown since
            with Session(played, work, say=say, progress=progress, snapshot=snapshot) as session:
                reader, some = _group(session, training, student, group, turns, own)
            found += some
            turns_read += len(reader.turns)
            tokens_read += sum(reader.tokens)
        result = Audit(student=student["id"], items=found, turns=turns_read, tokens=tokens_read)
        store.finish(run_id, result.to_dict() | {"stored": stored})
    return result


def _env(store: Store, student: Row) -> str:
    return read_object(store.run(student["run_id"])["config"], f"the config of run {student['run_id']}").get("env", "")


def _as_played(training: Training) -> PlayerConfig:
    """The settings to read the stored turns of a training's base with. Nothing is sampled, so no engine is needed."""
    return pick(training.config, PlayerConfig, engine="transformers", server="")


def _group(
    session: Session, training: Training, student: Row, group: Sequence[Carried], turns: int, own: Collection[str]
) -> tuple[Reader, list[Found]]:
    """The figures of the items of one context.

    Args:
        own: ids of all items that the student carries.
    """
    parent = load_known(session, group[0].parent_id)
    teacher_id = training.identity["teacher_id"]
    teacher = parent if teacher_id == parent.id else load_known(session, teacher_id)
    context = session.store.get_context(group[0].context_id)
    chat = session.player_for(parent).chat
    if teacher is not parent:
        chat.taught_by(teacher.tokenizer)
    reader = Reader(
        session, chat, parent, teacher, load_known(session, student["id"]), items=training.config.turn_items
    )
    longest = [functools.partial(_beside_twin, item=entry.item) for entry in group]
    reader.take(stored_turns(session, parent, training, reader, context, longest, turns), context)
    whole, found = reader.read(context), []
    for entry, more in zip(session.progress(AUDIT, group, len(group)), longest, strict=True):
        mine = reader.sums(reader.read(context, functools.partial(without, ids=[entry.item.id])), whole)
        nothing = reader.sums(whole, reader.read(context, more))
        found.append(
            Found(
                item=entry.item.id, text=entry.item.text, context=entry.context_id, carrier=entry.model_id,
                carried=entry.item.id in own, own=shown(mine), placebo=shown(nothing, mine),
            )
        )  # fmt: skip
    return reader, found


Edit = Callable[[Context], Context]
"""What is changed in the context, or in the items of it that a turn shows."""


def _as_it_is(context: Context) -> Context:
    return context


def _beside_twin(context: Context, item: Item) -> Context:
    """The context with the placebo of an item, where it holds the item."""
    if item.id not in item_ids(context):
        return context
    return Context(f"{context.text}\n{placebo(Context(render([item.text]))).text}", context.placement)


class Reader:
    """The same stored replies, read by a base, its teacher with several contexts, and a student.

    Args:
        chat: the chat of the base, taught by the teacher.
        items: the teacher sees so many items of a context, those that fit the turn; 0: all of it.
    """

    def __init__(
        self,
        session: Session,
        chat: Chat,
        parent: LoadedModel,
        teacher: LoadedModel,
        student: LoadedModel,
        *,
        items: int,
    ) -> None:
        self.session, self.chat, self.items = session, chat, items
        self.temperature = session.config.temperature or 1.0  # greedy play (0) is compared untempered
        # The second model is the one whose vocabulary must fit; a reader of the student itself would copy it.
        self.base = FrozenTeacher(parent, student, compute=session.compute)
        self.student = FrozenTeacher(student, parent, compute=session.compute)
        self.teacher = self.base if teacher is parent else FrozenTeacher(teacher, parent, compute=session.compute)
        self.width = min(self.base.rows, self.teacher.rows)
        self.turns: list[Episode] = []

    def take(self, turns: Sequence[Episode], context: Context) -> None:
        """Read these turns, and compare the shortcuts of reading on some of them, behind ``context`` and without."""
        self.turns = [*turns]
        samples = self._samples(EMPTY)
        self.tokens = [one.num_tokens for one in samples]
        self.batches = in_batches([len(one.student_ids) + one.num_tokens for one in samples])
        self.order = [place for batch in self.batches for place in batch]
        self.allowed = [
            ids for i in self.order for ids in choices.allowed_in(samples[i].choices, samples[i].response_ids)
        ]
        self._show(context)
        for reader, some in ((self.teacher, self._samples(context)), (self.student, samples)):
            for line in reader.compare(some):
                self.session.say_once(line)
        self.bare = [
            self._logits(one, [one.hidden_without([samples[i] for i in batch]) for batch in self.batches])
            for one in (self.base, self.student)
        ]

    def _samples(self, context: Context, edit: Edit = _as_it_is) -> list[Sample]:
        return [one for turn in self.turns for one in self._sample(turn, context, edit)]

    def _sample(self, episode: Episode, context: Context, edit: Edit) -> list[Sample]:
        """One turn, or nothing if it cannot be read. Its items are chosen from the whole context, so that no other one
        takes the place of one."""
        told = notes_for(context, episode.turns[0], self.items) if self.items else context
        return samples_of([episode], self.chat, edit(told), "keep")[0]

    def fits(self, turn: Episode, context: Context, edits: Sequence[Edit]) -> bool:
        """Whether a turn can be read with the context, however it is changed."""
        known = all(max(one.response_ids) < self.width for one in turn.turns if one.response_ids)
        found = [self._sample(turn, context, edit) for edit in edits] if known else []
        return known and all(one and self.teacher.fits(one[0]) for one in found)

    def read(self, context: Context, edit: Edit = _as_it_is) -> Logits:
        """The teacher behind prompts with ``context``, changed; what these begin with is read once."""
        self._show(edit(context))
        samples = self._samples(context, edit)
        return self._logits(self.teacher, [self.teacher.hidden([samples[i] for i in batch]) for batch in self.batches])

    def _show(self, context: Context) -> None:
        first = self.turns[0].turns[0]  # whose system message and tools all prompts have
        begins = () if self.items else (self.chat.teacher or self.chat).prefix(context, first.messages, first.tools)
        self.teacher.prefixes = [prefix_of(self.teacher.model, begins)] if begins else []

    def _logits(self, reader: FrozenTeacher, hidden: Sequence[Tensor]) -> Logits:
        hidden_NH = torch.cat([*hidden])
        return lambda where: choices.keep(reader.logits(hidden_NH[where])[:, : self.width], self.allowed[where])

    def sums(self, without_it: Logits, with_it: Logits) -> list[Sums]:
        """What the difference between two contexts changes, and what the student shows of it, for each task."""
        tokens = [self.tokens[i] for i in self.order]
        rows = max(1, CHUNK_LOGITS // self.width)
        base, student = self.bare
        found = sums(base, without_it, with_it, student, tokens, rows, self.temperature)
        return by_task([self.turns[i].task.key for i in self.order], found)


def stored_turns(
    session: Session, parent: LoadedModel, training: Training, reader: Reader, context: Context,
    edits: Sequence[Edit], n: int,
) -> list[Episode]:  # fmt: skip
    """Stored turns that a base has answered without a context, the same for every student, each as an episode.

    They are of two tasks or more, so the last place is kept for another task while all are of one. Each has room for
    the context however ``edits`` change it. Those of tasks that nothing is learned from come first, then those of
    extract tasks; none of train tasks.

    Raises:
        ConfigError: there are not two tasks with such turns.
    """
    store, setup = session.store, str(training.identity["setup"])
    rows = store.episodes(model_id=parent.id, context_id=EMPTY.id, env=session.env, setup=setup)
    places = [(row["split"] not in HELD_OUT, row["id"], turn) for row in rows for turn in range(row["turns"])
              if row["split"] != "train"]  # fmt: skip
    random.Random(f"audit:{parent.id}").shuffle(places)
    kept: list[Episode] = []
    tasks: set[str] = set()
    for _, episode_id, turn in sorted(places, key=lambda place: place[0]):
        episode = store.transcript(episode_id)
        one = dataclasses.replace(episode, turns=[episode.turns[turn]])
        if len(kept) >= max(1, n - 1) and tasks == {one.task.key}:
            continue
        if one.turns[0].response_ids and reader.fits(one, context, edits):
            kept.append(one)
            tasks.add(one.task.key)
        if len(kept) >= n and len(tasks) > 1:
            break
    if len(tasks) < 2:
        same = player_flags(dataclasses.replace(training.config, model=parent.name), PlayConfig)
        play = f"agentopcd play --no-extract {same}{work_flag(session.work)}"
        raise ConfigError(
            f"an audit wants stored turns of {session.env} on two tasks or more, none of them a train task, that "
            f"{parent.name} has answered without a context, got {len(tasks)}; play some with the settings of the "
            f"training: {play}"
        )
    return kept
