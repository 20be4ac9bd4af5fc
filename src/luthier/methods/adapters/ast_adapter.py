"""Adapters of audio spectrogram transformers, their design as options (Cappellazzo et al. 2024, "Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers", S141).

sequential: h <- a(h), h what the sub-layer returns; parallel: h <- h + a(x), x what it is given (after its layer norm)
a(z) = up(act(down z)), and z added to it with its own residual    down: (width, out)  up: (out, width)  biases: (width,), (out,)
convolution=conformer: a(z) = up(act(D * glu(down z))), D a depthwise convolution over tokens    down: (2 width, out)  D: (width, kernel)
Pfeiffer: at the feed-forward layer; Houlsby: at attention as well. The paper's reduction factor is model width / width.
Step 0 is the base (up = 0) where the residual is the usual one: with it in sequence, without it in parallel. Not a weight change: it cannot merge.

Any transformer can have it. With convolution one token reads those around it, so decoders are refused; padding counts as zeros.

Differs: the released bottleneck starts both projections at zero, which leaves only the bias of `up` with a gradient; here down is drawn. The
convolution runs over all tokens in their order, the class tokens in front included, and has no batch norm.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.options import options
from luthier.host.part import Method, Spec, method, zeros
from luthier.methods.adapters.bottleneck import ACTIVATIONS, Activation, Adapter, bottleneck, kaiming


def depthwise(z: Tensor, kernel: Tensor) -> Tensor:
    """y[i] = sum_j kernel[:, j] z[i + j - size // 2], zeros beyond the ends. z: (rows, tokens, width)  kernel: ([rows,] width, size)"""
    size, n = kernel.shape[-1], z.shape[-2]
    wide = F.pad(z, (0, 0, size // 2, size // 2))
    shifted = [wide[..., j : j + n, :] * kernel[..., None, :, j] for j in range(size)]
    return torch.stack(shifted).sum(0)


def conformer(z: Tensor, t, activation: str, mask: Tensor | None) -> Tensor:
    """up(act(D * glu(down z))); tensors may carry a leading row dimension. mask: (rows, tokens) of the caller's tokens."""
    inner = F.glu(z @ t.down.mT + t.down_bias[..., None, :], -1)
    if mask is not None:  # prompts in front are seen
        inner = inner * F.pad(mask, (z.shape[-2] - mask.shape[1], 0), value=1)[..., None].to(inner.dtype)
    inner = ACTIVATIONS[activation](depthwise(inner, t.depth) + t.depth_bias[..., None, :])
    return inner @ t.up.mT + t.up_bias[..., None, :]


@options
class Sequential(Adapter):
    """trained: (2 + min(kernel,1)) * width * out + (1 + 2 * min(kernel,1) + kernel) * width + out per site"""

    residual: bool = True  # whether what it reads is added to what it makes
    kernel: NonNegativeInt = 0  # tokens that the convolution reads; 0: there is none

    rate = 5e-3

    def sites(self, structure, name=None):
        found = super().sites(structure, name)
        if self.kernel and any(structure.tower(s.tower).causal for s in found if s.tower):
            raise OptionError(
                "ast_adapter: convolution=conformer reads the tokens that come after, which a decoder must not see. Choose convolution=none."
            )
        return found

    def tensors(self, site, layout):
        made = dict(super().tensors(site, layout))
        if self.kernel:
            made["down"] = Spec((2 * self.width, site.out_features), kaiming)
            made["down_bias"] = Spec((2 * self.width,), zeros)
            made["depth"] = Spec((self.width, self.kernel), kaiming)
            made["depth_bias"] = Spec((self.width,), zeros)
        return made

    def made(self, z: Tensor, t, ctx) -> Tensor:
        """a(z)."""
        if self.kernel:
            out = self.scale * conformer(z, t, self.activation, ctx.mask)
        else:
            out = self.scale * bottleneck(z, t, self.activation)
        return out + z if self.residual else out

    def edit(self, h, t, ctx):
        return self.made(h, t, ctx)


@options
class Parallel(Sequential):
    """trained: (2 + min(kernel,1)) * width * out + (1 + 2 * min(kernel,1) + kernel) * width + out per site"""

    reads = "mlp.up"

    def edit(self, h, t, ctx):
        return h + self.made(t.x, t, ctx)


@options
class ParallelAttention(Parallel):
    """trained: (2 + min(kernel,1)) * width * out + (1 + 2 * min(kernel,1) + kernel) * width + out per site"""

    reads = "attention.query"


@method("ast_adapter", rate=5e-3, identity_start=True)
class ASTAdapter(Method):
    where: Literal["pfeiffer", "houlsby"] = "pfeiffer"  # at feed-forward layers, or at attention as well
    order: Literal["parallel", "sequential"] = "parallel"  # beside the sub-layer, or after it
    residual: Literal["usual", "yes", "no"] = (
        "usual"  # the adapter's own; usual: with it in sequence, without it in parallel
    )
    width: PositiveInt = 32  # bottleneck width
    activation: Activation = "gelu"  # before the projection up
    scale: PositiveFloat = 1.0  # what the bottleneck adds is multiplied by this
    convolution: Literal["none", "conformer"] = "none"  # what stands between the projections
    kernel: PositiveInt = 7  # tokens that the convolution reads, an odd number

    def parts(self):
        conv = self.convolution == "conformer"
        if conv and self.kernel % 2 == 0:
            raise OptionError(
                f"ast_adapter: kernel={self.kernel} has no middle. Choose an odd number, e.g. {self.kernel + 1}."
            )
        sequential = self.order == "sequential"
        own = sequential if self.residual == "usual" else self.residual == "yes"
        given: dict[str, Any] = {
            "width": self.width,
            "activation": self.activation,
            "scale": self.scale,
            "residual": own,
            "kernel": self.kernel if conv else 0,
        }
        both = self.where == "houlsby"
        if sequential:
            return (Sequential(targets="attention.output | mlp.down" if both else "mlp.down", **given),)
        attention = (ParallelAttention(targets="attention.output", **given),) if both else ()
        return (*attention, Parallel(targets="mlp.down", **given))
