"""The DoRA form of a change of a kernel: K' = m (K + dK) / |K + dK|, channel by channel (Liu et al. 2024, "DoRA"; S210).

m: (out,), trained, begins as |K|. The product m / |K| is 1 then, so step 0 is the base.
"""

from __future__ import annotations

from typing import Any, ClassVar

from luthier.host.places import ConvolutionEdit
from luthier.sources.kernels import normed
from luthier.starts.magnitude import Magnitude


class Normed(ConvolutionEdit):
    """To be named before the method whose change it takes: class ConvDoRA(Normed, ConvLoRA). The change is folded into the kernel."""

    start = Magnitude()
    shortcut: ClassVar[Any] = None

    def tensors(self, site, layout):
        return {**super().tensors(site, layout), "m": (site.out_features,)}

    def delta(self, weight, t):
        return normed(weight, super().delta(weight, t), t.m)
