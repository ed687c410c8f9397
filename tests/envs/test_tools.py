"""Environments with tools: what a typed function becomes, what a call does, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from agentopcd import envs
from agentopcd.core.calls import unread
from agentopcd.core.errors import CallError, EnvError
from agentopcd.core.types import Job, Task
from agentopcd.envs import ToolEnv, call, tool
from agentopcd.rollouts.game import told
from tests import tiny
from tests.rollouts.scripted import one, player_of

PARCELS = "examples/tool_environment.py:ParcelDesk"
SHOP = "tests.envs.test_tools:Shop"


class Shop(ToolEnv):
    """Sells things, and says what was right."""

    rules = "Answer with the price."

    def begin(self) -> str:
        return "What is a pen?"

    @tool
    def price(self, item: str, many: int = 1, unit: Literal["cent", "euro"] = "cent") -> int:
        """Look up a price.

        Args:
            item: the thing,
                in one word.
            many: how many.
            unit: of the answer.
        """
        if item == "bomb":
            raise RuntimeError("the shop is on fire")
        if item != "pen":
            raise ValueError(f"there is no {item}")
        return 7 * many

    @tool
    def pay(self, coins: list[int], note: str | None = None) -> dict[str, int]:
        """Pay.

        Args:
            coins: what is paid.
            note: words.
        """
        self.success = sum(coins) == 7
        return {"paid": sum(coins)}

    def grade(self, answer: str) -> bool:
        self.feedback = "The price was 7."
        return answer == "7"


def shop() -> tuple[Shop, dict[str, Any]]:
    env = Shop()
    return env, env.reset(seed=0)[1]


def test_a_typed_function_becomes_a_schema() -> None:
    tools = shop()[1]["tools"]
    assert tools == [
        {"type": "function", "function": {
            "name": "price", "description": "Look up a price.",
            "parameters": {"type": "object", "properties": {
                "item": {"type": "string", "description": "the thing, in one word."},
                "many": {"type": "integer", "description": "how many."},
                "unit": {"type": "string", "enum": ["cent", "euro"], "description": "of the answer."},
            }, "required": ["item"]},
        }},
        {"type": "function", "function": {
            "name": "pay", "description": "Pay.",
            "parameters": {"type": "object", "properties": {
                "coins": {"type": "array", "items": {"type": "integer"}, "description": "what is paid."},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "words."},
            }, "required": ["coins"]},
        }},
    ]  # fmt: skip


def test_several_calls_of_one_reply_are_answered_in_order() -> None:
    env, _ = shop()
    obs, reward, over, _, info = env.step(
        "Two things.\n" + call("price", item="pen", many=3) + "\n" + call("price", item="cup")
    )
    assert (obs, reward, over, info["invalid"]) == ("21\nerror: there is no cup", 0.0, False, False)
    asked, *answers = info["messages"][2:]
    assert asked["content"] == "Two things."
    assert [(m["role"], m["name"], m["content"], m["tool_call_id"]) for m in answers] == [
        ("tool", "price", "21", asked["tool_calls"][0]["id"]),
        ("tool", "price", "error: there is no cup", asked["tool_calls"][1]["id"]),
    ]
    assert info["metrics"] == {"calls": 2.0, "calls_failed": 1.0}
    again = env.step(call("price", item="pen"))[4]["messages"]
    assert len({c["id"] for m in again for c in m.get("tool_calls", ())}) == 3


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (call("price"), "price was called wrongly: 'item' is a required property"),
        (call("price", item=3), "price was called wrongly: item: 3 is not of type 'string'"),
        (call("price", item="pen", size=3), 'called wrongly: there is no argument "size"; it takes item, many, unit'),
        (call("steal", item="pen"), 'no tool is called "steal"; the tools are price, pay'),
        ("<tool_call>{</tool_call>", "the call is cut off"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused_in_one_line_and_the_episode_goes_on(action: str, why: str) -> None:
    env, _ = shop()
    obs, reward, over, _, info = env.step(action)
    assert obs.startswith("The call was not made: ") and why in obs and "\n" not in obs
    assert (reward, over, info["invalid"]) == (0.0, False, True)
    assert info["messages"][-2:] == [{"role": "assistant", "content": action}, {"role": "user", "content": obs}]
    assert env.step(call("price", item="pen"))[0] == "7"


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ('I look. <tool_call>{"name": "price", "arguments"', 'I look. <tool_call>{"name": "price", "arguments"'),
        ('A\n<tool_call>{"name": "steal"}</tool_call>', 'A\n<tool_call>{"name": "steal"}</tool_call>'),
        ("", "(nothing)"),
    ],
)
def test_the_model_sees_a_call_that_cannot_be_read_as_it_wrote_it(reply: str, shown: str) -> None:
    env, _ = shop()
    messages = env.step(unread(reply, CallError("it is odd")))[4]["messages"]
    assert messages[-2:] == [
        {"role": "assistant", "content": shown},
        {"role": "user", "content": "The call was not made: it is odd."},
    ]


def test_a_whole_number_reaches_the_tool_as_an_int_where_its_type_says_so() -> None:
    env, _ = shop()
    assert env.step(call("price", item="pen", many=3.0))[0] == "21"
    assert env.step(call("pay", coins=[5.0, 2]))[0] == '{"paid": 7}'
    took: list[Any] = []

    def odd(self: Any, a: int | None, b: float, c: int | float, d: dict[str, list[int]], e: Literal[1, "x"]) -> str:
        """Say.

        Args:
            a: one.
            b: two.
            c: three.
            d: four.
            e: five.
        """
        took.extend([a, b, c, d, e])
        return ""

    env = of(odd)()
    env.reset(seed=0)
    env.step(call("odd", a=5.0, b=5.0, c=5.0, d={"x": [5.0]}, e=1.0))
    assert repr(took) == "[5, 5.0, 5.0, {'x': [5]}, 1]"


def test_none_is_an_argument_where_its_type_says_so() -> None:
    env, _ = shop()
    assert env.step(call("pay", coins=[7], note=None))[4]["success"]


def test_a_tool_that_sets_success_ends_the_episode() -> None:
    for coins, won in (([5, 2], True), ([1], False)):
        env, _ = shop()
        obs, reward, over, _, info = env.step(call("pay", coins=coins))
        assert (obs, reward, over, info["success"]) == (f'{{"paid": {sum(coins)}}}', float(won), True, won)


def test_calls_after_the_end_are_not_made() -> None:
    env, _ = shop()
    reply = "\n".join([call("price", item="pen"), call("pay", coins=[1]), call("pay", coins=[7])])
    obs, reward, over, _, info = env.step(reply)
    assert (obs, reward, over, info["success"]) == ('7\n{"paid": 1}', 0.0, True, False)
    assert info["metrics"]["calls"] == 2


def test_words_are_the_answer_and_the_grader_may_say_something() -> None:
    env, _ = shop()
    obs, reward, over, _, info = env.step("8")
    assert (obs, reward, over, info["success"]) == ("The price was 7.", 0.0, True, False)
    assert info["parts"] == [("feedback", "The price was 7.")]
    assert env.reset(seed=1) and env.feedback == "", "what was said of one answer is not said of the next"


def test_other_exceptions_cost_the_episode_and_are_no_lost_game(tmp_path: Path) -> None:
    player = player_of(tokenizer_in(tmp_path), lambda _: call("price", item="bomb"), SHOP, retries=0)
    env = envs.make(SHOP)
    episode = one(player, Job(Task(0, envs.task_key(*env.reset(seed=0)))))
    assert episode.stop_reason == "env_error" and "the shop is on fire" in str(episode.error)


def tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.build(folder / "model"))


def of(function: Any) -> type[ToolEnv]:
    return type("Odd", (Shop,), {"odd": tool(function)})


def silent(self: Any, item: str) -> str: ...


def untyped(self: Any, item) -> str:
    """Say."""
    ...


def unsaid(self: Any, item: str) -> str:
    """Say."""
    ...


def many(self: Any, *items: str) -> str:
    """Say."""
    ...


def strange(self: Any, item: Path) -> str:
    """Say.

    Args:
        item: a path.
    """
    ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (silent, "tool odd has no docstring; say there what it does"),
        (untyped, "tool odd: argument item has no type"),
        (unsaid, "tool odd: its docstring does not say under Args: what item is"),
        (many, "tool odd takes *items"),
        (strange, "tool odd: argument item is of type <class 'pathlib.Path'>, which JSON does not have"),
    ],
)
def test_a_function_that_cannot_be_described_is_refused_in_one_line(function: Any, why: str) -> None:
    with pytest.raises(EnvError) as refused:
        of(function)().reset(seed=0)
    assert why in str(refused.value).replace("'str'", "str") and "\n" not in str(refused.value)


def test_a_key_tells_tasks_apart_whose_request_is_the_same_and_merges_no_others() -> None:
    class Keyed(Shop):
        asked, hidden = "What is a pen?", 1

        def begin(self) -> str:
            return self.asked

        def key(self) -> object:
            return self.hidden

    def key_of(**given: Any) -> str:
        return envs.task_key(*type("Other", (Keyed,), given)().reset(seed=0))

    first = key_of()
    assert key_of() == first
    assert len({first, key_of(hidden=2), key_of(asked="What is a cup?"), key_of(hidden=None)}) == 4


def test_an_environment_without_tools_is_refused() -> None:
    class Bare(ToolEnv):
        def begin(self) -> str:
            return "Hello?"

    with pytest.raises(EnvError, match="Bare has no tools; mark its methods with @tool"):
        Bare().reset(seed=0)


def test_a_view_hides_or_replaces_the_rules_message() -> None:
    env, info = shop()
    user = {"role": "user", "content": "What is a pen?"}
    assert told(info, {}) == [{"role": "system", "content": "Answer with the price."}, user]
    assert told(info, {"rules": "Be brief."}) == [{"role": "system", "content": "Be brief."}, user]
    assert told(info, {"rules": None}) == [user]
    later = env.step(call("price", item="pen"))[4]
    assert [m["role"] for m in told(later, {"rules": None}) or []] == ["user", "assistant", "tool"]


def test_the_example_keeps_the_contract_and_its_solution_wins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert envs.check_env(PARCELS).errors == []
    for seed in range(8):
        env = envs.make(PARCELS)
        env.reset(seed=seed)
        *calls, answer = env.unwrapped.solution()  # type: ignore[attr-defined]
        assert not any(env.step(action)[2] for action in calls)
        assert env.step(answer)[4]["success"]
        env.reset(seed=seed)
        assert env.step(str(int(answer) + 1))[4]["success"] is False


def test_a_reset_imports_no_torch(root: Path) -> None:
    code = (
        f"import sys\nfrom agentopcd import envs\nenvs.make({PARCELS!r}).reset(seed=0)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr
