"""One set of numbers for each label, of which every row gets its own label's (control tokens: S227; parts of a prompt: S287).

t = table[a]    table: (labels, ...), one of what the part wants for each label; a: the row's label, with every batch under `attributes`
Each label has a start of its own. Without labels all rows share one set, and nothing is asked of the batch. A change of weights by
label merges for one label: `adapted.merge(name, attributes=["good"])`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from pydantic import NonNegativeInt

from luthier.errors import OptionError, RunError
from luthier.host.part import Source, register
from luthier.sources.labels import declared, number, of_rows


@register("by_label")
class ByLabel(Source):
    """What trains is counted as the part's own, once for each label."""

    labels: str = ""  # the labels: "good, bad"
    attribute: NonNegativeInt = 0  # which of the rows' attributes they are labels of, from 0
    unseen: Literal["raise", "zero"] = "raise"  # what becomes of a label that is not among them
    tensors: str = (
        ""  # which tensors each label has of its own, joined by |; empty: all, the others are every label's
    )

    by_row = True

    @property
    def names(self) -> list[str]:
        """The labels; none where all rows share one set."""
        groups = declared(f"source {self.name}", self.labels)
        if len(groups) > 1:
            raise OptionError(
                f"source by_label: labels={self.labels!r} are of {len(groups)} attributes, and it reads one. Give each part a source of its own."
            )
        return groups[0] if groups else []

    def own(self, part, wanted: Collection[str]) -> list[str]:
        """The tensors that each label has of its own. OptionError for one that the part does not have."""
        chosen = [name.strip() for name in self.tensors.split("|")] if self.tensors else list(wanted)
        if odd := [name for name in chosen if name not in wanted]:
            raise OptionError(
                f"source by_label: {part.name} has no tensor {odd[0]!r}; it has {', '.join(wanted)}. Name some of these, or leave tensors empty."
            )
        return chosen

    def specs(self, part, site, layout, wanted):
        n = len(self.names)
        if any(not s.stored for s in wanted.values()):
            raise OptionError(
                f"{part.name}: what a seed redraws is not kept for each label. Choose another method."
            )
        own = self.own(part, wanted) if n else ()
        return {k: s._replace(shape=(n, *s.shape), start=None) if k in own else s for k, s in wanted.items()}

    def begin(self, part, site, draw):
        if not self.names:
            return draw()
        each = [draw() for _ in self.names]
        own = self.own(part, each[0])
        return {k: torch.stack([one[k] for one in each]) if k in own else v for k, v in each[0].items()}

    def make(self, part, site, t, ctx, made=None):
        if not self.names:
            return t
        own = self.own(part, list(part.tensors(site, t.layout)))
        at = self.chosen(ctx, t[own[0]].device)
        if at.dim() == 0:
            return {**t, **{k: t[k][at] for k in own}}
        return {**t, **{k: t[k][at.clamp(min=0)] * _kept(at, t[k]) for k in own}}

    def chosen(self, ctx, device):
        """(rows,): which label each row has; -1: one whose numbers are zero. (): the one that all of them have."""
        if ctx is None:
            raise RunError("Numbers by label exist in a forward only.")
        key = f"label {self.attribute}:{self.unseen}:{self.labels}"
        if key not in ctx.made:
            found = [self._row(row) for row in of_rows(ctx)]
            same = len(set(found)) == 1 and found[0] >= 0
            ctx.made[key] = torch.tensor(found[0] if same else found, device=device)
        return ctx.made[key]

    def _row(self, labels):
        if labels is None:
            return -1
        if self.attribute >= len(labels):
            raise RunError(
                f"source by_label reads attribute {self.attribute}, and a row has {len(labels)} ({str(labels)[:60]}). Give one label for each attribute."
            )
        return number(f"source {self.name}", labels[self.attribute], self.names, self.unseen == "zero")


def _kept(at, table):
    """(rows, 1, ...): 0 for rows whose numbers are zero, in the table's own kind of number."""
    return (at >= 0).view(-1, *[1] * (table.dim() - 1)).to(table.dtype)
