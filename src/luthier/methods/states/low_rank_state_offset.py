"""State-offset tuning by two thin factors (Kang et al. 2025, "State-offset Tuning", S295).

y_t = C_t (h_t + U V)    U: (inner, rank)  V: (rank, states)    trained: rank * (inner + states) per site
U starts at zero and V uniform in +-1 / sqrt(states), so step 0 is the base; not a weight change: it cannot merge.
`luthier.sources.settle` writes U V as an ordinary state_offset. A model needs layers with Mamba's selective scan.

Differs: the paper says of V only "Kaiming"; the bound is the one of PyTorch's linear layers.
"""

from __future__ import annotations

from luthier.errors import OptionError
from luthier.host.part import Source, method
from luthier.methods.states.state_offset import StateOffset
from luthier.sources.low_rank import LowRank


@method("low_rank_state_offset", targets="ssm", rate=1e-3, identity_start=True)
class LowRankStateOffset(StateOffset):
    source: Source = LowRank(rank=4, initial="zero")  # the two factors

    def check(self, sites):
        super().check(sites)
        if self.version == "output":
            raise OptionError(
                f"{self.name}: version=output trains a vector, which has no factors. Choose the method state_offset."
            )
