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

from agentopcd.core.errors import DependencyError, EnvError, did_you_mean
from agentopcd.core.files import is_file, path_of

_FILES: dict[Path, ModuleType] = {}
"""Files that were run already; a second run would register the same ids again."""


def load(ref: str) -> Any:
    """Return the object that ``pkg.mod:attr`` or ``path/file.py:attr`` names; a file is run once per process.

    Raises:
        EnvError: the module cannot be imported, or it has no such attribute.
        DependencyError: an optional package is missing.
    """
    where, _, attribute = ref.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    except (EnvError, DependencyError):
        raise
    except Exception as error:
        raise EnvError(f"cannot import {where!r}: {type(error).__name__}: {error}") from error
    target: Any = module
    for name in attribute.split("."):
        if not name or not hasattr(target, name):
            public = [known for known in vars(target) if not known.startswith("_")]
            raise EnvError(f"{where!r} has no {attribute!r}{did_you_mean(attribute, public)}")
        target = getattr(target, name)
    return target


def _load_file(path: Path) -> ModuleType:
    path = path_of(path).resolve()
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


def _load_module(name: str) -> ModuleType:
    if not name:
        raise EnvError("a reference with ':' needs a module or a file before it")
    with _on_path(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Put ``folder`` on the import path; a console script does not have it there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
