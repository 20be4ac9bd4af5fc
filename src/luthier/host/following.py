"""An adaptation for the next task that begins with what another one hands on: streams of tasks, and starts that were trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.part import Layout, Part, T


@torch.no_grad()
def following(before: Adaptation, method: Part, base: nn.Module, **options: Any) -> Adaptation:
    """A fresh adaptation of `method` for `base` whose parts took over what `Part.carry` says, each from that at the same number.

    The output head is the new task's own. options: as of `Adaptation.new`. Raises OptionError where nothing can be taken over.
    """
    old = [p for p in before.placed() if p.part is not before.head]
    layouts: dict[str, dict[str, Layout]] = {}
    values: dict[str, dict[str, dict[str, Tensor]]] = {}
    for i, (part, placed) in enumerate(zip(method.parts(), old)):
        for at in placed.ats():
            kept = T({k: v.detach() for k, v in at.values.items()})
            kept.layout = at.layout
            layout, taken = part.carry(at.site, kept)
            layouts.setdefault(str(i), {})[at.site.name] = layout
            values.setdefault(str(i), {})[at.site.name] = dict(taken)
    made = Adaptation.new(method, base, layouts=layouts, **options)
    count = 0
    for i, placed in enumerate(made.placed()[: len(old)]):
        count += sum(
            _take(at.values, values.get(str(i), {}).get(at.site.name, {}), method, at.site.name)
            for at in placed.ats()
        )
        shared = {k: v.detach() for k, v in old[i].common.items() if k in placed.common}
        count += _take(placed.common, shared, method, "shared")
    if not count:
        raise OptionError(
            f"{before.method.name} hands on nothing that {method.name} takes over here. Begin with an adaptation of the same method "
            "and targets, or afresh."
        )
    return made


def _take(into: nn.ParameterDict, values: dict[str, Tensor], method: Part, where: str) -> int:
    """Copy what there is a place for; returns how many tensors that were."""
    known = {k: v for k, v in values.items() if k in into}
    for name, value in known.items():
        if into[name].shape != value.shape:
            raise OptionError(
                f"{method.name} at {where}: {name} is {tuple(into[name].shape)}, and what it begins with {tuple(value.shape)}. Choose "
                "the same sizes (length, rank, ...)."
            )
        into[name].copy_(value)
    return len(known)
