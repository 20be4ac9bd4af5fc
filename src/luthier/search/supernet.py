"""A supernet: one set of tensors that every layout of a space reads slices of, trained with a layout drawn at every step.

Which layout a step has depends on nothing but (seed, step), so that a run resumes bitwise. Smaller forms are the first entries of
larger ones (`luthier.sources.slices`); whatever a step's layout does not read gets no gradient.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

from luthier.host import Adaptation
from luthier.host.part import Method, Part, Phase, method
from luthier.selection.space import Layouts, Space
from luthier.sources.slices import Slices, first_entries


@method("supernet")
class Supernet(Method):
    """All layouts of a method's space at once. Trained as many numbers as the largest has."""

    of: Part  # the method whose layouts it holds

    def parts(self):
        return tuple(dataclasses.replace(p, source=Slices()) for p in self.of.parts())

    def phases(self):
        sampling = Sampling(self.of)
        return (Phase("supernet", step=sampling.step, leave=sampling.whole, partial=True),)


class Sampling:
    """The steps of a supernet: another layout each."""

    def __init__(self, of: Part):
        self.of = of
        self.space: Space | None = None

    def space_of(self, run: Any) -> Space:
        self.space = self.space or space_of(self.of, run.main)
        return self.space

    def step(self, run: Any) -> None:
        space = self.space_of(run)
        choose(run.main, space.layouts(space.drawn(random.Random(f"{run.seed} {run.total}"))))
        run.gradient_step()

    def whole(self, run: Any) -> None:
        space = self.space_of(run)
        choose(run.main, space.layouts(space.largest))


def space_of(method: Any, adaptation: Adaptation) -> Space:
    """The method's space at the sites of an adaptation."""
    return method.space([placed.sites for placed in adaptation.placed()[: len(method.parts())]])  # type: ignore[no-any-return]


def choose(adaptation: Adaptation, layouts: Layouts) -> None:
    """Let a supernet's sites read what these layouts want."""
    for i, placed in enumerate(adaptation.placed()):
        for at in placed.ats():
            if at.site.name in layouts.get(str(i), {}):
                at.layout = dict(layouts[str(i)][at.site.name])


@torch.no_grad()
def taken(supernet: Adaptation, method: Part, layouts: Layouts, base: torch.nn.Module) -> Adaptation:
    """An adaptation of its own with the slices that these layouts read, and with the supernet's output head."""
    made = Adaptation.new(method, base, head=supernet.head, layouts=layouts, seed=supernet.seed)
    for mine, theirs in zip(made.placed(), supernet.placed(), strict=True):
        for a, b in zip(mine.ats(), theirs.ats(), strict=True):
            wanted = {k: tuple(v.shape) for k, v in a.values.items()}
            for name, value in first_entries(dict(b.values.items()), wanted).items():
                a.values[name].copy_(value)
    made.task, made.preprocess, made.about = supernet.task, supernet.preprocess, dict(supernet.about)
    made.eval()
    return made.requires_grad_(False)
