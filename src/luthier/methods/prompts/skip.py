"""SKIP: a soft prompt, and only the hidden units that carry its task (Yang et al. 2024, "SKIP: Skill-Localized Prompt Tuning for Inference Speed Boost-Up", S301).

[P; E(x)]    P: (length, width)    of each feed-forward layer a share `cut` of the units is left out, and a share `cut_heads` of heads
Plan: train; score units by |h dP(y|x)/dh| (luthier.selection.attribution), cut the lowest of every layer; train again.
trained: length * width. What is kept are indices: the base stays whole, many tasks share it, and each runs on its own part of it.
Attached, a feed-forward layer multiplies only what is kept; `fitted.smaller()` copies the model without what is cut, heads too.
Not an identity at step 0; not a weight change: it cannot merge.

Differs (the paper's details could not be verified): scores are the largest over tokens, summed over `scored` batches of
training rows; a head's score is the derivative by a gate on it; P is exp(-loss), for answers of several tokens that of a
token on average. The output head, where there is one, trains with the prompt in both stages.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Method, Phase, Start, method
from luthier.host.places import UnitCut
from luthier.host.places.units import exit_of, keep, units
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.selection.attribution import attribution, highest
from luthier.starts.vocabulary import Vocabulary

Some = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@method("skip", rate=1e-1)
class Skip(Method):
    length: PositiveInt = 20  # prompt tokens
    cut: Some = 0.5  # share of every feed-forward layer's units that is cut
    cut_heads: Some = 0.0  # share of every attention's heads that is cut
    by: Literal["attribution", "random"] = "attribution"  # which units stay: the highest scores, or any
    scored: PositiveInt = 8  # batches that score units
    retrain: Share = 0.25  # share of the steps that come after the cut
    start: Start = Vocabulary()  # of the prompt: rows of the vocabulary, or chosen ones

    def parts(self):
        if not self.cut and not self.cut_heads:
            raise OptionError(
                "skip: cut=0 and cut_heads=0 leave nothing to cut. Set one of them, or use prompt_tuning."
            )
        where = [role for role, share in (("mlp.down", self.cut), ("attention", self.cut_heads)) if share]
        return PromptTuning(length=self.length, start=self.start), UnitCut(targets=" | ".join(where))

    def score(self, run):
        """Add up the attribution of this step's rows, one row at a time."""
        base, structure, ats = run.adapted.base, run.adapted.structure, run.main.at(1)
        readers = {
            a.site.name: (base.get_submodule(exit_of(structure, a.site).path), units(a.site)) for a in ats
        }
        total = {name: torch.zeros(n, device=run.device) for name, (_, n) in readers.items()}
        if self.by == "attribution":
            rows = run.batches.rows(run.stream, run.total)[run.batches.rank :: run.world]
            for row in rows:
                one = run.batches.stream(run.stream).batch([row], run.device)
                for name, found in attribution(readers, partial(run.loss, one)).items():
                    total[name] += found
            if run.world > 1:
                total = {name: run.processes.sum(found) for name, found in total.items()}
        else:
            total = {name: torch.rand(len(s), generator=run.rng).to(s) for name, s in total.items()}
        for name, found in total.items():
            key = f"units/{name}"
            run.extra[key] = run.extra[key] + found if key in run.extra else found

    def leave_out(self, run):
        """Keep the best units of every layer."""
        kept = {}
        for a in run.main.at(1):
            share = self.cut if a.site.role == "mlp.down" else self.cut_heads
            kept[a.site.name] = highest(run.extra.pop(f"units/{a.site.name}"), share).cpu()
        keep(run.main, 1, kept)

    def phases(self):
        return (
            Phase("train", share=1 - self.retrain),
            Phase("score", self.scored, step=self.score, leave=self.leave_out),
            Phase("retrain", share=self.retrain),
        )
