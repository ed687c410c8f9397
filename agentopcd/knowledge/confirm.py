"""The gate: one context on fresh tasks, against the empty context, its placebo, and the context confirmed before it."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Literal

from agentopcd.core.errors import ConfigError, EnvError, StoreError
from agentopcd.core.power import detectable, least_p
from agentopcd.core.stats import Comparison, Difference, Mean, Rate, draws_for
from agentopcd.core.text import counted
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.knowledge.bench import Bench, check_scores
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.exchange import ELSEWHERE
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.looks import left_of
from agentopcd.knowledge.placebo import twin_of
from agentopcd.knowledge.refs import best_ref
from agentopcd.knowledge.store import PLACEBO, Store, canonical

Verdict = Literal["pass", "not better", "form only", "incumbent stays"]
"""``not better`` than the empty context; better than that, but ``form only``: not better than its placebo; better than
both, but not than the incumbent, which stays ENV/best; or a ``pass``."""

USEFUL: tuple[Verdict, ...] = ("pass", "incumbent stays")
"""Verdicts on a context that is worth distilling."""

_IN_WORDS: dict[Verdict, str] = {
    "pass": "pass, {ref} moved",
    "not better": "not promoted, it is not shown to be better than no context",
    "form only": "form only: it is not shown to be better than its placebo; not promoted",
    "incumbent stays": "confirmed, but not shown to be better than {ref}, which stays",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Confirmation:
    """What one look at the confirm tasks has shown."""

    context_id: str
    verdict: Verdict
    against: dict[str, Comparison]
    """The context against ``empty``, its ``placebo``, and the ``incumbent`` if there is one."""
    means: dict[str, dict[str, Mean]]
    """Mean reward and metrics of ``context``, ``empty``, ``placebo`` and ``incumbent``."""
    by: str
    """What was compared: success, reward or a metric."""
    look: int
    """The number of this look at the environment's confirm tasks."""
    level: float
    """One-sided size of each test."""
    left: float
    """What is left of the environment's false-alarm rate after all looks so far."""
    errors: int
    """Environment errors of this call; such episodes are not counted."""
    ref: str
    """The ref that a pass moves."""
    at: str | None = None
    """The context that the ref is at after this call; None: there is no such ref."""
    found_on: str = ""
    """Of a look that was judged before, its day; '': it was judged by this call."""

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    @property
    def overtaken(self) -> bool:
        """It passed, and the ref is at another context, which it was not compared with: that one stays."""
        return self.passed and self.at != self.context_id

    @property
    def comparison(self) -> Comparison:
        """Against the empty context."""
        return self.against["empty"]

    def __str__(self) -> str:
        n, tasks = self.comparison.n, self.comparison.tasks
        lines = [f"context {self.context_id[:12]}, {n} episodes on {tasks} tasks, {self.by}:"]
        for name, pair in self.against.items():
            won = f"{pair.wins} won / {pair.losses} lost, {pair.test} {pair.p:.2g}"
            against = f"{pair.first.rate:.3f} against {pair.second.rate:.3f}"
            lines.append(f"  against {name:9s}  {against}  {pair.difference}  {won}")
        lines += self._other_scores()
        base, tasks = self.comparison.second.rate, self.comparison.tasks
        if least_p(tasks, success=self.comparison.test == "mid_p") >= self.level:
            lines.append(f"  {counted(tasks, 'task')} cannot reach this level, whatever comes of them")
        elif self.by == "success" and (seen := detectable(tasks, base, alpha=self.level)) is not None:
            what = "pairs" if tasks == self.comparison.n else "tasks"
            lines.append(f"  {tasks} {what} show a rise of {seen:.2f} four times in five")
        lines.append(f"  look {self.look} at level {self.level:.2g}, {self.left:.2g} left for later looks")
        if self.found_on:
            lines.append(f"  as found on {self.found_on}: the same look again; another --confirm-tasks is another look")
        lines.append(f"verdict: {self._in_words()}")
        return "\n".join(lines)

    def _in_words(self) -> str:
        if self.overtaken:
            there = f"was moved to {self.at[:12]}" if self.at else "was deleted"
            return (
                f"pass, but {self.ref} {there} since this look began, so it stays as it is; another --confirm-tasks "
                "compares again, or move it by hand: "
                f"agentopcd knowledge move {shlex.quote(self.ref)} {self.context_id[:12]}"
            )
        if self.passed and self.found_on:
            return f"pass, {self.ref} is at it"
        return _IN_WORDS[self.verdict].format(ref=self.ref)

    def _other_scores(self) -> list[str]:
        """A line for each score beside the one that was compared, where it says something that success does not."""
        names = dict.fromkeys(name for means in self.means.values() for name in means if name != self.by)
        rates = {"context": self.comparison.first.rate} | {
            name: pair.second.rate for name, pair in self.against.items()
        }
        lines = []
        for name in names:
            shown = {label: means[name] for label, means in self.means.items() if name in means}
            if any(mean.rate != rates[label] for label, mean in shown.items()):
                lines.append(f"  {name}: " + ", ".join(f"{label} {mean}" for label, mean in shown.items()))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "context": self.context_id, "confirmed": self.passed, "verdict": self.verdict, "by": self.by,
            "ref": self.ref, "at": self.at,
            "look": self.look, "level": self.level, "left": self.left, "errors": self.errors,
            "score": self.comparison.first.to_dict(),
            "against": {name: pair.to_dict() | {"score": pair.second.rate} for name, pair in self.against.items()},
            "means": {label: {n: mean.to_dict() for n, mean in by.items()} for label, by in self.means.items()},
        }  # fmt: skip


def confirm(
    bench: Bench, context: Context, tasks: Sequence[Task], *, by: str = "success", first_rep: int = 0
) -> Confirmation:
    """Play one context, the empty one, its placebo and the incumbent on fresh tasks; promote it if it beats them all.

    The incumbent is the context at ENV/best, unless it is this one, the model has it in its weights already, or an
    import alone has put it there. The tests are McNemar's mid-p when success is compared and no two pairs share a task,
    else the sign-flip test over tasks. All must reach the level of this look (see :mod:`agentopcd.knowledge.looks`);
    since all must, they share it. On a pass, ENV/best is moved to the context, with the numbers as the reason, unless
    it was moved meanwhile. A repeated call is the same look: where that was judged, nothing is played and what it found
    stands.

    Args:
        tasks: tasks of the ``confirm`` split; they are registered there.
        by: success, reward or a metric.
        first_rep: repetition of the episodes; not 0 where the tasks were seen when the context was chosen.

    Raises:
        ConfigError: the context is empty or too short for a placebo, there is no task, or no pair could be played.
        TaskLeak: the context holds an item from a task it must not know, or a task is in another split.
    """
    store, env = bench.store, bench.env
    if not context.text:
        raise ConfigError("the empty context cannot be confirmed: it is what a context is compared with")
    twin = twin_of(context)
    assert isinstance(twin, Context)
    bench.prepare([context], tasks, "confirm")
    store.add_context(twin, {"order": PLACEBO, "of": context.id})
    look = store.begin_look(
        {"env": env, "model_id": bench.model_id, "context_id": context.id, "setup": bench.setup,
         "plan": _plan(tasks, by, first_rep)},
        {"placebo_id": twin.id, "incumbent_id": _incumbent(bench, context), "run_id": bench.run_id},
    )  # fmt: skip
    if look["verdict"] is not None:
        return _as_found(bench, look)
    rivals = {"empty": EMPTY, "placebo": store.get_context(look["placebo_id"])}
    if look["incumbent_id"] is not None:
        rivals["incumbent"] = store.get_context(look["incumbent_id"])
    arms = (context, *rivals.values())
    arena = bench.arena("confirm", [(task.key, task.seed, first_rep) for task in tasks], by)
    try:
        errors = bench.play_missing("confirm", [Job(task, arm, first_rep) for task in tasks for arm in arms])
    except EnvError:
        if not store.outcomes(bench.arm(context), arena):
            store.drop_look(look)  # of this context, nothing was shown
        raise
    draws = draws_for(look["level"])
    against = {
        name: store.compare(bench.arm(context), bench.arm(rival), arena, draws=draws) for name, rival in rivals.items()
    }
    if not all(pair.n for pair in against.values()):
        store.drop_look(look)  # it has shown nothing
        check_scores(bench, bench.arm(context), arena, errors)
        raise ConfigError(f"no pair of {env} with {by!r} was played ({errors} environment errors): nothing to confirm")
    looks = store.looks(env)
    result = Confirmation(
        context.id, _verdict(against, look["level"]), against,
        {name: store.means(bench.arm(arm), arena) for name, arm in {"context": context, **rivals}.items()},
        by, look["number"], look["level"], left_of(looks), errors, best_ref(env),
    )  # fmt: skip
    with store.write():
        known = store.lookup("look", id=look["id"], at=look["at"])
        if known is None:
            raise StoreError(
                f"another process took look {look['number']} of {env} back, since nothing could be played there; give "
                "the command again: what was played here is kept"
            )
        if known["verdict"] is not None:  # another process was faster
            return _as_found(bench, look | known)
        if result.passed and _incumbent(bench, context) == look["incumbent_id"]:
            _promote(bench, result)
        result = dataclasses.replace(result, at=store.ref(result.ref))
        store.end_look(look["id"], result.verdict, result.to_dict())
    return result


def _as_found(bench: Bench, look: Row) -> Confirmation:
    """What a look has found that was judged before, whatever was played or moved since.

    Raises:
        StoreError: the look has kept no result that can be read.
    """
    what, ref = f"the result of look {look['number']} of {look['env']}", best_ref(bench.env)
    given = read_object(str(look["result"] or ""), what)
    try:
        return Confirmation(
            look["context_id"], look["verdict"], {name: _pair(name, given) for name in given["against"]},
            {arm: {name: Mean.from_dict(one) for name, one in by.items()} for arm, by in given["means"].items()},
            given["by"], look["number"], look["level"], left_of(bench.store.looks(bench.env)), given["errors"],
            ref, bench.store.ref(ref), look["at"][:10],
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(
            f"{what} is of another version ({error!r}); another --confirm-tasks is another look"
        ) from error


def _pair(name: str, given: Mapping[str, Any]) -> Comparison:
    """A comparison as :meth:`Confirmation.to_dict` wrote it, with no interval of a rate but the context's own."""
    one, own = given["against"][name], given["score"] if name == "empty" else {}
    n, low, high = one["n"], one["low"], one["high"]
    shown, other = one["score"] + one["difference"], one["score"]
    first: Rate | Mean = Mean.from_dict(own) if "mean" in own else Mean(shown, -inf, inf, n)
    second: Rate | Mean = Mean(other, -inf, inf, n)
    if given["by"] == "success":
        first = Rate(round(shown * n), n, (own["low"], own["high"]) if own else None)
        second = Rate(round(other * n), n)
    gain = Difference(one["difference"], -inf if low is None else low, inf if high is None else high, n)
    return Comparison(n, one["tasks"], one["wins"], one["losses"], first, second, gain, one["p"], one["test"])


def _plan(tasks: Sequence[Task], by: str, first_rep: int) -> str:
    """What tells a look from another one at the same context, model and setup."""
    return hashlib.sha256(
        canonical({"tasks": [[*task] for task in tasks], "by": by, "rep": first_rep}).encode()
    ).hexdigest()


def own_best(store: Store, env: str) -> str | None:
    """The context at ENV/best, or None if there is none or an import alone has put it there.

    It counts if a command or a person moved the ref here, or if a look of this store has found it useful.
    """
    if not (moves := store.log(best_ref(env))) or (current := moves[-1]["context_id"]) is None:
        return None
    run = store.lookup("run", id=moves[-1]["run_id"]) if moves[-1]["run_id"] else None
    if not moves[-1]["actor"].startswith(ELSEWHERE) and not (run and run["imported"]):
        return current
    return current if any(look["verdict"] in USEFUL for look in store.looks(env, current)) else None


def _incumbent(bench: Bench, context: Context) -> str | None:
    current = own_best(bench.store, bench.env)
    if current in (None, context.id, EMPTY.id) or current in bench.store.learned(bench.model_id):
        return None
    return current


def _verdict(against: dict[str, Comparison], level: float) -> Verdict:
    failed: dict[str, Verdict] = {"empty": "not better", "placebo": "form only", "incumbent": "incumbent stays"}
    for rival, verdict in failed.items():
        if rival in against and against[rival].p >= level:
            return verdict
    return "pass"


def _promote(bench: Bench, result: Confirmation) -> None:
    if own_best(bench.store, bench.env) == result.context_id:
        return
    current = bench.store.ref(result.ref)
    reason = f"{result.comparison}; look {result.look} at level {result.level:.2g}"
    bench.store.move(result.ref, result.context_id, "confirm", reason, bench.run_id, expect=current)
