"""SPT: what is tuned, and in which form, goes where the task's loss is sensitive (He et al. 2023, "Sensitivity-Aware Visual
Parameter-Efficient Fine-Tuning", S147).

s = sum over batches of g^2 for every weight at `targets`; the highest of the model are marked (`luthier.selection.sensitivity`)
dW = B A of rank `size` at a matrix with size (in + out) / worth marks or more    A: (size, in)  B: (out, size)
a vector with more than `whole` of it marked: all of it; elsewhere: the marked entries, in their place
trained: `numbers` in all
Plan: before the first step, `batches` batches of the task are read and the weights marked, as many as the budget bears.
Step 0 is the base (B = 0). Merging adds dW and writes the entries. score=random marks as many weights at random: the control.

Differs: tokens of the input keep the base's values, and what a further mark would overdraw is given to single entries, so that the
budget is used up. Fused projections are one matrix. The form with adapters, which does not merge, is not there.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from luthier.errors import OptionError
from luthier.host.adaptation import site_parameters
from luthier.host.part import Method, Phase, method
from luthier.methods.mixed.noah import SizedLoRA
from luthier.methods.sparse.entries import PLACES, SparseEntries
from luthier.selection.sensitivity import Allotment, allot, squared_gradients


def named(at, parameter: str) -> str:
    """A parameter's name in the model."""
    return f"{at.site.path}.{parameter}"


@method("sensitivity_tuning", targets="*attention.* | mlp.* | norm*", rate=1e-3, identity_start=True)
class SensitivityTuning(Method):
    numbers: Annotated[int, Field(ge=100)] = 20_000  # how many train, the head apart
    matrices: str = "projections"  # those of the targets that may get LoRA
    size: PositiveInt = 8  # LoRA's rank
    batches: PositiveInt = 16  # of the task, that sensitivity is measured on
    worth: Annotated[float, Field(ge=1)] = 10.0  # numbers of LoRA that a marked weight pays for
    whole: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of a vector above which all of it is tuned
    score: Literal["gradients", "random"] = "gradients"  # random: a control

    def parts(self):
        return (
            SizedLoRA(size=self.size, targets=self.matrices),
            SparseEntries(count=1, targets=self.targets),
        )

    def left(self, sites):
        costs = self.costs(sites[0])
        every = {f"{s.path}.{n}": torch.Size(shape).numel() for s in sites[1] for n, shape in s.parameters}
        return min(self.numbers, sum(costs.get(n, k) for n, k in every.items()))

    def costs(self, sites) -> dict[str, int]:
        """{weight: numbers of its LoRA}, where that has fewer than the weight."""
        found = {f"{s.path}.weight": (s, self.size * (s.in_features + s.out_features)) for s in sites}
        return {n: cost for n, (s, cost) in found.items() if cost < s.in_features * s.out_features}

    def sensitivity(self, run):
        """{parameter: a score for each of its weights}, with values of all of them in the place of the base's."""
        lora, entries = run.main.at(0), run.main.at(1)
        if beyond := {a.site.path for a in lora} - {a.site.path for a in entries}:
            raise OptionError(
                f"sensitivity_tuning: matrices={self.matrices!r} has {min(beyond)}, which targets={self.targets!r} leaves out. Choose "
                "matrices among the targets."
            )
        every = {
            a.site.name: SparseEntries.marking({n: torch.Size(s).numel() for n, s in a.site.parameters})
            for a in entries
        }
        base = run.adapted.base

        def fill(placed, site, specs):
            return {n: site_parameters(base, site)[n].float().flatten() for n in specs}

        run.main.reform({"0": {a.site.name: {"size": 0} for a in lora}, "1": every}, fill)
        values = {named(a, n): v for a in entries for n, v in a.values.items()}
        if self.score == "random":
            found = {n: torch.rand(len(v), generator=run.rng) for n, v in values.items()}
        else:
            found = squared_gradients(values, [partial(run.gradients, ahead=i) for i in range(self.batches)])
        shapes = {named(a, n): s for a in entries for n, s in a.site.parameters}
        return {n: s.view(shapes[n]) for n, s in found.items()}

    def allotted(self, run) -> Allotment:
        """What is tuned."""
        costs = self.costs([a.site for a in run.main.at(0)])
        return allot(self.sensitivity(run), costs, self.numbers, worth=self.worth, whole=self.whole)

    def place(self, run) -> None:
        """Measure, and lay out what is tuned."""
        found, base = self.allotted(run), run.adapted.base
        own = {
            a.site.name: {
                n: found.entries[named(a, n)] for n, _ in a.site.parameters if named(a, n) in found.entries
            }
            for a in run.main.at(1)
        }
        layouts = {
            "0": {
                a.site.name: {"size": self.size if named(a, "weight") in found.modules else 0}
                for a in run.main.at(0)
            },
            "1": {
                name: SparseEntries.marking({n: len(at) for n, at in of.items()}) for name, of in own.items()
            },
        }

        def fill(placed, site, specs):
            if isinstance(placed.part, SizedLoRA):
                return {k: s.start(s.shape, run.rng) for k, s in specs.items()}
            out = {}
            for n, at in own[site.name].items():
                value = site_parameters(base, site)[n].float().flatten()
                out[n] = value[at.to(value.device)]
                if n + PLACES in specs:
                    out[n + PLACES] = at
            return out

        run.main.reform(layouts, fill)

    def phases(self):
        return (Phase("train", enter=self.place),)
