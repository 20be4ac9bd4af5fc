"""Which modules a peft configuration names: the other library matches by suffix or by regular expression, we by exact names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from luthier.convert.folder import CONFIG, PREFIX
from luthier.errors import FileFormatError
from luthier.host.sites import Site, Structure, is_linear

PLAIN = re.compile(r"\^?(?:\w|-|\\?\.)+")
"""Keys of rank_pattern and alpha_pattern that are read: names, which are matched without any repetition."""


def hits(names: Collection[str], key: str) -> bool:
    """Whether a list of target_modules selects a module, as peft decides it."""
    return key in names or any(key.endswith(f".{n}") for n in names)


def ends(names: Collection[str], key: str) -> bool:
    """The same for feedforward_modules, whose suffixes need no dot in front."""
    return any(key.endswith(n) for n in names)


def exactly(
    base: nn.Module, wanted: Sequence[str], rule: Callable[[Collection[str], str], bool] = hits
) -> Any:
    """A value of target_modules that hits `wanted` and nothing else: their full names, or an expression where these hit more."""
    everything = [n for n, _ in base.named_modules() if n]
    if [n for n in everything if rule(wanted, n)] == [n for n in everything if n in set(wanted)]:
        return list(wanted)
    return "|".join(re.escape(n) for n in wanted)


def pattern_key(name: str) -> str:
    """A key of rank_pattern or alpha_pattern that matches one module."""
    return "^" + re.escape(name)


def first_match(patterns: Mapping[str, Any], name: str) -> Any:
    """The value of the first key that matches a module, as peft decides it; None: no key does."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return None


def read_patterns(config: Mapping[str, Any], key: str) -> dict[str, float]:
    """rank_pattern or alpha_pattern. Keys that are more than names are refused: a file's expressions are not evaluated."""
    found = config.get(key) or {}
    if not isinstance(found, dict) or len(found) > 100_000:
        raise FileFormatError(f"{CONFIG}: {key} is no object of names and numbers. Save the adapter anew.")
    for name, value in found.items():
        if not PLAIN.fullmatch(name) or len(name) > 512:
            raise FileFormatError(
                f"{CONFIG}: {key} has the expression {name[:60]!r}, and only names are read. Write each module's full name."
            )
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise FileFormatError(f"{CONFIG}: {key}[{name[:60]!r}] is no number of at least 0.")
    return found


def modules_of(keys: Iterable[str], suffixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """{module as the file names it: {suffix: key}}. FileFormatError for keys of another form."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        suffix = next((s for s in suffixes if key.endswith("." + s)), None)
        if suffix is None or not key.startswith(PREFIX):
            raise FileFormatError(
                f"The tensor {key[:120]!r} is not expected: names are {PREFIX}MODULE.{' or '.join(suffixes)}."
            )
        found.setdefault(key[len(PREFIX) : -len(suffix) - 1], {})[suffix] = key
    return found


class Resolved(NamedTuple):
    """The file's modules in this model. back: a module's name in the model -> as the file would name it."""

    sites: dict[str, Site]
    back: Callable[[str], str]


def resolve(base: nn.Module, structure: Structure, names: Iterable[str]) -> Resolved:
    """The sites of modules that a file names: as they are, or all without or with the body's name in front."""
    names = list(names)
    if not names:
        raise FileFormatError("The file holds no tensors of adapted modules. Save the adapter anew.")
    sites = {s.name: s for s in structure.sites if s.rows is None and is_linear(base.get_submodule(s.path))}
    body = (getattr(base, "base_model_prefix", "") or "") + "."
    same, less, more = (lambda n: n), (lambda n: n.removeprefix(body)), (lambda n: body + n)
    for rule, back in ((same, same), (less, more), (more, less)):
        if all(rule(n) in sites and back(rule(n)) == n for n in names):
            return Resolved({n: sites[rule(n)] for n in names}, back)
    odd = next(n for n in names if n not in sites)
    raise FileFormatError(
        f"The adapter changes the module {odd[:120]!r}, which is no linear layer of {structure.model}: it is for another base, or for other layers than can be converted."
    )


def check_targets(config: Mapping[str, Any], resolved: Resolved, base: nn.Module) -> list[str]:
    """Compare target_modules with the modules that have tensors. Returns notes; FileFormatError where they contradict.

    Expressions are not evaluated (they come from a file and may never end): then the tensors decide.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    layers, inside = config.get("layers_to_transform"), config.get("layers_pattern") or []
    inside = [inside] if isinstance(inside, str) else inside
    layers = [layers] if isinstance(layers, int) else layers or []
    if not (
        _names(targets) and _names(excluded) and _names(inside) and all(PLAIN.fullmatch(i) for i in inside)
    ):
        return [
            "target_modules is a pattern, which is not evaluated: the modules are those that have tensors"
        ]
    if not isinstance(layers, list) or not all(type(i) is int for i in layers):
        raise FileFormatError(f"{CONFIG}: layers_to_transform is no list of layers. Save the adapter anew.")
    named, out = set(targets or ()), set(excluded)
    expected = {
        name
        for n, m in base.named_modules()
        if is_linear(m)
        and hits(named, name := resolved.back(n))
        and not hits(out, name)
        and (not layers or name in named or _layer(name, inside) in layers)
    }
    if odd := sorted(set(resolved.sites) - expected):
        raise FileFormatError(
            f"{CONFIG}: target_modules does not select {odd[0][:120]!r}, for which there are tensors: peft would not load them. Save the adapter anew."
        )
    if odd := sorted(expected - set(resolved.sites)):
        raise FileFormatError(
            f"{CONFIG}: target_modules selects {odd[0][:120]!r}, but there are no tensors for it: the file is not whole. Save the adapter anew."
        )
    return []


def _names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 100_000
        and all(isinstance(t, str) and len(t) <= 512 for t in value)
    )


def _layer(name: str, inside: Sequence[str]) -> int | None:
    """The index of the layer that holds a module, as peft reads it from the name."""
    for pattern in inside or [r"[^.]*"]:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if found:
            return int(found[1])
    return None


def targets_of(structure: Structure, sites: Sequence[Site]) -> str:
    """A selection (`luthier.host.sites.find`) of exactly these sites: roles where these suffice, else names."""
    if not sites:
        return ""
    chosen = {s.name for s in sites}
    wanted = list(dict.fromkeys(s.role for s in sites))
    if all(s.name in chosen for s in structure.sites if s.role in wanted):
        return " | ".join(wanted)
    return " | ".join(s.name for s in sites)
