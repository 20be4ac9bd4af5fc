"""SUPMER: a prompt that begins where meta-learning left it, whose gradients a meta-learned regulator turns (Pan et al. 2023, "Self-supervised Meta-Prompt Learning with Meta-Gradient Regularization for Few-shot Generalization", S306).

[P; E(x)]    P: (length, width)    trained: length * width
Before every step each row of P's gradient becomes psi(g) = (1 - z) f(g) + z g (`luthier.signals.regulator`), z from the mean state
of the batch's inputs. `luthier meta` learns P's start and psi from unlabelled text and writes an adaptation of this method;
`luthier fit --method supmer --after THAT` begins with both, `--method prompt_tuning --after THAT` with the start alone.
Begun without one, psi leaves gradients as they are and this is prompt tuning.
Not an identity at step 0; not a weight change: it cannot merge.

With another source psi acts on those of its tensors that are rows as wide as the prompt's.

Differs: AdamW at 0.1 follows psi; the mean state is of the input's real tokens, without the prompt's positions and padding.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt

from luthier.host.part import Phase, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.optimisers import adamw
from luthier.signals.regulator import gate, regulated, specs, states


@method("supmer", targets="embedding", rate=1e-1)
class SUPMER(PromptTuning):
    length: PositiveInt = 100  # prompt tokens
    rank: PositiveInt = 64  # of the regulator's layers
    layers: PositiveInt = 2  # of the regulator
    hidden: PositiveInt = 24  # width of its gate's hidden layer
    regulate: bool = True  # turn the gradients; off: only the start is used

    def shared(self, sites):
        return specs(sites[0].out_features, self.rank, self.layers, self.hidden)

    def phases(self):
        return (Phase("train", optimiser=self.regulated_adamw),)

    def regulated_adamw(self, named, run):
        made = adamw(named, run)
        if self.regulate:
            made.register_step_pre_hook(Turned(named, run))
        return made


class Turned:
    """Turns the prompt's gradients before a step: after all micro batches and processes were summed up."""

    def __init__(self, named: Any, run: Any):
        self.named, self.run = named, run

    @torch.no_grad()
    def __call__(self, optimiser: Any, args: Any, kwargs: Any) -> None:
        placed = self.run.main.placed()[0]
        t, width = placed.common, placed.sites[0].out_features
        if not t["psi_learned"]:
            return
        z = gate(self.state(), t)
        for name, p in self.named.items():
            if ".parts.0.at." in name and p.grad is not None and p.dim() == 2 and p.shape[1] == width:
                p.grad = regulated(p.grad.float(), z, t).to(p.grad.dtype)

    def state(self) -> torch.Tensor:
        """The mean state of this step's inputs, over all pieces and processes (a piece without a share only fills up a round)."""
        run, total, tokens = self.run, None, 0
        for piece, share in zip(*run.shared_out()):
            with run.adapted.using(*run.uses), run.autocast():
                out = run.adapted(piece, body=True)
            found = states(out.hidden, out.mask) if share else states(out.hidden, out.mask)[:0]
            total, tokens = found.sum(0) if total is None else total + found.sum(0), tokens + len(found)
        assert total is not None
        whole = torch.cat([total, torch.tensor([float(tokens)], device=total.device)])
        if run.world > 1:
            whole = run.processes.sum(whole)
        return whole[:-1] / whole[-1]
