"""What a context's form alone does to the length of replies: ``python recipes/short-answers/placebos.py``.

A play run must have filled the workspace (``run.sh`` does it). Its latest contexts and the notes of a person are played
on the same tasks as three kinds of placebo of each:

1. its content words permuted within the context; function words and punctuation stay where they are
2. each content word replaced by a word about farm and sea with as many letters
3. lessons about holes and boxes: as many lines, each of about the same length

By this comparison the rule of ``agentopcd/knowledge/placebo.py`` was chosen: the first, made stricter since.

Every context plays the same select tasks of one environment with the same noise. Episodes go through the store, so a
call that was stopped goes on.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.types import EMPTY, MARKER, Context, Job
from agentopcd.knowledge import Bench, places_of
from agentopcd.knowledge.store import PLACEBO
from agentopcd.workspace.experience.chains import pool
from agentopcd.workspace.session import Session

HERE = Path(__file__).parent
WORK = Path("short-answers-work")
MAX_TOKENS = 48

_FUNCTION = """
    a about after again all also although always am an and any are as at be because been before being between both
    but by can cannot could did do does doing done down during each either else even ever every few for from
    further had has have having he her here hers him his how however i if in into is it its itself just less let
    many may me might mine more most much must my neither never no nobody none nor not nothing now of off on once
    only onto or other others ought our ours out over own per quite rather same shall she should since so some
    somebody something still such than that the their theirs them themselves then there therefore these they this
    those though through to too toward towards under until up upon us very was we well were what whatever when
    whenever where whereas wherever whether which while who whoever whom whose why will with within without would
    yes yet you your yours yourself
"""
_NEUTRAL = """
    cow hen bay hay sea oat eel boat barn tide seed crab sand wool field wheat coast shell sheep ocean barley
    meadow turnip oyster cattle saddle pasture lobster harvest seaweed orchard tractor seashore haystack farmyard
    mackerel lakeside driftwood buttercup farmhouse jellyfish artichoke breakwater strawberry watercress
    cornflower countryside lighthouses cauliflower huckleberry fisherwomen blackcurrants boysenberries
    blackcurrant chrysanthemums
"""
FUNCTION_WORDS, NEUTRAL = frozenset(_FUNCTION.split()), _NEUTRAL.split()
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def permuted(context: Context, seed: int) -> Context:
    """The context with its content words in a random order."""
    words = [word for word in _WORD.findall(_bare(context)) if word.casefold() not in FUNCTION_WORDS]
    random.Random(seed).shuffle(words)
    return _replaced(context, lambda _: words.pop())


def neutral(context: Context, seed: int) -> Context:
    """The context with each content word replaced by one of another topic with as many letters."""
    rng = random.Random(seed)
    longest = max(map(len, NEUTRAL))

    def other(word: str) -> str:
        length = min(max(len(word), 3), longest)
        return rng.choice([one for one in NEUTRAL if len(one) == length])

    return _replaced(context, other)


def unrelated(context: Context, seed: int) -> Context:
    """As many lessons of another environment, each about as long as the line in its place."""
    bank = Context((HERE / "unrelated.txt").read_text(encoding="utf-8")).lines
    random.Random(seed).shuffle(bank)
    chosen: list[str] = []
    for line in context.lines:
        free = [one for one in bank if one not in chosen] or bank
        chosen.append(min(free, key=lambda one: abs(len(one) - len(line))))
    return Context("\n".join(f"{MARKER} {line}" for line in chosen), context.placement)


RULES: dict[str, Callable[[Context, int], Context]] = {
    "1 permuted": permuted, "2 other topic": neutral, "3 unrelated lines": unrelated,
}  # fmt: skip


def _bare(context: Context) -> str:
    return "\n".join(context.lines)


def _replaced(context: Context, new: Callable[[str], str]) -> Context:
    """The context with each content word replaced; a word in place of a capitalised one is capitalised, too."""

    def swap(found: re.Match[str]) -> str:
        word = found[0]
        if word.casefold() in FUNCTION_WORDS:
            return word
        other = new(word)
        return other[0].upper() + other[1:] if word[0].isupper() else other[0].lower() + other[1:]

    return Context("\n".join(f"{MARKER} {_WORD.sub(swap, line)}" for line in context.lines), context.placement)


def arms(session: Session, own: int, seeds: Sequence[int]) -> dict[str, Context]:
    """The contexts to play, by name: notes, the newest contexts of the pool, and the placebos of each."""
    sources = {"notes of a person": Context((HERE / "notes.txt").read_text(encoding="utf-8").strip())}
    found = [context for context in pool(session) if context.lines][:own]
    if len(found) < own:
        raise ConfigError(f"{session.work} holds {len(found)} contexts of {session.env}, wanted {own}; play first")
    sources |= {f"own items {context.id[:6]}": context for context in found}
    named = dict(sources)
    for rule, make in RULES.items():
        named |= {f"{name}: {rule}, seed {seed}": make(one, seed) for name, one in sources.items() for seed in seeds}
    return named


def measure(session: Session, named: dict[str, Context], n: int) -> Table:
    """Play what is missing, and the table of success and words per reply."""
    tasks = session.tasks("select", n)
    contexts = [EMPTY, *named.values()]
    bench = session.bench(session.ledger.stage("placebos", tasks=len(tasks), contexts=[one.id for one in contexts]))
    bench.prepare(contexts, tasks, "select", {"order": PLACEBO})
    bench.play_missing("placebos", [Job(task, context) for context in contexts for task in tasks])
    arena = bench.arena("select", places_of(tasks))
    table = Table(title=f"{session.env}, {len(tasks)} select tasks")
    for column in ("context", "items", "success", "95 %", "to base, paired", "what it stands for, to it", "p", "words"):
        table.add_column(column, justify="left" if column == "context" else "right")
    for name, context in {"base": EMPTY, **named}.items():
        count = session.store.counts([bench.arm(context)], arena)[bench.arm(context)].rate
        to_base = str(session.store.compare(bench.arm(context), bench.arm(), arena).difference) if context.text else ""
        source = named.get(name.partition(": ")[0]) if ": " in name else None
        twin = session.store.compare(bench.arm(source), bench.arm(context), arena) if source else None
        table.add_row(
            name, str(len(context.lines)), f"{count.rate:.3f}", f"[{count.low:.3f}, {count.high:.3f}]", to_base,
            *((str(twin.difference), f"{twin.p:.3f}") if twin else ("", "")),
            f"{words(bench, context, len(tasks)):.1f}",
        )  # fmt: skip
    session.ledger.finish(bench.run_id, {"contexts": {name: one.id for name, one in named.items()}})
    return table


def words(bench: Bench, context: Context, n: int) -> float:
    """Words of a reply with this context, on average over the newest ``n`` on select tasks."""
    rows = bench.store.episodes(env=bench.env, split="select", context_id=context.id)
    return fmean(len(bench.store.transcript(row["id"]).turns[0].reply.split()) for row in rows[-n:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="workspace that run.sh has filled")
    parser.add_argument("--env", default=str(WORK / "silent.jsonl"), help="rows of its play run")
    parser.add_argument("--splits", default=str(WORK / "silent.json"), help="splits of its play run")
    parser.add_argument("--tasks", type=int, default=96, help="select tasks that every context plays")
    parser.add_argument("--own", type=int, default=2, help="contexts of the pool")
    parser.add_argument("--seeds", type=int, default=1, help="placebos of each kind")
    args = parser.parse_args(arguments)
    models.prepare_process()
    config = PlayConfig(env=args.env, model="smollm2-135m", max_tokens=MAX_TOKENS, splits=args.splits)
    try:
        with Session(config, args.work, progress=progress) as session:
            named = arms(session, args.own, range(args.seeds))
            for name, context in named.items():
                print(f"-- {name}\n{context.text}")
            table = measure(session, named, args.tasks)
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
