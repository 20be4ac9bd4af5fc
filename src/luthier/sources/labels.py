"""The labels of a batch's rows: what `attributes` says, and which of the declared ones that is.

Declared: "formal, plain | short, long" are two attributes of two labels. Given: a name or a number a row, or a tuple of them, one
for each attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.errors import OptionError, RunError
from luthier.host.context import Context


def declared(who: str, labels: str) -> list[list[str]]:
    """The labels of each attribute. OptionError for an empty or a repeated one."""
    if not labels.strip():
        return []
    groups = [[name.strip() for name in group.split(",")] for group in labels.split("|")]
    if any(not all(names) or len(set(names)) < len(names) for names in groups):
        raise OptionError(
            f"{who}: labels={labels!r} has an empty or a repeated label. Write them as 'formal, plain | short, long'."
        )
    return groups


def of_rows(ctx: Context) -> list[tuple[Any, ...] | None]:
    """The labels of each row, as they were given; None for rows of other adaptations in a mixed batch, which have none."""
    given = ctx.need("attributes")
    rows = given.reshape(len(given), -1).tolist() if torch.is_tensor(given) else given
    mixed = "adaptation" in ctx.given
    return [
        None if row is None and mixed else tuple(row) if isinstance(row, (list, tuple)) else (row,)
        for row in rows
    ]


def number(who: str, label: Any, names: Sequence[str], zero: bool = False) -> int:
    """Which of the names a label is, by name or by number. One that is not among them: -1 if `zero`, else RunError."""
    if label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if zero:
        return -1
    raise RunError(
        f"{who}: no label is called {str(label)[:60]!r}; there are {', '.join(names)}. Declare it in `labels`, or choose unseen=zero."
    )
