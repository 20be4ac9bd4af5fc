"""CorDA: components of a weight in the order in which a context uses them (Yang et al. 2024, "CorDA: Context-Oriented Decomposition
Adaptation of Large Language Models", S013).

C = X X^T of a layer's inputs, over its mean diagonal, + damping;  W C = U S V^T;  B = U_r S_r^(1/2),  A = S_r^(1/2) V_r^T C^-1;  weight: W + B A - B_0 A_0
A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
start.mode=previewed: the r largest, of the task's own rows. start.mode=preserved: the r smallest, of rows whose knowledge shall stay;
start.data names them. Step 0 is the base, bitwise. Merging adds B A - B_0 A_0.

Differs: all in double, so that the test of the inverse passes at the first damping unless C is far from regular. C is divided by the
mean of its diagonal (the public code divides by the largest input): the product is the same, the factors are as balanced as PiSSA's.
"""

from __future__ import annotations

from luthier.host.part import Start, method
from luthier.methods.low_rank.pair import LowRank
from luthier.starts.corda import CorDAStart


@method("corda", targets="projections", rate=5e-4, identity_start=True)
class CorDA(LowRank):
    start: Start = CorDAStart()
