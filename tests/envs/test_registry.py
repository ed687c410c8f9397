from __future__ import annotations

import shlex
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium
import pytest

from agentopcd.cli.options import parse_env_args
from agentopcd.core.config import PlayConfig
from agentopcd.core.config.flags import flags_of
from agentopcd.core.errors import ConfigError, EnvError
from agentopcd.core.types import SPLITS
from agentopcd.envs import EnvSpec, TextEnv, get_spec, list_envs, make, register, registry
from agentopcd.envs.spec import DEFAULT_MAX_STEPS

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    get_spec("math")
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    monkeypatch.setattr(registry, "_GIVEN", dict(registry._GIVEN))


class Tiny(TextEnv):
    def __init__(self, colour: str = "red") -> None:
        self.colour = colour

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first(state=self.colour)

    def step(self, action):
        return self.turn(feedback="on")


def test_a_registered_class_is_found_and_cut_off() -> None:
    assert register("tiny", Tiny, max_steps=2).id == "tiny"
    env = make("tiny", colour="blue")
    assert env.reset(seed=0)[0] == "blue"
    assert env.step("a")[2:4] == (False, False)
    assert env.step("b")[2:4] == (False, True)
    assert make("tiny", max_steps=1).reset(seed=0)[0] == "red"


def test_register_decorates_and_refuses_a_second_time() -> None:
    decorated = register("deco", max_steps=3)(Tiny)
    assert decorated is Tiny and get_spec("deco").step_limit == 3
    with pytest.raises(EnvError, match="already registered"):
        register("deco", Tiny)
    with pytest.raises(EnvError, match="must not be empty, hold ':'"):
        register("a:b", Tiny)


def test_an_environment_without_a_limit_still_ends() -> None:
    register("endless", Tiny)
    env = make("endless")
    env.reset(seed=0)
    flags = [env.step("x")[3] for _ in range(DEFAULT_MAX_STEPS)]
    assert flags == [False] * (DEFAULT_MAX_STEPS - 1) + [True]


@pytest.mark.parametrize("name", ["guess.py", "guess_bare.py"])
def test_both_forms_of_guess_play_from_a_file(name: str) -> None:
    env = make(f"{DATA / name}:Guess")
    obs, info = env.reset(seed=5)
    assert "Find my number" in obs
    low, high = 1, 100
    for _ in range(7):
        guess = (low + high) // 2
        obs, reward, terminated, _, _ = env.step(f"Perhaps [{guess}]")
        if terminated:
            break
        low, high = (guess + 1, high) if "low" in obs else (low, guess - 1)
    assert terminated and reward == 1.0 and info["task_key"] == str(guess)


def test_pkg_mod_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DATA / "guess.py", tmp_path / "some_guess_module.py")
    monkeypatch.chdir(tmp_path)
    assert "number" in make("some_guess_module:Guess").reset(seed=0)[0]
    assert "number" in make("some_guess_module.py:Guess").reset(seed=0)[0]


def test_a_game_may_import_its_neighbour_only_when_it_begins(tmp_path: Path) -> None:
    (tmp_path / "words_beside_the_game.py").write_text("WORDS = ['apple']\n")
    (tmp_path / "lazy.py").write_text(
        "from agentopcd.envs import TextEnv\n"
        "class Lazy(TextEnv):\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        from words_beside_the_game import WORDS\n"
        "        return self.first(key=seed, state=WORDS[0])\n"
    )
    assert make(f"{tmp_path / 'lazy.py'}:Lazy").reset(seed=0)[0] == "apple"


def test_a_file_may_hold_a_spec_or_register_its_class(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from agentopcd.envs import EnvSpec, TextEnv, register\n"
        "@register('own-game', max_steps=7)\n"
        "class Own(TextEnv):\n    pass\n"
        "SPEC = EnvSpec(id='other', entry_point=Own, max_steps=9)\n"
    )
    assert get_spec(f"{file}:SPEC").step_limit == 9
    assert get_spec(f"{file}:Own").step_limit == 7  # loaded once, so not registered twice
    assert get_spec("own-game").step_limit == 7


BLIND = """
from agentopcd.envs import EnvSpec, TextEnv
class Blind(TextEnv):
    max_steps, history, choices, success_when = 5, "chat", ("[a]", "[b]"), "reward >= 2"
    views = {"hidden": {"rules": None}}
LONG = EnvSpec(id="long", entry_point=Blind, max_steps=16)
NAMED = EnvSpec(id="named", entry_point="blind_beside:Blind", success_when="reward > 0")
"""


@pytest.mark.parametrize("way", ["file", "text", "plugin", "registered"])
def test_a_spec_leaves_to_its_class_what_it_does_not_say(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blind_beside.py").write_text(BLIND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", lambda: [_plugin("blind", "blind_beside:LONG")])
    monkeypatch.syspath_prepend(tmp_path)
    if way == "registered":
        register("told", "blind_beside:Blind", history="transcript")
    refs = {
        "file": "./blind_beside.py:LONG",
        "text": "./blind_beside.py:NAMED",
        "plugin": "blind",
        "registered": "told",
    }
    spec = get_spec(refs[way])
    assert spec.choices == ("[a]", "[b]") and spec.view() == {"rules": None}
    assert spec.step_limit == (16 if way in ("file", "plugin") else 5)
    assert spec.success_when == ("reward > 0" if way == "text" else "reward >= 2")
    assert spec.history == ("transcript" if way == "registered" else "chat")


FACTORIES = """
from __future__ import annotations
from functools import partial
from typing import TYPE_CHECKING
from agentopcd.envs import EnvSpec, TextEnv
if TYPE_CHECKING:
    from nowhere import Level
class Blind(TextEnv):
    max_steps, history, choices = 5, "chat", ("[a]", "[b]")
    views = {"hidden": {"rules": None}}
def told(level: Level = 1) -> Blind:
    return Blind()
def untold(level: Level = 1) -> TextEnv:
    return Blind()
part = partial(Blind)
SPEC = EnvSpec(id="spec", entry_point=partial(told, level=2))
LIMITED = EnvSpec(id="limited", entry_point=untold, max_steps=3, history="chat", choices=("[c]",), views={"n": {}})
"""


def test_what_builds_a_class_has_what_stands_on_it(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    for name in ("told", "part", "SPEC"):
        spec = get_spec(f"{tmp_path / 'factories.py'}:{name}")
        assert (spec.step_limit, spec.history, spec.choices) == (5, "chat", ("[a]", "[b]"))
        assert spec.view() == {"rules": None}
        make(f"{tmp_path / 'factories.py'}:{name}")
    make(f"{tmp_path / 'factories.py'}:LIMITED")
    assert not recwarn
    with pytest.warns(
        UserWarning, match=r"Blind\.\w+ is .* and does not count, .* -> Blind, or give an EnvSpec"
    ) as said:
        make(f"{tmp_path / 'factories.py'}:untold")
    assert len(said) == 4


def test_a_spec_that_is_built_leaves_to_its_class_what_it_does_not_say() -> None:
    class Short(Tiny):
        max_steps = 1

    env = make(EnvSpec(id="short", entry_point=Short))
    env.reset(seed=0)
    assert env.step("a")[3]


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("sokobann", "did you mean 'sokoban'"),
        ("nothing.like:this", "cannot import 'nothing.like'"),
        ("/no/such.py:Env", "no file"),
        ("agentopcd.envs.base:TextEmv", "did you mean 'TextEnv'"),
        ("json:dumps", "json"),
        ("gym:FrozenLak-v1", "did you mean 'FrozenLake-v1'"),
        ("gym:", "names no environment"),
        ("gym:CartPole-v9", "Gymnasium has no 'CartPole-v9'"),
        ("textarena:Sokobann-v0", "did you mean 'Sokoban-v0'"),
        ("rows.jsonl", "no file 'rows.jsonl'"),
        (":Env", "needs a module"),
    ],
)
def test_a_wrong_reference_gives_one_clear_message(ref: str, words: str) -> None:
    with pytest.raises(EnvError, match=words) as caught:
        make(ref)
    assert "\n" not in str(caught.value).strip()


def test_a_file_that_raises_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(EnvError, match=r"cannot import .*broken.py.*ZeroDivisionError"):
        make(f"{file}:Env")


def test_wrong_arguments_print_the_signature() -> None:
    with pytest.raises(EnvError, match=r"no argument 'sise'; did you mean 'size'\?; it takes \(size"):
        make("frozen-lake", sise=4)
    with pytest.raises(EnvError, match=r"Sokoban-v0: .*dim_room"):
        make("textarena:Sokoban-v0", rooms=2)
    with pytest.raises(EnvError, match="room for 1 to 4 holes"):
        make("frozen-lake", num_holes=5)
    with pytest.raises(EnvError, match="two sides of 5 or more"):
        make("sokoban", dim_room=[3, 3])
    with pytest.raises(EnvError, match="max_steps must be a whole number above 0"):
        make("frozen-lake", max_steps=0)
    with pytest.raises(EnvError, match="missing a required argument"):
        make(EnvSpec(id="x", entry_point=lambda needed: needed))


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(EnvError, match="built a dict"):
        make(EnvSpec(id="x", entry_point=lambda: {}))
    with pytest.raises(EnvError, match=r"is the class dict; an environment is a gymnasium\.Env"):
        make(EnvSpec(id="x", entry_point=dict))
    with pytest.raises(EnvError, match="shutil:rmtree does not look like an environment, so it is not called"):
        make("shutil:rmtree", path="/nowhere/at/all")
    with pytest.raises(EnvError, match="not a class or a function"):
        make(EnvSpec(id="x", entry_point="agentopcd.envs.registry:GROUP"))


def test_an_environment_without_text_goes_through_the_bridge() -> None:
    env = make(EnvSpec(id="x", entry_point=lambda: gymnasium.make("Blackjack-v1")))
    obs, info = env.reset(seed=0)
    assert info["legal_actions"] == ["[0]", "[1]"] and obs.startswith("(")


def _plugin(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


def test_plugins_are_listed_by_name_and_imported_on_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        _plugin("acme/lake", "agentopcd.envs.games.textarena:FrozenLake"),
        _plugin("acme/bad", "no_mod:X"),
    ]
    monkeypatch.setattr(registry, "_plugins", lambda: found)
    assert [spec.id for spec in list_envs()][-2:] == ["acme/bad", "acme/lake"]
    assert "Frozen Lake" in make("acme/lake").reset(seed=0)[0]
    with pytest.raises(EnvError, match=r"cannot import environment 'acme/bad' \(no_mod:X\)"):
        get_spec("acme/bad")
    with pytest.raises(EnvError, match="did you mean 'acme/lake'"):
        get_spec("acme/lakes")
    found.append(_plugin("acme/lake", "other.mod:Lake"))
    with pytest.raises(EnvError, match="declared more than once"):
        get_spec("acme/lake")


def test_env_args_are_json_or_text() -> None:
    got = parse_env_args(["size=4", "dim-room=[6, 6]", "ops=+-", "wet=true", "name=a=b"])
    assert got == {"size": 4, "dim_room": [6, 6], "ops": "+-", "wet": True, "name": "a=b"}
    with pytest.raises(ConfigError, match="wants NAME=VALUE"):
        parse_env_args(["size"])
    with pytest.raises(ConfigError, match="given twice"):
        parse_env_args(["a=1", "a=2"])


@pytest.mark.parametrize(("typed", "meant"), [("False", "false"), ("TRUE", "true"), ("None", "null"), ("Null", "null")])
def test_json_but_for_its_capitals_is_refused_unless_it_is_quoted(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--template-arg on: '{typed}' is text; write on={meant} \(JSON\), or"):
        parse_env_args([f"on={typed}"], "--template-arg")
    (flag,) = shlex.split(flags_of(PlayConfig(env="x", env_args={"on": typed}), ["env_args"]))[1:]
    assert parse_env_args([flag]) == {"on": typed}
    assert parse_env_args(["a=no", "b=none", "c=0", f"d={meant}"])["a"] == "no"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("views", {"hidden": {"rule": None}}, r"views\['hidden'\] has an unknown kind 'rule'; did you mean 'rules'\?"),
        (
            "views",
            {"hidden": ["rules"]},
            r"views\['hidden'\] must map kinds of parts to texts or None, got \['rules'\]",
        ),
        ("views", {"hidden": {"rules": 1}}, r"views\['hidden'\]\['rules'\] must be text or None, got 1"),
        ("split_sizes", {"tset": 50}, r"split_sizes: no split 'tset'; did you mean 'test'\?"),
        ("split_sizes", {"test": 0.3}, "split_sizes: 'test' must be a whole number of tasks, 0 or more, got 0.3"),
        ("split_sizes", {"test": -1}, "0 or more, got -1"),
        ("split_sizes", {"test": True}, "0 or more, got True"),
        ("choices", (1, 2, 3), r"choices must be a tuple of texts, got \(1, 2, 3\)"),
        ("choices", "[up]", r"choices must be a tuple of texts, got '\[up\]'"),
        ("split_seeds", {"train": (1,), "test": (2,)}, "split_seeds must map each of test, .* got 'train', 'test'"),
        ("split_seeds", dict.fromkeys(SPLITS, (0.5,)), "must be a tuple of whole numbers, 0 or more, got"),
    ],
)
def test_views_and_sizes_that_would_have_no_effect_are_refused(field: str, value: object, says: str) -> None:
    with pytest.raises(EnvError, match=f"^walk: {says}" if says[0] in "vs" else says):
        EnvSpec(id="walk", entry_point="x:y", **{field: value})  # type: ignore[arg-type]


def test_moves_are_those_of_the_state_else_of_the_spec_else_the_legal_ones() -> None:
    both = {"choices": ["a"], "legal_actions": ["b"]}
    bare, spec = EnvSpec(id="walk", entry_point="x:y"), EnvSpec(id="walk", entry_point="x:y", choices=("c",))
    assert spec.moves(both) == ["a"]
    assert spec.moves({"legal_actions": ["b"]}) == ["c"]
    assert (bare.moves({"legal_actions": ["b"]}), bare.moves({})) == (["b"], [])


def test_views_by_name() -> None:
    assert "Reach the goal" in str(get_spec("sokoban").view()["rules"])
    assert get_spec("sokoban").view("full") == {}
    assert get_spec("sokoban").view("none") == {"rules": None}
    assert get_spec("math").view() == {}
    with pytest.raises(EnvError, match="no view 'hiden' for math; did you mean 'hidden'"):
        get_spec("math").view("hiden")
