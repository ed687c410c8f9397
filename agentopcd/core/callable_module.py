"""A module that can be called like the function of the same name in it, so that both names work.

Importing ``agentopcd.consolidate`` binds the module to that name in the package. So ``from agentopcd import
consolidate`` gives the module, whatever the package says; calling it calls the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the module ``name``, which is being imported, be called."""
    sys.modules[name].__class__ = _Callable
