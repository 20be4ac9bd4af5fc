"""Output heads: what turns hidden states into a task's logits. A head is a part of the adaptation and travels with it.

linear_head: logits = pool(h) W^T + b    W: (classes, width)  b: (classes,)    trained: classes * (width + 1)

With pooling "none" every hidden state gets logits of its own: one set per token, for tagging (as P-Tuning v2, Liu et al.
2022, does for sequence labelling).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import linear

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import OutputHead


def pool(hidden: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """One vector per row. hidden: (rows, tokens, width) or (rows, width); mask: (rows, tokens), padding on either side."""
    if hidden.dim() == 2:
        return hidden
    if how == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden[:, -1] if how == "last" else hidden.mean(1)
    if how == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden), device=hidden.device), (places * mask.bool()).argmax(1)]
    weight = mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b. x: (..., inputs); weight: (outputs, inputs), or one per row, (rows, outputs, inputs), of a bank."""
    if weight.dim() == 2:
        return linear(x, weight, bias)
    if x.dim() == 3:
        return x @ weight.mT + bias[:, None]
    return (weight @ x[..., None]).squeeze(-1) + bias


@method("linear_head", rate=1e-3)
class LinearHead(OutputHead):
    classes: PositiveInt = 2  # outputs: labels, or values to regress
    pooling: Literal["mean", "cls", "last", "none"] = (
        "mean"  # how the hidden states of a row become one vector
    )

    def tensors(self, site, layout):
        return {"W": Spec((self.classes, self.width), normal(0.02)), "b": Spec((self.classes,), zeros)}

    def logits(self, hidden, mask, t, ctx):
        x = hidden if self.pooling == "none" else pool(hidden, mask, self.pooling)
        return affine(x, t.W, t.b)
