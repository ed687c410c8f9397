"""Prompts: from messages to the token ids of the student's prompt and of the teacher's prompt for one turn.

The same chat template renders both prompts from the same messages; only the context may differ. The response is not
rendered at all: its sampled ids are appended to each prompt (``docs/method.md``, "Which rows are compared").
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from agentopcd.core.calls import Call, check_calls, read_written, unread, written
from agentopcd.core.errors import AlignmentError, CallError, ConfigError, TemplateError
from agentopcd.core.text import after_thinking
from agentopcd.core.types import EMPTY, Completion, Context, Message, Request, Tool
from agentopcd.models import tokens
from agentopcd.rollouts import replies
from agentopcd.rollouts.calls import calls_of
from agentopcd.rollouts.history import without_system
from agentopcd.rollouts.marks import Marks, each_word, words_in
from agentopcd.rollouts.tools import in_words, shows_tools, takes_several, tool_talk

PROMPT_VERSION = "1"
"""Part of every setup hash, so that results from different wordings of the prompts are never pooled."""

EXPERIENCE_FRAME = "Lessons from earlier attempts. They may be incomplete or wrong."
"""The line before experience items, so that a model reads them as guesses and not as orders."""

_PROBE = tokens.PROBE


class Chat:
    """Renders prompts and reads replies with one tokenizer and its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        template_args: arguments for the template, such as ``{"enable_thinking": False}``.
        day: the day that the template tells the model, if it tells one; today's, for as long as this object lives.
    """

    def __init__(
        self, tokenizer: Any, template_args: dict[str, Any] | None = None, day: datetime.date | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.day = day or datetime.date.today()
        self.template_args = tokens.read_by_template(tokenizer, template_args or {})
        self.teacher: Chat | None = None
        """Renders the teacher's prompts, if the teacher has another template; see :meth:`taught_by`."""
        talks = (("user",), ("system", "user"), ("user", "assistant", "user"), ("user", "assistant"))
        written = [
            tokens.conversation(tokenizer, *roles, header=roles[-1] == "user", **self.template_args) for roles in talks
        ]
        self.shows_tools = shows_tools(tokenizer, **self.template_args)
        """Whether the template writes tools; else they are told in words, see :mod:`agentopcd.rollouts.tools`."""
        if self.shows_tools:
            written.append(tool_talk(tokenizer, **self.template_args))
        self.marks = Marks(tokenizer, "".join(written))
        self.special = self.marks.strings
        """The words of the tokens that no text can become; see :class:`~agentopcd.rollouts.marks.Marks`."""
        self._takes_system = written[1].count(_PROBE) >= 2  # some templates raise, others leave it out
        self._keeps_replies = not written[2] or written[2].count(_PROBE) >= 3
        self._said_tools = self._said_system = False
        self.default_system = self._find_default_system()
        self.header = self._find_header()

    def taught_by(self, tokenizer: Any) -> bool:
        """Let a teacher read its prompts in its own template, and return whether that differs from the student's."""
        teacher, talk = Chat(tokenizer, self.template_args, self.day), [Message(role="user", content=_PROBE)]
        self.teacher = teacher if teacher.render(talk) != self.render(talk) else None
        return self.teacher is not None

    def render(
        self, messages: Sequence[Message], context: Context = EMPTY, tools: Sequence[Tool] = ()
    ) -> tuple[int, ...]:
        """Token ids of the prompt, generation header included, with ``context`` and ``tools`` in it.

        Raises:
            ConfigError: the context is placed as a system message, and the template takes none.
        """
        messages, tools = self._told(messages, context, tools)
        texts = list(words_in([messages, tools]))
        if not self.marks.inside(texts):
            text = self._apply(messages, tools)
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if self.marks.only_written(text, ids):
                return ids
        block = self.marks.free_block(texts)
        hide = functools.partial(self.marks.hide, block=block)
        hidden: list[Any] = [{**each_word(message, hide), "role": message["role"]} for message in messages]
        return self.marks.encode(self._apply(hidden, each_word(tools, hide)), block)

    def text(self, messages: Sequence[Message], context: Context = EMPTY, tools: Sequence[Tool] = ()) -> str:
        """The prompt as text. In :meth:`render`, words of a message that look like a special token are none."""
        return self._apply(*self._told(messages, context, tools))

    def _told(
        self, messages: Sequence[Message], context: Context, tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Tool]]:
        """The messages and the tools that the template is given, with the context."""
        if not self._takes_system and context.text and context.placement == "system":
            raise ConfigError("this chat template takes no system message; place the context with --placement user")
        messages, tools = self._place(list(messages), context), list(tools)
        if not self.shows_tools and (tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages)):
            if tools and not self._said_tools:
                self._said_tools = True
                warnings.warn("this chat template has no place for tools; they are told in words", stacklevel=2)
            messages, tools = in_words(messages, tools, system=self._takes_system), []
        if self._takes_system or all(message["role"] != "system" for message in messages):
            return messages, tools
        if not self._said_system:
            self._said_system = True
            warnings.warn("this chat template takes no system message; the user's first begins with it", stacklevel=2)
        return without_system(messages), tools

    def request(
        self, messages: Sequence[Message], context: Context = EMPTY, *, seed: int,
        choices: tuple[tuple[int, ...], ...] = (), tools: Sequence[Tool] = (),
    ) -> Request:  # fmt: skip
        """The request to a sampler for these messages; see :meth:`render`."""
        return Request(prompt_ids=self.render(messages, context, tools), seed=seed, choices=choices)

    def reply(self, reply: Completion, *, begun: bool = False) -> str:
        """The text of a sampler's reply, its thinking between ``<think>`` and ``</think>``; see :mod:`.replies`.

        Args:
            begun: the answer itself had begun before: it was :meth:`opened`, or held to :meth:`choices`.
        """
        return self.reader.text(reply.token_ids, begun=begun)

    def with_calls(self, reply: Completion, text: str, tools: Sequence[Tool]) -> tuple[str, int]:
        """What an environment with tools gets: the words of a reply, and its calls each in a line; and how many.

        Args:
            text: the reply as :meth:`reply` gives it.
        """
        try:
            content, calls = self.calls(reply.token_ids, text, tools)
        except CallError as error:
            return unread(after_thinking(text), error), 0
        return written(content, calls), len(calls)

    def calls(self, ids: Sequence[int], text: str, tools: Sequence[Tool]) -> tuple[str, list[Call]]:
        """See :func:`~agentopcd.rollouts.calls.calls_of`; several, where a prompt cannot show them, are an error."""
        content, calls = calls_of(self.tokenizer, ids, text, tools)
        if len(calls) > 1 and self.shows_tools and not self._several_calls:
            raise CallError(f"{len(calls)} tools were called at once; call one at a time")
        return content, calls

    @functools.cached_property
    def _several_calls(self) -> bool:
        """Whether the template can show several calls of one turn in later prompts."""
        return takes_several(self.tokenizer, **self.template_args)

    def opened(self, request: Request, opening: str) -> Request | None:
        """The same request with the first words of the answer already given; None if the engine cannot do that."""
        opening = self.reader.before_answer + opening  # they are no thoughts
        return dataclasses.replace(request, prompt_ids=request.prompt_ids + self._reply_ids(opening))

    def prompts(
        self, messages: Sequence[Message], context: Context, tools: Sequence[Tool] = ()
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt ids of the student, without the context, and of the teacher, with it.

        Raises:
            ConfigError: the template drops the context.
            AlignmentError: the prompts do not end in the same generation header, so the two models would predict the
                first response token from different positions.
        """
        student, judge = self.render(messages, EMPTY, tools), self.teacher or self
        without = student if judge is self else judge.render(messages, EMPTY, tools)
        teacher = judge.render(messages, context, tools)
        if context.text and without == teacher:
            raise ConfigError(
                f"this chat template drops a context placed as {context.placement}, so there would be nothing to "
                "learn; place it with --placement user"
            )
        check_same_header(without, teacher, judge.header)
        return student, teacher

    def prefix(self, context: Context, opening: Sequence[Message] = (), tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The token ids that every prompt with ``context`` begins with, whatever the user says.

        Args:
            opening: the messages of some prompt; all prompts share its system message.
            tools: the tools that all prompts share.
        """
        before = [message for message in opening[:1] if message["role"] == "system"]
        # Two prompts that differ from the first character of the message on share exactly the common beginning.
        one, other = (self.render([*before, Message(role="user", content=text)], context, tools) for text in ("0", "a"))
        return one[: common_length(one, other)]

    def reply_text(self, ids: Sequence[int]) -> str:
        """The text of response token ids, without special tokens; see :meth:`reply`."""
        return self.reader.text(ids)

    @functools.cached_property
    def reader(self) -> replies.Reader:
        """Reads the model's replies."""
        return replies.Reader(self.tokenizer, self._apply([Message(role="user", content=_PROBE)]).rpartition(_PROBE)[2])

    @functools.cached_property
    def says_day(self) -> bool:
        """Whether the template tells the model what day it is."""
        talks: tuple[tuple[Literal["system", "user", "assistant"], ...], ...]
        talks = (("user",), ("system", "user"), ("user", "assistant", "user"))
        days = (datetime.date(1999, 12, 31), datetime.date(2026, 1, 1))
        for roles in talks:
            talk = [Message(role=role, content=_PROBE) for role in roles]
            try:
                one, other = (self._apply(talk, day=day) for day in days)
            except ConfigError:  # no system message, for example
                continue
            if one != other:
                return True
        return False

    def choices(self, replies: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of each of these replies, end token included.

        Raises:
            ConfigError: the tokenizer has no end token.
        """
        if self.end is None:
            raise ConfigError("the tokenizer has no end token, which a listed reply must have; leave --constrain out")
        return tuple((*self._reply_ids(text), self.end) for text in replies)

    @functools.cached_property
    def end(self) -> int | None:
        """The token that ends a reply: the one that the template writes there, else the tokenizer's end token."""
        last = tokens.end_of_turn(self.tokenizer)
        return self.tokenizer.eos_token_id if last is None else last

    def count_tokens(self, text: str) -> int:
        """The number of tokens of ``text`` as part of a message."""
        if not self.marks.inside([text]):
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        block = self.marks.free_block([text])
        return len(self.marks.encode(self.marks.hide(text, block), block))

    @functools.cached_property
    def _opened(self) -> tuple[str, tuple[int, ...]]:
        """A prompt, as text and as token ids, to tokenise beginnings of replies behind."""
        text = self._apply([Message(role="user", content="hello")])
        return text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _reply_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of the words of a reply, as they stand behind a prompt.

        Tokenised alone, they could begin with another token: SentencePiece puts a space before the first word.
        """
        prompt, before = self._opened
        whole = tuple(self.tokenizer(prompt + text, add_special_tokens=False)["input_ids"])
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _place(self, messages: list[Message], context: Context) -> list[Message]:
        """``messages`` with the context before the first user message or at the end of the system message."""
        if not context.text:
            return messages
        text = framed(context)
        if context.placement == "user":
            first = next(i for i, m in enumerate(messages) if m["role"] == "user")
            with_context = Message(role="user", content=f"{text}\n\n{messages[first]['content']}")
            return [*messages[:first], with_context, *messages[first + 1 :]]
        if messages[0]["role"] == "system":
            before, rest = messages[0]["content"], messages[1:]
        else:
            before, rest = self.default_system, messages
        return [Message(role="system", content=f"{before}\n\n{text}" if before else text), *rest]

    def _apply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, header: bool = True,
        day: datetime.date | None = None,
    ) -> str:  # fmt: skip
        if not self._keeps_replies and any(message["role"] == "assistant" for message in messages):
            raise ConfigError("this chat template leaves earlier turns of a chat out; take --history transcript")
        # The template's own clock would change prompts that are rendered again after midnight.
        given: dict[str, Any] = {}
        if tokens.asks_clock(self.tokenizer):
            given["strftime_now"] = (day or self.day).strftime
        if tools:
            given["tools"] = list(tools)
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=header, **given, **self.template_args
            )
        except Exception as error:  # a template can raise errors of its own
            raise TemplateError(f"the chat template failed: {error}") from error

    def _find_default_system(self) -> str:
        """The system message that the template adds if none is given; '' if it adds none.

        It is found by comparison: the prompt without a system message and the one with a probe as system message must
        be equal except where the probe stands. A ``system`` context is appended to it, so that both prompts keep it.
        """
        user = Message(role="user", content="hello")
        without = self._apply([user])
        try:
            probed = self._apply([Message(role="system", content=_PROBE), user])
        except ConfigError:
            return ""
        before, found, after = probed.partition(_PROBE)
        if not found or not (without.startswith(before) and without.endswith(after)):
            return ""
        return without[len(before) : len(without) - len(after)] if len(without) >= len(before) + len(after) else ""

    def _find_header(self) -> tuple[int, ...]:
        """The generation header: the token ids that open the model's reply; empty if the template has none.

        They are taken from a prompt: tokenised alone, a header in plain words could have other tokens. A token that
        holds the last sign of the message, too, is not counted.
        """
        user = [Message(role="user", content="hello")]
        bare, full = self._apply(user, header=False), self._apply(user)
        if not full.startswith(bare):
            return ()
        if not self.tokenizer.is_fast:
            return tuple(self.tokenizer(full[len(bare) :], add_special_tokens=False)["input_ids"])
        read = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in read["offset_mapping"]]
        return tuple(id_ for id_, start in zip(read["input_ids"], starts, strict=True) if start >= len(bare))


class ApiChat(Chat):
    """Passes messages on as they are, to a model behind an API, whose template and tokenizer are unknown here."""

    special = ()
    default_system = ""
    header = ()
    teacher = None

    def __init__(self, template_args: dict[str, Any] | None = None) -> None:
        self.template_args = dict(template_args or {})

    def request(
        self, messages: Sequence[Message], context: Context = EMPTY, *, seed: int,
        choices: tuple[tuple[int, ...], ...] = (), tools: Sequence[Tool] = (),
    ) -> Request:  # fmt: skip
        placed = tuple(self._place(list(messages), context))
        return Request(prompt_ids=(), seed=seed, messages=placed, tools=tuple(tools))

    @functools.cached_property
    def says_day(self) -> bool:
        """False: what the API's template says cannot be known here."""
        return False

    def reply(self, reply: Completion, *, begun: bool = False) -> str:
        return replies.read_text(reply.text)

    def with_calls(self, reply: Completion, text: str, tools: Sequence[Tool]) -> tuple[str, int]:
        said = after_thinking(text)
        try:
            content, calls = read_written(said)
            if not calls:  # an API that leaves the calls in the text
                content, calls = calls_of(None, (), text, tools)
            check_calls(calls, tools)
        except CallError as error:
            return unread(said, error), 0
        return written(content, calls), len(calls)

    def opened(self, request: Request, opening: str) -> Request | None:
        return None

    def choices(self, replies: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        raise ConfigError("an API cannot hold replies to a list; leave out --constrain")

    def count_tokens(self, text: str) -> int:
        """An estimate at three bytes per token, rounded up, because the API's tokenizer is unknown."""
        return -(-len(text.encode(errors="replace")) // 3)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common beginning of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def check_same_header(student: Sequence[int], teacher: Sequence[int], header: Sequence[int]) -> None:
    """Refuse two prompts that do not end in the same generation header or, without a header, in the same token.

    The first token of a header in plain words depends on the message before it, so only the two ends are compared.

    Raises:
        AlignmentError: the ends differ.
    """
    n = max(1, len(header))
    if tuple(student[-n:]) != tuple(teacher[-n:]):
        raise AlignmentError(
            f"student prompt ends in {list(student[-n:])}, teacher prompt in {list(teacher[-n:])}, the template "
            f"opens replies with {list(header)}; only the context may differ between the two"
        )


def framed(context: Context) -> str:
    """The context as a model sees it. Experience items stand below :data:`EXPERIENCE_FRAME`."""
    return f"{EXPERIENCE_FRAME}\n{context.text}" if context.lines else context.text
