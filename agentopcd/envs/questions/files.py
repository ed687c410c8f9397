"""Read the rows of a question file: JSON lines, a JSON array, CSV with any common separator, or parquet.

The content decides, not the name. What cannot be read is refused with the number of its line.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.encoding import decoded
from agentopcd.core.errors import ConfigError, DependencyError, EnvError
from agentopcd.core.files import is_file, path_of
from agentopcd.core.text import first_line

Raw = Mapping[str, Any]

_OTHERS = {
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive or a spreadsheet; save its table as CSV",
    b"\xfd7zXZ": "packed with xz; unpack it first",
    b"BZh": "packed with bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it first",
    b"SQLite format 3": "an SQLite database; export its table as CSV",
    b"ARROW1": "an Arrow file; save it as parquet",
}
"""First bytes of files that people take for rows, and what to do about them."""


def row_files(path: str) -> tuple[str, ...]:
    """The files that a path names: itself, or several with commas between them."""
    names = (path,) if "," not in path or is_file(path) else tuple(path.split(","))
    return tuple(str(path_of(name)) if name.startswith("~") else name for name in names)


def read_rows(path: Path) -> list[Raw]:
    """The rows of a file, as it has them.

    Raises:
        EnvError: the file is missing or cannot be read, or a line of it is malformed.
        DependencyError: a parquet file without pyarrow installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvError(f"cannot be read: {error.strerror or error}") from None
    if data.startswith(b"PAR1") or path.suffix.lower() == ".parquet":  # the latter for the message
        return _parquet(data)
    for mark, what in _OTHERS.items():
        if data.startswith(mark):
            raise EnvError(f"is {what}")
    try:
        text = decoded(data)
    except ConfigError as error:
        raise EnvError(str(error)) from None
    return list(_json(text) if text.lstrip()[:1] in ("{", "[") else _csv(text))


def _parquet(data: bytes) -> list[Raw]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("reading .parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        return parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except Exception as error:
        raise EnvError(f"cannot be read as parquet: {first_line(error)}") from error


def _json(text: str) -> Iterator[Raw]:
    """The objects of JSON lines, of an array, or of objects that are written over several lines each."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at, line, counted = 0, 1, 0
    while (at := _next(text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise EnvError(f"line {line} is nested too deeply") from None
        except json.JSONDecodeError as error:
            read, bracket = text[: error.pos].rstrip(), text[error.pos :].lstrip()[:1] in ("]", "}")
            told = "a comma too many before the bracket" if bracket and read.endswith(",") else error.msg
            here = text.count("\n", 0, error.pos if text[error.pos :].strip() else len(read)) + 1
            if text[at] == "{" and here > line:  # an object of one line that does not end, or one of several lines
                told, here = f"{told} (line {here})", line
            raise EnvError(f"line {here} is not JSON: {told}") from None
        except ValueError as error:  # ours, or a number of thousands of digits
            raise EnvError(f"line {line} is not JSON: {first_line(error)}") from None
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                got = "list of " * isinstance(value, list) + type(row).__name__
                raise EnvError(f"line {line} must be an object, got {got}")
            yield row


def _next(text: str, at: int) -> int:
    """The place of the next character that is no space, from ``at`` on."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in an object twice")
    return row


def _csv(text: str) -> Iterator[Raw]:
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a question may be longer than 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        for name in names:
            if names.count(name) > 1:
                raise EnvError(f"two columns are called {name!r}; rename one")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise EnvError(
                    f"line {reader.line_num} has {len(fields)} fields, and there are {len(names)} columns "
                    f"({', '.join(names)}); was it cut, or does a field without quotes hold the separator?"
                )
            yield dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise EnvError(f"line {reader.line_num} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
