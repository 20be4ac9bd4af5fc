"""The learning rate of an arm: a small grid around the method's own, equal for every arm, chosen on validation only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from luthier.data.task import LOWER_IS_BETTER
from luthier.errors import OptionError

FACTORS = (1 / 3, 1.0, 3.0)


def parse(grid: bool | Sequence[float] | str) -> tuple[float, ...]:
    """Multiples of a method's default rate to try, rising; none: only the default, without trials. "0.3,1,3" or numbers.

    Raises OptionError for what is not two or more positive numbers, each once.
    """
    if isinstance(grid, bool):
        return FACTORS if grid else ()
    try:
        found = [float(f) for f in (grid.split(",") if isinstance(grid, str) else grid)]
    except (TypeError, ValueError):
        found = []
    if len(found) < 2 or len(set(found)) < len(found) or not all(0 < f < math.inf for f in found):
        raise OptionError(
            f"grid={grid!r}: give two or more different multiples of a method's own rate, such as 0.3,1,3,10."
        )
    return tuple(sorted(found))


def factors(grid: Sequence[float]) -> tuple[float, ...]:
    """What is tried; without a grid, only the default."""
    return tuple(grid) or (1.0,)


def at_end(arm: dict[str, Any]) -> str:
    """ "lowest" or "highest", where that of the rates that an arm tried is the one it took: a wider grid may better it."""
    tried = sorted(arm.get("trials") or (), key=lambda t: t.get("factor", 0.0))
    if len(tried) < 2 or "factor" not in tried[0]:
        return ""
    return "lowest" if tried[0].get("chosen") else "highest" if tried[-1].get("chosen") else ""


def rate_for(method: Any, factor: float) -> float | None:
    """The rate to fit with; None for the default, so that the parts of a method keep their own rates."""
    return None if factor == 1.0 else float(method.rate) * factor


def factor_name(factor: float) -> str:
    """For folder names: x0.333, x1, x3."""
    return f"x{factor:.3g}"


def choose(trials: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The trial that is best on validation; ties go to the rate nearest to the default, then to the smaller.
    None: all failed.

    Trials look like {"factor", "rate", "validation": {metric: x} | None, "error"}.
    """
    if not any((t.get("validation") or {}).get(metric) is not None for t in trials):
        metric = "loss"  # texts are not written while training: validation has their loss only
    sign = -1 if metric in LOWER_IS_BETTER or metric == "loss" else 1
    usable = [t for t in trials if t.get("validation") and t["validation"].get(metric) is not None]
    return max(
        usable,
        key=lambda t: (sign * t["validation"][metric], -max(t["factor"], 1 / t["factor"]), -t["factor"]),
        default=None,
    )
