"""Options: methods, sources and starts are frozen dataclasses that print, save and load by a registered name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from luthier.errors import OptionError

REGISTRY: dict[tuple[str, str], type] = {}
"""Every registered choice by (kind, name): a method and the start that it is known for may share a name (eva)."""

C = TypeVar("C", bound=type)
CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(cls: C) -> C:
    """Make `cls` a frozen dataclass whose fields are validated options; unknown ones are refused."""
    return pydantic_dataclass(cls, config=CONFIG, frozen=True, kw_only=True)  # type: ignore[return-value,call-overload,no-any-return]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def register(name: str, **defaults: Any) -> Callable[[C], C]:
    """Register a choice under `name`. `defaults` replaces class attributes and inherited options' defaults."""

    def wrap(cls: C) -> C:
        inherited = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
        own = inspect.get_annotations(cls)
        for key, value in defaults.items():
            if key in inherited and key not in own:
                own = {**own, key: inherited[key].type}
            setattr(cls, key, value)
        cls.__annotations__ = own
        made = options(cls)
        made.name = name  # type: ignore[attr-defined]
        entry = made.registered_kind, name  # type: ignore[attr-defined]
        if entry in REGISTRY and REGISTRY[entry].__qualname__ != made.__qualname__:
            raise OptionError(
                f"Two choices are named {name!r}: {REGISTRY[entry].__module__} and {made.__module__}."
            )
        REGISTRY[entry] = made
        return made

    return wrap


def known(kind: type) -> dict[str, type]:
    """All registered choices that are a `kind` (Part, Source, Start), by name."""
    return {n: c for (_, n), c in sorted(REGISTRY.items()) if issubclass(c, kind)}


def fields_of(cls: type) -> dict[str, Any]:
    """Option names of a registered class with their resolved types."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls)}


def look_up(name: str, kind: type, what: str) -> type:
    """The registered class called `name`, or an error that lists what there is."""
    found = REGISTRY.get((kind.registered_kind, name))  # type: ignore[attr-defined]
    if found is None or not issubclass(found, kind):
        names = list(known(kind))
        raise OptionError(
            f"No {what} is called {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}."
        )
    return found


def did_you_mean(name: str, names: typing.Iterable[str]) -> str:
    """A hint with the closest of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def make(cls: type, settings: Mapping[str, Any]) -> Any:
    """An instance of a registered class from settings: values, strings, or dotted keys for nested choices.

    `make(LoRA, {"rank": "8", "start": "pissa", "start.rank": 4})`. Raises OptionError naming the option.
    """
    types = fields_of(cls)
    nested: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for key, value in settings.items():
        head, _, tail = key.partition(".")
        if head not in types:
            raise OptionError(
                f"{cls.name} has no option {head!r}.{did_you_mean(head, types)} Its options: {', '.join(types) or 'none'}."  # type: ignore[attr-defined]
            )
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            plain[head] = value
    for key, kind in types.items():
        if (
            inspect.isclass(kind)
            and (isinstance(plain.get(key), str) or key in nested)
            and hasattr(kind, "registered_kind")
        ):
            chosen = plain.get(key, _default(cls, key))
            if isinstance(chosen, str):
                chosen = look_up(chosen, kind, kind.registered_kind)
                plain[key] = make(chosen, nested.get(key, {}))
            else:
                plain[key] = make(type(chosen), {**vars_of(chosen), **nested.get(key, {})})
        elif key in nested:
            raise OptionError(f"{cls.name}.{key} is not a choice with options of its own.")  # type: ignore[attr-defined]
    try:
        return cls(**plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"]) or "options"
        raise OptionError(f"{cls.name}: {where}={first.get('input')!r}: {first['msg']}.") from None  # type: ignore[attr-defined]


def _default(cls: type, key: str) -> Any:
    return next(f.default for f in dataclasses.fields(cls) if f.name == key)


def vars_of(choice: Any) -> dict[str, Any]:
    """The options of an instance as a dict, nested choices left as they are."""
    return {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice)}


def to_card(value: Any) -> Any:
    """JSON for a choice: `{"is": name, option: value, ...}`, nested."""
    if dataclasses.is_dataclass(value) and hasattr(value, "name"):
        return {"is": value.name, **{k: to_card(v) for k, v in vars_of(value).items()}}
    return [to_card(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_card(card: Any, kind: type | None = None) -> Any:
    """The choice that `to_card` described. Missing or unknown options, names and types raise OptionError.

    kind: what it must be; None: whatever has that name, if only one kind does.
    """
    if isinstance(card, list):
        return tuple(from_card(v) for v in card)
    if not (isinstance(card, dict) and "is" in card):
        return card
    name = card["is"]
    cls = _named(name, kind)
    if cls is None or (kind is not None and not issubclass(cls, kind)):
        raise OptionError(
            f"The card names {str(name)[:60]!r}, which this version does not know. Update luthier or check the file."
        )
    kinds = {k: v for k, v in fields_of(cls).items() if hasattr(v, "registered_kind")}
    given = {k: from_card(v, kinds.get(k)) for k, v in card.items() if k != "is"}
    wanted = {f.name for f in dataclasses.fields(cls)}
    if odd := sorted(set(given) ^ wanted):
        raise OptionError(
            f"{name}: options {', '.join(map(str, odd))[:200]} are missing or unknown in the card."
        )
    try:
        return cls(**given)
    except ValidationError as error:
        raise OptionError(f"{name}: {error.errors()[0]['msg']} in the card.") from None


def _named(name: Any, kind: type | None) -> type | None:
    if not isinstance(name, str):
        return None
    if kind is not None:
        return REGISTRY.get((kind.registered_kind, name))  # type: ignore[attr-defined]
    found = [c for (_, n), c in REGISTRY.items() if n == name]
    return found[0] if len(found) == 1 else None
