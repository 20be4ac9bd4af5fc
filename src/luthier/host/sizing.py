"""A budget of parameters instead of a rank: the largest size of a method that trains no more, and what a method trains, counted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation, all_parts, first_layouts
from luthier.host.part import Part
from luthier.host.structure import structure_of

SIZES = ("rank", "width", "length", "count", "numbers")
"""Options that say how large a method is; the first that a method has is the one that a budget sets."""
LARGEST, NEAR = 2**20, 32
"""The largest size that is tried, and how far around a crossing one is looked for."""


def count(method: Part, base: nn.Module) -> int:
    """Numbers that a method trains on a base, without a head; nothing is drawn, decomposed or gathered.

    Where statistics of a task share ranks out over sites, equal ranks are counted; where a plan prunes, what it leaves is (`Part.left`).
    """
    structure = structure_of(base)
    parts = all_parts(method, None)
    sites = [p.sites(structure) for p in parts]
    for part, here in zip(parts, sites, strict=True):
        part.check_base(base, here)
        part.check(here)
    if (left := method.left(sites)) is not None:
        return left
    made = Adaptation(method, sites, None, first_layouts(parts, sites, base))
    total = 0
    for placed in made.placed():
        for _, specs in placed.plan():
            total += sum(
                math.prod(s.shape) for s in specs.values() if s.trained and s.dtype.is_floating_point
            )
        network = placed.part.build(base, placed.sites, torch.Generator().manual_seed(0))
        total += sum(p.numel() for p in network.parameters() if p.requires_grad) if network else 0
    return total


def sized(method: Part, base: nn.Module, allowed: int) -> Part:
    """The same method with the size (rank, width, length, count) that trains most and at most `allowed` numbers, the head apart.

    A start or a plan that shares ranks out over sites shares the numbers out instead (EVA, AdaLoRA); a method whose size is a number
    of numbers is given those. Raises OptionError where the method has no size,
    and where its smallest is too large.
    """
    option = size_option(method)
    if option == "numbers":
        return _replaced(method, {option: allowed})
    shares = any(f.name == "numbers" for f in dataclasses.fields(method))
    if shares:
        method = _replaced(method, {"numbers": None})
    trained: dict[int, int | None] = {}

    def numbers(size: int) -> int | None:
        """What is trained at this size; None where the method refuses it."""
        if size not in trained:
            try:
                trained[size] = count(_replaced(method, {option: size}), base)
            except OptionError:
                trained[size] = None
        return trained[size]

    smallest = next((n for n in range(1, 65) if numbers(n) is not None), None)
    if smallest is None:
        count(method, base)  # what it says against itself
        raise OptionError(f"{method.name}: no {option} up to 64 fits here. Choose other targets.")
    last = _last(lambda n: numbers(n) is not None, smallest)
    falls = (numbers(last) or 0) < (numbers(smallest) or 0)  # RandLoRA: a smaller rank has more pieces
    if falls:
        fits = lambda n: (numbers(n) or 0) > allowed
        least = numbers(last) or 0
        best = smallest if not fits(smallest) else _last(fits, smallest) + 1
        near = range(
            max(smallest, best - NEAR), min(last, best + NEAR) + 1
        )  # it falls in steps, and rises between them
        within = [n for n in near if (numbers(n) or 0) <= allowed]
        best = max(within, key=lambda n: numbers(n) or 0, default=best)
    else:
        least = numbers(smallest) or 0
        best = _last(lambda n: (found := numbers(n)) is not None and found <= allowed, smallest)
    if least > allowed:
        at = last if falls else smallest
        raise OptionError(
            f"{method.name}: with {option}={at}, its smallest size here, it trains {least:,} parameters, above the budget of {allowed:,}. "
            "Choose fewer targets, another method, or raise the budget."
        )
    start: Any = getattr(method, "start", None)
    changed: dict[str, Any] = {option: best}
    if shares:
        changed["numbers"] = allowed
    if start is not None and any(f.name == "numbers" for f in dataclasses.fields(start)):
        changed["start"] = _replaced(start, {"numbers": allowed})
    return _replaced(method, changed)


def size_option(method: Part) -> str:
    """The option that says how large a method is. OptionError where there is none."""
    own = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    for name in SIZES:
        if type(own.get(name)) is int:
            return name
    raise OptionError(
        f"{method.name} has no size that a budget could set ({', '.join(SIZES)}). Set its options yourself: {', '.join(own) or 'it has none'}."
    )


def _replaced(choice: Any, options: dict[str, Any]) -> Any:
    return dataclasses.replace(choice, **options)


def _last(holds: Any, first: int) -> int:
    """The largest n from `first` on up to which `holds`, which does at `first` and then changes once."""
    low, step = first, 1
    while low + step <= LARGEST and holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, LARGEST + 1)  # holds not, or is out of bounds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
