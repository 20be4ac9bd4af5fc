"""Rows of prompts as their principal components: fewer rows that keep most of what many hold (Guo et al. 2024, "Q-Tuning", S372).

rows = mean + weights @ components    rows: (n, width)  weights: (n, keep)  components: (keep, width), exact from keep = n - 1 on
"""

from __future__ import annotations

import torch
from torch import Tensor


def decomposed(rows: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, weights (n, keep), components (keep, width)) with rows = mean + weights @ components if keep >= n - 1.

    rows: (n, width). A component is in the rows' own scale: a unit direction times its singular value.
    """
    mean = rows.double().mean(0)
    u, s, v = torch.linalg.svd(rows.double() - mean, full_matrices=False)
    u, s, v = u[:, :keep], s[:keep], v[:keep]
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()[0]  # a direction has no sign of its own
    return mean, u * sign, (s * sign)[:, None] * v


def compressed(rows: Tensor, keep: int) -> Tensor:
    """(keep, width): what PCA keeps of a queue (n, width) that is too long."""
    mean, _, components = decomposed(rows, keep)
    return (mean + components).to(rows.dtype)
