"""Import the class, function or spec that a reference such as ``pkg.mod:attr`` or ``file.py:attr`` names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, OutOfTime, did_you_mean
from agentopcd.core.files import is_file, path_of, resolved
from agentopcd.core.text import first_line

_FILES: dict[Path, ModuleType] = {}
"""Files that were run already; a second run would register the same ids again."""


def load(ref: str) -> Any:
    """Return the object that ``pkg.mod:attr`` or ``path/file.py:attr`` names; a file is run once per process.

    Raises:
        EnvError: the module cannot be imported, or it has no such attribute.
        DependencyError: an optional package is missing.
    """
    where, _, attribute = ref.rpartition(":")
    target: Any = load_module(where)
    for name in attribute.split("."):
        if not name or not hasattr(target, name):
            public = [known for known in vars(target) if not known.startswith("_")]
            raise EnvError(f"{where!r} has no {attribute!r}{did_you_mean(attribute, public)}")
        target = getattr(target, name)
    return target


def load_module(where: str) -> ModuleType:
    """Return the module that ``pkg.mod`` or ``path/file.py`` names.

    Raises:
        EnvError: it cannot be imported.
        DependencyError: an optional package is missing.
    """
    with importing(repr(where)):
        return _load_file(Path(where)) if where.endswith(".py") else _load_named(where)


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Turn whatever other people's code raises while it is imported, ``sys.exit()`` included, into an EnvError."""
    try:
        yield
    except (EnvError, DependencyError):
        raise
    except SystemExit as leaving:
        code = "" if leaving.code is None else repr(leaving.code)
        raise EnvError(f"cannot import {what}: it called exit({code}); run it alone to see why") from leaving
    except (KeyboardInterrupt, GeneratorExit, OutOfTime):
        raise
    except BaseException as error:  # libraries have some of their own, such as a panic of Rust
        said = first_line(error, otherwise="(no message)")
        raise EnvError(f"cannot import {what}: {type(error).__name__}: {said}") from error


def _load_file(path: Path) -> ModuleType:
    path = resolved(path_of(path))
    if path in _FILES:
        return _FILES[path]
    if not is_file(path):
        raise EnvError(f"no file {str(path)!r}")
    name = f"agentopcd_env_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _FILES[path] = module
    return module


def _load_named(name: str) -> ModuleType:
    if not name:
        raise EnvError("a reference with ':' needs a module or a file before it")
    with _on_path(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on the import path; a console script does not have it there.

    Afterwards it stands last, where it hides nothing: a game may import its neighbours only when it begins.
    """
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
