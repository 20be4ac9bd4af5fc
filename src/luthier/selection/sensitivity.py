"""How much a task hangs on every single weight, and what is tuned for it within a budget (He et al. 2023, "Sensitivity-Aware Visual
Parameter-Efficient Fine-Tuning", S147).

s = sum over batches of g^2    g: the gradient of a batch's loss by the weight

The highest weights of the model are marked. A matrix gets a module where its marks reach cost / worth, a vector is tuned whole where
more than `whole` of it is marked, and elsewhere marked weights are tuned one by one. As many are marked as the budget bears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def squared_gradients(
    tensors: Mapping[str, Tensor], gradients: Iterable[Callable[[Sequence[Tensor]], Sequence[Tensor]]]
) -> dict[str, Tensor]:
    """{name: s, of the tensor's shape}. gradients: for every batch a function of tensors, the loss's gradients by them."""
    held = list(tensors.values())
    total = [torch.zeros_like(t) for t in held]
    for of in gradients:
        for s, g in zip(total, of(held), strict=True):
            s += g.square()
    return dict(zip(tensors, total, strict=True))


@dataclass(frozen=True)
class Allotment:
    """What is tuned: names of matrices with a module, and positions of single weights in flattened tensors (all of a whole vector)."""

    modules: frozenset[str]
    entries: dict[str, Tensor]
    numbers: int
    """How many numbers that trains."""


def allot(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, int],
    budget: int,
    *,
    worth: float = 10.0,
    whole: float = 0.2,
) -> Allotment:
    """What the highest scores pay for, with at most `budget` numbers.

    scores: of every tensor that may be tuned; costs: {name: numbers of a module} for those that may have one. What the largest
    number of marks leaves of the budget, because one more would turn into a module, goes to the next weights one by one.
    """
    names = list(scores)
    flat = torch.cat([scores[n].flatten() for n in names])
    sizes = torch.tensor([scores[n].numel() for n in names])
    vector = torch.tensor([scores[n].dim() < 2 for n in names])
    cost = torch.tensor([float(costs.get(n, 0)) for n in names], dtype=torch.float64)
    first = sizes.cumsum(0) - sizes
    order = flat.argsort(descending=True, stable=True).cpu()
    owner = torch.repeat_interleave(torch.arange(len(names)), sizes)[order]

    def of(marks: int) -> tuple[Tensor, Tensor, Tensor]:
        """With so many marks: marked of each tensor, which have a module, which are tuned whole."""
        count = torch.bincount(owner[:marks], minlength=len(names))
        module = (cost > 0) & (count * worth >= cost)
        return count, module, vector & ~module & (count > whole * sizes)

    def numbers(marks: int) -> int:
        count, module, all_of = of(marks)
        return int(torch.where(module, cost.long(), torch.where(all_of, sizes, count)).sum())

    marks = most(numbers, len(order), budget)
    _, module, all_of = of(marks)
    taken = numbers(marks)
    singly = ~(module | all_of)[owner]
    chosen = singly & (torch.arange(len(order)) < marks)
    further = (singly & ~chosen).nonzero().flatten()[: budget - taken]
    chosen[further] = True
    entries = {}
    for i, name in enumerate(names):
        at = (
            torch.arange(int(sizes[i]))
            if all_of[i]
            else (order[chosen & (owner == i)] - first[i]).sort().values
        )
        if len(at):
            entries[name] = at
    return Allotment(frozenset(n for n, m in zip(names, module.tolist()) if m), entries, taken + len(further))


def most(numbers: Callable[[int], int], largest: int, budget: int) -> int:
    """The largest n up to `largest` with numbers(n) <= budget; numbers rises."""
    low, high = 0, largest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if numbers(middle) <= budget else (low, middle)
    return low
