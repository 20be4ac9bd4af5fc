"""Histories in a run: an adaptation whose source reads them is given those of its rows, as vectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from luthier.errors import DataError


def histories_for(adaptation: Any, split: Any) -> tuple[Tensor, Tensor] | None:
    """What the sources of `adaptation` read of a split's histories (`HistoryReader.read`); None: they read none.

    DataError where the rows have no histories. Sources that read them say how by `reader()`.
    """
    from luthier.host.adapted import terms

    for _, term in terms(adaptation):
        for placed in term.every_placed():
            reader = getattr(placed.part.source, "reader", None)
            if reader is not None:
                if split.histories is None:
                    raise DataError(
                        f"{term.method.name} reads a history of texts with every row, and these rows have none. Name its column "
                        "with --history (in Python history=)."
                    )
                return reader().read(split.histories)
    return None
