"""Orthonormal rows, made of free ones: their Gram-Schmidt, which is smooth wherever the rows are independent.

    P^T = Q U, U upper triangular with a positive diagonal;  R = Q^T, so that R R^T = 1 and R spans what P spans

trained: tensors * length * row per site
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Source, register


def orthonormal_rows(p: Tensor) -> Tensor:
    """(..., rank, width) -> the same shape with orthonormal rows, in single precision at least."""
    p = p.float() if p.dtype.itemsize < 4 else p
    q, upper = torch.linalg.qr(p.mT)
    # a decomposition chooses signs as it likes, and others as p moves
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs[..., None, :]).mT


@register("orthonormal")
class Orthonormal(Source):
    which: str = "R"  # name of the tensor whose rows are made orthonormal

    def specs(self, part, site, layout, wanted):
        if self.which not in wanted:
            raise OptionError(
                f"source 'orthonormal' has which={self.which!r}, but {part.name} reads {', '.join(wanted)}. Choose source=free."
            )
        return wanted

    def make(self, part, site, t, ctx, made=None):
        return {**t, self.which: orthonormal_rows(t[self.which])}
