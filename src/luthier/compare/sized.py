"""A method that is as large as a budget of parameters allows: budgets instead of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luthier.compare.budget import Budget, of_parameters
from luthier.errors import OptionError


def sized(method: Any, model: Any, budget: str | Budget) -> Any:
    """The method with the largest rank, width or length that trains no more than `budget` ("params=0.5%", "params=20k"; the head apart).

    method: a name, a class or an instance. model: what `luthier.load` gives. OptionError where the budget says nothing of parameters,
    where the method has no size, and where its smallest is too large.
    """
    from luthier.host.sizing import sized as fitting
    from luthier.train.beginning import as_method

    limits = of_parameters(budget) if isinstance(budget, str) else budget
    allowed = limits.parameters_allowed(base_parameters(model))
    if allowed is None:
        raise OptionError(
            f"The budget {str(budget)!r} says nothing of parameters, which sizes follow from. Add params=0.5%."
        )
    return fitting(as_method(method), model.base, allowed)


def said(method: Any, model: Any) -> str:
    """`rank=12 trains 24,576 parameters, 0.11% of the base`."""
    from luthier.host.sizing import count, size_option

    option, trained = size_option(method), count(method, model.base)
    return f"{option}={getattr(method, option)} trains {trained:,} parameters, {trained / base_parameters(model):.2%} of the base"


def sized_methods(methods: Iterable[Any], model: Any, budget: Budget) -> list[Any]:
    """Each method as large as the budget allows; those without a size as they are, which the budget judges when they run."""
    from luthier.host.sizing import size_option

    made = []
    for method in methods:
        try:
            size_option(method)
        except OptionError:
            made.append(method)
        else:
            made.append(sized(method, model, budget))
    return made


def base_parameters(model: Any) -> int:
    """Parameters of the base, which a budget in per cent is a share of."""
    return sum(p.numel() for p in model.base.parameters())
