"""Linear probes of a vision testbed: what its frozen features say of an image, beside what its pixels say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from luthier.models.testbeds import images
from luthier.models.testbeds.recipe import Recipe

ROWS, QUICK = 3000, 600
"""Generated images that a probe learns from; half as many more are held out."""
DIGITS = 500
"""Rows of `builtin:digits` that a probe learns from."""
BATCH = 128
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of a logistic regression's regularisation, chosen among by 5 folds of the training rows."""
RIDGES = (10.0, 100.0, 1e3, 1e4)
"""Strengths of a ridge regression's, chosen among by leaving each row out."""


def factors(loaded: Any, recipe: Recipe, quick: bool = False) -> dict[str, float]:
    """Accuracy of linear probes of every factor on generated images that are held out, of frozen features and of
    pixels, and the means over the factors, beside that of always saying the most frequent value."""
    rows = QUICK if quick else ROWS
    pixels, labels = images.batch(np.random.default_rng([recipe.seed, 2]), rows + rows // 2)
    seen = {"": features(loaded.base, loaded.preprocess, pixels), "pixels": _flat(pixels)}
    found: dict[str, float] = {}
    means: dict[str, list[float]] = {"": [], "pixels": [], "most frequent": []}
    for i, name in enumerate(images.FACTORS):
        there = labels[:, i] != images.IGNORED
        train, test = np.flatnonzero(there[:rows]), np.flatnonzero(there[rows:]) + rows
        y, goal = labels[train, i], labels[test, i]
        for what, x in seen.items():
            score = ridge(x[train], y, x[test], goal)
            found[_named(f"{name} right", what)] = score
            means[what].append(score)
        means["most frequent"].append(float((goal == np.bincount(y).argmax()).mean()))
    return {_named("factors right, mean", what): float(np.mean(s)) for what, s in means.items()} | found


def digits(loaded: Any, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the test rows of `builtin:digits` of a logistic regression of the first 500 training rows: of
    frozen features, of pixels, and of the features of fresh weights. No digit is among the generated images."""
    from luthier.data.builtin import builtin

    data = builtin("digits")
    assert data.test is not None
    y, goal = np.asarray(data.train.targets)[:DIGITS], np.asarray(data.test.targets)
    train, test = np.asarray(data.train.inputs)[:DIGITS], np.asarray(data.test.inputs)
    torch.manual_seed(recipe.seed)
    fresh = recipe.module.model(recipe).eval().vit
    sides = {
        "": [features(loaded.base, loaded.preprocess, x) for x in (train, test)],
        "pixels": [_flat(x) for x in (train, test)],
        "untrained weights": [features(fresh, loaded.preprocess, x) for x in (train, test)],
    }
    return {
        _named(f"digits right from {DIGITS}, linear probe", what): logistic(x, y, other, goal)
        for what, (x, other) in sides.items()
    }


def ridge(x: Any, y: Any, other: Any, goal: Any) -> float:
    """Accuracy on (other, goal) of a ridge regression of the classes of (x, y): a linear probe that many classes and
    entries leave fast. Inputs (rows, width) are standardised."""
    from sklearn.linear_model import RidgeClassifierCV

    x, other = standardised(x, other)
    return float(RidgeClassifierCV(RIDGES).fit(x, y).score(other, goal))


def logistic(x: Any, y: Any, other: Any, goal: Any) -> float:
    """The same of a logistic regression, the better one of few rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    x, other = standardised(x, other)
    made = [LogisticRegression(C=c, max_iter=500) for c in STRENGTHS]
    best = max(made, key=lambda one: cross_val_score(one, x, y, cv=5).mean())
    return float(best.fit(x, y).score(other, goal))


def standardised(x: Any, other: Any) -> tuple[Any, Any]:
    """Both with the mean and deviation that the first has."""
    middle, spread = x.mean(0), x.std(0) + 1e-6
    return (x - middle) / spread, (other - middle) / spread


@torch.no_grad()
def features(base: Any, prepared: Any, pixels: Any) -> Any:
    """The class token's last hidden state of images (rows, height, width, channels) uint8: (rows, width)."""
    found = []
    for begin in range(0, len(pixels), BATCH):
        batch = prepared.collate(prepared.encode(pixels[begin : begin + BATCH]))
        found.append(base(**batch).last_hidden_state[:, 0].float().numpy())
    return np.concatenate(found)


def _flat(pixels: Any) -> Any:
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def _named(figure: str, what: str) -> str:
    return f"{figure}, {what}" if what else figure
