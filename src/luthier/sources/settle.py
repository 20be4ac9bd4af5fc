"""Settling: an adaptation whose numbers are made by a source, as one that holds them plainly (no source, the same outputs)."""

from __future__ import annotations

from typing import Any

import torch

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.options import to_card
from luthier.host.part import Free


@torch.no_grad()
def settled(adaptation: Adaptation, base: Any) -> Adaptation:
    """The same adaptation with `source=free`: what the source makes is computed once and kept.

    The head, the task and everything that is said of it come along. Raises OptionError for a source whose numbers
    depend on the input, and for methods of several parts, whose sources are their own.
    """
    method = adaptation.method
    if type(method.source) is Free:
        return adaptation
    if len(method.parts()) != 1 or method.source.by_row:
        raise OptionError(
            f"{method.name}: what its source makes depends on the input, or its parts have sources of their own. It cannot be settled."
        )
    made = Adaptation.from_card({**adaptation.card(), "method": to_card(method.plain())}, base)
    for old, new in zip(adaptation.placed(), made.placed(), strict=True):
        prepared = old.prepare(None)
        for a, b in zip(old.ats(), new.ats(), strict=True):
            values = a.made(None, prepared)
            for name, p in b.values.items():
                p.data = values[name].detach().clone()  # in the precision that it was made in
    return made
