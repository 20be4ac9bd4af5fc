"""Fixed numbers that a seed makes: bases and positions that never train, and that no file holds.

The seed is an option of the method, so that adaptations with the same options have the same numbers: they average, and share a bank.
Each tensor has a generator of its own, from the seed and the tensor's name: nothing else that is drawn moves it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from luthier.host.part import Draw, Spec


def seeded(shape: tuple[int, ...], draw: Draw, seed: int, name: str) -> Spec:
    """A tensor that `draw(shape, rng)` makes from (seed, name)."""

    def start(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        key = hashlib.sha256(f"{seed} {name}".encode()).digest()
        return draw(shape, torch.Generator().manual_seed(int.from_bytes(key[:8]) >> 1))

    return Spec(shape, start, trained=False, stored=False)


def seeded_positions(count: int, size: int, seed: int, name: str) -> Spec:
    """`count` different integers below `size`."""

    def draw(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return positions(count, size, rng)

    return seeded((count,), draw, seed, name)._replace(dtype=torch.int64, bounds=(0, size - 1))


def positions(count: int, size: int, rng: torch.Generator) -> Tensor:
    """`count` different integers below `size`, in the order of their draw: (count,)."""
    if 4 * count > size:
        return torch.randperm(size, generator=rng)[:count]
    kept: dict[int, None] = {}
    while len(kept) < count:  # without a permutation of the whole
        kept |= dict.fromkeys(torch.randint(size, (count - len(kept),), generator=rng).tolist())
    return torch.tensor(list(kept))


def uniform(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform, of standard deviation 1."""
    return (2 * torch.rand(shape, generator=rng) - 1) * 3**0.5


def kaiming(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform between -b and b, b = sqrt(3 / the last dimension): what a linear map keeps has the size of what it received."""
    return uniform(shape, rng) / shape[-1] ** 0.5


def ternary(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """-1, 0 and 1 with odds 1/6, 2/3 and 1/6, times sqrt(3): of standard deviation 1 (Li et al. 2006, very sparse projections)."""
    drawn = torch.randint(6, shape, generator=rng)
    return ((drawn == 0).float() - (drawn == 1).float()) * 3**0.5
