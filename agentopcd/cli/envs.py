"""``agentopcd envs``: list, show and check environments, play one by hand, cut its tasks into splits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from agentopcd.cli.help import App
from agentopcd.cli.options import json_option, parse_env_args, progress
from agentopcd.core.files import path_of
from agentopcd.core.terminal import emit
from agentopcd.core.text import counted

app = App(
    name="envs",
    help="Show environments, check them, play them by hand.",
    epilog="First: agentopcd envs list\nYour own: agentopcd envs new mine.py",
)

Ref = Annotated[str, typer.Argument(metavar="REF", help="sokoban, pkg.mod:Class, file.py:Class, gym:ID and others.")]
EnvArgs = Annotated[
    list[str] | None,
    typer.Option("--env-arg", metavar="NAME=VALUE", help="Argument of the environment; repeat the flag for more."),
]
Grader = Annotated[
    str, typer.Option("--grader", metavar="FILE.py:FUNCTION", help="What says whether a reply to a row is right.")
]
SuccessWhen = Annotated[
    str,
    typer.Option("--success-when", help="When an episode is solved: 'return >= 475', 'reward > 0' or 'terminated'."),
]
Json = Annotated[bool, json_option("Print JSON for programs.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the registered environments.

    Example: agentopcd envs list
    """
    from agentopcd.envs import list_envs

    specs = list_envs()
    if as_json:
        emit([_facts(spec) for spec in specs], indent=2)
        return
    width = max(len(spec.id) for spec in specs)
    for spec in specs:
        problem = _plugin_problem(spec)
        print(f"{spec.id:<{width}}  {problem or spec.summary or _where(spec.entry_point)}")
    print("Next: agentopcd envs show NAME, or agentopcd envs try NAME")


def _plugin_problem(spec: Any) -> str | None:
    """Return a one-line warning about a plugin that does not import; the package's own environments are trusted."""
    from agentopcd.core.errors import AgentOpcdError
    from agentopcd.envs import get_spec

    if spec.summary or not isinstance(spec.entry_point, str):
        return None
    try:
        get_spec(spec.id)
    except AgentOpcdError as error:
        return f"warning: {error}"
    return None


def _facts(spec: Any) -> dict[str, Any]:
    return {
        "id": spec.id,
        "entry_point": _where(spec.entry_point),
        "kwargs": dict(spec.kwargs),
        "max_steps": spec.step_limit,
        "views": ["full", "hidden", "none", *(name for name in spec.views if name not in _BASIC)],
        "history": spec.history,
        "summary": spec.summary,
    }


def _where(entry: Any) -> str:
    """An entry point as text; of what has no name of its own, such as a partial, the name of its kind."""
    if isinstance(entry, str):
        return entry
    named = entry if hasattr(entry, "__qualname__") else getattr(entry, "func", type(entry))
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}:{named.__qualname__}"


_BASIC = ("full", "hidden", "none")


@app.command()
def show(ref: Ref, env_arg: EnvArgs = None, grader: Grader = "", as_json: Json = False) -> None:
    """Show one environment's card, settings and first observation.

    Example: agentopcd envs show sokoban
    """
    import inspect

    from agentopcd.envs import FromGym, apply_view, get_spec, join_parts, make, parts_of, task_key

    spec = get_spec(ref)
    env = make(ref, **_arguments(env_arg, grader))
    obs, info = env.reset(seed=0)
    game: Any = env.unwrapped
    own = type(game.game).__doc__ if type(game) is FromGym else ""  # the game's own words, if it has any
    card = inspect.cleandoc(own) if own else inspect.getdoc(type(game)) or ""
    env.close()
    facts = {**_facts(spec), "card": card, "task_key": task_key(obs, info)}
    if as_json:
        emit({**facts, "observation": obs}, indent=2)
        return
    for name in ("id", "entry_point", "kwargs", "max_steps", "views", "history"):
        print(f"{name:<12} {facts[name]}")
    print(f"\n{card}\n\nFirst observation of seed 0, as a model sees it by default:\n")
    print(join_parts(apply_view(parts_of(obs, info), spec.view())))
    print(f"\nNext: agentopcd envs try {_again(ref, env_arg, grader)}")


@app.command()
def check(
    ref: Ref,
    env_arg: EnvArgs = None,
    grader: Grader = "",
    n: Annotated[int, typer.Option("--seeds", help="Number of seeds to check.", min=2)] = 32,
    success_when: SuccessWhen = "",
    as_json: Json = False,
) -> None:
    """Check that an environment keeps the contract; exit code 1 if it does not.

    Example: agentopcd envs check guess.py:Guess
    """
    import dataclasses
    from functools import partial

    from agentopcd.envs import check_env, get_spec, make
    from agentopcd.envs.walks import MAX_REPLIES
    from agentopcd.rollouts.game import Game

    spec, kwargs = get_spec(ref), _arguments(env_arg, grader)
    maker, graded = partial(make, ref, **kwargs), Game(ref=ref, kwargs=kwargs, success_when=success_when).graded
    report = check_env(maker, n, spec=spec, success_when=success_when)
    if as_json:
        emit({**dataclasses.asdict(report), "ok": report.ok}, indent=2)
    else:
        for kind, lines in (("error", report.errors), ("warning", report.warnings)):
            for line in lines:
                print(f"{kind}: {line}")
        within = f" within {MAX_REPLIES} replies" if spec.step_limit > MAX_REPLIES else ""
        verdict = "ok" if report.ok else counted(len(report.errors), "error")
        won = f"random replies won {report.random_success:.1%}{within}" if graded else "nothing is graded"
        print(f"{ref}: {verdict}; {report.distinct} distinct tasks in {report.seeds} seeds; {won}")
        again = _again(ref, env_arg, grader, success_when)
        print(f"Next: {_next(again, graded)}" if report.ok else "Next: fix the errors and check again")
    if not report.ok:
        raise typer.Exit(1)


@app.command("try")
def try_(
    ref: Ref,
    seed: Annotated[int, typer.Option(help="Seed of the start state.", min=0)] = 0,
    rules: Annotated[str | None, typer.Option(help="full, hidden, none or a view of the environment's own.")] = None,
    env_arg: EnvArgs = None,
    grader: Grader = "",
    max_steps: Annotated[int | None, typer.Option(help="Replies before the episode is cut off.", min=1)] = None,
    success_when: SuccessWhen = "",
    random: Annotated[bool, typer.Option("--random", help="Play random moves.")] = False,
    solve: Annotated[bool, typer.Option("--solve", help="Play the known solution.")] = False,
    as_json: Annotated[bool, json_option("Print one JSON line per step.")] = False,
) -> None:
    """Play by hand and see exactly what a model would see; q or end of input quits.

    Example: printf 'right\\nright\\ndown\\ndown\\n' | agentopcd envs try frozen-lake --seed 0
    """
    from agentopcd.core.errors import ConfigError
    from agentopcd.envs import apply_view, get_spec, join_parts, make, parts_of, task_key
    from agentopcd.envs.success import rule_of

    if success_when:
        rule_of(success_when)
    if random and solve:
        raise ConfigError("--random and --solve exclude each other; choose one")
    spec = get_spec(ref)
    view = spec.view(rules)
    env = make(ref, max_steps=max_steps, **_arguments(env_arg, grader))
    obs, info = env.reset(seed=seed)
    key = task_key(obs, info)
    say: Callable[[Any], None] = emit if as_json else lambda facts: print(f"{facts['text']}\n")
    say({"text": join_parts(apply_view(parts_of(obs, info), view)), "task_key": key})
    newest = [info]
    replies = _replies(env, newest, spec, random, solve, seed)
    if info.get("tools"):
        from agentopcd.core.calls import typed

        replies = map(typed, replies)
    rewards: list[float] = []
    state = "stopped"
    for reply in replies:
        obs, reward, terminated, truncated, info = env.step(reply)
        rewards.append(float(reward))
        newest[:] = [info]
        text = join_parts(apply_view(parts_of(obs, info), view))
        say({"text": text, "reply": reply, "reward": rewards[-1], "invalid": bool(info.get("invalid"))})
        if terminated or truncated:
            won = spec.solved(rewards, terminated, info, success_when)
            lost = "failed" if terminated else "end of the log" if spec.logged else "out of steps"
            won = False if spec.logged and not terminated else won
            state = "over (nothing says whether that is success: --success-when)" if won is None else lost
            state = "success" if won else state
            break
    env.close()
    steps, total = len(rewards), sum(rewards)
    result = {"result": state, "steps": steps, "reward": total, "task_key": key}
    if as_json:
        emit(result)
    else:
        print(f"{state} after {counted(steps, 'step')}, reward {total:g}, task {key}")


def _replies(env: Any, newest: list[Any], spec: Any, random: bool, solve: bool, seed: int) -> Iterator[str]:
    """Yield replies: the known solution, random moves, or what a person types.

    Args:
        newest: the ``info`` of the state that is to be answered; the caller replaces it after each step.
    """
    from agentopcd.core.errors import EnvError

    if solve:
        from agentopcd.envs.guard import BUILD_LIMIT_S, faults

        known: Any = getattr(env.unwrapped, "solution", None)
        with faults("solution()", BUILD_LIMIT_S):
            known = known() if callable(known) else None  # data of that name is the game's own affair
        if known is None:
            raise EnvError("no solution is known for this task; play it without --solve")
        yield from known
    elif random:
        moves = spec.moves(newest[-1])
        if not moves:
            raise EnvError("this environment lists no moves (choices of its class); play it without --random")
        from random import Random

        rng = Random(seed)
        while True:
            yield rng.choice(spec.moves(newest[-1]) or moves)
    else:
        yield from _typed(spec.play_format)


def _typed(play_format: str) -> Iterator[str]:
    """Yield each typed line as a reply; a line that already has brackets stays unchanged."""
    import sys

    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "q":
            return
        text = line.rstrip("\n")
        yield text if "[" in text else play_format.replace("{}", text)


@app.command()
def splits(
    ref: Ref,
    env_arg: EnvArgs = None,
    grader: Grader = "",
    seeds: Annotated[int | None, typer.Option(help="Scan seeds 0 to N - 1.", min=1)] = None,
    salt: Annotated[str, typer.Option(help="Another salt assigns tasks to other splits.")] = "0",
    test: Annotated[int | None, typer.Option(help="Tasks in test.", min=0)] = None,
    confirm: Annotated[int | None, typer.Option(help="Tasks in confirm.", min=0)] = None,
    select: Annotated[int | None, typer.Option(help="Tasks in select.", min=0)] = None,
    extract: Annotated[int | None, typer.Option(help="Tasks in extract.", min=0)] = None,
    train: Annotated[int | None, typer.Option(help="Tasks in train; by default, the rest.", min=0)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the manifest to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Cut an environment's tasks into splits that share no task.

    Example: agentopcd envs splits sokoban --seeds 4000 --select 300 --confirm 256 --test 500 -o splits.json
    """
    from agentopcd.envs import build_splits
    from agentopcd.rollouts.game import Game

    named = {"test": test, "confirm": confirm, "select": select, "extract": extract, "train": train}
    sizes = {name: size for name, size in named.items() if size is not None}
    kwargs = _arguments(env_arg, grader)
    manifest = build_splits(ref, kwargs, seeds=seeds, salt=salt, sizes=sizes or None, progress=progress)
    if out is not None:
        manifest.save(path_of(out))
    if as_json:
        emit(json.loads(manifest.to_json()))
        return
    _print_splits(manifest)
    graded = Game(ref=ref, kwargs=kwargs).graded
    print(f"Next: {_next(_again(ref, env_arg, grader), graded)}" if out is None else f"wrote {out}")


def _print_splits(manifest: Any) -> None:
    from agentopcd.envs.floors import solvable_share
    from agentopcd.envs.splits import MIN_DISTINCT

    low, high = manifest.seeds
    print(f"{manifest.env}: {manifest.distinct} distinct tasks in seeds {low} to {high - 1}")
    for name, tasks in manifest.splits.items():
        share = solvable_share(manifest.env, manifest.kwargs, tasks)
        known = "" if share is None else f", {share:.1%} can be won within the step limit"
        few = " (few: expect wide intervals)" if 0 < len(tasks) < MIN_DISTINCT else ""
        print(f"  {name:<8} {len(tasks):>5} tasks{known}{few}")
    if manifest.shared:
        print(
            f"Fewer than {MIN_DISTINCT} tasks: every split is all of them, and no result says anything about"
            " unseen tasks." + " frozen-lake-4x4 has enough boards to hold some out." * (manifest.env == "frozen-lake")
        )
    elif manifest.protocol == "paper":
        count, share = manifest.overlap()
        print(f"{count} test tasks ({share:.1%}) also occur in train or extract: the paper's own protocol")


def _arguments(env_args: list[str] | None, grader: str) -> dict[str, Any]:
    """The arguments of the environment, with the grader among them as runs have it."""
    return parse_env_args([*(env_args or []), *([f"grader={grader}"] if grader else [])])


def _next(again: str, graded: bool) -> str:
    """The command for an environment that is in order: play, or where nothing is right or wrong, so that no lesson can
    be ranked, a person's text into the weights."""
    return f"agentopcd play --env {again}" if graded else f"agentopcd consolidate --env {again} --context FILE"


def _again(ref: str, env_args: list[str] | None, grader: str, success_when: str = "") -> str:
    """An environment with its arguments, as they are typed."""
    flags = [f"--env-arg {shlex.quote(pair)}" for pair in env_args or []]
    for flag, text in (("--grader", grader), ("--success-when", success_when)):
        flags += [f"{flag} {shlex.quote(text)}"] if text else []
    return " ".join([shlex.quote(ref), *flags])
