"""BOFT: the input of a linear layer turned by a butterfly of small orthogonal matrices (Liu et al. 2024, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization").

W <- W R, y = W (R x)    R = R_levels ... R_1, each of blocks of `block` numbers in an order of its own, by Cayley's transform of q
q: (levels * in / block, block (block - 1) / 2)    trained: levels * (in // block) * (block * (block - 1) // 2) per site
Step 0 is the base (q = 0, R = I). Merging turns the weight: lengths of its rows and angles between them stay. Training makes no weight.

Differs: factor i joins runs that stand 2^i apart, as a butterfly does; public code joins other runs from the third factor on. There is no
trained scale of the output, and no dropout of whole blocks.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.host.part import method
from luthier.methods.orthogonal.rotation import Rotation


@method("boft", targets="*attention.query | *attention.value", rate=1e-2, identity_start=True)
class BOFT(Rotation):
    levels: PositiveInt = (
        2  # factors of the butterfly; block * 2^(levels - 1) divides the width, and block is even
    )
