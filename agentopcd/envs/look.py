"""Look whether something is an environment, or builds one, before it is called.

A reference such as ``pkg.mod:attr`` can name any function there is, also one that deletes files, and it can come from a
settings file of somebody else. Importing a module runs its code, and nothing here prevents that; but what is not
recognisable as an environment is not called.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, get_type_hints

LIBRARIES = ("gymnasium", "agentopcd.envs")
"""A function that uses one of these modules, or something of theirs, builds an environment."""


def builds_environment(target: Any) -> bool:
    """Whether ``target`` is a class with ``reset`` and ``step``, or a function that names one.

    A function names one by its return annotation or in its body, where it may also call another function that does.
    """
    return _builds(target, set())


def _builds(target: Any, seen: set[int]) -> bool:
    if id(target) in seen:
        return False
    seen.add(id(target))
    if isinstance(target, functools.partial):
        return _builds(target.func, seen)
    if inspect.isclass(target):
        return _is_class(target)
    function: Any = target if inspect.isroutine(target) else vars(type(target)).get("__call__")
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):  # written in C
        return False
    if "Env" in str(getattr(function, "__annotations__", {}).get("return", "")):
        return True
    names = _names(code)
    if any(_is_in(name) for name in names):  # imported in the body, perhaps for the first time
        return True
    found = list(_meant(names, function.__globals__))
    return any(_is_of(one) or _is_class(one) or _inner(one, seen) for one in found)


def class_of(target: Any) -> type | None:
    """The class that ``target`` is, or that a function builds by its return annotation; None if nothing tells it."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isclass(target):
        return target
    function: Any = target if inspect.isroutine(target) else vars(type(target)).get("__call__")
    function = inspect.unwrap(getattr(function, "__func__", function))
    told = getattr(function, "__annotations__", {}).get("return")
    if isinstance(told, str):  # from __future__ import annotations; of the other annotations, nothing is wanted
        try:
            holder = SimpleNamespace(__annotations__={"return": told})
            told = get_type_hints(holder, function.__globals__)["return"]
        except Exception:  # a name that is imported for type checkers only, for example
            return None
    return told if inspect.isclass(told) else None


def _inner(found: Any, seen: set[int]) -> bool:
    return (inspect.isfunction(found) or isinstance(found, functools.partial)) and _builds(found, seen)


def _names(code: CodeType) -> list[str]:
    """The names in a function's body: globals, imports, attributes."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return [*code.co_names, *(name for one in inner for name in _names(one))]


def _meant(names: Sequence[str], scope: dict[str, Any]) -> Iterator[Any]:
    """What these names may stand for: globals, imported modules, and what is taken from them."""
    modules = []
    for name in names:
        found = scope.get(name, sys.modules.get(name))
        if isinstance(found, ModuleType):
            modules.append(found)
        yield found
    for module in modules:
        yield from (vars(module).get(name) for name in names)


def _is_class(found: Any) -> bool:
    return inspect.isclass(found) and callable(getattr(found, "reset", None)) and callable(getattr(found, "step", None))


def _is_of(found: Any) -> bool:
    """Whether something is one of :data:`LIBRARIES`, or a part of one."""
    module = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    return isinstance(module, str) and _is_in(module)


def _is_in(name: str) -> bool:
    return any(f"{name}.".startswith(f"{library}.") for library in LIBRARIES)
