"""CP-LoRA and CP-DoRA: a change of a kernel as a sum of outer products of vectors (S210, "LoRA-based methods on Unet for transfer learning in Subarachnoid Hematoma Segmentation").

dK = (alpha / rank) sum_r a_r o b_r o c_r o d_r    a: (rank, out)  b: (rank, in)  c, d: (rank, length of that side of the window)
One window factor for each dimension of the window (c alone for a Conv1d). Step 0 is the base: a = 0, the others are random, since
with two factors at zero nothing would train. Merging adds dK to the kernel; `in` is per group.
Targets are roles or module names with * (`encoder.*`, `*bottleneck*`): of what they match, the convolutions are changed.

Differs: the page has it run as four thin convolutions; here dK is folded into the kernel, which serves one convolution and gives the
same. Which factor begins at zero could not be verified.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import ConvolutionEdit
from luthier.methods.convolution.magnitude import Normed
from luthier.sources.kernels import WINDOW, outer


@method("cp_lora", targets="conv", rate=2e-3, identity_start=True)
class CPLoRA(ConvolutionEdit):
    """CP-LoRA: a change of a convolution's kernel as a sum of outer products of vectors, one for each dimension (S210).

    trained: rank * (out + in + sides) per site
    """

    rank: PositiveInt = 8  # terms of the sum
    alpha: NonNegativeFloat = 16.0  # the update is scaled by alpha / rank

    def tensors(self, site, layout):
        out, *others = dict(site.parameters)["weight"]
        factors = dict(zip(f"b{WINDOW}", others))
        drawn = {name: Spec((self.rank, n), normal(n**-0.5)) for name, n in factors.items()}
        return {"a": Spec((self.rank, out), zeros), **drawn}

    def delta(self, weight, t):
        window = [t[name] for name in WINDOW[: weight.dim() - 2]]
        return self.alpha / self.rank * outer(t.a, t.b, window)


@method("cp_dora", targets="conv", rate=2e-3, identity_start=True)
class CPDoRA(Normed, CPLoRA):
    """CP-DoRA: cp_lora with a trained length of each output channel, K' = m (K + dK) / |K + dK| (S210).

    trained: rank * (out + in + sides) + out per site
    """
