"""Read replies: what a model thinks stands between ``<think>`` and ``</think>``, whatever marks its family writes.

Many marks are special tokens, which vanish when a reply is decoded, and some templates open the thinking in the prompt,
where a reply that is cut looks like an answer. So marks are read from the token ids, and the prompt's end is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentopcd.core.text import END_OF_THINKING, THINKING, still_thinking
from agentopcd.models.tokens import end_of_turn

MARKS = {
    THINKING: END_OF_THINKING,
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel>": "<channel|>",
    "◁think▷": "◁/think▷",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<think_fast>": "</think_fast>",
    "<think_faster>": "</think_faster>",
}
"""Marks that open and end the thinking. Those of a family count for models whose tokenizer or template has them.

Tokens of other names are taken for such marks by :func:`_partners`.
"""

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
FINAL = f"{CHANNEL}final{MESSAGE}"
_HARMONY = (START, CHANNEL, MESSAGE, *ENDS, "<|constrain|>")
"""Tokens of gpt-oss, whose replies are messages in channels; the answer is the one in the channel ``final``."""
_END = re.compile("|".join(map(re.escape, ENDS)))
_TOKEN = re.compile("|".join(map(re.escape, _HARMONY)))


_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)


def _partners(token: str) -> list[str]:
    """What would end the thinking that ``token`` opens, by the habits of those who name tokens."""
    swapped = [re.sub(start, end, token) for start, end in (("start", "end"), ("START", "END"), ("begin", "end"))]
    return [end for end in (f"{token[:1]}/{token[1:]}", f"{token[:2]}/{token[2:]}", *swapped) if end != token]


class Reader:
    """Reads the replies of one model.

    Args:
        tokenizer: decodes the replies.
        prompt_end: what a prompt ends in, after the last message's words; the template may open the thinking there.
    """

    def __init__(self, tokenizer: Any, prompt_end: str) -> None:
        self.tokenizer = tokenizer
        tokens: dict[int, Any] = tokenizer.added_tokens_decoder
        known = {token.content for token in tokens.values()}
        self.channels = {CHANNEL, MESSAGE} <= known
        template = str(getattr(tokenizer, "chat_template", "") or "")
        self.marks = {
            opening: closing
            for opening, closing in MARKS.items()
            if opening == THINKING or closing in known or closing in template
        }
        self.marks |= {
            token: end for token in known if _THOUGHT.search(token) for end in _partners(token) if end in known
        }
        wanted = {*self.marks, *self.marks.values(), *(_HARMONY if self.channels else ())}
        self.vanishing = {
            id_: token.content for id_, token in tokens.items() if token.special and token.content in wanted
        }
        """Tokens that matter here and that decoding leaves out."""
        ends = {end_of_turn(tokenizer), tokenizer.eos_token_id}
        self._ends = {
            id_ for id_ in ends & tokens.keys() if not tokens[id_].special and tokens[id_].content not in wanted
        }
        """Tokens that end a reply and that decoding would leave in its text."""
        self.begins = prompt_end[prompt_end.rfind(START) :] if self.channels and START in prompt_end else ""
        """With channels: the head of a reply's first message, which the prompt has opened."""
        self.thinks = not self.channels and still_thinking(plain(prompt_end, self.marks))
        """Whether prompts end inside the thinking."""
        self.before_answer = self._before_answer(prompt_end)
        """What stands between a prompt and an answer without thinking; empty for most models."""

    def _before_answer(self, prompt_end: str) -> str:
        if self.channels:
            return "" if MESSAGE in self.begins else FINAL
        last = max(self.marks, key=prompt_end.rfind)
        return f"\n{self.marks[last]}\n\n" if self.thinks else ""

    def text(self, ids: Sequence[int], *, begun: bool = False) -> str:
        """The text of a reply, without special tokens.

        A reply that never comes out of its thinking begins with ``<think>``, although the prompt has opened it.

        Args:
            begun: the answer itself had begun before: its first words were given, or it was held to a list.
        """
        raw = decoded(self.tokenizer, self.spoken(ids), self.vanishing)
        said = channels(raw, FINAL if begun else self.begins) if self.channels else plain(raw, self.marks)
        return THINKING + said if self.thinks and not begun and END_OF_THINKING not in said else said

    def spoken(self, ids: Sequence[int]) -> Sequence[int]:
        """A reply without the token that ends it, if that would be read as words."""
        return ids[:-1] if ids and ids[-1] in self._ends else ids


def decoded(tokenizer: Any, ids: Sequence[int], kept: Mapping[int, str]) -> str:
    """Token ids as text without special tokens, but with those of ``kept``: their words by their ids."""
    if kept.keys().isdisjoint(ids):
        return tokenizer.decode(list(ids), skip_special_tokens=True)
    pieces: list[str] = []
    run: list[int] = []
    for id_ in ids:
        if id_ in kept:
            pieces += [tokenizer.decode(run, skip_special_tokens=True) if run else "", kept[id_]]
            run = []
        else:
            run.append(id_)
    return "".join([*pieces, tokenizer.decode(run, skip_special_tokens=True) if run else ""])


def read_text(text: str) -> str:
    """A reply that came as text, from a model whose tokenizer is not known here, with the thinking marked."""
    return channels(text, "") if CHANNEL in text and MESSAGE in text else plain(text, MARKS)


def plain(text: str, marks: dict[str, str]) -> str:
    """``text`` with every mark of ``marks`` written as ``<think>`` or ``</think>``."""
    for opening, closing in marks.items():
        text = text.replace(opening, THINKING).replace(closing, END_OF_THINKING)
    return text


def channels(text: str, begins: str) -> str:
    """The thinking and the answer of a reply of gpt-oss: all channels but ``final`` are thinking.

    Args:
        begins: the head of the first message, which the prompt has opened.
    """
    if CHANNEL not in begins + text and MESSAGE not in begins + text:
        return _TOKEN.sub("", text)
    return "".join(_said((begins + text).split(START)))


def _said(messages: Sequence[str]) -> Iterable[str]:
    for number, message in enumerate(messages, 1):
        head, opened, rest = message.partition(MESSAGE)
        if not opened:  # what stands before the first message, or a head that was cut
            continue
        body, *ended = _END.split(rest, maxsplit=1)
        channel = (head.partition(CHANNEL)[2].split() or ["final"])[0]
        if channel.startswith("final"):
            yield body
        else:
            yield f"{THINKING}{body}{END_OF_THINKING if ended or number < len(messages) else ''}"
