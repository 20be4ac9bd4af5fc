"""AdaLoRA: ranks move to where they matter while training (Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient
Fine-Tuning").

dW = (alpha / rank) P diag(l) Q    Q: A, (rank, in)  P: B, (out, rank)  l: (rank,)    trained: rank * (in + out + 1) per site
loss = task + orthogonality * sum over sites of ||P^T P - I||^2 + ||Q Q^T - I||^2
score of a triplet (column of P, entry of l, row of Q) = s(l_k) + mean of s over the column + mean of s over the row, with
    s(w) = M(w) U(w),  M <- beta M + (1 - beta) |w dL/dw|,  U <- spread U + (1 - spread) | |w dL/dw| - M |
budget of step t: b_0 until t_i, then b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i))^3 until T, the end of the first phase
Plan: allocate: every `interval` steps l is zero outside the b highest triplets of all sites; they may come back. Then what is
outside b_T is dropped, and the rest trains on. b_0 = initial * rank triplets at every site, b_T = rank * sites in all.
Step 0 is the base (l = 0). Merging adds dW; a file holds what stayed. A budget of parameters is one for what stays.

Differs: the paper has no factor (alpha / rank is its public code's, there over the initial rank); scores are taken after the step, with its clipped gradient,
as there. The second phase begins with a fresh optimiser and schedule.
"""

from __future__ import annotations

import sys
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Phase, Spec, Start, method, zeros
from luthier.methods.low_rank.lora import LoRA
from luthier.selection.strongest import strongest
from luthier.starts.normal import Normal
from luthier.starts.uniform import Uniform

Smoothing = Annotated[float, Field(ge=0, lt=1)]
NAMES = ("l", "B", "A")


def apart(p: Tensor, q: Tensor) -> Tensor:
    """||P^T P - I||^2 + ||Q Q^T - I||^2. p: (out, rank); q: (rank, in)."""
    one = torch.eye(len(q), dtype=q.dtype, device=q.device)
    return (p.mT @ p - one).square().sum() + (q @ q.mT - one).square().sum()


def budget(step: int, first: int, last: int, warm: int, steps: int) -> int:
    """How much stays after `step` of `steps` steps: `first` up to `warm`, then by a cubic to `last`."""
    if step < warm:
        return first
    left = max(0.0, 1 - (step - warm) / max(1, steps - warm))
    return round(last + (first - last) * left**3)


def smoothed(
    now: Tensor, mean: Tensor, spread: Tensor, beta: float, beta_spread: float
) -> tuple[Tensor, Tensor]:
    """The next mean sensitivity and its uncertainty. now: |w dL/dw|, of any shape."""
    mean = beta * mean + (1 - beta) * now
    return mean, beta_spread * spread + (1 - beta_spread) * (now - mean).abs()


def triplets(of_l: Tensor, of_b: Tensor, of_a: Tensor) -> Tensor:
    """Scores of triplets, (rank,), from those of entries: of l (rank,), B (out, rank) and A (rank, in)."""
    return of_l + of_b.mean(0) + of_a.mean(1)


@method("adalora", targets="projections", rate=2e-3, identity_start=True)
class AdaLoRA(LoRA):
    rank: PositiveInt = 8  # the mean rank of a site in the end
    start: Start = Normal(std=0.02)  # how P and Q begin: normal or uniform
    initial: Annotated[float, Field(ge=1)] = 1.5  # every site's first rank, in multiples of rank
    numbers: PositiveInt | None = (
        None  # instead of rank * sites triplets: as many as have so many numbers in all
    )
    orthogonality: NonNegativeFloat = 0.1  # weight of the term that keeps P and Q orthonormal
    warm: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the first phase before the budget falls
    final: Annotated[float, Field(gt=0, lt=1)] = 0.3  # share of the steps that trains what stayed
    interval: PositiveInt = 10  # steps from one choice of triplets to the next
    beta: Smoothing = 0.85  # smoothing of the sensitivity
    spread: Smoothing = 0.85  # smoothing of its uncertainty

    def check(self, sites):
        super().check(sites)
        if not isinstance(self.start, Normal | Uniform):
            raise OptionError(
                f"adalora: start={self.start.name!r} leaves a factor at zero, or is one of another product: l alone is zero at first. "
                "Choose normal or uniform."
            )
        if self.optimiser != "adamw":
            raise OptionError(
                f"adalora has three factors, and optimiser={self.optimiser!r} steps pairs. Choose optimiser=adamw."
            )

    def layout(self, site):
        return {"rank": min(round(self.initial * self.rank), site.in_features, site.out_features)}

    def left(self, sites):
        most = {s.name: self.layout(s)["rank"] if self.numbers else self.rank for s in sites[0]}
        return min(
            sum(most[name] * cost for name, cost in self.costs(sites[0]).items()), self.numbers or sys.maxsize
        )

    def costs(self, sites) -> dict[str, int]:
        """Numbers of a triplet at each site."""
        return {s.name: s.in_features + s.out_features + 1 for s in sites}

    def tensors(self, site, layout):
        return {**super().tensors(site, layout), "l": Spec((layout["rank"],), zeros)}

    def pair(self, t):
        return t.B * t.l[..., None, :], t.A

    def loss(self, run, batch):
        task = run.objective.loss(run, batch)
        if not self.orthogonality:
            return task
        kept = [at.t(None) for at in run.main.at()]
        return task + self.orthogonality * torch.stack([apart(t.B, t.A) for t in kept]).sum()

    def observe(self, run) -> None:
        """After a step: smooth the sensitivities; every `interval` steps close what is outside the budget."""
        for at in run.main.at():
            for name in NAMES:
                w, keys = at.values[name], [f"{at.key}/{name}/{what}" for what in ("mean", "spread")]
                if w.grad is None:
                    continue
                now = (w.detach() * w.grad.detach()).abs()
                mean, spread = (run.extra.get(k, torch.zeros_like(now)) for k in keys)
                run.extra |= dict(zip(keys, smoothed(now, mean, spread, self.beta, self.spread)))
        if run.step % self.interval == 0:
            self.close(run, self.stays(run, run.step))

    def stays(self, run, step: int) -> dict[str, list[int]]:
        """{site: triplets that the budget of a step keeps}."""
        ats, steps = run.main.at(), run.steps[run.index]
        costs = self.costs([at.site for at in ats])
        unit = dict.fromkeys(costs, 1) if self.numbers is None else costs
        first = sum(at.layout["rank"] * unit[at.site.name] for at in ats)
        last = self.numbers or self.rank * len(ats)
        now = budget(step, first, min(first, last), round(self.warm * steps), steps)
        return strongest({at.site.name: self.scores(run, at) for at in ats}, now, unit)

    def scores(self, run, at) -> Tensor:
        """Scores of one site's triplets; of equals before the first gradient."""
        found = []
        for name in NAMES:
            mean, spread = (run.extra.get(f"{at.key}/{name}/{what}") for what in ("mean", "spread"))
            found.append(torch.zeros_like(at.values[name].detach()) if mean is None else mean * spread)
        return triplets(*found)

    def close(self, run, kept: dict[str, list[int]]) -> None:
        """l = 0 outside what is kept."""
        for at in run.main.at():
            gains = at.values["l"].data
            stays = torch.zeros_like(gains)
            stays[kept[at.site.name]] = 1.0
            gains.mul_(stays)

    def drop(self, run) -> None:
        """Leave out, for good, what the last budget does not keep."""
        kept = self.stays(run, run.steps[run.index])
        if not any(kept.values()):
            raise OptionError(
                f"adalora: numbers={self.numbers} is less than the cheapest triplet needs. Raise it."
            )
        old = {at.site.name: {k: v.detach() for k, v in at.values.items()} for at in run.main.at()}

        def fill(placed, site, specs):
            mine, own = kept[site.name], old[site.name]
            return {"A": own["A"][mine], "B": own["B"][:, mine], "l": own["l"][mine]}

        run.main.reform({"0": {name: {"rank": len(own)} for name, own in kept.items()}}, fill)
        run.extra.clear()

    def phases(self):
        return (
            Phase(
                "allocate",
                share=1 - self.final,
                objective=self.loss,
                every={1: self.observe},
                leave=self.drop,
            ),
            Phase("tune", share=self.final, objective=self.loss),
        )
