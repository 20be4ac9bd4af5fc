"""A share of each row, made of a number that comes with it, for parts that blend two of something (PETALface: S199).

q = min(1, max(0, 1/2 + slope * (c - threshold)))    c: the row's covariate, with every batch under `covariates`
The part reads q beside its tensors: (), where all rows have the same one, else (rows, 1, 1). A blend of weights merges for one number:
`adapted.merge(name, covariates=[[0.8]])`. Without a threshold it is the mean of the training rows, which the part's plan puts in place.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from luthier.errors import OptionError, RunError
from luthier.host.context import Context
from luthier.host.part import Source, Spec, register, zeros


def shares(c: Tensor, threshold: Tensor | float, slope: float) -> Tensor:
    """q in 0..1 of covariates, (rows,)."""
    return (0.5 + slope * (c - threshold)).clamp(0, 1)


def of_rows(ctx: Context, at: int) -> Tensor:
    """(rows,) float32: the covariate number `at` of each row; 0 in a mixed batch for rows of others, which may have none."""
    given = ctx.need("covariates")
    if not torch.is_tensor(given):
        empty = [0.0] * (at + 1) if "adaptation" in ctx.given else None
        given = torch.tensor([empty if row is None else row for row in given], dtype=torch.float32)
    rows = given.float().reshape(len(given), -1)
    if at >= rows.shape[1]:
        raise RunError(
            f"source by_covariate reads covariate {at}, and a row has {rows.shape[1]}. Give one number for each covariate."
        )
    return rows[:, at]


@register("by_covariate")
class ByCovariate(Source):
    """What trains is the part's own."""

    covariate: NonNegativeInt = 0  # which of the rows' covariates is read, from 0
    threshold: float | None = None  # the covariate at which q is one half; None: the training rows' mean
    slope: PositiveFloat = 1.0  # how much q rises when the covariate rises by one

    by_row = True

    def shared(self, part, wanted):
        if not getattr(part, "blends", False):
            raise OptionError(
                f"{part.name} blends nothing by a row's number: source={self.name} is for parts that do, as petalface's."
            )
        return {"threshold": Spec((1,), zeros, trained=False)} if self.threshold is None else {}

    def prepare(self, part, t, wanted, ctx):
        if ctx is None:
            raise RunError("Shares by a row's number exist in a forward only.")
        c, threshold = of_rows(ctx, self.covariate), self.threshold
        if not torch.isfinite(c).all():
            raise RunError("A row's covariate is missing or not finite: mend it in the data.")
        q = shares(c, t["threshold"].to(c) if threshold is None else threshold, self.slope)
        return q[0] if (q == q[0]).all() else q[:, None, None]

    def make(self, part, site, t, ctx, made=None):
        return {**{k: v for k, v in t.items() if k != "threshold"}, "q": made}


def settle_thresholds(run: Any) -> None:
    """Put the mean of the training rows in the place of every threshold that was not given: what a plan's first phase enters by."""
    rows = run.batches.stream("train").rows
    for placed in run.main.placed():
        source = placed.part.source
        if isinstance(source, ByCovariate) and source.threshold is None:
            mean = sum(float(row["covariates"][source.covariate]) for row in rows) / len(rows)
            placed.common["threshold"].data.fill_(mean)
