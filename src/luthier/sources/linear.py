"""A linear layer among the tensors of a source: y = x W^T + b, started as PyTorch starts one (uniform, +-1/sqrt(inputs))."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear as affine

from luthier.host.part import Spec, uniform


def layer(name: str, outputs: int, inputs: int) -> dict[str, Spec]:
    """Specs of one layer: NAME_w (outputs, inputs) and NAME_b (outputs,)."""
    draw = uniform(inputs**-0.5)
    return {f"{name}_w": Spec((outputs, inputs), draw), f"{name}_b": Spec((outputs,), draw)}


def applied(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    """x: (..., inputs) -> (..., outputs) through the layer called `name`."""
    return affine(x, t[f"{name}_w"], t[f"{name}_b"])
