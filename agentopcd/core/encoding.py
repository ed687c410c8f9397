"""Bytes of a file that people wrote with whatever program they have, to text."""

from __future__ import annotations

import codecs
from pathlib import Path

from agentopcd.core.errors import ConfigError
from agentopcd.core.files import path_of

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, by which a file says what it is. Without one it is UTF-8."""


def decoded(data: bytes) -> str:
    """The text of a file's bytes, without its byte order mark.

    Raises:
        ConfigError: the bytes are no text in UTF-8, or in the encoding that their mark names. Other encodings are never
            guessed: a wrong guess changes letters without a word.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"line {line} is not {encoding.removesuffix('-sig').upper()} text (byte 0x{data[error.start]:02x}); save "
            "the file as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        ) from None
    if "\0" in text:
        raise ConfigError(
            f"character {text.index(chr(0)) + 1} is NUL, so this is no UTF-8 text; save the file as UTF-8"
        )
    return text


def read_text(path: str | Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        ConfigError: the file cannot be read, or is no text (:func:`decoded`).
    """
    try:
        return decoded(path_of(path).read_bytes())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {str(path)!r} ({getattr(error, 'strerror', None) or error})") from error
