"""Turns with tools: their prompts as text, what is in the loss, and how many passes read them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agentopcd import envs
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.types import Context, Episode, Job, Placement, Task
from agentopcd.distillation.methods import PrefixReplay
from agentopcd.distillation.samples import read_apart, samples_of
from agentopcd.envs import ToolEnv, tool
from agentopcd.rollouts.player import Player
from tests import tiny
from tests.rollouts.scripted import one, player_of

LESSON = Context("- EXPERIENCE ITEM: red costs 2 more")
DOUBLE = '<tool_call>{"name": "double", "arguments": {"a": 3}}</tool_call>'
ADD = 'Now add. <tool_call>{"name": "double", "arguments": {"a": 1}}</tool_call>'


class Desk(ToolEnv):
    """One tool."""

    rules = "Be brief."

    def begin(self) -> str:
        return "What is red?"

    @tool
    def double(self, a: int) -> int:
        """Double it.

        Args:
            a: a number.
        """
        return 2 * a

    def grade(self, answer: str) -> bool:
        return answer == "8"


REF = "tests.distillation.test_tool_turns:Desk"
SCHEMA = (
    '{"name": "double", "description": "Double it.", "parameters": {"type": "object", "properties": '
    '{"a": {"type": "integer", "description": "a number."}}, "required": ["a"]}}'
)
TOOLS = (
    f"You can call these tools:\n{SCHEMA}\n"
    'To call one, write <tool_call>{"name": NAME, "arguments": {...}}</tool_call> and wait for its result.'
)
FRAMED = "Lessons from earlier attempts. They may be incomplete or wrong.\n- EXPERIENCE ITEM: red costs 2 more"
NATIVE = (  # as most templates: the call is written as the model says it, words first
    "{% if tools %}<|im_start|>system\n{{ messages[0]['content'] }}\n{% for t in tools %}{{ t['function'] | tojson }}"
    "{% endfor %}<|im_end|>\n{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for c in message.tool_calls or [] %}{% if message['content'] %}{{ ' ' }}{% endif %}"
    "{{ '<tool_call>' + (c['function'] | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny.build(tmp_path_factory.mktemp("tools") / "model"))


def task() -> Task:
    return Task(0, envs.task_key(*envs.make(REF).reset(seed=0)))


def played(tokenizer: Any, *replies: str) -> tuple[Player, Episode]:
    player = player_of(
        tokenizer, lambda prompt: replies[prompt.count("<|im_start|>assistant\n") - 1], REF, max_steps=len(replies)
    )
    return player, one(player, Job(task()))


def texts(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids))


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return (*tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END)


@pytest.mark.filterwarnings("ignore:this chat template has no place")
@pytest.mark.parametrize("placement", ["user", "system"])
def test_prompts_and_responses_of_tool_turns_as_written_by_hand(tokenizer: Any, placement: Placement) -> None:
    player, episode = played(tokenizer, DOUBLE, ADD, "8")
    samples, dropped = samples_of([episode], player.chat, Context(LESSON.text, placement), "keep")
    assert (dropped, episode.success) == (0, True)
    # What was sampled, and nothing else: no result of a tool is in a loss.
    assert [s.response_ids for s in samples] == [ids_of(tokenizer, text) for text in (DOUBLE, ADD, "8")]
    assert [turn.calls for turn in episode.turns] == [1, 1, 0]
    ask = "<|im_start|>user\nWhat is red?<|im_end|>\n"
    six = "<|im_start|>user\n<tool_response>\n6\n</tool_response><|im_end|>\n"
    two = "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    added = ADD.replace(" <tool_call>", "\n<tool_call>")  # told in words: a call stands in a line of its own
    chats = [ask]
    chats.append(f"{chats[-1]}<|im_start|>assistant\n{DOUBLE}<|im_end|>\n{six}")
    chats.append(f"{chats[-1]}<|im_start|>assistant\n{added}<|im_end|>\n{two}")
    for sample, chat in zip(samples, chats, strict=True):
        end = f"{chat}<|im_start|>assistant\n"
        without = f"<|im_start|>system\nBe brief.\n\n{TOOLS}<|im_end|>\n{end}"
        taught = {
            "system": f"<|im_start|>system\nBe brief.\n\n{FRAMED}\n\n{TOOLS}<|im_end|>\n{end}",
            "user": without.replace("What is red?", f"{FRAMED}\n\nWhat is red?"),
        }[placement]
        assert texts(tokenizer, sample.student_ids) == without
        assert texts(tokenizer, sample.teacher_ids) == taught
    # The second turn goes on from the first; the third does not, since its words were written in another way.
    assert [b.continues(a) for a, b in itertools.pairwise(samples)] == [True, False]
    assert read_apart(samples) == 1


def test_a_template_that_writes_calls_as_they_were_said_is_read_in_one_pass(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    native = AutoTokenizer.from_pretrained(tmp_path)
    native.chat_template = NATIVE
    player, episode = played(native, DOUBLE, DOUBLE.replace("3", "1"), "8")
    assert player.chat.shows_tools
    samples, _ = samples_of([episode], player.chat, LESSON, "keep")
    assert [b.continues(a) for a, b in itertools.pairwise(samples)] == [True, True]
    assert read_apart(samples) == 0
    last = texts(native, samples[2].student_ids)
    assert last.startswith("<|im_start|>system\nBe brief.\n{") and '"name": "double"' in last.split("<|im_end|>")[0]
    said = "<|im_start|>assistant\n" + DOUBLE + "<|im_end|>\n<|im_start|>tool\n6<|im_end|>\n"
    assert said in last and last.endswith("<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n")
    assert texts(native, samples[2].teacher_ids) == last.replace("What is red?", f"{FRAMED}\n\nWhat is red?")


@pytest.mark.filterwarnings("ignore:this chat template has no place")
@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ('<tool_call>{"name": "double", "arguments": {"a": 3}', "The call was not made: the call is cut off"),
        (DOUBLE.replace("3", '"x"'), "not made: double was called wrongly: a: 'x' is not of type 'integer'."),
        (DOUBLE.replace("double", "halve"), 'The call was not made: no tool is called "halve"; the tools are double.'),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_read_is_an_invalid_turn_and_the_next_prompt_says_why(
    tokenizer: Any, reply: str, why: str
) -> None:
    player, episode = played(tokenizer, reply, "8")
    assert [turn.invalid for turn in episode.turns] == [True, False]
    assert episode.turns[0].response_ids == ids_of(tokenizer, reply)
    prompt = texts(tokenizer, episode.turns[1].prompt_ids)
    assert why in prompt.rpartition("<|im_start|>user\n")[2]
    assert f"<|im_start|>assistant\n{reply}<|im_end|>" in prompt and "unread" not in prompt
    (first, second), _ = samples_of([episode], player.chat, LESSON, "keep")
    assert first.turn == 0 and texts(tokenizer, second.student_ids) == prompt


@pytest.mark.filterwarnings("ignore:this chat template has no place")
def test_prefix_replay_asks_a_stored_turn_with_its_tools(tokenizer: Any) -> None:
    _, episode = played(tokenizer, DOUBLE, "8")
    stored = dataclasses.replace(episode, turns=episode.turns[1:])  # the turn whose prompt holds a call and its result
    config = ConsolidateConfig(env="math", method="prefix-replay")
    again = player_of(tokenizer, lambda _: DOUBLE, REF)
    (replayed,) = PrefixReplay(config, again, [stored]).play([Job(task())])
    (turn,) = replayed.turns
    assert turn.prompt_ids == episode.turns[1].prompt_ids and turn.tools == episode.turns[1].tools
    assert TOOLS in texts(tokenizer, turn.prompt_ids)
    assert (stored.turns[0].calls, turn.calls) == (0, 1), "calls are those of the new reply"
    (sample,), _ = samples_of([replayed], again.chat, LESSON, "keep")
    assert sample.response_ids == ids_of(tokenizer, DOUBLE)
