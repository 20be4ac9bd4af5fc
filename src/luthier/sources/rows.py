"""Prompts and prefixes as rows: what the sources of both have in common.

A prompt is (length, width); keys or values of a prefix are (heads, length, head_dim), and as rows (length, heads * head_dim).
"""

from __future__ import annotations

from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Layout, Part, spec
from luthier.host.sites import Site


def shapes(part: Part, site: Site, layout: Layout) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that a part reads at a site."""
    return {name: tuple(spec(s).shape) for name, s in part.tensors(site, layout).items()}


def size(part: Part, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(length, numbers in a row) of a tensor of this shape. OptionError where it is no rows of tokens."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        return shape[1], shape[0] * shape[2]
    raise OptionError(
        f"{part.name}: the tensor {name} of shape {tuple(shape)} is no prompt or prefix. Choose source=free."
    )


def to_rows(x: Tensor) -> Tensor:
    """(length, width), or (heads, length, dim) -> (length, heads * dim)."""
    return x if x.dim() == 2 else x.transpose(0, 1).flatten(1)


def from_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(..., length, numbers) -> (..., *shape): undoes `to_rows`; leading dimensions (batch rows) stay."""
    if len(shape) == 2:
        return rows
    heads, _, dim = shape
    return rows.unflatten(-1, (heads, dim)).transpose(-3, -2)
