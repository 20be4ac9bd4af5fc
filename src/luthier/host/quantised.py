"""Modules whose weight is stored in fewer bits than a floating-point number: what a change of the weight can't be added to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from luthier.errors import ModelError

if TYPE_CHECKING:
    from luthier.host.sites import Site


def stored_as(module: nn.Module) -> str | None:
    """How a linear module's weight is stored, where that is not as numbers of two bytes or more; None: as it should be.

    Found are integers, packed or not (bitsandbytes), 8-bit floats, tensors that say themselves how to dequantise (torchao), and
    subclasses of Linear that keep something else in the weight's place.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "no weight at all, but " + (", ".join(n for n, _ in module.named_buffers()) or "other tensors")
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return str(weight.dtype).removeprefix("torch.")
    if type(weight).dequantize is not Tensor.dequantize or hasattr(weight, "quant_state"):
        return type(weight).__name__
    return None


def refuse_quantised(name: str, base: nn.Module, sites: Iterable[Site], does: str = "changes") -> None:
    """ModelError where a layer with weights among these sites is quantised. name: of the method; does: what it does with the weights."""
    for site in sites:
        module = base.get_submodule(site.path) if site.path else base
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding) and (
            how := stored_as(module)
        ):
            raise ModelError(
                f"{name} {does} weights, but {site.name} is quantised: its {type(module).__name__} holds {how}. Load the model in full or "
                "half precision (without a quantization_config, or after model.dequantize()), or use a method that leaves weights alone, such "
                "as adapter, ia3 or prompt_tuning."
            )
