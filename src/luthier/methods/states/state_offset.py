"""State-offset tuning (Kang et al. 2025, "State-offset Tuning: State-based Parameter-Efficient Fine-Tuning for State Space Models", S295).

version=state:   y_t = C_t (h_t + h')    h': (inner, states)    trained: inner * states per site (version=output: inner)
version=output:  y_t = C_t h_t + y'      y': (inner,)
Both stand before the gate: silu(z_t) * (C_t h'), or silu(z_t) * y', is added in front of the closing projection. The offset
does not enter the recurrence, so that it does not fade with t as an initial state (`initial_state`) or a prefix does.
Step 0 is the base (zero); not a weight change: it cannot merge. A model needs layers with Mamba's selective scan.
"""

from __future__ import annotations

from typing import Literal

from luthier.host.functional import rowwise
from luthier.host.part import Spec, method, zeros
from luthier.host.places.state import StateEdit, sizes


@method("state_offset", targets="ssm", rate=1e-3, identity_start=True)
class StateOffset(StateEdit):
    version: Literal["state", "output"] = "state"  # h' where C_t reads the state, or y' behind it

    def tensors(self, site, layout):
        inner, states = sizes(site)
        return (
            {"h": Spec((inner, states), zeros)} if self.version == "state" else {"y": Spec((inner,), zeros)}
        )

    def read(self, scan, t, ctx):
        return scan.C @ t.h.mT if self.version == "state" else rowwise(t.y, scan.C)
