"""A start from a weight's components as a context uses them (CorDA, S013): of W C, with C the second moment of the layer's inputs.

W C = U S V^T    gain * B A = U_r S_r V_r^T C^-1    the r largest (previewed) or smallest (preserved)
The r largest are the projection of W on the r directions in which its outputs vary most in that context.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import register
from luthier.starts.singular import Components

DAMPING, TRIES = 0.01, 12
"""Share of the mean of C's diagonal that is added to it at first; how often it is doubled until C can be inverted."""


def damped(moment: Tensor) -> Tensor:
    """C / mean diag C + d I, with the first d of 0.01, 0.02, ... for which ||C C^-1 - I|| is below 0.05. OptionError if none is.

    The division leaves the product of the factors as it is, and gives them sizes that do not depend on the number of tokens.
    """
    mean, one = moment.diagonal().mean(), torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    for i in range(TRIES):
        c = moment / mean + DAMPING * 2**i * one
        inverse, info = torch.linalg.inv_ex(c)
        if not info and torch.isfinite(inverse).all() and float((c @ inverse - one).norm()) < 0.05:
            return c
    raise OptionError(
        "start 'corda': the second moment of a layer's inputs can't be inverted, whatever is added to its diagonal. Are all inputs there zero or infinite? Give other rows (start.data, start.rows)."
    )


@register("corda")
class CorDAStart(Components):
    mode: Literal["previewed", "preserved"] = (
        "previewed"  # which components train: what the rows use most, or least
    )
    rows: PositiveInt = 256  # rows whose inputs are gathered
    data: str = ""  # where they come from: builtin:NAME or a file; "": the task's training rows

    needs = ("input_moment",)

    def fill(self, site, specs, weight, statistics, rng):
        metric = damped(statistics["input_moment"])
        return self.components(specs, weight, statistics["gain"], self.mode == "previewed", metric)
