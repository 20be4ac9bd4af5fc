"""Chain of LoRA: train, fold in, begin again (Xia et al. 2024, "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual
Learning", S097).

dW = (alpha / rank) (B_1 A_1 + ... + B_k A_k)    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
Each link trains a pair while those before it are frozen; then the pair joins them, a new one begins (A random, B = 0), and the
optimiser with its warm-up begins anew. Trained tensors and optimiser are those of one LoRA; dW may reach rank links * rank.
Step 0 of every link is where the last one ended. Merging adds dW to the weight.

Differs: past pairs are kept beside the base, which is not rewritten, so that a file holds all of them.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Phase, Spec, method, zero, zeros
from luthier.methods.low_rank.lora import LoRA


@method("chain_of_lora", rate=2e-3)
class ChainOfLoRA(LoRA):
    links: PositiveInt = 3  # pairs, one after the other, each for an equal share of the steps

    def layout(self, site):
        return {"links": 0}

    def tensors(self, site, layout):
        own, past = super().tensors(site, layout), layout["links"]
        if not past:
            return own
        (rank, inputs), (outputs, _) = own["A"], own["B"]
        fixed = {"past_A": (past * rank, inputs), "past_B": (outputs, past * rank)}
        return {**own, **{k: Spec(shape, zeros, trained=False) for k, shape in fixed.items()}}

    def pair(self, t):
        if "past_A" not in t:
            return t.B, t.A
        return torch.cat([t.past_B, t.B], -1), torch.cat([t.past_A, t.A], -2)

    def check(self, sites):
        super().check(sites)
        if self.start.anchored:
            raise OptionError(
                f"chain_of_lora begins anew from nothing, and start={self.start.name} is not nothing. Choose start=zero or start=eva."
            )

    def link(self, run):
        """Freeze the pair that has trained beside those before it, and begin another."""
        layouts, old = {}, {}
        for at in run.main.at():
            layouts[at.site.name] = {**at.layout, "links": at.layout["links"] + 1}
            up, down = self.pair(at.values)
            old[at.site.name] = {"past_B": up.detach(), "past_A": down.detach()}

        def fill(placed, site, specs):
            past = old[site.name]
            new = {k: specs[k] for k in ("A", "B")}
            return past | zero("B").fill(site, new, None, {}, run.rng)

        run.main.reform({"0": layouts}, fill)

    def phases(self):
        (train,) = super().phases()
        return tuple(
            Phase(f"link {i + 1}", enter=self.link if i else None, optimiser=train.optimiser)
            for i in range(self.links)
        )
