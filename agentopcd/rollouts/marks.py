"""Text whose words are only words: what a person, a game or a model wrote never becomes a token that opens a role."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from agentopcd.core.errors import ConfigError
from agentopcd.rollouts import replies

THINKING = frozenset((*replies.MARKS, *replies.MARKS.values()))
"""Marks that games and people may write, too, where they are not flagged special: they open no role."""

BLOCK = 0x8000
BLOCKS = (0xF0000, 0xF8000, 0x100000, 0x108000)
"""Private characters of Unicode, in blocks. One block that a prompt does not use lends the stand-ins for marks."""


def words_in(value: Any) -> Iterator[str]:
    """Every text in messages, tools and calls, the names in objects included."""
    match value:
        case str():
            yield value
        case Mapping():
            for name, entry in value.items():
                yield name
                yield from words_in(entry)
        case list() | tuple():
            for entry in value:
                yield from words_in(entry)


def each_word(value: Any, change: Callable[[str], str]) -> Any:
    """The same messages, tools or calls with every text changed."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {change(name): each_word(entry, change) for name, entry in value.items()}
        case list() | tuple():
            return [each_word(entry, change) for entry in value]
    return value


def _names(token: str) -> bool:
    """Whether an added token can stand for a role: it has letters and signs, unlike a word or a run of spaces."""
    letters = sum(char.isalnum() for char in token)
    return 0 < letters < len(token) and token not in THINKING


class Marks:
    """The tokens that a chat template marks roles and turns with, and text that holds such words without their meaning.

    Marks are all special tokens and, of the other added tokens, those that the template writes. A text that contains
    one is tokenised as it would be by a tokenizer that does not know the mark.

    Args:
        tokenizer: a Hugging Face tokenizer.
        written: what the template writes around messages, to find marks in that are not flagged special.
    """

    def __init__(self, tokenizer: Any, written: str) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        named = set(tokenizer.all_special_tokens)
        special = {token.content for token in added if token.special}
        roles = {token.content for token in added if token.content in written and _names(token.content)}
        # Longest first: of two marks that begin at one place, a tokenizer takes the longer.
        self.strings = tuple(sorted(named | special | roles, key=lambda token: (-len(token), token)))
        self._place = {token: place for place, token in enumerate(self.strings)}
        self._any = re.compile("|".join(map(re.escape, self.strings)) or r"(?!)")
        self._ids = frozenset(  # the unknown token stands for any unknown character, which opens no role
            id_ for id_, token in tokenizer.added_tokens_decoder.items()
            if token.content in self._place and token.content != tokenizer.unk_token
        )  # fmt: skip
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # A mark that is looked for after normalising can also be written in ways that only normalising makes equal.
        self._normalised = (
            backend is not None
            and backend.normalizer is not None
            and any(token.normalized for token in added if token.content in self._place)
        )
        self._plain: dict[int, tuple[Tokenizer, dict[int, int]] | None] = {}
        self._warned = False

    def inside(self, texts: Sequence[str]) -> bool:
        """Whether one of these texts contains the words of a mark."""
        return any(self._any.search(text) for text in texts)

    def only_written(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the marks among ``ids`` are those that stand in ``text`` letter by letter."""
        return not self._normalised or self._count(ids) == len(self._any.findall(text))

    def free_block(self, texts: Sequence[str]) -> int:
        """The first character of a block of private characters that none of these texts uses.

        Raises:
            ConfigError: they use all blocks.
        """
        for block in BLOCKS:
            if not any(block <= ord(char) < block + BLOCK for text in texts for char in text):
                return block
        raise ConfigError("a prompt uses private characters of all Unicode blocks; take them out of the text")

    def hide(self, text: str, block: int) -> str:
        """``text`` with one private character in place of each mark; :meth:`encode` puts the words back."""
        return self._any.sub(lambda found: chr(block + self._place[found[0]]), text)

    def encode(self, prompt: str, block: int) -> tuple[int, ...]:
        """Token ids of a rendered prompt whose messages went through :meth:`hide`.

        Marks that stand in it now are the template's. Where a tokenizer cannot read the hidden ones as plain words,
        they are broken by a space, with a warning.
        """
        made = self._without_marks(block)
        # The template's marks get the second half of the block, as names of the same tokens.
        named = self._any.sub(lambda found: chr(block + BLOCK // 2 + self._place[found[0]]), prompt)
        if made is not None:
            tokenizer, back = made
            ids = [
                back.get(id_, id_) for id_ in tokenizer.encode(self._shown(named, block), add_special_tokens=False).ids
            ]
            if self._count(ids) == len(self._any.findall(prompt)):
                return tuple(ids)
        if not self._warned:
            self._warned = True
            warnings.warn(
                "words that are special tokens are shown with a space inside, for this tokenizer", stacklevel=2
            )
        broken = self._shown(prompt, block, broken=True)
        return tuple(self.tokenizer(broken, add_special_tokens=False)["input_ids"])

    def broken(self, text: str) -> str:
        """``text`` with a space after the first character of each mark."""
        return self._shown(self.hide(text, BLOCKS[0]), BLOCKS[0], broken=True) if self._any.search(text) else text

    def _shown(self, text: str, block: int, *, broken: bool = False) -> str:
        """``text`` with the words of each hidden mark put back, or with these words broken by a space."""

        def words(found: re.Match[str]) -> str:
            mark = self.strings[ord(found[0]) - block]
            return f"{mark[0]} {mark[1:]}" if broken else mark

        return re.sub(f"[{chr(block)}-{chr(block + BLOCK // 2 - 1)}]", words, text)

    def _count(self, ids: Sequence[int]) -> int:
        return sum(id_ in self._ids for id_ in ids)

    def _without_marks(self, block: int) -> tuple[Tokenizer, dict[int, int]] | None:
        """A tokenizer of the same rules in which marks have other names, and the ids that its added tokens stand for.

        None if the tokenizer has no such rules to copy.
        """
        if block not in self._plain:
            self._plain[block] = self._build(block)
        return self._plain[block]

    def _build(self, block: int) -> tuple[Tokenizer, dict[int, int]] | None:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or len(self.strings) > BLOCK // 2:
            return None
        made = Tokenizer(backend.model)  # shares the vocabulary, so it costs no memory
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(made, part, getattr(backend, part))
        names: dict[str, int] = {}
        tokens = []
        for id_, token in sorted(backend.get_added_tokens_decoder().items()):
            mark = self._place.get(token.content)
            name = token.content if mark is None else chr(block + BLOCK // 2 + mark)
            names[name] = id_
            tokens.append(
                AddedToken(
                    name, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                    normalized=token.normalized, special=token.special,
                )
            )  # fmt: skip
        made.add_tokens(tokens)
        back = {new: id_ for name, id_ in names.items() if (new := made.token_to_id(name)) is not None}
        clash = any(id_ != new and backend.model.id_to_token(new) is not None for new, id_ in back.items())
        return None if clash else (made, back)
