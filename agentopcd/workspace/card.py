"""The card of a student: a README.md that says what it is, what it carries, and what it was worth on test tasks.

The front matter is the model hub's, so that the folder can be pushed as it is. Texts of strangers, such as a context,
cannot leave their place in it, and no path of this machine is told.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.config.training import ByTeacher
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import told
from agentopcd.core.runs import read_json, slug_of, write_text
from agentopcd.core.terminal import harmless
from agentopcd.knowledge import PLACEBO, Store
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.evidence import evidence, one_line
from agentopcd.knowledge.faults import read_object
from agentopcd.models import find
from agentopcd.models.push import public_base
from agentopcd.workspace.evaluation.spoken import FLOORS, SHARES
from agentopcd.workspace.ledger import FORGET, config_of, evaluated
from agentopcd.workspace.strangers import command, nowhere

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")
"""What a base's card says of its licence, and the student's card repeats."""
OFF_POLICY = {
    "context-distillation": "off-policy context distillation",
    "seqkd": "sequence-level distillation",
    "mixed": "context distillation, half on-policy and half off-policy",
}
"""How a student was trained, by its method; by all others on-policy."""
MAKERS = {
    "file": "A person gave it in a file",
    "edit": "A person edited it",
    PLACEBO: "It is the placebo of another context",
    FORGET: "It is another context without some of its items",
    "traces": "It is play itself, word for word",
    **dict.fromkeys(("chain", "value", "subsets"), "It was put together from what play taught"),
}
"""Where a context comes from, by the ``order`` of its recipe; of any other nothing is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card tells."""

    store: Store
    folder: Path
    """The student's folder."""
    env: str
    """The environment's name, as strangers may read it."""
    settings: Mapping[str, Any]
    """The settings of the training, as its run holds them."""
    version: str
    """The version of agentopcd that began the training; a later one may write the card."""
    base: str
    """The name of the model that it was trained from."""
    base_folder: Path
    contexts: Mapping[str, float]
    """The contexts that it carries, by id, with their shares."""
    evaluation: Mapping[str, Any] | None = None
    """The table, as JSON; None before it is played."""
    drift: Mapping[str, Any] | None = None
    """How far its replies are from the base's, as ``agentopcd evaluate`` measures it."""

    def told(self, text: str) -> str:
        """A text of the workspace, such as a run's name, in which the environment has its public name."""
        known = str(self.settings["env"])
        for raw, said in ((known, self.env), (slug_of(known), slug_of(self.env))) if known != self.env else ():
            text = text.replace(raw, said)
        return text

    @property
    def adapter(self) -> bool:
        return (self.folder / find.ADAPTER).is_file()

    @property
    def hub_id(self) -> str:
        """The hub's name of the model that it goes back to; '' if none is known."""
        return find.hub_id(self.folder)

    @property
    def stacked(self) -> bool:
        """Whether it is an adapter on an adapter."""
        return self.adapter and (self.base_folder / find.ADAPTER).is_file()

    @property
    def named_base(self) -> str:
        """The hub's name of the model that it was trained from, and an adapter belongs to; '' for a local model."""
        return (public_base(self.folder) or "") if self.adapter else self.hub_id


def facts_of(
    store: Store, folder: Path, model_id: str, base_folder: Path, evaluation: Mapping[str, Any] | None = None
) -> Facts | None:
    """What the store knows of a student; None if it was not trained in this workspace. See :func:`describe`."""
    row = store.lookup("model", id=model_id)
    if row is None or row["run_id"] is None:
        return None
    run, parent = store.run(row["run_id"]), store.lookup("model", id=row["parent_id"])
    if run["verb"] != "consolidate":
        return None
    settings = read_object(run["config"], f"the config of run {run['id']}")
    drift = _newest_drift(store, row, settings["env"])
    if (own := folder.parent / "config.json").is_file():  # the row of a stage of learn has the settings of its play
        made = read_json(own, "put it back")  # its own: another round's seed, for example
        settings |= made | {"splits": settings.get("splits", "")}  # which there is how many tasks each split has
    result = read_object(run["result"], f"the result of run {run['id']}") if run["result"] else {}
    return Facts(
        store=store, folder=folder, env=nowhere(settings["env"]), settings=settings, version=run["code"],
        base=parent["name"] if parent else "", base_folder=base_folder, contexts=store.model_contexts(model_id),
        evaluation=evaluation or result.get("evaluation"), drift=drift,
    )  # fmt: skip


def _newest_drift(store: Store, model: Row, env: str) -> Mapping[str, Any] | None:
    """The drift of a student from the model that it was trained from, in the environment of its training."""
    wanted = (model["id"], env, model["parent_id"])
    for run in reversed(store.runs("evaluate", status="done")):
        if run["imported"] or not run["result"]:
            continue
        if evaluated(read_object(run["config"], f"the config of run {run['id']}")) == wanted:
            return read_object(run["result"], f"the result of run {run['id']}").get("drift")
    return None


def describe(
    store: Store, folder: Path, model_id: str, base_folder: Path, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Write the card of a student of this workspace into its folder, in place of the one that is there.

    Args:
        store: the workspace's store.
        folder: the student's folder.
        base_folder: that of the model that it was trained from.
        evaluation: the table; None: that of its run, if the run has ended.
    """
    if facts := facts_of(store, folder, model_id, base_folder, evaluation):
        write_text(folder / CARD, card(facts))


def card(facts: Facts) -> str:
    """The whole card, front matter and text."""
    parts = [_title(facts), *_what(facts), *_contexts(facts), *_results(facts), *_load(facts), *_made(facts)]
    return f"---\n{front(facts)}\n---\n\n" + "\n".join(parts) + "\n"


def front(facts: Facts) -> str:
    """The hub's metadata, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for name, metric, value in _measured(facts.evaluation):
        env = one_line(facts.env)
        results.append(
            EvalResult(
                task_type="text-generation", dataset_type="agentopcd", dataset_name=f"{env} (test tasks)",
                metric_type=metric, metric_name=name, metric_value=value,
            )
        )  # fmt: skip
    licence: dict[str, Any] = {**_licence(facts.base_folder)}
    on_policy = ["on-policy-distillation"] * (facts.settings.get("method") not in get_args(ByTeacher))
    data = ModelCardData(
        base_model=facts.named_base or None, library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation", tags=["agentopcd", "context-distillation", *on_policy],
        model_name=one_line(facts.told(facts.folder.parent.name)) or "student", eval_results=results or None,
        **licence,
    )  # fmt: skip
    return data.to_yaml(line_break="\n").strip()


def _measured(evaluation: Mapping[str, Any] | None) -> Iterator[tuple[str, str, float]]:
    """Name, type and value of what the student has reached."""
    if evaluation is None:
        return
    rows = {row["label"]: row for row in evaluation["rows"]}
    if evaluation.get("graded", True) and rows.get("student", {}).get("n"):
        yield "success without the context", "accuracy", float(rows["student"]["success"])
    closed = (evaluation.get("distances") or {}).get("closed")
    if closed:
        yield "share of the distance to the prompted model that is closed", "distance_closed", float(closed["mean"])


def _licence(base: Path) -> dict[str, str]:
    """The licence of the base, where it is known."""
    from huggingface_hub import ModelCard

    if find.is_shipped(base):
        return {"license": "apache-2.0"}
    for name, source in find.FETCHED.items():
        if base.name == name and find.hub_id(base) == source.hub_id:
            return {"license": source.licence.lower()}
    try:
        said = ModelCard.load(base / CARD).data.to_dict()
    except Exception:  # no card, or none that can be read: YAML and hub raise whatever they like
        return {}
    return {key: one_line(value)[:200] for key in LICENCE if isinstance(value := said.get(key), str) and value.strip()}


def _title(facts: Facts) -> str:
    return f"# {one_line(facts.told(facts.folder.parent.name))}"


def _what(facts: Facts) -> list[str]:
    kind = "A LoRA adapter" if facts.adapter else "A model"
    origin = facts.hub_id
    base = facts.told(told(facts.base)) if facts.base else "a model that is not known here"
    trained = f", which goes back to `{origin}`," if origin and base != origin else ""
    step = find.sidecar(facts.folder).get("step")
    way = OFF_POLICY.get(facts.settings.get("method", ""), "on-policy context distillation")
    lines = [
        "",
        f"{kind} that was trained to act as if it were shown a context, without being shown it. It was trained from",
        f"{base}{trained} by {way}",
        f"([arXiv:2602.12275](https://arxiv.org/abs/2602.12275)) with agentopcd {facts.version}, in the",
        f"environment `{one_line(facts.env)}`.",
    ]
    if isinstance(step, int):
        lines += [f"The checkpoint is that of step {step} of {facts.settings.get('steps')}, the best on select tasks."]
    if facts.settings.get("placebo"):
        lines += [
            "",
            "It is a placebo student: its context has the form of another one and none of its content. What the",
            "student of that other context does better than this one, it has learned from the content.",
        ]
    note = find.sidecar(facts.folder).get("note")
    if isinstance(note, str) and note:
        lines += ["", f"Note on the base: {one_line(note)}."]
    if facts.adapter and _carried(facts):
        lines += ["", "The base is on no hub, so it lies in the folder `base` beside this card."]
    elif facts.adapter and not facts.named_base:
        lines += ["", "The base is a local model: whoever loads the adapter needs it, and it is not in this folder."]
    if facts.stacked:
        lines += ["", "The base is an adapter itself, which transformers and PEFT leave out: load it with agentopcd."]
        lines += ["A student that is trained with `--merge` needs nothing else."]
    return lines


def _carried(facts: Facts) -> bool:
    return (facts.folder / find.CARRIED).is_dir()


def _contexts(facts: Facts) -> list[str]:
    table = facts.evaluation or {}
    silent = [] if table.get("graded", True) else [table["env"]]
    lines = ["", "## The context it carries" if len(facts.contexts) == 1 else "## The contexts it carries"]
    for context_id, share in facts.contexts.items():
        context = facts.store.get_context(context_id)
        drawn = f", in {share:.0%} of the episodes" if share < 1 else ""
        lines += [
            "", f"Context `{context_id[:12]}`, shown to the teacher in the {context.placement} message{drawn}:", "",
            fenced(context.text), "", _origin(facts.store, context_id), "",
            *(f"- {escaped(nowhere(facts.told(line)))}" for line in evidence(facts.store, context_id, silent)),
        ]  # fmt: skip
    return lines


def _origin(store: Store, context_id: str) -> str:
    recipe = read_object(store.context_row(context_id)["recipe"], f"the recipe of context {context_id[:12]}")
    known = "What the store of its workspace knows of it:"
    who = MAKERS.get(str(recipe.get("order")))
    return f"{who}. {known}" if who else known


def fenced(text: str, language: str = "text") -> str:
    """Text in a fence that is longer than any run of backticks in it, control characters spelt out."""
    shown = harmless(text.replace("\r\n", "\n"))
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown.rstrip(chr(10))}\n{fence}"


def escaped(line: str) -> str:
    """A line of text in which nothing is markup."""
    return re.sub(r"([\\`*_<>#|~!&]|(?<=\])\()", r"\\\1", one_line(line))


def _results(facts: Facts) -> list[str]:
    lines = ["", "## Results", ""]
    found = facts.evaluation
    if found is None:
        return [*lines, "Not measured on test tasks."]
    if found.get("graded", True):
        apart = ", which chose nothing" if found.get("protocol") == "disjoint" else ""  # else splits share tasks
        lines += [
            f"On test tasks of `{one_line(facts.env)}`{apart}; success with its 95 % Wilson interval:",
            "", "| | success | 95 % interval | n | tokens |", "|---|---|---|---|---|",
            *(_row(row["label"], row["success"], row["low"], row["high"], row["n"], row["reply_tokens"])
              for row in found["rows"] if row["n"]),
            "", *_differences(found),
        ]  # fmt: skip
    if far := found.get("distances"):
        lines += [
            "",
            "Reverse KL to the model that is shown the context, in nats a token of a model's own replies:",
            "",
        ]
        lines += ["| | distance | 95 % interval | n | tokens |", "|---|---|---|---|---|"]
        for row in far["rows"]:
            one = row["distance_nats"]
            lines.append(_row(row["label"], one["mean"], one["low"], one["high"], one["n"], row["reply_tokens"]))
        shares = {words: share for name, words in SHARES.items() if (share := far.get(name))}
        lines += [""] * bool(shares)
        lines += [
            f"- {words}: {share['mean']:.3f} {_ends(share['low'], share['high'])}, n = {share['n']} tasks"
            for words, share in shares.items()
        ]
    lines += [f"- note: {escaped(facts.told(note))}" for note in found.get("notes", ())]
    if facts.drift:
        lines += ["", "How far replies have moved, in tokens of each model's own:", ""]
        lines += [
            f"- {escaped(label)}: KL to the base {one['kl_nats']:.3f} nats a token, entropy {one['entropy_nats']:.3f} "
            f"({one['tokens']} tokens of {one['episodes']} episodes)"
            for label, one in facts.drift.items()
        ]
    return lines


def _row(label: str, value: float, low: float | None, high: float | None, n: int, tokens: float) -> str:
    return f"| {escaped(label)} | {value:.3f} | {_ends(low, high)} | {n} | {tokens:.1f} |"


def _ends(low: float | None, high: float | None) -> str:
    return f"[{'-∞' if low is None else f'{low:.3f}'}, {'∞' if high is None else f'{high:.3f}'}]"


def _differences(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {escaped(name)}: {one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}], {one['wins']} won and "
        f"{one['losses']} lost on {one['tasks']} tasks, p = {one['p']:.2g}"
        for name, one in found["differences"].items()
        if None not in (one["difference"], one["low"], one["high"], one["p"])
    ]
    if found.get("recovered") is not None:
        lines.append(f"- recovered without the context: {found['recovered']:.0%} of the in-context gain")
    known = {name: value for name, value in (found.get("floors") or {}).items() if name in FLOORS and value is not None}
    if known:
        lines.append("- floors: " + ", ".join(f"{FLOORS[name]} {value:.3f}" for name, value in known.items()))
    overlap = found.get("overlap") or [0, 0.0]
    return [*lines, f"- test tasks also in train or extract: {overlap[0]} ({overlap[1]:.0%})"]


def _load(facts: Facts) -> list[str]:
    lines = ["", "## Load it", "", "```python"]
    if not facts.adapter:
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            'student = "path/to/this/folder"  # or its id on the hub',
            "tokenizer = AutoTokenizer.from_pretrained(student)",
            "model = AutoModelForCausalLM.from_pretrained(student)",
        ]  # fmt: skip
    elif facts.stacked:
        lines += ["from agentopcd import load_model", "", 'student = load_model("path/to/this/folder")']
    else:
        base = 'student, subfolder="base"' if _carried(facts) else f'"{facts.named_base or "path/to/its/base"}"'
        lines += [
            "from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            'student = "path/to/this/folder"  # or its id on the hub',
            "tokenizer = AutoTokenizer.from_pretrained(student)",
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), student)",
        ]  # fmt: skip
    return [*lines, "```", "", "Its prompts need no context: it is in the weights."]


def _made(facts: Facts) -> list[str]:
    lines = ["", "## How it was made", ""]
    try:
        config = config_of(ConsolidateConfig, facts.settings)
    except ConfigError:
        return [*lines, "Another version of agentopcd made it, so its command is not given."]
    if not config.mix:  # a mix names no text: its workspace says what was mixed
        lines += ["The text above in a file, `context.txt`:", ""]
        for context_id in facts.contexts:  # a context of the store brings its placement, a file needs the setting
            config = dataclasses.replace(config, placement=facts.store.get_context(context_id).placement)
    words, file = command(config, facts.base)
    lines.append(fenced(words, "sh"))
    if file:
        lines += ["", "with, in `settings.toml`:", "", fenced("\n".join(file), "toml")]
    return lines
