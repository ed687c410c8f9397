"""Tokenizers: load one that gives text back as it was given, and read from its template how a turn ends."""

from __future__ import annotations

import json
import re
import string
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from agentopcd.core.errors import ConfigError, ModelError, did_you_mean
from agentopcd.core.text import first_line
from agentopcd.models.folder_files import read_json
from agentopcd.models.process import relayed_warnings

TEXTS = (
    "Take 3 + 4, then  go left.\nWhat's next?\n\n  [up] (a_b) {'x': 12} <y> A.B; a , b ! C: end",
    f"All signs: {' '.join(string.digits + string.ascii_letters + string.punctuation)} end",
    "One two. " * 2000 + "end",
)
"""Text without which no game can be played. The last is long, so that a tokenizer that cuts is seen."""

RARE = ("a\tb", "é ü ñ", "".join(map(chr, range(0xC0, 0x100))), "→ █ ▒ ♞", "日本", "🦓")
"""Text that some games show; a tokenizer that loses it is used, with a warning."""

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
"""A folder with one of these files has a tokenizer."""

PROBE = "agentopcd-probe"
LONG_PROBE = f"{PROBE} " * 250 + "\n\n  'It is'; " + f"{PROBE} " * 250 + "end"
"""Seen whole in a prompt only if the template cuts nothing and shows it as it is."""

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_FLAGS = (
    "byte_fallback", "continuing_subword_prefix", "dropout", "end_of_word_suffix", "fuse_unk", "ignore_merges",
    "unk_token",
)  # fmt: skip
"""What ``tokenizer.json`` says besides its vocabulary."""
_MISTRAL = ("ministral", "mistral", "mistral3", "pixtral", "voxtral")
_PLAIN = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_LONG = "sequence-length-is-longer-than-the-specified-maximum"
"""What transformers notes when it has warned of a text that is longer than the model's positions."""


def load_tokenizer(folder: Path, name: str, *, config: Path) -> Any:
    """The tokenizer in ``folder``, as its ``tokenizer.json`` says, if there is one.

    transformers builds some tokenizers anew, by the rules of the class that ``tokenizer_config.json`` names. If the
    file has other rules (a byte-level vocabulary under ``LlamaTokenizer``), spaces and lines would vanish.

    Args:
        config: the folder of the model's ``config.json``, by which transformers chooses the class.

    Raises:
        ModelError: the tokenizer cannot be loaded, or it does not give plain text back.
    """
    from transformers import AutoConfig

    try:
        _check_numbers(folder / "tokenizer.json", name)
        settings = AutoConfig.from_pretrained(config, trust_remote_code=False)
        # transformers takes every folder for one of Mistral's whose config.json does not say who wrote it.
        with relayed_warnings(but=() if settings.model_type in _MISTRAL else ("incorrect regex pattern",)):
            tokenizer = _as_saved(folder, settings)
        # Texts that only try a tokenizer are longer than what some models take; prompts are held to that elsewhere.
        getattr(tokenizer, "deprecation_warnings", {})[_LONG] = True
        _check_round_trip(tokenizer, name)
    except ModelError:
        raise
    except Exception as error:  # the libraries raise whatever they like, plain Exception too
        raise ModelError(f"cannot load the tokenizer of {name!r}: {first_line(error, type(error).__name__)}") from error
    return tokenizer


def _as_saved(folder: Path, config: Any) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception:  # a class that only the model's own code has, for instance
        if not file.is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(folder)
    right = not file.is_file() or _follows(tokenizer, file)
    return tokenizer if right else PreTrainedTokenizerFast.from_pretrained(folder)


def _follows(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer cuts and joins text by the rules of this ``tokenizer.json``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # the one class that reads the file as it is
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    saved = Tokenizer.from_file(str(file))
    both_bytes = all(type(each.decoder).__name__ == "ByteLevel" for each in (backend, saved))  # it has no rules to set
    parts = _PARTS[:2] if both_bytes else _PARTS
    return all(_rules(getattr(backend, part)) == _rules(getattr(saved, part)) for part in parts) and all(
        getattr(backend.model, flag, None) == getattr(saved.model, flag, None) for flag in _FLAGS
    )


def _rules(part: Any) -> Any:
    """What a part of a tokenizer does, without the settings that change no token and no text."""
    return None if part is None else _that_matter(json.loads(part.__getstate__()))


def _that_matter(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_that_matter(one) for one in settings]
    if not isinstance(settings, dict):
        return settings
    idle = {"trim_offsets"}
    return {name: _that_matter(value) for name, value in settings.items() if name not in idle}


def _check_numbers(file: Path, name: str) -> None:
    """Refuse a ``tokenizer.json`` that gives two words one number; the library keeps either of them."""
    model = json.loads(file.read_text(encoding="utf-8")).get("model", {}) if file.is_file() else {}
    words = model.get("vocab")
    if isinstance(words, dict) and len(set(words.values())) < len(words):
        raise ModelError(f"two words of the vocabulary of {name!r} have one number; get a good copy of {file.name}")


def _check_round_trip(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that loses plain text, and warn of one that loses signs that some games show."""
    tokenizer.clean_up_tokenization_spaces = _cleans_harmlessly(tokenizer)
    for text in TEXTS:
        if (back := _there_and_back(tokenizer, text)) != text:
            raise ModelError(
                f"the tokenizer of {name!r} does not give text back: {text[:40]!r} becomes {back[:40]!r} "
                f"({len(text)} characters become {len(back)}); get the tokenizer.json that belongs to the model"
            )
    if lost := [text for text in RARE if _there_and_back(tokenizer, f"a {text} b") != f"a {text} b"]:
        warnings.warn(f"the tokenizer of {name!r} does not give back {', '.join(map(repr, lost))}", stacklevel=4)


def _there_and_back(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cleans_harmlessly(tokenizer: Any) -> bool:
    """The tokenizer's own setting, or False if it takes away spaces before punctuation marks."""
    text = "a , b . c"
    return bool(tokenizer.clean_up_tokenization_spaces) and _there_and_back(tokenizer, text) == text


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / file).is_file() for file in FILES)


def template_of(folder: Path) -> str:
    """The chat template that lies in a folder without a tokenizer; '' if there is none.

    Raises:
        ModelError: the file cannot be read, or it holds no text.
    """
    jinja, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if not jinja.is_file():
        template = read_json(old).get("chat_template", "") if old.is_file() else ""
        if not isinstance(template, str):
            raise ModelError(f"the chat_template in {old} is no text; save the template itself as {jinja.name}")
        return template
    try:
        return jinja.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {jinja}: {first_line(error)}; get a complete copy of the model") from error


def read_by_template(tokenizer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for the chat template. One that it does not read has no effect, which is told.

    Raises:
        ConfigError: the template reads no such argument, but one of nearly this name.
    """
    template = getattr(tokenizer, "chat_template", None) if arguments else None
    texts = template.values() if isinstance(template, dict) else [template] if template else []
    try:  # {% generation %} is a tag of transformers, which parses nothing else that jinja does not
        parsed = [_PLAIN.parse(_GENERATION.sub("", text)) for text in texts]
    except jinja2.TemplateError:  # a first prompt will show what is wrong
        return dict(arguments)
    read = set().union(*map(jinja2.meta.find_undeclared_variables, parsed))
    for name in arguments if texts else ():
        if name in read:
            continue
        if get_close_matches(name, read):
            raise ConfigError(f"the chat template reads no argument {name!r}{did_you_mean(name, read)}")
        warnings.warn(f"the chat template reads no argument {name!r}, so it changes no prompt", stacklevel=3)
    return dict(arguments)


def conversation(
    tokenizer: Any, *roles: str, header: bool = False, says: str = PROBE, **template_args: Any
) -> str:  # fmt: skip
    """A conversation of these roles, each of which says the same; '' if the template refuses it."""
    try:
        return rendered(tokenizer, *roles, header=header, says=says, **template_args)
    except Exception:  # a template can raise errors of its own
        return ""


def rendered(tokenizer: Any, *roles: str, header: bool = False, says: str = PROBE, **template_args: Any) -> str:
    """A conversation of these roles, each of which says the same."""
    messages = [{"role": role, "content": says} for role in roles]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header, **template_args)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the chat template writes after a reply; None if it writes none there."""
    after = conversation(tokenizer, "user", "assistant").rpartition(PROBE)[2].lstrip()
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    follows = [token for token in added if after.startswith(token)]
    return added[max(follows, key=len)] if follows else None


def asks_clock(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template looks at the clock, under some condition at least."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


def check_template(tokenizer: Any, name: str) -> None:
    """Refuse a chat template that does not show the model what it is told, or whose marks are no tokens.

    Raises:
        ModelError: there is no template, it leaves the user's message out, or its marks are read as words.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {name!r} has a tokenizer without a chat template; take an instruct model, or set "
            "tokenizer.chat_template and save it with the model"
        )
    try:
        text = rendered(tokenizer, "user", header=True, says=LONG_PROBE)
    except Exception:  # it wants other roles or arguments, which a first prompt will show
        text = LONG_PROBE
    if LONG_PROBE not in text:
        raise ModelError(f"the chat template of {name!r} leaves out what the user says; get the model's own template")
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    written = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content in text}
    for mark, id_ in written.items():
        inside = any(mark in other for other in written if other != mark)
        if id_ not in ids and not inside:
            raise ModelError(
                f"the tokenizer of {name!r} reads {mark!r}, which its chat template writes, as plain words; "
                "set split_special_tokens to false in its tokenizer_config.json"
            )
