"""OFT: the input of a linear layer turned by a block-diagonal orthogonal matrix (Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning").

W <- W R, y = W (R x)    R = diag(R_1, ..., R_n), n = in / block, R_i = (I + Q_i)^-1 (I - Q_i), Q_i skew of q_i
q: (in / block, block (block - 1) / 2)    trained: (in // block) * (block * (block - 1) // 2) per site
Step 0 is the base (q = 0, R = I). Merging turns the weight: lengths of its rows and angles between them stay. Training makes no weight.

Differs: no variant that keeps R near I (COFT), no blocks that are shared, and no trained scale of the output.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.host.part import method
from luthier.methods.orthogonal.rotation import Rotation


@method("oft", targets="*attention.query | *attention.value", rate=1e-2, identity_start=True, levels=1)
class OFT(Rotation):
    block: PositiveInt = 32  # numbers that are turned together: divides the width
