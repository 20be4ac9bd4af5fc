"""The registry of properties, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.host import Adapted
from luthier.host.applicable import Ability
from tests.conformance.cells import Cell

BF16_BOUND = 0.12
"""Of the largest output, for three random blocks in bfloat16, which keeps 8 bits; 0.093 seen."""
GREEDY = {"max_new_tokens": 4, "do_sample": False}


class Property(NamedTuple):
    """check(cell) asserts the statement; needs: what the host must be able to do for it to mean anything."""

    name: str
    check: Callable[[Cell], None]
    needs: Ability


PROPERTIES: dict[str, Property] = {}


def property_of(
    needs: Ability = Ability.ATTACH,
) -> Callable[[Callable[[Cell], None]], Callable[[Cell], None]]:
    def keep(check: Callable[[Cell], None]) -> Callable[[Cell], None]:
        PROPERTIES[check.__name__] = Property(check.__name__, check, needs)
        return check

    return keep


def base_result(cell: Cell, x: dict[str, Any] | None = None) -> Tensor:
    return cell.result(Adapted(cell.base()), cell.batch() if x is None else x)


def values(model: Any) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def written_from(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: x[k] for k in ("input_ids", "attention_mask")}
