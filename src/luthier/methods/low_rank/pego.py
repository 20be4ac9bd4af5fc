"""PEGO: a group of low-rank updates that are kept apart from the weight and from each other (Hu et al. 2024, "Learn to Preserve and
Diversify: Parameter-Efficient Group with Orthogonal Regularization for Domain Generalization", S174).

dW = D_1 + ... + D_group,  D_i = B_i A_i    A: (group * rank, in)  B: (out, group * rank)
loss = task + weight (sum_i |W D_i^T| + sum_{i<j} |D_i D_j^T|)    |.|: the sum of absolute entries, (out, out), over all sites
trained: group * rank * (in + out) per site
Step 0 is the base (B = 0). Merging adds dW: nothing of the group is left at inference. weight=0: LoRA of rank group * rank.

Differs: the paper has one weight, 1e-3, for sums over 768 x 768 entries; at other widths the sum is scaled to as many.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from luthier.host.adaptation import site_weight
from luthier.host.part import Phase, method
from luthier.methods.low_rank.pair import LowRank

ENTRIES = 768 * 768
"""Of the products that the paper sums over."""


def preserving(weight: Tensor, ups: list[Tensor], downs: list[Tensor]) -> Tensor:
    """sum_i |W D_i^T|. weight: (out, in); ups: (out, rank) each, downs: (rank, in) each."""
    return torch.stack([(weight @ a.T @ b.T).abs().sum() for b, a in zip(ups, downs, strict=True)]).sum()


def diversifying(ups: list[Tensor], downs: list[Tensor]) -> Tensor:
    """sum_{i<j} |D_i D_j^T|; zero for a group of one."""
    found = [
        (ups[i] @ (downs[i] @ downs[j].T) @ ups[j].T).abs().sum() for j in range(len(ups)) for i in range(j)
    ]
    return torch.stack(found).sum() if found else ups[0].new_zeros(())


@method("pego", targets="*attention.query | *attention.value", rate=5e-4, identity_start=True)
class PEGO(LowRank):
    rank: PositiveInt = 4  # of each member
    group: PositiveInt = 4  # members at every site
    weight: NonNegativeFloat = 1e-3  # of the orthogonality terms

    def tensors(self, site, layout):
        return {
            "A": (self.group * self.rank, site.in_features),
            "B": (site.out_features, self.group * self.rank),
        }

    def check(self, sites):
        self.check_rank(self.group * self.rank, sites)

    def orthogonality(self, run) -> Tensor:
        """The two terms over all sites, scaled to the paper's entries."""
        total: Any = 0.0
        for at in run.main.at():
            t = at.t(None)
            ups, downs = list(t.B.split(self.rank, 1)), list(t.A.split(self.rank, 0))
            weight: Any = site_weight(run.adapted.base, at.site)
            terms = preserving(weight.to(t.A.dtype), ups, downs) + diversifying(ups, downs)
            total = total + terms * (ENTRIES / at.site.out_features**2)
        return total  # type: ignore[no-any-return]

    def loss(self, run, batch):
        task = run.objective.loss(run, batch)
        return task + self.weight * self.orthogonality(run) if self.weight else task

    def phases(self):
        (train,) = super().phases()
        return (Phase("train", optimiser=train.optimiser, objective=self.loss),)
