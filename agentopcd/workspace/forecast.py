"""Is there a gain to distil? Said before a model is trained: what ``agentopcd forecast`` does, and its short form."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.calibration import Advice, Calibration, Past, advise, rate_given, told
from agentopcd.core.config import ConsolidateConfig, ForecastConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.groups import mean_of_groups
from agentopcd.core.power import detectable
from agentopcd.core.runs import work_flag
from agentopcd.core.stats import Comparison, Difference, Mean, Rate, ratio
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.distillation.distance import Totals
from agentopcd.distillation.tokens import BEFORE, text_of
from agentopcd.envs.manifest import FRESH
from agentopcd.knowledge import PLACEBO, USEFUL, Arena, Arm, Bench, Store, own_best, placebo, places_of
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.students import CANARY
from agentopcd.workspace.evaluation.distance import played_by, reply_totals
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.pace import estimate
from agentopcd.workspace.session import Session

TURNS = 10
"""Turns whose divergence is told one by one; later ones are told together."""
DEFAULT = ConsolidateConfig(env="any")
"""The settings of a training that nobody has changed: its steps, and its test tasks."""
PLAYED = (
    "env_args", "rules", "history", "max_steps", "constrain", "max_tokens", "template_args", "temperature", "top_p",
    "top_k",
)  # fmt: skip
"""Settings without which what was measured says nothing about a training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """How far a context moves the model, on the model's own replies without it: reverse KL in nats a token."""

    all: Mean
    turns: Mapping[str, Mean]
    """By the number of the turn, from 1; the last entry may hold all later turns."""
    format: Mean
    """The share of the divergence that lies on format tokens (:func:`is_format`); ``n`` counts tasks."""
    format_tokens: float
    """The share of the tokens that are format tokens."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "nats": self.all.to_dict(), "turns": {turn: mean.to_dict() for turn, mean in self.turns.items()},
            "format": self.format.to_dict(), "format_tokens": self.format_tokens,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The figures as text."""
        by_turn = ", ".join(f"{turn}: {mean.rate:.3f} (n={mean.n})" for turn, mean in self.turns.items())
        share = f"{self.format.rate:.0%} [{self.format.low:.0%}, {self.format.high:.0%}]"
        return [
            f"the context moves the model by {self.all} nats a token of its own replies",
            f"by turn: {by_turn}",
            f"of that, {share} lies on format tokens, which are {self.format_tokens:.0%} of all tokens",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of a context and a model before training."""

    context_id: str
    by: str
    gain: Comparison | None
    """With the context against without it; None where nothing is right or wrong."""
    beyond: Comparison | None
    """With the context against with its placebo."""
    moved: Moved
    smallest: float | None
    """The smallest rise that the test tasks of a training would show four times in five; None if they
    would show none, or it is not by success."""
    time: str
    """How long a training will take."""
    past: Sequence[Past]
    best_of: int = 1
    """How many contexts a ranking on these select tasks has chosen this one from."""

    @property
    def advice(self) -> tuple[Advice, str]:
        base = self.gain.second if self.gain else None
        return advise(_difference(self.gain), _difference(self.beyond), self.moved.all, base)

    def to_dict(self) -> dict[str, Any]:
        """The forecast as JSON."""
        calibration = Calibration.of(self.past)
        return {
            "context": self.context_id, "by": self.by, "advice": self.advice[0], "why": self.advice[1],
            "gain": self.gain.to_dict() if self.gain else None,
            "beyond_placebo": self.beyond.to_dict() if self.beyond else None,
            "moved": self.moved.to_dict(), "smallest_gain_shown": self.smallest, "time": self.time,
            "predicted": calibration.predicted(self.gain.difference) if self.gain else None,
            "calibration": calibration.to_dict(), "past": told(self.past), "best_of": self.best_of,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The forecast as text, the advice last."""
        out, calibration = [f"context {self.context_id[:12]}"], Calibration.of(self.past)
        for name, pair in (("against none", self.gain), ("against its placebo", self.beyond)):
            if pair is not None:
                found = f"{pair.first.rate:.3f} against {pair.second.rate:.3f}"
                out.append(f"{self.by} {name}: {found}, {pair.difference} on {pair.tasks} select tasks (n={pair.n})")
        if self.best_of > 1:
            out.append(
                f"it was ranked among {self.best_of} contexts on these tasks; the games here are new, but its gain may "
                "still be too high (`agentopcd knowledge confirm` asks other tasks)"
            )
        out += self.moved.lines()
        if self.smallest is not None:
            out.append(f"the test tasks of a training show a gain of {self.smallest:.2f} or more four times in five")
        out += [f"training of {DEFAULT.steps} steps, {self.time}"] if self.time else []
        out += [f"earlier: {one}" for one in self.past]
        if self.gain is not None:
            out += calibration.lines()
            if (ahead := calibration.predicted(self.gain.difference)) and self.advice[0] == "train":
                ends = "" if ahead[1] is None else f" [{ahead[1]:+.3f}, {ahead[2]:+.3f}]"
                out.append(f"predicted gain of a student: {ahead[0]:+.3f}{ends}")
        return [*out, f"verdict: {self.advice[0]}: {self.advice[1]}"]


def shown_context(session: Session, config: ForecastConfig) -> Context:
    """The context to look at.

    Raises:
        ConfigError: none is named and none was confirmed, it is empty, or there are no select tasks.
    """
    name = config.context or own_best(session.store, session.env)
    if not name:
        raise ConfigError(f"no context of {session.env} was confirmed; name one with --context FILE or REF")
    context, _ = session.context(name, config.placement)
    if not context.text:
        raise ConfigError("the empty context moves no model; name another one with --context")
    session.needed("select")
    session.refuse_changed_game()
    return context


def forecast(session: Session, config: ForecastConfig, context: Context, *, run_id: int) -> Forecast:
    """Play what the store lacks on select tasks, and compare the model with and without the context on its replies.

    Raises:
        ConfigError: nothing could be played.
        TaskLeak: the context holds an item from a held-out task.
    """
    bench, tasks = session.bench(run_id), session.tasks("select", config.episodes)
    bench.prepare([context], tasks, "select")
    gain, beyond, smallest, tests = None, None, None, len(session.tasks("test", DEFAULT.test_tasks))
    by, best_of = session.score, _best_of(session, context)
    first = FRESH["forecast"] if best_of > 1 else 0  # games that chose a context say too much of it
    if session.game.graded:
        twin = placebo(context)
        session.store.add_context(twin, {"order": PLACEBO, "of": context.id})
        bench.play_missing("forecast", [Job(task, arm, first) for task in tasks for arm in (EMPTY, context, twin)])
        arena = bench.arena("select", places_of(tasks, first=first), by)
        gain = _compared(bench, context, EMPTY, arena)
        beyond = _compared(bench, context, twin, arena) if twin.id != context.id else None  # two letters, at least
        if by == "success":
            smallest = detectable(tests, gain.second.rate)
    else:
        bench.play_missing("forecast", [Job(task, rep=first) for task in tasks])
    time = estimate(session, episodes=3 * tests, steps=DEFAULT.steps)
    return Forecast(
        context_id=context.id, by=by, gain=gain, beyond=beyond, smallest=smallest, time=time,
        moved=_moved(session, context, tasks, bench.setup, first), past=past_trainings(session.store, by),
        best_of=best_of,
    )  # fmt: skip


def _best_of(session: Session, context: Context) -> int:
    """How many contexts were ranked with this one on select tasks of this environment, with any model; 1 for none."""
    found = 1
    for row in session.store.runs("score", "done"):
        result = read_object(row["result"], f"the result of run {row['id']}")
        config = read_object(row["config"], f"the config of run {row['id']}")
        ranked = {one["context"] for one in result.get("ranking", [])}
        if config.get("env") == session.env and context.id in ranked:
            found = max(found, result.get("competed", len(ranked)))
    return found


def _compared(bench: Bench, context: Context, other: Context, arena: Arena) -> Comparison:
    found = bench.store.compare(bench.arm(context), bench.arm(other), arena)
    if not found.n:
        raise ConfigError(f"no pair of {bench.env} with {arena.by!r} was played, so nothing can be said of the context")
    return found


def _moved(session: Session, context: Context, tasks: Sequence[Task], setup: str, rep: int) -> Moved:
    """The divergence of the model with the context from the model without it, on the stored replies without it."""
    base = Contestant(label="base", model=session.loaded)
    played, chat = played_by(session, base, tasks, setup=setup, rep=rep), session.player.chat
    found = reply_totals(session, base, base.model, context, played, chat)
    if not found:
        raise ConfigError(f"no reply of {base.model.name} on select tasks has room for the context: shorten it")
    return moved(found, base.model.tokenizer)


def moved(found: Sequence[Totals], tokenizer: Any) -> Moved:
    """The figures from the sums of replies; those of one task count as one observation."""
    turns: defaultdict[str, list[Totals]] = defaultdict(list)
    on_format: defaultdict[str, float] = defaultdict(float)
    total, marks = defaultdict[str, float](float), 0
    for one in sorted(found, key=lambda one: one.sample.turn if one.sample else 0):
        assert one.sample is not None
        turn, ids = one.sample.turn + 1, one.sample.response_ids
        turns[str(turn) if turn <= TURNS else f"{TURNS + 1} and later"].append(one)
        flags = [is_format(tokenizer, ids, place) for place in range(len(ids))]
        on_format[one.key] += sum(nats for nats, flag in zip(one.nats, flags, strict=True) if flag)
        total[one.key] += one.kl
        marks += sum(flags)
    share = Mean(0.0, 0.0, 0.0, len(total))
    if sum(total.values()) > 0:
        share = Mean(*ratio([on_format[key] for key in total], [*total.values()]), len(total))
    return Moved(
        all=_mean(found), turns={turn: _mean(some) for turn, some in turns.items()}, format=share,
        format_tokens=marks / max(1, sum(one.tokens for one in found)),
    )  # fmt: skip


def is_format(tokenizer: Any, ids: Sequence[int], place: int) -> bool:
    """Whether a token of a reply is form and no content: it adds no letter and no digit.

    Those are the end of the turn and other special tokens, spaces, line ends, punctuation, brackets and markup. Where a
    game's moves are signs, such as ``<``, they are format tokens, too.
    """
    if ids[place] in tokenizer.all_special_ids:
        return True
    return not any(char.isalnum() for char in text_of(tokenizer, ids[max(0, place - BEFORE) : place], ids[place]))


def _mean(found: Sequence[Totals]) -> Mean:
    return mean_of_groups((one.key, one.kl, one.tokens) for one in found)


def _difference(pair: Comparison | None) -> Difference | None:
    return None if pair is None else pair.difference


# -- from what is stored --------------------------------------------------------------------------------


def short(session: Session, context: Context, flags: str = "") -> str:
    """One line before a training: the advice from what is stored, and why. It plays nothing and decides nothing.

    The model's own last look at confirm tasks comes first, then its newest forecast, then its games on select tasks,
    with the context, without it, and with its placebo, then the looks of other models.

    Args:
        flags: what a command needs to measure it in the same way.

    Returns:
        '' where nothing is right or wrong and nobody has made a forecast.
    """
    name, store = f"context {context.id[:12]}", session.store
    looks = _looks(store, session.env, context.id)
    if own := [look for look in looks if look["model_id"] == session.loaded.id and _as_here(session, look["run_id"])]:
        return _of_look(name, own[-1])
    for row in reversed(store.runs("forecast", "done")):
        settings = read_object(row["config"], f"the config of run {row['id']}")
        made = tuple(settings.get(name) for name in ("env", "context_id", "model_id"))
        same = made == (session.env, context.id, session.loaded.id) and _as_here(session, row["id"])
        if same and not row["imported"]:
            result = read_object(row["result"], f"the result of run {row['id']}")
            return f"forecast: {result['advice']}: {result['why']} ({name}, run {row['id']})"
    if not session.game.graded:
        return ""
    arena = Arena(session.env, session.setup(), "select", by=session.score)
    arm, twin = Arm(session.loaded.id, context.id), placebo(context)
    pair, beyond = (store.compare(arm, arm._replace(context_id=one.id), arena) for one in (EMPTY, twin))
    if pair.n:
        advice, why = advise(pair.difference, beyond.difference if beyond.n else None, None, pair.second)
        found = f"on select tasks {pair.difference} to none (n={pair.n})"
        return f"forecast: {advice}: {why}: {name} {found}; not confirmed"
    if any(look["verdict"] in USEFUL for look in looks):
        return f"forecast: not known: {name} passed the confirm gate, but with another model, or played otherwise"
    if looks:
        why = f"{looks[-1]['verdict']} (look {looks[-1]['number']})"
        return (
            f"forecast: not known: {name} did not pass the confirm gate: {why}; with another model, or played otherwise"
        )
    measure = f"agentopcd forecast --context {context.id[:12]} {flags}".rstrip() + work_flag(session.work)
    return f"forecast: not known: whether {name} helps this model was never measured here; {measure} would tell"


def _as_here(session: Session, run_id: int | None) -> bool:
    """Whether a run played the environment by the settings of this session; its seed and its engine may be others.

    What an old run does not say is taken to be the same.
    """
    if run_id is None:
        return True
    stored = read_object(session.store.run(run_id)["config"], f"the config of run {run_id}")
    mine = run_config(session.config)
    return all(stored.get(setting, mine[setting]) == mine[setting] for setting in PLAYED)


def _of_look(name: str, look: Row) -> str:
    """What the model's own last look says."""
    against, number = _against(look), f"(look {look['number']})"
    gain = against.get("empty")
    figures = f", {gain} to none" if gain else ""
    if look["verdict"] in USEFUL:
        return f"forecast: train: {name} helps this model: it passed the confirm gate{figures} {number}"
    advice, why = "collect better notes", look["verdict"]
    if gain is not None and (said := advise(gain, None, None, _base(look)))[0] == "do not":
        advice, why = said[0], f"{why}; {said[1]}"
    return f"forecast: {advice}: {name} did not pass the confirm gate: {why}{figures} {number}"


def past_trainings(store: Store, by: str = "success") -> list[Past]:
    """The trainings of this store, oldest first, of which the table has the gain in context and the student's, by this
    score.

    Both are of the same test tasks; the gain in context is measured before the training. What the context does beyond
    its placebo is that of its last look at confirm tasks, if there is one.
    """
    found = []
    for row in store.runs("consolidate", "done"):
        config = read_object(row["config"], f"the config of run {row['id']}")
        result = read_object(row["result"], f"the result of run {row['id']}") if row["result"] else {}
        table = result.get("evaluation") or {}
        pairs = table.get("differences") or {}
        gain, student = (_given(pairs.get(f"{arm} - base")) for arm in ("in-context", "student"))
        if row["imported"] or config.get("placebo") or not table.get("graded", True) or gain is None or student is None:
            continue
        if table.get("by", "success") != by:
            continue
        bases = (one for one in table.get("rows") or () if one.get("label") == "base")
        looks = _looks(store, config.get("env"), str(config.get("context_id")))
        looks = [look for look in looks if look["model_id"] == config.get("model_id")]
        found.append(
            Past(
                name=f"run {row['id']}, {config.get('env')}, context {str(config.get('context_id'))[:12]}",
                gain=gain, student=student, beyond=_against(looks[-1]).get("placebo") if looks else None,
                base=rate_given(next(bases, None)) if by == "success" else None,
            )
        )  # fmt: skip
    return found


def _looks(store: Store, env: str | None, context_id: str) -> list[Row]:
    """The finished looks at confirm tasks with a context, oldest first; no canary's, and no student's, which is shown
    none."""
    if context_id == EMPTY.id:
        return []
    looks = [look for look in store.looks(env, context_id) if env in (None, look["env"])]  # not by another grader
    return [look for look in looks if look["verdict"] and look["setup"] != CANARY]


def _against(look: Row) -> dict[str, Difference]:
    """The differences that a look has found, by rival; a look of schema 1 kept none."""
    if not look["result"]:
        return {}
    given = read_object(str(look["result"]), f"the result of look {look['id']}").get("against", {})
    return {name: found for name, one in given.items() if (found := _given(one)) is not None}


def _base(look: Row) -> Rate | None:
    """The success without a context that a look has found; None if it compared another score."""
    found = read_object(str(look["result"]), f"the result of look {look['id']}") if look["result"] else {}
    one = found.get("against", {}).get("empty", {})
    if found.get("by") != "success" or "score" not in one:
        return None
    return Rate(round(one["score"] * one["n"]), one["n"])


def _given(one: Mapping[str, Any] | None) -> Difference | None:
    """A difference as reports write it; None without its interval."""
    if not one or None in (one.get("difference"), one.get("low"), one.get("high")):
        return None
    return Difference(one["difference"], one["low"], one["high"], one.get("n", 0))
