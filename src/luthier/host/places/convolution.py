"""The place in a convolution: a change of its kernel, which the module itself applies with its stride, padding, dilation and groups."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from luthier.errors import ModelError, SiteError
from luthier.host.applicable import Reason, because
from luthier.host.part import T
from luthier.host.places.weight import Own, WeightEdit

if TYPE_CHECKING:
    from luthier.host.placed import At
    from luthier.host.sites import Site, Structure

Convolve = Callable[[Tensor, Tensor], Tensor]
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""A transposed convolution holds its kernel the other way round: it is none of them."""
ROLES = ("conv", "ssm.conv")


class ConvolutionEdit(WeightEdit):
    """A change of a convolution's kernel, (out, in / groups, *window), as the module holds it.

    targets select by role or by module name (`encoder.*`, `*bottleneck*`): of what they match, the convolutions are the sites.
    delta(weight, t) -> the change of the kernel; with tensors by row one for each, with a leading dimension.
    shortcut(x, y, t, convolve) -> the same on activations, instead of a new kernel. convolve(x, kernel): what the module does,
    without its bias, with another kernel, (outputs, in / groups, *window), or one for each row of x.
    """

    def sites(self, structure: Structure, name: str | None = None) -> Sequence[Site]:
        found = super().sites(structure, name)
        chosen = [s for s in found if s.role in ROLES]
        if not chosen and name is None:
            raise because(
                SiteError(
                    f"No site matches {self.targets!r} in {structure.model} that is a convolution ({len(found)} others are). "
                    "See: luthier sites MODEL."
                ),
                Reason.NO_SITE,
            )
        return chosen

    def accept(self, module: nn.Module, at: At) -> None:
        if not isinstance(module, KINDS):
            raise because(
                ModelError(
                    f"{self.name} edits convolutions, but {at.site.name} is a {type(module).__name__}. Choose other targets, e.g. 'conv'."
                ),
                Reason.NOT_A_CONVOLUTION,
            )

    def applied(self, module: Any, own: Own, x: Tensor, y: Tensor, t: T) -> Tensor:
        if self.shortcut is not None:
            return self.shortcut(x, y, t, partial(convolve, module))  # type: ignore[no-any-return]
        return y + convolve(module, x, self.delta(own()[0].to(x.dtype), t))


def convolve(module: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """The module's convolution of x, (rows, in, *size), with another kernel and no bias; a kernel for each row: one grouped convolution."""
    if kernel.dim() == module.weight.dim():
        return module._conv_forward(x, kernel, None)  # type: ignore[no-any-return]
    own = copy.copy(module)
    own.groups = module.groups * len(kernel)
    y = own._conv_forward(x.reshape(1, -1, *x.shape[2:]), kernel.flatten(0, 1), None)
    return y.view(len(kernel), -1, *y.shape[2:])  # type: ignore[no-any-return]
