"""Data: reading it safely, splitting it once and for all, and scoring what a model says about it.

The package is callable, so that `lt.data("reviews.csv", input="text")` and `luthier.data.load_data(...)` are
one thing: a package and a function cannot both be the attribute `luthier.data` otherwise. Names load on use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.data.load import load_data, load_split
    from luthier.data.split import Data, Split, class_weights, controlled
    from luthier.data.task import Task

__all__ = ["Data", "Split", "Task", "class_weights", "controlled", "load_data", "load_split"]

_HOMES = {
    "Data": "split",
    "Split": "split",
    "Task": "task",
    "class_weights": "split",
    "controlled": "split",
    "load_data": "load",
    "load_split": "load",
}


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "Data":
        return import_module("luthier.data.load").load_data(*args, **options)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"luthier.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'luthier.data' has no attribute {name!r}")
