"""Rows become tensors: stacked where they have one shape, padded where they are lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def stack(values: Sequence[Any]) -> Any:
    """Numbers or arrays of one shape as one tensor, (rows, ...); arrays of texts as a list of tuples, which no tensor holds."""
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    if isinstance(values[0], np.ndarray) and values[0].dtype.kind == "U":
        return [tuple(v.tolist()) for v in values]
    return torch.from_numpy(np.stack([np.asarray(v) for v in values]))


def rounded_up(width: int, multiple: int | None) -> int:
    """The least multiple that is not below `width`; `width` itself for None."""
    return width if not multiple else -(-width // multiple) * multiple


def padded(values: Sequence[Sequence[int]], width: int, fill: int, side: str) -> Tensor:
    """(rows, width) int64: `fill` stands on `side` of each row."""
    out = np.full((len(values), width), fill, np.int64)
    for i, ids in enumerate(values):
        if ids:
            out[i, width - len(ids) if side == "left" else 0 : width if side == "left" else len(ids)] = ids
    return torch.from_numpy(out)
