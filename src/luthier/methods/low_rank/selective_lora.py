"""Selective LoRA: a learned gate for every low-rank update, of which few stay open (Bafghi et al. 2025, "Fine Tuning without Catastrophic
Forgetting via Selective Low Rank Adaptation", S114).

W + I(s >= threshold) (alpha / rank) B A    A: (rank, in)  B: (out, rank)  s: (1,), a score; I: 1 where it holds, else 0
loss = task + penalty * mean over sites of |s|, after the first `free` share of the steps
trained: rank * (in + out) + 1 per site
The gate's gradient goes straight through to s. A gate begins open: behind a closed one with B = 0 nothing would ever learn. After the
share `choose` of the steps the closed updates are dropped; with `active`, all but that share of the sites, those with the highest scores.
What is left trains on without gates. Step 0 is the base (B = 0). Merging adds what is open.

Differs: threshold, first score and the free steps are those of TAPS' public code, the parent's; the last steps without a penalty, and
`active`, are not in the paper (choose=1 has neither).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Phase, Spec, method
from luthier.methods.low_rank.lora import LoRA

Share = Annotated[float, Field(gt=0, le=1)]


def gate(score: Tensor, threshold: float) -> Tensor:
    """1 where the score reaches the threshold, else 0, exactly; its gradient is the score's own."""
    return (score >= threshold).to(score.dtype) + (score - score.detach())


@method("selective_lora", rate=2e-3, identity_start=True)
class SelectiveLoRA(LoRA):
    threshold: float = 0.1  # the score from which a gate is open
    initial: float = 0.15  # every gate's score at first
    penalty: NonNegativeFloat = 0.1  # weight of the scores' mean
    free: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the steps before the penalty sets in
    choose: Share = 0.8  # share of the steps after which closed updates are dropped
    active: Share | None = None  # share of the sites that stays, instead of what the threshold says

    def layout(self, site):
        return {"rank": self.rank, "gated": 1}

    def tensors(self, site, layout):
        constant = lambda shape, rng: torch.full(shape, self.initial)
        return {**super().tensors(site, layout), **({"s": Spec((1,), constant)} if layout["gated"] else {})}

    def pair(self, t):
        return (t.B * gate(t.s, self.threshold), t.A) if "s" in t else (t.B, t.A)

    def check(self, sites):
        super().check(sites)
        if self.initial < self.threshold:
            raise OptionError(
                f"selective_lora: initial={self.initial:g} is below threshold={self.threshold:g}: gates that begin closed never learn. "
                "Raise initial."
            )
        if self.active is not None and self.choose == 1:
            raise OptionError(
                "selective_lora: active drops open updates, after which the others must train. Set choose below 1."
            )

    def loss(self, run, batch):
        task = run.objective.loss(run, batch)
        if run.step < self.free * run.steps[run.index]:
            return task
        scores = [at.values["s"].abs() for at in run.main.at()]
        return task + self.penalty * torch.cat(scores).mean()

    def stays(self, run) -> set[str]:
        """Names of the sites whose updates stay."""
        scores = {at.site.name: float(at.values["s"].detach()) for at in run.main.at()}
        if self.active is None:
            return {name for name, s in scores.items() if s >= self.threshold}
        count = max(1, round(self.active * len(scores)))
        return set(sorted(scores, key=lambda name: -scores[name])[:count])

    def close(self, run) -> None:
        """Drop what is closed, and the gates."""
        stays, old = self.stays(run), {at.site.name: dict(at.values) for at in run.main.at()}
        layouts = {name: {"rank": self.rank if name in stays else 0, "gated": 0} for name in old}
        if not stays:
            raise OptionError(
                f"selective_lora: no gate is open after {run.step} steps of penalty={self.penalty:g}. Lower the penalty, or say how many "
                "updates stay: active=0.25."
            )

        def fill(placed, site, specs):
            return {
                k: old[site.name][k].detach() if site.name in stays else torch.zeros(s.shape)
                for k, s in specs.items()
            }

        run.main.reform({"0": layouts}, fill)

    def phases(self):
        (train,) = super().phases()
        options: dict[str, Any] = {"optimiser": train.optimiser}
        if self.choose == 1:
            return (Phase("train", objective=self.loss, leave=self.close, **options),)
        return (
            Phase("choose", share=self.choose, objective=self.loss, **options),
            Phase("train", share=1 - self.choose, enter=self.close, **options),
        )
