"""A bank: many adaptations of one shape over one base, one for each row of a batch, at a cost flat in how many are held.

Tensors are stacked, (capacity, ...); a forward gathers the rows' own and multiplies in batches. Adding and exchanging write
one slot. Methods of different shapes share a batch through `Adapted` (`adaptation` names one for each row) instead.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.context import Context
from luthier.host.options import register, to_card
from luthier.host.part import Source
from luthier.host.places import Stack, Subset


@register("bank")
class BankRows(Source):
    """Each row's tensors, gathered from the stacked ones by the `adaptation` of the batch."""

    by_row = True

    def prepare(self, part, t, wanted, ctx):
        return ctx.need("slots")

    def make(self, part, site, t, ctx, made=None):
        shared = part.shared([site])
        return {k: v if k in shared else v.index_select(0, made) for k, v in t.items()}


class Bank(nn.Module):
    """bank = Bank(base, {"x": a, "y": b}); with bank.attached(adapted): bank(adapted, batch, ["x", "y", ...])."""

    def __init__(self, base: nn.Module, adaptations: Mapping[str, Adaptation], capacity: int = 8):
        super().__init__()
        if not adaptations:
            raise OptionError("A bank needs at least one adaptation.")
        first = next(iter(adaptations.values()))
        for placed in first.placed():
            if isinstance(placed.part, (Stack, Subset)) or placed.network is not None or first.members:
                raise ModelError(
                    f"{placed.part.name} cannot serve rows of one batch differently: attach it by name instead."
                )
            if placed.part.source.by_row:
                raise ModelError(
                    f"{placed.part.name}: the source {placed.part.source.name} makes numbers from the input, which a bank cannot hold. "
                    "Attach it by name instead."
                )
        self.base = base
        self.names: dict[str, int] = {}
        self.classes: dict[str, int] = {}
        self.free: list[int] = []
        self.shape = _shape(first)
        self.adaptation = _stacked(first, max(capacity, len(adaptations)))
        self.labels: dict[str, Any] = {}
        self.capacity = 0
        self._grow(max(capacity, len(adaptations)))
        for name, a in adaptations.items():
            self.add(name, a)

    def _grow(self, capacity: int) -> None:
        with torch.no_grad():
            for placed in self.adaptation.placed():
                for at in placed.ats():
                    for k, v in list(at.values.items()):
                        if len(v) < capacity:
                            more = v.new_zeros(capacity - len(v), *v.shape[1:])
                            at.values[k] = nn.Parameter(torch.cat([v, more]), requires_grad=False)
        self.free += list(range(self.capacity, capacity))
        self.capacity = capacity

    def add(self, name: str, adaptation: Adaptation) -> None:
        """Hold one more. Another method, rank or site raises and names the difference."""
        if name in self.names:
            raise OptionError(
                f"The bank holds an adaptation named {name!r} already. Use swap(), or another name."
            )
        self._fits(adaptation)
        if not self.free:
            self._grow(2 * self.capacity)
        slot = self.free.pop(0)
        self._write(slot, adaptation)
        self.names[name] = slot
        self.labels[name] = adaptation.task

    def swap(self, name: str, adaptation: Adaptation) -> None:
        """Put another adaptation in a name's place."""
        if name not in self.names:
            raise OptionError(f"The bank holds no {name!r}. It holds: {', '.join(self.names) or 'nothing'}.")
        self._fits(adaptation)
        self._write(self.names[name], adaptation)
        self.labels[name] = adaptation.task

    def remove(self, name: str) -> None:
        if name not in self.names:
            raise OptionError(f"The bank holds no {name!r}. It holds: {', '.join(self.names) or 'nothing'}.")
        self.free.insert(0, self.names.pop(name))
        self.labels.pop(name, None)

    def _fits(self, adaptation: Adaptation) -> None:
        if _shape(adaptation) != self.shape:
            raise OptionError(
                f"The bank holds {self.adaptation.method.name} of one shape; {adaptation.method} has other options, layouts or sites. Attach it by name instead."
            )

    @torch.no_grad()
    def _write(self, slot: int, adaptation: Adaptation) -> None:
        ctx = Context()
        for mine, theirs in zip(self.adaptation.placed(), adaptation.placed(), strict=True):
            ctx.made[theirs.key] = theirs.prepare(ctx)
            for a, b in zip(mine.ats(), theirs.ats(), strict=True):
                made = b.t(ctx)
                for k, v in a.values.items():
                    new = made[k]
                    v[slot].zero_()
                    v[slot][tuple(slice(0, n) for n in new.shape)] = new.to(v)
                    if k == "b" and mine.part is self.adaptation.head and len(new) < v.shape[1]:
                        v[slot][len(new) :] = float("-inf")  # classes that this head does not have

    def route(self, names: Sequence[str]) -> Tensor:
        """(rows,) slots for the names of a batch's rows."""
        if unknown := sorted(set(names) - set(self.names)):
            raise OptionError(
                f"The bank holds no {unknown[0]!r}. It holds: {', '.join(self.names) or 'nothing'}."
            )
        device = next(self.base.parameters(), torch.zeros(())).device
        return torch.tensor([self.names[n] for n in names], device=device)

    def forward(self, adapted: Any, batch: Mapping[str, Any], names: Sequence[str]) -> Any:
        """One pass over a batch whose rows belong to `names`; the bank must be attached to `adapted`."""
        with adapted.given(slots=self.route(names)):
            return adapted(batch)


def _shape(a: Adaptation) -> Any:
    """What two adaptations of one bank share: options apart from the start, layouts, sites."""
    card = to_card(a.method)
    card.pop("start", None), card.pop("source", None)
    return (
        card,
        a.layouts(),
        [[s.name for s in p.sites] for p in a.placed() if p.part is not a.head],
        a.head is None,
    )


def _stacked(first: Adaptation, capacity: int) -> Adaptation:
    """An adaptation with a leading dimension on every tensor, read by row."""
    stacked = copy.deepcopy(first)
    stacked.requires_grad_(False)
    for placed, theirs in zip(stacked.placed(), first.placed(), strict=True):
        wanted = theirs.wanted()
        placed.part = dataclasses.replace(placed.part, source=BankRows())
        if getattr(placed.part.start, "anchored", False):
            raise ModelError(
                f"{placed.part.name} starts from an anchored start: its effect is a difference, which a bank does not hold."
            )
        if placed.fixed != set(placed.part.shared(placed.sites)):
            raise ModelError(
                f"{placed.part.name} trains tensors that all its sites share, which a bank does not hold. Attach it by name instead."
            )
        placed.common = nn.ParameterDict({k: v for k, v in placed.common.items() if k in placed.fixed})
        for at in placed.ats():
            at.values = nn.ParameterDict(
                {
                    k: nn.Parameter(torch.zeros(capacity, *s.shape, dtype=s.dtype), requires_grad=False)
                    for k, s in wanted[at.site.name].items()
                }
            )
    if stacked.head is not None:
        stacked.head = stacked.placed()[-1].part
    return stacked
