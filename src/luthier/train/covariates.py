"""Covariates in a run: an adaptation whose source reads a number with every row is given those of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.data.covariates import MEASURES, measured
from luthier.errors import DataError


def covariates_for(adaptation: Any, split: Any, task: Any) -> np.ndarray | None:
    """(rows, covariates): the numbers that rows come with; of images without any, what the task's measures say of them.

    DataError where a source of `adaptation` reads one that is not there. Sources that read one say which by `covariate`.
    """
    found: np.ndarray | None = getattr(split, "covariates", None)
    names = getattr(task, "covariates", ())
    if found is None and names and set(names) <= set(MEASURES):
        found = measured(split.inputs, names)
    have = 0 if found is None else found.shape[1]
    for name, at in _read(adaptation):
        if at >= have:
            raise DataError(
                f"{name} reads number {at} (from 0) of every row, and these rows have {have}. Name its column with --covariate (in Python "
                "covariates=), or sharpness for images; to predict, --value says it of every row."
            )
    return found


def _read(adaptation: Any) -> list[tuple[str, int]]:
    """(method, which covariate) for every source that reads one."""
    from luthier.host.adapted import terms

    if adaptation is None:
        return []
    placed = [(term.method.name, p) for _, term in terms(adaptation) for p in term.every_placed()]
    each = [(name, getattr(p.part.source, "covariate", None)) for name, p in placed]
    return [(name, at) for name, at in each if at is not None]
