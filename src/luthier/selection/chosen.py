"""Indices that a layout holds (heads, channels), as a card may say them: checked before anything is laid out."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import OptionError


def checked(chosen: Sequence[int], count: int, what: str) -> Sequence[int]:
    """`chosen`, if these are rising numbers below `count`. OptionError that names `what` otherwise."""
    if any(type(i) is not int for i in chosen) or not all(
        a < b for a, b in zip([-1, *chosen], [*chosen, count])
    ):
        raise OptionError(
            f"{what} must be rising numbers from 0 to {count - 1}: the layout was made for another model, or is damaged."
        )
    return chosen
