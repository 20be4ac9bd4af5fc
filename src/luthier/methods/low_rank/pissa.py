"""PiSSA: the principal singular components train, the residual is frozen (Meng et al. 2024, "PiSSA: Principal Singular Values and
Singular Vectors Adaptation of Large Language Models").

W = U S V^T;  B = U_r S_r^(1/2),  A = S_r^(1/2) V_r^T of the r largest;  weight: W + B A - B_0 A_0
A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
Step 0 is the base, bitwise: the start's own product is subtracted, the base is not rewritten. Merging adds B A - B_0 A_0. A file holds
the start beside the factors, twice LoRA's size; to peft it goes as a LoRA of rank 2r.

Differs: the SVD is exact, in double (the paper also offers a randomised one).
"""

from __future__ import annotations

from luthier.host.part import Start, method
from luthier.methods.low_rank.pair import LowRank
from luthier.starts.singular import PiSSAStart


@method("pissa", targets="*attention.query | *attention.value", rate=5e-4, identity_start=True)
class PiSSA(LowRank):
    start: Start = PiSSAStart()
