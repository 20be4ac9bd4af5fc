"""Evolution over a space of layouts: the best of a round are the parents of the next, by mutation and by crossover.

As one-shot architecture search does it (Guo et al. 2020; AutoFormer): a first population at random, then in each round so many
mutants and so many children of two parents, and newcomers at random where those are too few. Nobody trains more than is allowed,
and nobody is scored twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luthier.errors import OptionError
from luthier.selection.space import Genome, Space

TRIES = 50
"""Draws for one newcomer before a round does without it: a small space runs out."""


@dataclass(frozen=True)
class Evolution:
    """How a search goes; the defaults are the papers'."""

    rounds: int = 20  # generations, the first one included
    population: int = 50  # candidates of a round
    parents: int = 10  # best so far that the next round descends from
    mutations: int = 25  # of a round, from one parent each
    crossovers: int = 25  # of a round, from two parents each
    chance: float = 0.2  # that a mutation draws a gene again
    seed: int = 0

    @classmethod
    def of(cls, rounds: int, population: int) -> Evolution:
        """The papers' shares in a search of another size: a fifth are parents, half mutants, half children."""
        half = population // 2
        return cls(rounds, population, max(1, population // 5), half, half)

    def check(self) -> None:
        """Refuse values that mean nothing, naming the option."""
        for name in ("rounds", "population", "parents"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)!r}: it must be at least 1.")
        if min(self.mutations, self.crossovers) < 0 or self.mutations + self.crossovers > self.population:
            raise OptionError(
                f"mutations={self.mutations} and crossovers={self.crossovers}: together at most the population of {self.population}."
            )
        if not 0 < self.chance <= 1:
            raise OptionError(f"chance={self.chance!r}: it is a share, above 0 and at most 1.")


@dataclass(frozen=True)
class Candidate:
    """A genome with what it trains and how it scored; larger scores are better."""

    round: int
    genome: Genome
    parameters: int
    score: float

    @property
    def order(self) -> tuple[float, int, Genome]:
        """The best first; of equals the one that trains fewer numbers."""
        return -self.score, self.parameters, self.genome


def evolve(
    space: Space,
    allowed: int,
    score: Callable[[Genome], float],
    how: Evolution,
    *,
    known: Mapping[Genome, float] | None = None,
    tell: Callable[[Candidate], None] | None = None,
) -> list[Candidate]:
    """All candidates in the order in which they were looked at; the best is `min(found, key=lambda c: c.order)`.

    score: asked once for each genome that is not in `known`, which holds what an interrupted search had found. tell: told every
    candidate. Which genomes are looked at depends on the seed and the scores alone.
    """
    how.check()
    rng = random.Random(f"evolution {how.seed}")
    found: dict[Genome, Candidate] = {}
    for turn in range(how.rounds):
        parents = sorted(found.values(), key=lambda c: c.order)[: how.parents]
        for genome in _generation(space, allowed, [c.genome for c in parents], set(found), how, rng):
            value = known[genome] if known is not None and genome in known else float(score(genome))
            found[genome] = Candidate(turn, genome, space.count(genome), value)
            if tell is not None:
                tell(found[genome])
    return list(found.values())


def _generation(
    space: Space, allowed: int, parents: list[Genome], seen: set[Genome], how: Evolution, rng: random.Random
) -> list[Genome]:
    """The genomes of one round, none of which was seen before."""
    made: list[Genome] = []

    def add(count: int, draw: Callable[[], Genome]) -> None:
        for _ in range(count):
            for _ in range(TRIES):
                genome = draw()
                if genome not in seen:
                    seen.add(genome)
                    made.append(genome)
                    break

    if parents:
        add(how.mutations, lambda: space.mutated(rng.choice(parents), rng, how.chance, allowed))
        add(how.crossovers, lambda: space.crossed(rng.choice(parents), rng.choice(parents), rng, allowed))
    add(how.population - len(made), lambda: space.drawn(rng, allowed))
    return made
