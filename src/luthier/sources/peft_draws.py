"""Fixed numbers as peft 0.21 makes them from a seed, so that its VeRA and FourierFT are read exactly and its files need not hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.host.part import Spec


def _pair(rank: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    down, up = torch.empty(rank, inputs), torch.empty(outputs, rank)
    for made in (down, up):  # one after the other, of one generator
        bound = (6 / made.shape[1]) ** 0.5
        made.uniform_(-bound, bound, generator=rng)
    return down, up


def vera_pair(rank: int, inputs: int, outputs: int, seed: int) -> tuple[Spec, Spec]:
    """VeRA's A: (rank, inputs) and B: (outputs, rank): uniform within sqrt(6 / the last dimension)."""

    def one(which: int, shape: tuple[int, int]) -> Spec:
        def draw(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
            return _pair(rank, inputs, outputs, seed)[which]

        return Spec(shape, draw, trained=False, stored=False)

    return one(0, (rank, inputs)), one(1, (outputs, rank))


def fourier_positions(count: int, size: int, seed: int) -> Spec:
    """FourierFT's positions: the same in all maps of one size, (count,)."""

    def draw(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]

    return Spec((count,), draw, trained=False, stored=False, dtype=torch.int64, bounds=(0, size - 1))
