"""A meter of what autograd keeps for the backward pass: the activations that a training step has to hold in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Saved:
    """Storages saved for backward while the meter ran, each counted once."""

    storages: dict[int, Tensor] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """Bytes of all storages together."""
        return sum(t.untyped_storage().nbytes() for t in self.storages.values())

    def keep(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in self.left_out:
            # Held for as long as the meter is, so that no address is given out twice and counted once.
            self.storages[key] = tensor.detach()
        return tensor


@contextmanager
def saved(leaving_out: Iterable[Tensor] = ()) -> Iterator[Saved]:
    """Count what is saved for backward inside the block, unique storages, casts included.

    leaving_out: tensors that are in memory anyway (parameters, buffers, inputs): their storages are not counted.

        with saved(model.parameters()) as meter:
            loss = model(batch)
        meter.bytes
    """
    meter = Saved(left_out=frozenset(t.untyped_storage().data_ptr() for t in leaving_out))
    with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
        yield meter
