"""Initial state tuning: the state before the first token is trained (the sibling that S295 compares state-offset tuning with).

h_t = exp(Delta_t A) h_(t-1) + Delta_t B_t u_t,  h_0: (inner, states)    trained: inner * states per site
The recurrence is linear in its state, so that h_0 adds C_t exp(A sum_{s<=t} Delta_s) h_0 to y_t, and exp(A sum Delta) h_0 to the
state that a cache holds for the next token. The effect fades with t.
Step 0 is the base (zero); not a weight change: it cannot merge. A model needs layers with Mamba's selective scan.

Differs: the kernels and Transformers begin every scan at zero, so the effect of h_0 is added beside the scan; padding in front
of a row does not make it fade. Several tokens behind a cache begin at h_0, where the base begins them at zero.
"""

from __future__ import annotations

import torch

from luthier.host.part import Spec, method, zeros
from luthier.host.places.state import StateEdit, sizes


@method("initial_state", targets="ssm", rate=4e-4, identity_start=True)
class InitialState(StateEdit):
    reads_steps = True
    writes = True

    def tensors(self, site, layout):
        return {"h0": Spec(sizes(site), zeros)}

    def read(self, scan, t, ctx):
        from luthier.models.scan import selective_scan

        first = t.h0.expand(len(scan.C), *scan.A.shape)
        nothing = torch.zeros_like(scan.steps)
        return selective_scan(nothing, scan.steps, scan.A, torch.zeros_like(scan.C), scan.C, first)
