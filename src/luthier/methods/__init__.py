"""Methods, one file each, in folders by place. They load on use, found through `index.json`.

luthier.methods.LoRA(rank=4)                  # by class
luthier.methods.make("lora", {"rank": "4"})   # by name, with values as text
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.errors import OptionError

NAMED = 24
"""So many methods an error names at most; `luthier methods` lists all."""


@cache
def entries() -> dict[str, dict[str, Any]]:
    """{name: what the index says of the method}. Does not load torch."""
    path = Path(__file__).with_name("index.json")
    return json.loads(path.read_text(encoding="utf-8"))["methods"] if path.exists() else {}


def entry(name: str) -> dict[str, Any]:
    """The index's entry of a method, by its or its class's name. Raises OptionError listing all."""
    known = entries()
    for found in known.values():
        if name in (found["name"], found["class"]):
            return found
    import difflib

    whole = [
        n for n, found in known.items() if found["place"] != "output"
    ]  # heads are no methods by themselves
    close = difflib.get_close_matches(name.lower(), whole, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    named = whole if len(whole) <= NAMED else [*whole[:NAMED], f"and {len(whole) - NAMED} more"]
    raise OptionError(
        f"No method is called {name!r}.{hint} There are: {', '.join(named)}. See: luthier methods"
    )


def get(name: str) -> type:
    """The class of the method called `name`: from the index, or registered since by a newer file or by the
    user's own module. Raises OptionError."""
    for found in entries().values():
        if name in (found["name"], found["class"]):
            return getattr(import_module(found["module"]), found["class"])
    from luthier.methods.index import registered

    for key, cls in registered().items():
        if name in (key, cls.__name__):
            return cls
    entry(name)
    raise AssertionError(name)


def load_all() -> None:
    """Import every method, so that cards that name them can be read."""
    from luthier.methods.index import import_all

    import_all()


def make(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The method `name` with options, whose values may be text. Raises OptionError naming what is wrong."""
    from luthier.host.options import fields_of
    from luthier.host.options import make as make_options

    kind, settings = get(name), dict(settings or {})
    if any(hasattr(fields_of(kind).get(key), "registered_kind") for key in settings):
        load_all()  # a source or a start may be named that the method's own file does not import
    return make_options(kind, settings)


def __getattr__(name: str) -> Any:
    for found in entries().values():
        if name == found["class"]:
            return getattr(import_module(found["module"]), name)
    if name[:1].isupper() and "luthier.host.options" in sys.modules:
        from luthier.methods.index import registered

        for cls in registered().values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"luthier.methods has no attribute {name!r}. See: luthier methods")


def __dir__() -> list[str]:
    return sorted([*globals(), *(found["class"] for found in entries().values())])
