"""The last lines of a command: how it came out, in a word, and what a person does next, to be copied."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentopcd.cli.options import Call
from agentopcd.core.config import (
    RECORDED,
    ConfirmConfig,
    ConsolidateConfig,
    EvaluateConfig,
    ForecastConfig,
    GatherConfig,
    LearnConfig,
    PlayConfig,
    PlayerConfig,
    ScoreConfig,
    TrainConfig,
    flag_of,
    flags_for,
    flags_of,
)
from agentopcd.core.config.toml import without_flags
from agentopcd.core.files import is_dir
from agentopcd.core.runs import work_flag
from agentopcd.core.text import counted
from agentopcd.knowledge.students import env_of

if TYPE_CHECKING:
    from agentopcd.core.calibration import Advice
    from agentopcd.distil import Distilled
    from agentopcd.knowledge import Confirmation
    from agentopcd.learn import Round
    from agentopcd.workspace.evaluation.table import Evaluation


def command(call: Call, words: str, flags: str) -> str:
    """A command of this package in the same workspace."""
    return " ".join(part for part in ("agentopcd", words, flags) if part) + work_flag(call.work)


def after_gate(call: Call, config: PlayerConfig, context_id: str, outcome: Confirmation | None) -> None:
    """What follows a ranking, with the outcome of its confirmation, if there was one."""
    name = f"--context {context_id[:12]}"
    if outcome is None:
        next_is(call, command(call, f"knowledge confirm {name}", flags_for(config, ConfirmConfig)))
    elif outcome.passed and not outcome.overtaken:
        _next_training(call, config, "consolidate")
    elif outcome.passed or outcome.verdict == "incumbent stays":
        call.say(f"to distil it although {outcome.ref} stays:")
        _next_training(call, config, f"consolidate {name}")
    else:
        call.say("nothing was confirmed, so there is nothing to consolidate; more play gives other candidates")
        next_is(call, command(call, "play", flags_for(config, PlayConfig)))


def after_play(call: Call, config: PlayConfig, *, waiting: int, candidates: int, items: int, graded: bool) -> None:
    """What follows a play.

    Args:
        waiting: items that wait for a person.
        candidates: contexts that can be scored.
    """
    pending = command(call, "knowledge list items --status pending", "")
    waits = f"{counted(waiting, 'item')} {'waits' if waiting == 1 else 'wait'} for a person"
    if waiting and (candidates or not config.extract):
        call.say(f"{waits}: {pending}")
    if config.extract and waiting and not candidates:
        call.say(f"{waits}; read them, approve those that are right, and play again")
        next_is(call, pending)
    elif config.extract and graded and items:
        next_is(call, command(call, "knowledge score", flags_for(config, ScoreConfig)))
    elif config.env.startswith(RECORDED) and candidates:  # a person approves one of them, or a canary tries it
        next_is(call, command(call, "knowledge list refs", ""))
    elif not graded:
        call.say("nothing is right or wrong here, so no context can be ranked; a text of yours can be distilled")
        _next_training(call, config, "consolidate --context FILE")
    else:
        next_is(call, command(call, "knowledge list episodes", ""))


def after_forecast(
    call: Call, config: ForecastConfig, context_id: str, advice: Advice, *, confirmed: bool = True, graded: bool = True
) -> None:
    """What follows a forecast: the training, or more notes; where nothing is graded, another text.

    Args:
        confirmed: whether it can be trained on; a context of the store has to pass the confirm gate first.
    """
    name = f"--context {shlex.quote(config.context or context_id[:12])}"
    if advice == "train" and not confirmed:
        next_is(call, command(call, f"knowledge confirm {name}", flags_for(config, ConfirmConfig)))
    elif advice == "train":
        _next_training(call, config, f"consolidate {name}")
    elif not graded:
        next_is(call, command(call, "forecast --context FILE", flags_for(config, ForecastConfig)))
    else:
        next_is(call, command(call, "play", flags_for(config, PlayConfig)))


def _next_training(call: Call, config: PlayerConfig, words: str) -> None:
    """The command that trains, and in a line of its own what it does otherwise than this one, if it has to."""
    plain: dict[str, Any] = {"top_p": PlayerConfig.top_p, "top_k": PlayerConfig.top_k}
    plain |= {"temperature": PlayerConfig.temperature} if config.temperature == 0 else {}
    if changed := {name: value for name, value in plain.items() if getattr(config, name) != value}:
        given = " and ".join(f"{flag_of(name)} {getattr(config, name)}" for name in changed)
        call.say(f"note: training learns from samples of the model itself, so the next command is without {given}")
        config = dataclasses.replace(config, **changed)
    if config.engine == "api":
        call.say(f"note: {config.model} behind an API has no weights here; put a model that has in the place of MODEL")
        config = dataclasses.replace(config, engine="auto", server="", model="MODEL")
    verb = LearnConfig if words == "learn" else ConsolidateConfig
    next_is(call, command(call, words, flags_for(config, verb)))


def after_training(call: Call, config: ConsolidateConfig, result: Distilled) -> None:
    """The table of a student, how it is used elsewhere, and what follows."""
    table(call, result)
    for line in use(Path(result.folder)):
        call.say(line)
    if env_of(config.model):  # which is the new student by now; evaluate knows what it was trained from
        config = dataclasses.replace(config, model="")
    next_is(call, command(call, "evaluate", flags_for(tested(config), EvaluateConfig)))


def tested(config: TrainConfig) -> TrainConfig:
    """The settings for `evaluate`, which needs tasks; a training may do without."""
    return config if config.test_tasks else dataclasses.replace(config, test_tasks=EvaluateConfig.test_tasks)


def table(call: Call, result: Distilled) -> None:
    """The table of a student, where it lies, and whether it is better than its base."""
    from agentopcd.workspace.evaluation.table import lines

    for line in [*result.evaluation.header, *lines(result.evaluation)] if result.evaluation else []:
        call.say(line)
    skipped = f"; {result.skipped} of {result.steps} steps were skipped" if result.skipped else ""
    call.say(f"student: {result.folder} (best at step {result.best_step}{skipped})")
    if result.placebo_id:
        call.say(f"placebo student: {result.placebo_id[:12]}")
    if result.evaluation and (said := verdict(result.evaluation)):
        call.say(said)
    if not result.plays and (env := result.taken_back or (result.promotion or {})["env"]):
        call.say(f"it is not {env}/student; to play with it, name it with --model, or put it there:")
        call.say("  " + command(call, f"rollback {shlex.quote(env)} --to {result.model_id[:12]}", ""))


def verdict(table: Evaluation) -> str:
    """Whether the student is better than its base, in a word and its evidence; '' if the table does not say.

    A student that is better, but not shown to be better than its placebo student, has gained by the context's form.
    """
    if not table.graded:
        closed = table.distances.closed if table.distances else None
        if closed is None:
            return ""
        word = "closer" if closed.low > 0 else "farther" if closed.high < 0 else "no difference"
        share = f"{closed.rate:.3f} [{closed.low:.3f}, {closed.high:.3f}]"
        said = f"the student closed {share} of the distance to the model that sees the context"
        if (beyond := table.distances.beyond if table.distances else None) is None:
            return f"verdict: {word}, {said}"
        word = "form only" if word == "closer" and not beyond.low > 0 else word
        of_twin = f"{beyond.rate:.3f} [{beyond.low:.3f}, {beyond.high:.3f}]"
        return f"verdict: {word}, {said}, and {of_twin} of what its placebo student leaves"
    found = table.comparisons.get("student - base")
    if found is None or not found.n:
        return ""
    gain = found.difference
    word = "better" if gain.low > 0 else "worse" if gain.high < 0 else "no difference"
    from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT

    of = "" if table.by == "success" else f", {table.by}"
    said = f"the student against its base on test tasks{of}: {gain}"
    twin = table.comparisons.get(f"student - {PLACEBO_STUDENT}")
    if twin is None or not twin.n:
        return f"verdict: {word}, {said}"
    word = "form only" if word == "better" and not twin.difference.low > 0 else word
    return f"verdict: {word}, {said}; against its placebo student: {twin.difference}"


def use(folder: Path) -> list[str]:
    """How a student is loaded in transformers, and how it is served, by this package and by vLLM."""
    place = str(folder.resolve())
    load = f"from transformers import pipeline; chat = pipeline('text-generation', {place!r})"
    serve = f"vllm serve {shlex.quote(place)}"
    if (folder / "adapter_config.json").is_file():
        load, serve = _use_adapter(folder, load)
    return [f"load it: {load}", f"serve it: agentopcd serve --model {shlex.quote(place)}", f"with vLLM: {serve}"]


def _use_adapter(folder: Path, load: str) -> tuple[str, str]:
    """The lines for an adapter: how transformers loads it, and how vLLM serves it.

    Args:
        load: how transformers loads a model that names its base.
    """
    from agentopcd.models import find
    from agentopcd.rollouts.sampling.vllm_command import LORA_RANKS, max_rank

    settings, place = find.read_json(folder / find.ADAPTER), str(folder.resolve())
    base, merge = settings.get("base_model_name_or_path"), "with --merge a student needs nothing else"
    if (carried := folder / find.CARRIED / "config.json").is_file():  # on no hub, and its name is no path
        base = str(carried.resolve().parent)
        loaded = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {place!r})"
        load = "from peft import PeftModel; from transformers import AutoModelForCausalLM; model = " + loaded
    elif not base or find.is_adapter(base):
        why = "its base is an adapter, too, and would be left out" if base else "its base has no name that others know"
        why = f"{why}; {merge}"
        return f"with agentopcd.load_model({place!r}) alone: {why}", f"not as it is: {why}"
    elif not is_dir(base):
        load += f"  # fetches {base} from the hub; {merge}"
    rank = max_rank(settings.get("r", 0))
    ranks = f" --max-lora-rank {rank}" if rank > LORA_RANKS[1] else ""
    return load, f"vllm serve {shlex.quote(base)} --enable-lora{ranks} --lora-modules {shlex.quote(f'student={place}')}"


def after_evaluation(call: Call, config: EvaluateConfig, result: Evaluation) -> None:
    """Whether the student is better, and what follows."""
    if said := verdict(result):
        call.say(said)
    if result.graded:
        _next_training(call, config, "learn")
    else:  # nothing ranks contexts there
        next_is(call, command(call, "status", ""))


def after_rounds(call: Call, config: LearnConfig, rounds: Sequence[Round]) -> None:
    """How each round came out, where the base went, and what follows."""
    for one in rounds:
        word = "nothing confirmed"
        if one.distilled:
            word = "consolidated, promoted" if one.distilled.promoted else "consolidated, not promoted"
            word += ", taken back since" if one.distilled.taken_back else ""
            word += f" ({', then '.join(one.tried)})" if len(one.tried) > 1 else ""
        elif one.confirmed:
            word = "confirmed"
        call.say(f"round {one.number}: {word}")
        if one.distilled:
            table(call, one.distilled)
    if found := rounds[-1].stages:
        call.say(f"all rounds, on the same {found[0].rate.n} test tasks:")
        for stage in found:
            call.say(f"  {stage}")
    trained = [one.distilled for one in rounds if one.distilled]
    if last := next((one for one in reversed(trained) if one.plays), None):
        for line in use(Path(last.folder)):
            call.say(line)
        named = "" if env_of(config.model) else config.model  # ENV/student is another one by now
        first = named or rounds[0].model
        call.say(f"from the base {first} to the student {last.folder}; both on the same test tasks:")
        whole = tested(dataclasses.replace(config, model=first))
        next_is(call, command(call, f"evaluate --student {shlex.quote(last.folder)}", flags_for(whole, EvaluateConfig)))
        return
    if trained:
        passed = "that passed its gate plays any more" if any(one.taken_back for one in trained) else "passed its gate"
        call.say(f"verdict: no student {passed}, so the model that began plays on; to see why:")
        next_is(call, command(call, "status", ""))
        return
    if config.env.startswith(RECORDED):
        call.say(f"verdict: nothing to distil, so there is no new student: {rounds[-1].why or 'nothing was confirmed'}")
        next_is(call, command(call, "knowledge list refs", ""))
        return
    call.say("verdict: nothing confirmed, so there is no student; more play gives more candidates:")
    more = {name: 2 * getattr(config, name) for name in ("episodes_per_round", "chains", "candidates")}
    if written := without_flags(config):
        call.say(f"note: some settings have no flag; add --config FILE with {written}")
    next_is(call, command(call, "learn", flags_of(dataclasses.replace(config, **more))))


def after_night(call: Call, config: LearnConfig, rounds: Sequence[Round]) -> bool:
    """Write a report on rounds with ``--since``, and say in one line whether a student was promoted, and why."""
    from agentopcd.cli.page.report import report
    from agentopcd.core.runs import Run, workspace, write_text
    from agentopcd.knowledge import Store
    from agentopcd.workspace.ledger import run_config

    work = workspace(call.work)
    trained = [one.distilled for one in rounds if one.distilled]
    file = Run(work, "learn", run_config(config)).folder / "report.html"
    with Store.open(work / "store.db") as store, store.read():
        write_text(file, report(store, work, trained[-1].model_id if trained else ""))
    call.say(f"report: {file}")
    promoted = next((one for one in reversed(trained) if one.plays), None)
    if promoted is not None:
        gained = promoted.promotion["lines"][1].strip() if promoted.promotion else "no gate was asked for"
        call.say(f"promoted: {config.env}/student is {promoted.folder}: {gained}")
        return True
    why = rounds[-1].why or "nothing was confirmed"
    if trained and trained[-1].taken_back:
        why = f"{trained[-1].folder} was taken back"
    elif trained and trained[-1].promotion:
        why = trained[-1].promotion["lines"][-1].removeprefix("verdict: ")
    call.say(f"not promoted: {why}")
    return False


def extractor(config: GatherConfig) -> str:
    """Who extracts, in a plan, if it is not the player."""
    return f" by {config.extracting.model}" if config.extractor else ""


def next_is(call: Call, line: str) -> None:
    call.say(f"next: {line}")
