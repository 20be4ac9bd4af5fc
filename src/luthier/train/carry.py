"""Other adaptations that a fit is given: one that it begins with, and those that its plan reads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.options import to_card
from luthier.host.part import Part
from luthier.host.placed import At, Placed
from luthier.host.structure import structure_of
from luthier.starts.carried import Carried


def one_of(model: Any, given: Any, what: str) -> Adaptation:
    """The adaptation that fit is given as `what`: itself, or a fitted one's. OptionError where it belongs to another base."""
    found = getattr(given, "adaptation", given)
    if not isinstance(found, Adaptation):
        raise OptionError(f"{what} is a {type(found).__name__}: give one adaptation, not a combination.")
    theirs = getattr(given, "model", None)
    if theirs is not None and theirs.fingerprint != model.fingerprint:
        raise OptionError(
            f"{what} was fitted on another base ({theirs.name}). Give one that was fitted on {model.name}."
        )
    return found


def goes_on(before: Adaptation, method: Any) -> bool:
    """Whether a method takes over another adaptation part by part (`Part.carry`): one that says how, or one of several parts from its own
    kind. Else what the other comes to is its start."""
    parts = method.parts()
    if any(type(p).carry is not Part.carry for p in parts):
        return True
    return len(parts) > 1 and type(method) is type(before.method)


def starting_there(method: Any) -> Any:
    """The method with its start exchanged for what another adaptation holds. OptionError where it has no one start."""
    has = any(f.name == "start" for f in dataclasses.fields(method))
    made = dataclasses.replace(method, start=Carried()) if has else method
    if len(made.parts()) != 1 or not isinstance(made.parts()[0].start, Carried):
        raise OptionError(
            f"{method.name} has no one start that another adaptation could take the place of. Choose a method of one part, "
            "e.g. prompt_tuning or lora."
        )
    return made


def carried(other: Adaptation, base: Any, method: Any) -> dict[str, dict[str, Any]]:
    """{site: {"carried": {tensor: value}}}: what the part there reads and, where sources are the same, what it is made from."""
    from luthier.sources.settle import settled

    old = _own(other)
    same = type(old.part.source) is type(method.parts()[0].source)
    plain = old if same and old.part.source.by_row else _own(settled(other, base))
    found: dict[str, dict[str, Any]] = {s.name: {} for s in method.parts()[0].sites(structure_of(base))}
    for raw, made in zip(old.ats(), plain.ats(), strict=True):
        found[raw.site.name] = {**made.values, **(raw.values if same else {})}
    return {site: {"carried": values} for site, values in found.items()}


def take_over(made: Adaptation, other: Adaptation) -> None:
    """Copy what the same source keeps (factors, nets) where names and shapes are the same; the start has set the rest."""
    new, old = _own(made), _own(other)
    if type(new.part.source) is not type(old.part.source):
        return
    pairs = [(new.common, old.common)]
    theirs: dict[str, At] = {a.site.name: a for a in old.ats()}
    pairs += [(a.values, theirs[a.site.name].values) for a in new.ats() if a.site.name in theirs]
    if all({k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()} for a, b in pairs):
        with torch.no_grad():
            for a, b in pairs:
                for name, value in a.items():
                    value.copy_(b[name])


def _own(adaptation: Adaptation) -> Placed:
    if len(adaptation.method.parts()) != 1:
        raise OptionError(
            f"{adaptation.method.name} has several parts: start from an adaptation of one, e.g. of prompt_tuning or lora."
        )
    return adaptation.placed()[0]


def companions_of(method: Any, given: Mapping[str, Any], model: Any) -> dict[str, Adaptation]:
    """The adaptations that a method's plan reads, by name. OptionError for one that is missing, unknown or of another base."""
    if odd := sorted(set(given) ^ set(method.companions)):
        asked = ", ".join(method.companions) or "none"
        raise OptionError(
            f"{method.name} reads these companions: {asked}; {odd[0]!r} is {'not one' if odd[0] in given else 'missing'}. "
            "Give each as companions={name: adaptation}, or --companion NAME=DIR."
        )
    return {name: one_of(model, one, f"The companion {name!r}") for name, one in given.items()}


def members_of(method: Any, given: Mapping[str, Any], model: Any) -> dict[str, Adaptation]:
    """Copies of the adaptations that a method refers to, by name. OptionError where it refers to none, or to none that is given."""
    asked = [word for part in method.parts() for word in part.members]
    if bool(asked) != bool(given):
        raise OptionError(
            f"{method.name} refers to {' and '.join(asked)}. Give each as members={{name: adaptation}}, or --member NAME=DIR."
            if asked
            else f"{method.name} refers to no other adaptations; {next(iter(given))!r} is too many. Leave members out, or choose adapter_fusion."
        )
    if odd := [name for name in given if not name or "." in name or "/" in name]:
        raise OptionError(f"A member needs a name without '.' and '/', not {odd[0]!r}.")
    return {name: copy.deepcopy(one_of(model, one, f"The member {name!r}")) for name, one in given.items()}


def with_head_of(other: Adaptation, head: Any, base: Any) -> Adaptation:
    """A copy of a companion that answers as the run does: with its own output head where that is of the run's kind and size,
    with the run's where that holds no tensors, and else with none (it then gives hidden states, or a language model's logits)."""
    if other.head is not None and head is not None and to_card(other.head) == to_card(head):
        return copy.deepcopy(other)
    bare = head is not None and not any(head.tensors(s, {}) for s in head.sites(structure_of(base)))
    parts = other.placed()[: len(other.method.parts())]
    sites = [[s.name for s in placed.sites] for placed in parts]
    if bare:
        sites.append([s.name for s in head.sites(structure_of(base))])
    card = {**other.card(), "head": to_card(head) if bare else None, "sites": sites}
    made = Adaptation.from_card(card, base)
    held = other.state(everything=True)
    made.load_state({name: held[name] for name in made.state(everything=True)}, everything=True)
    return made
