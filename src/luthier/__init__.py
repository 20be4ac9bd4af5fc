"""Luthier: adapt a pretrained model to a task by any published way, and find out which way is best.

    import luthier as lt
    model = lt.load("builtin:minilm")
    data = lt.data("reviews.csv", input="text", label="label")
    a = lt.fit(model, data, method=lt.methods.LoRA(rank=8), out="run/")

Everything loads on use: importing this module loads neither torch nor transformers.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier import data, methods, search
    from luthier.adaptations import load_adaptation
    from luthier.compare.compare import compare
    from luthier.compare.sized import sized
    from luthier.estimator import Classifier, Regressor
    from luthier.host import stack
    from luthier.models.load import load
    from luthier.streams.stream import stream
    from luthier.train.fit import fit

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Regressor",
    "compare",
    "data",
    "errors",
    "fit",
    "load",
    "load_adaptation",
    "methods",
    "search",
    "sized",
    "stack",
    "stream",
]

_HOMES = {
    "Classifier": "luthier.estimator",
    "Regressor": "luthier.estimator",
    "fit": "luthier.train.fit",
    "load": "luthier.models.load",
    "load_adaptation": "luthier.adaptations",
    "sized": "luthier.compare.sized",
    "stack": "luthier.host",
    "stream": "luthier.streams.stream",
}
_PACKAGES = ("compare", "data", "errors", "methods", "search")
_CALLS = {
    "compare": ("luthier.compare.compare", "compare"),
    "data": ("luthier.data.load", "load_data"),
    "search": ("luthier.search.search", "search"),
}
"""Packages that are also called: `lt.data("reviews.csv")` and `luthier.data.load` share one attribute."""


class _Called(ModuleType):
    """A package that calls the function which gave it its name."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        module, name = _CALLS[self.__name__.rpartition(".")[2]]
        return getattr(import_module(module), name)(*args, **settings)


class _Luthier(ModuleType):
    """This module: makes a package callable when the import system attaches it, whoever imports it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLS and type(value) is ModuleType:
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Luthier


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"luthier.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"luthier has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
