"""Covariates: numbers that an adaptation is told with every row (a quality, a noise level), read from columns or measured on images.

sharpness: 1 - blur in 0..1, blur the larger over both axes of sum max(0, |D x| - |D blurred x|) -> 1 - that / sum |D x|, the share of an
image's neighbouring differences that a further blur of 9 pixels leaves (Crete et al. 2007, "The blur effect: perception and estimation with a
new no-reference perceptual blur metric"). An image without differences has sharpness 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.data.columns import missing
from luthier.data.inputs import numbers
from luthier.data.split import Data, Split
from luthier.data.tables import Table
from luthier.data.write import quote
from luthier.errors import DataError

BLUR = 9
"""Pixels of the moving average."""


def sharpness(images: np.ndarray) -> np.ndarray:
    """(rows,) float32 in 0..1; images: (rows, H, W, C), of any scale."""
    grey = np.asarray(images, np.float64).mean(-1)
    return (1 - np.maximum(_blur(grey), _blur(grey.swapaxes(1, 2)))).astype(np.float32)


def _blur(grey: np.ndarray) -> np.ndarray:
    """(rows,) in 0..1: how little a moving average along the last axis takes from the differences of neighbours."""
    own = np.abs(np.diff(grey, axis=-1))
    wide = np.pad(grey, ((0, 0), (0, 0), (BLUR // 2, BLUR // 2)), mode="edge")
    sums = np.pad(wide.cumsum(-1), ((0, 0), (0, 0), (1, 0)))
    left = np.abs(np.diff((sums[..., BLUR:] - sums[..., :-BLUR]) / BLUR, axis=-1))
    whole = own.sum((1, 2))
    lost = np.maximum(0.0, own - left).sum((1, 2))
    return np.where(whole > 0, 1 - lost / np.where(whole > 0, whole, 1.0), 1.0)


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"sharpness": sharpness}
"""What can be measured on images where no column says it."""


def measured(inputs: Any, names: Sequence[str]) -> np.ndarray:
    """(rows, names) float32 of images. Raises DataError for what is no measure, and for what is no image."""
    images = np.asarray(inputs) if isinstance(inputs, np.ndarray) else None
    for name in names:
        if name not in MEASURES:
            raise DataError(
                f"No measure is called {quote(name)}: {', '.join(MEASURES)}. A column of numbers is named by --covariate, and its rows "
                "come as data with that column."
            )
        if images is None or images.ndim != 4:
            raise DataError(
                f"{quote(name)} is measured on images, and these rows are none: name a column of numbers"
            )
    assert images is not None
    return np.stack([MEASURES[name](images) for name in names], 1)


def read_covariates(table: Table, names: Sequence[str], inputs: Any) -> np.ndarray | None:
    """(rows, names) float32: each name a column of numbers, or, where there is no such column, a measure of the images `inputs`."""
    if not names:
        return None
    made = []
    for name in names:
        if name not in table.columns and name not in MEASURES:
            raise missing(table, name, "covariate")
        made.append(numbers(table, name) if name in table.columns else measured(inputs, (name,))[:, 0])
    return np.stack(made, 1)


def with_measures(data: Data, names: Sequence[str]) -> Data:
    """Data of images whose rows are told what is measured on them."""

    def told(part: Split) -> Split:
        return replace(part, covariates=measured(part.inputs, names))

    task = data.task.model_copy(update={"covariates": tuple(names)})
    return replace(data, task=task, **{name: told(part) for name, part in data.parts.items()})  # type: ignore[arg-type]
