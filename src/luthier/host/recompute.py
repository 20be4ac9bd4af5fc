"""Gradient checkpointing: a block is recomputed in the backward pass, under the context of its own forward."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted


class Recomputed:
    """A block's forward under gradient checkpointing."""

    def __init__(self, adapted: Adapted):
        self.adapted = adapted

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        ctx = self.adapted.context()
        if ctx is None or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint

        inside = ctx.tower, ctx.embeds  # the forward has left it when the backward pass comes
        return checkpoint(
            original,
            *args,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), ctx.again(*inside)),
            **kwargs,
        )
