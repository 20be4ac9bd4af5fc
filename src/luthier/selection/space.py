"""A space of layouts: which forms and sizes the sites of a method may have, what each costs, and how one choice becomes another.

A genome is one option for each gene, by number; options are listed the largest first, so that a larger number trains no more.
Methods that can be searched say their space: `space(sites)`; `luthier.search` looks through it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import OptionError
from luthier.host.part import Layout, Part, spec
from luthier.host.sites import Site

Genome = tuple[int, ...]
Layouts = dict[str, dict[str, Layout]]
"""{number of a part: {site: layout}}, as adaptations keep them."""


@dataclass(frozen=True)
class Gene:
    """One choice. group: genes that a child has from the same parent (a layer's forms, a kind of module)."""

    name: str
    group: str
    options: tuple[Any, ...]


@dataclass
class Space:
    """parts, with sites[i] where part i stands; `of` turns {gene: option} into layouts."""

    parts: Sequence[Part]
    sites: Sequence[Sequence[Site]]
    genes: Sequence[Gene]
    of: Callable[[Mapping[str, Any]], Layouts]
    _costs: dict[tuple[int, str, str], int] = field(default_factory=dict)

    def layouts(self, genome: Genome) -> Layouts:
        """What every site holds under this genome."""
        return self.of({g.name: g.options[i] for g, i in zip(self.genes, genome, strict=True)})

    def numbers(self, layouts: Layouts) -> int:
        """How many numbers the parts train with these layouts; an output head is not counted."""
        return sum(
            self._cost(i, s, layouts[str(i)][s.name]) for i, here in enumerate(self.sites) for s in here
        )

    def count(self, genome: Genome) -> int:
        """`numbers` of a genome."""
        return self.numbers(self.layouts(genome))

    def _cost(self, part: int, site: Site, layout: Layout) -> int:
        key = part, site.name, json.dumps(layout, sort_keys=True)
        if key not in self._costs:
            specs = [spec(s) for s in self.parts[part].tensors(site, layout).values()]
            self._costs[key] = sum(math.prod(s.shape) for s in specs if s.trained)
        return self._costs[key]

    @property
    def largest(self) -> Genome:
        return (0,) * len(self.genes)

    @property
    def smallest(self) -> Genome:
        return tuple(len(g.options) - 1 for g in self.genes)

    @property
    def combinations(self) -> int:
        return math.prod(len(g.options) for g in self.genes)

    def refuse(self, allowed: int) -> None:
        """OptionError where even the smallest choice trains more than allowed."""
        if (least := self.count(self.smallest)) > allowed:
            raise OptionError(
                f"The budget allows {allowed:,} parameters, and the smallest choice of this space trains {least:,}. Raise params."
            )

    # -- one choice from others

    def drawn(self, rng: random.Random, allowed: int | None = None) -> Genome:
        """A genome at random, cut down to what is allowed."""
        return self.within(tuple(rng.randrange(len(g.options)) for g in self.genes), rng, allowed)

    def mutated(
        self, genome: Genome, rng: random.Random, chance: float, allowed: int | None = None
    ) -> Genome:
        """Every gene is drawn again with this chance."""
        new = [
            rng.randrange(len(g.options)) if rng.random() < chance else i for g, i in zip(self.genes, genome)
        ]
        return self.within(tuple(new), rng, allowed)

    def crossed(self, a: Genome, b: Genome, rng: random.Random, allowed: int | None = None) -> Genome:
        """Every group whole from one of two parents."""
        from_a = {group: rng.random() < 0.5 for group in dict.fromkeys(g.group for g in self.genes)}
        return self.within(
            tuple(x if from_a[g.group] else y for g, x, y in zip(self.genes, a, b)), rng, allowed
        )

    def within(self, genome: Genome, rng: random.Random, allowed: int | None) -> Genome:
        """The genome with genes, picked at random, one option smaller each time until it trains no more than allowed."""
        if allowed is None:
            return genome
        self.refuse(allowed)
        new, last = list(genome), self.smallest
        while self.count(tuple(new)) > allowed:
            new[rng.choice([i for i, at in enumerate(new) if at < last[i]])] += 1
        return tuple(new)


def can_be_searched(method: Any) -> bool:
    """Whether a method says its space."""
    return callable(getattr(method, "space", None))
