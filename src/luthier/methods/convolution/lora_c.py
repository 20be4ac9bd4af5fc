"""LoRA-C and its DoRA form: a low-rank change of a convolution's kernel viewed as a matrix (S210, "LoRA-based methods on Unet for transfer learning in Subarachnoid Hematoma Segmentation").

dK = (alpha / rank) B A, viewed as (out, in, *window)    A: (rank, columns)  B: (rows, rank)
rows = out, columns = in * window; with `spread` rows = out * height, columns = in * width.
Step 0 is the base (B = 0). Merging adds dK to the kernel; attached, dK is folded into it, and serves one convolution.
Targets are roles or module names with * (`encoder.*`, `*bottleneck*`): of what they match, the convolutions are changed. `in` is
per group. A rank above the matrix's smaller side is allowed: the paper found such ranks best.

Differs: nothing known; the page leaves the choice between the two matrices open, (out, in * window) is the default.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import ConvolutionEdit
from luthier.methods.convolution.magnitude import Normed
from luthier.sources.kernels import kernel, sides


@method("lora_c", targets="conv", rate=2e-3, identity_start=True)
class LoRAC(ConvolutionEdit):
    """LoRA-C: a low-rank change of a convolution's kernel, viewed as a matrix (S210).

    trained: rank * (rows + columns) per site
    """

    rank: PositiveInt = 8  # of the matrix that the kernel is viewed as
    alpha: NonNegativeFloat = 16.0  # the update is scaled by alpha / rank
    spread: bool = False  # (out * height, in * width) instead of (out, in * height * width)

    def layout(self, site):
        rows, columns = sides(dict(site.parameters)["weight"], self.spread)
        return {"rows": rows, "columns": columns}

    def tensors(self, site, layout):
        rows, columns = layout["rows"], layout["columns"]
        return {
            "A": Spec((self.rank, columns), normal(columns**-0.5)),
            "B": Spec((rows, self.rank), zeros),
        }

    def delta(self, weight, t):
        return self.alpha / self.rank * kernel(t.B @ t.A, weight.shape, self.spread)


@method("dora_c", targets="conv", rate=2e-3, identity_start=True)
class DoRAC(Normed, LoRAC):
    """DoRA-C: lora_c with a trained length of each output channel, K' = m (K + dK) / |K + dK| (S210).

    trained: rank * (rows + columns) + out per site
    """
