"""Recipes: the rows of a table of the paper, each with its arms, seeds and claims.

The recipes of this package are in ``recipes/``.

A recipe is a TOML file::

    title = "..."

    [defaults]                     # shared by all rows, with the same keys as a row
    seeds = [0, 1]
    [defaults.arms.opcd]           # a trained arm, and the settings that it changes; with `placebo = true` it is the
                                   # placebo student of those settings
    [defaults.full.settings]       # settings of `agentopcd consolidate` for all arms; for the size full
    steps = 50

    [[row]]                        # a row of the table
    name = "..."
    claims = [["opcd", "base"]]    # pairs of arms; in the paper, the first one is better
    departures = ["..."]           # in what this is not what the paper's code does
    [row.paper]                    # published success in percent by arm, and `what`
    [row.settings]                 # for both sizes
    [row.mini.settings]            # for one size; a row exists at the sizes it names: mini, full, or both
    [row.mini.shown]               # untrained arms, and the context that each one is shown
    [row.mini.experience]          # settings of `agentopcd learn` that gather the contexts
    [row.mini.probe]               # settings of `agentopcd evaluate`, for a task that no arm was trained on

A row overrides the defaults, and entries for one size override entries for both sizes; tables are merged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.config import ConsolidateConfig, EvaluateConfig, LearnConfig, PlayerConfig, pick, read_toml
from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.files import is_file, path_of

RECIPES = Path(__file__).resolve().with_name("recipes")
"""Folder of the recipes that come with the package, with the files they name."""
SIZES = ("mini", "full")
REPORTS = ("select", "paper")
KINDS = ("best", "random", "traces")
"""Kinds of context that a row's experience yields: the best on select tasks (the paper's "filtered"), one drawn without
looking at scores ("test-time"), and the raw episodes. ``step N`` is the context of a chain after N episodes."""
ENTRIES: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("name", "note"), (str, "a text")), "departures": (list, "a list of texts"),
    **dict.fromkeys(("seeds", "claims"), (object, "")),  # checked by themselves
    **dict.fromkeys(("settings", "arms", "paper", "shown", "experience", "playing", "probe"), (dict, "a table")),
}  # fmt: skip
"""What a row may say, and of which type each entry is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One row of a table, at one size."""

    name: str
    settings: Mapping[str, Any]
    """Settings of :class:`agentopcd.core.config.ConsolidateConfig`, the same for all arms."""
    arms: Mapping[str, Mapping[str, Any]]
    """Trained arms, and the settings that each arm changes."""
    seeds: Sequence[int]
    claims: Sequence[tuple[str, str]]
    """Pairs of arms; in the paper, the first one is better."""
    paper: Mapping[str, Any]
    """Published success in percent by arm, and ``what``: model and task."""
    probe: Mapping[str, Any]
    """Settings of `agentopcd evaluate` for a task that no arm was trained on, with or without a context that all arms
    are shown; empty: no probe."""
    shown: Mapping[str, str]
    """Untrained arms, and the context that the base is shown in each: a file, or one of :data:`KINDS`."""
    experience: Mapping[str, Any] | None
    """Settings of `agentopcd learn` that gather the row's contexts; None: each context is a file or is already in the
    workspace."""
    playing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of play, such as ``top_p``, that are others than in training: on test tasks, and where experience is
    gathered and contexts are scored."""
    departures: Sequence[str] = ()
    """In what the row is not what the paper's code does."""
    note: str = ""

    @property
    def env(self) -> str:
        """The environment as reports name it: its name, or the names of its files."""
        return ", ".join(Path(name).name for name in self.settings["env"].split(","))

    @property
    def untrained(self) -> list[str]:
        return ["base", *self.shown]

    @property
    def drawn(self) -> set[str]:
        """The kinds of context of which each training seed draws another one."""
        named = {self.config(arm, 0).context for arm in (*self.shown, *self.arms)}
        return {name for name in named if of_experience(name)} - {"best", "traces"}

    @property
    def chains(self) -> int | None:
        """The number of chains that the seeds draw, each another one; None: they draw none."""
        return len(self.seeds) if self.drawn else None

    @property
    def slug(self) -> str:
        """The name of the row, as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def config(self, arm: str, seed: int) -> ConsolidateConfig:
        """The settings of one arm; an untrained arm has the shared settings and the context that it is shown.

        There is no gate, and ENV/student stays: which student plays by default afterwards is no result.
        """
        changes = dict(self.arms[arm]) if arm in self.arms else {}
        if arm in self.shown:
            changes = {"context": self.shown[arm]}
        return ConsolidateConfig.load(None, **{"gate_tasks": 0} | dict(self.settings) | changes | {"seed": seed})

    def tested(self, seed: int) -> EvaluateConfig:
        """The settings with which all arms play the test tasks."""
        shared = pick(self.config("base", seed), EvaluateConfig).to_dict()
        return EvaluateConfig.load(None, **shared | dict(self.playing))

    def probing(self, seed: int) -> EvaluateConfig:
        """The settings with which the base and all students play the probe, which has not the row's environment."""
        reset = {"env_args": {}, "splits": "", "context": "", "placement": "user"}
        shared = pick(self.config("base", seed), EvaluateConfig, **reset).to_dict()
        return EvaluateConfig.load(None, **shared | dict(self.probe))

    def gathering(self) -> LearnConfig:
        """The settings that gather and score the row's experience."""
        names = {field.name for field in dataclasses.fields(LearnConfig)} - {"context"}  # what a recording showed
        shared = {name: value for name, value in self.settings.items() if name in names}
        return LearnConfig.load(None, **shared | dict(self.experience or {}))


def find_recipe(name: str) -> Path:
    """The file of a recipe, given its path or the name of a recipe of the package.

    A file below the current folder gets a relative path, which does not depend on where the clone lies: the path of
    a question file is part of the name by which the store knows the environment.

    Raises:
        ConfigError: there is no such recipe.
    """
    if Path(name).suffix == ".toml" and is_file(name):
        return path_of(name)
    here = Path.cwd()
    folder = RECIPES.relative_to(here) if RECIPES.is_relative_to(here) else RECIPES
    if is_file(folder / f"{name}.toml"):
        return folder / f"{name}.toml"
    known = sorted(file.stem for file in folder.glob("*.toml"))
    raise ConfigError(f"no recipe {name!r}{did_you_mean(name, known)}; or give the path of a .toml file")


def read(file: Path, size: str) -> tuple[str, list[Plan]]:
    """Title and rows of a recipe.

    Raises:
        ConfigError: the recipe cannot be read, or it names an unknown setting.
    """
    if size not in SIZES:
        raise ConfigError(f"size is {size!r}{did_you_mean(size, SIZES)}")
    data, where = read_toml(file, "the recipe"), f"the recipe {str(file)!r}"
    _refuse_unknown(data, ("title", "defaults", "row"), where)
    if not isinstance(data.get("title"), str):
        raise ConfigError(f'{where} has no title; add `title = "..."` above its rows')
    if not isinstance(data.get("row"), list):
        raise ConfigError(f"{where} has no list of rows; each row begins with [[row]]")
    for one, which in ((data.get("defaults", {}), "defaults"), *((row, _which(row)) for row in data["row"])):
        for table in (one, *(one[name] for name in SIZES if isinstance(one, dict) and name in one)):
            if not isinstance(table, dict):
                raise ConfigError(f"cannot read {where}: {which} has {table!r} where a table was wanted")
            _refuse_unknown(table, (*ENTRIES, *(SIZES if table is one else ())), f"{which} of {where}")
    try:
        shared = _sized(data.get("defaults", {}), size)
        rows = [_merged(shared, _sized(row, size)) for row in data["row"] if size in row]
        plans = [_plan(row, file.parent) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read the recipe {str(file)!r}: {error!r}") from error
    for number, plan in enumerate(plans):
        if not plan.slug:
            raise ConfigError(
                f"{where}: the name {plan.name!r} has no letter a-z and no digit for a file name; add one"
            )
        for other in plans[:number]:
            if plan.slug == other.slug:
                raise ConfigError(
                    f"{where}: the rows {other.name!r} and {plan.name!r} would write one file; rename one"
                )
    return data["title"], plans


def _which(row: Any) -> str:
    """A row as messages name it, though its name may be missing."""
    return f"the row {row['name']!r}" if isinstance(row, dict) and "name" in row else "a row without a name"


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in sorted(table.keys() - set(known)):
        raise ConfigError(f"{where} has {name!r}{did_you_mean(name, known)}")


def _sized(table: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The entries of a row, or of the defaults, for one size."""
    both = {name: value for name, value in table.items() if name not in SIZES}
    return _merged(both, table.get(size, {}))


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables, nested tables included; a value of ``over`` replaces that of ``under``."""
    out = {**under}
    for name, value in over.items():
        below = under.get(name)
        out[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def _plan(row: Mapping[str, Any], folder: Path) -> Plan:
    def located(values: Mapping[str, Any]) -> dict[str, Any]:
        """Look files up beside the recipe, not in the current folder."""
        files = {name: folder / values[name] for name in ("context", "env") if values.get(name)}
        return dict(values) | {name: str(file) for name, file in files.items() if is_file(file)}

    _check_entries(row)
    settings, claims = located(row["settings"]), row.get("claims", [])
    shown = row.get("shown", {"in-context": settings.get("context", "")})
    plan = Plan(
        name=row["name"], settings=settings, arms={arm: located(values) for arm, values in row["arms"].items()},
        seeds=row.get("seeds", [0]), claims=[(better, worse) for better, worse in claims],
        paper=row.get("paper", {}), probe=located(row.get("probe", {})),
        shown={arm: located({"context": name})["context"] for arm, name in shown.items()},
        experience=row.get("experience"), playing=row.get("playing", {}), departures=row.get("departures", ()),
        note=row.get("note", ""),
    )  # fmt: skip
    known = (*plan.untrained, *plan.arms)
    for arm in known:
        if known.count(arm) > 1:
            raise ConfigError(f"{plan.name!r} has more than one arm {arm!r}, one of them untrained; rename one")
        for seed in plan.seeds:
            config = plan.config(arm, seed)  # an invalid setting fails here
        if not config.model:  # what plays where none is named is another one in each workspace
            raise ConfigError(f"{plan.name!r} names no model for {arm!r}; add `model` to its settings")
        if of_experience(config.context) and plan.experience is None:
            raise ConfigError(f"{plan.name!r} wants the context {config.context!r}, but gathers no experience")
    plan.tested(0)
    if plan.probe:
        plan.probing(0)
    for name in plan.playing.keys() - {field.name for field in dataclasses.fields(PlayerConfig)}:
        raise ConfigError(f"{plan.name!r} has {name!r} in playing; wanted a setting of play, such as top_p")
    if plan.experience is not None:
        _check_chains(plan)
    for arm in (arm for claim in plan.claims for arm in claim):
        if arm not in known:
            raise ConfigError(f"a claim of {plan.name!r} is about {arm!r}{did_you_mean(arm, known)}")
    return plan


def _check_entries(row: Mapping[str, Any]) -> None:
    """Check that a row says what it must, and that each entry is of its type."""
    which = _which(row)
    for name, value in row.items():
        wanted, kind = ENTRIES[name]
        if not isinstance(value, wanted):
            raise ConfigError(f"{which} has {value!r} as {name}; wanted {kind}")
    claims, seeds = row.get("claims", []), row.get("seeds", [0])
    if not isinstance(claims, list) or not all(isinstance(claim, list) and len(claim) == 2 for claim in claims):
        raise ConfigError(f'{row.get("name")!r} has the claims {claims!r}; wanted pairs of arms: [["better", "worse"]]')
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{row.get('name')!r} has the seeds {seeds!r}; wanted a list of whole numbers like [0, 1]")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{row.get('name')!r} has the seeds {seeds!r}; wanted each once")
    for name, remedy in (("name", 'name = "..."'), ("settings", "[row.settings]"), ("arms", "[row.arms.NAME]")):
        if name not in row:
            raise ConfigError(
                f"{which} has no {name}; add {remedy}" + "; without training, arms = {}" * (name == "arms")
            )
    if not row["settings"].get("env"):
        raise ConfigError(f"{which} names no environment; add `env` to its settings")
    if row.get("probe") and not row["probe"].get("env"):
        raise ConfigError(f"{which} has a probe without an environment; add `env` to it")
    for arm, value in row["arms"].items():
        if not isinstance(value, dict):
            raise ConfigError(f"{which} has {value!r} as arm {arm!r}; wanted a table")
    for arm, value in row.get("shown", {}).items():
        if not isinstance(value, str):
            raise ConfigError(f"{which} has {value!r} shown in {arm!r}; wanted a file or a kind of context")
    for arm, value in row.get("paper", {}).items():
        if not (isinstance(value, str) if arm == "what" else type(value) in (int, float)):
            wanted = "a text" if arm == "what" else "a number, success in percent"
            raise ConfigError(f"{which} has {value!r} for {arm!r} of the paper; wanted {wanted}")


def _check_chains(plan: Plan) -> None:
    """Check that each seed has a chain of its own, and that chains have every step that an arm names."""
    gathering = plan.gathering()
    named = {plan.config(arm, 0).context for arm in (*plan.shown, *plan.arms)}
    depth = min(gathering.chain_steps, gathering.episodes_per_round)
    for steps in (int(name.removeprefix("step ")) for name in named if name.startswith("step ")):
        if steps > depth:
            raise ConfigError(f"{plan.name!r} wants step {steps} of chains that have {depth}; raise chain_steps")
    if plan.drawn and len({seed % gathering.chains for seed in plan.seeds}) < len(plan.seeds):
        raise ConfigError(
            f"{plan.name!r} has the seeds {list(plan.seeds)} and {gathering.chains} chains; seed % chains must differ"
        )


def of_experience(context: str) -> bool:
    """Whether a context is named by its kind, as in :data:`KINDS` or ``step N``."""
    return context in KINDS or re.fullmatch(r"step \d+", context) is not None
