"""Baselines of tagging: the most frequent tag, each word's most frequent tag, and a linear probe of token features.

Each is fitted on the training rows; the probe's strength is chosen on the validation rows.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from luthier.data.entities import most_frequent_tag
from luthier.data.task import LOWER_IS_BETTER
from luthier.errors import ModelError

TAGGING = ("majority", "word", "probe")
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""C of the logistic regression, tried on validation; smallest first, so that ties prefer the simpler model."""
WORDS = 12_000
"""Training words that the probe is fitted on at most, drawn at random."""

Fit = tuple[Callable[[Any], list[np.ndarray]], float | None, list[dict[str, Any]], int, int]
"""(inputs -> for each row probabilities (words, tags); strength; trials; parameters; bytes of a file)."""


def fit_tagging(name: str, model: Any, data: Any, scores: Any, batch_size: int, seed: int) -> Fit:
    """One baseline, by its name among TAGGING."""
    if name == "probe":
        return _probe(model, data, scores, batch_size, seed)
    return _majority(data) if name == "majority" else _by_word(data)


def _majority(data: Any) -> Fit:
    """The share of every tag among the training words."""
    counts = np.bincount(np.concatenate(list(data.train.targets)), minlength=len(data.task.labels))
    share = (counts / counts.sum()).astype(np.float32)
    return lambda inputs: [np.tile(share, (len(words), 1)) for words in inputs], None, [], 0, share.nbytes


def _by_word(data: Any) -> Fit:
    """The tag that a word has most often in training; of a word that is new, the most frequent tag (O for entities)."""
    labels, counts = data.task.labels, defaultdict[str, Counter[int]](Counter)
    for words, tags in zip(data.train.inputs, data.train.targets):
        for word, tag in zip(words, tags):
            counts[word][int(tag)] += 1
    known = {word: min(of, key=lambda tag: (-of[tag], tag)) for word, of in counts.items()}
    other = labels.index(most_frequent_tag(labels, data.train.targets))
    eye = np.eye(len(labels), dtype=np.float32)
    size = sum(len(word.encode()) + 8 for word in known)
    return (
        lambda inputs: [eye[[known.get(word, other) for word in words]] for words in inputs],
        None,
        [],
        0,
        size,
    )


def _probe(model: Any, data: Any, scores: Any, batch_size: int, seed: int) -> Fit:
    """Logistic regression on the frozen hidden state at each word's first token, standardised over training words."""
    from sklearn.linear_model import LogisticRegression

    task = data.task
    features = np.concatenate(word_features(model, data.train.inputs, task, batch_size))
    tags = np.concatenate(list(data.train.targets))
    seen = np.isfinite(features).all(1)
    if not seen.any():
        raise ModelError("The model's features are not finite on this data. Load it with dtype=float32.")
    features, tags = features[seen], tags[seen]
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    order = np.random.default_rng(seed).permutation(len(tags))[:WORDS]
    x, y = (features[order] - mean) / std, tags[order]
    other = task.labels.index(most_frequent_tag(task.labels, data.train.targets))

    def predicted(fitted: Any, found: list[np.ndarray]) -> list[np.ndarray]:
        out = []
        for row in found:
            p = np.zeros((len(row), len(task.labels)), np.float32)
            there = np.isfinite(row).all(1)
            p[~there, other] = 1
            if there.any() and isinstance(fitted, int):
                p[there, fitted] = 1
            elif there.any():
                p[np.ix_(there, fitted.classes_)] = fitted.predict_proba((row[there] - mean) / std)
            out.append(p)
        return out

    held = data.validation is not None and len(data.validation) > 0
    validation = word_features(model, data.validation.inputs, task, batch_size) if held else []
    best: tuple[float, float, Any] | None = None
    trials = []
    for strength in STRENGTHS if held else (0.1,):
        fitted: Any = int(y[0])
        if len(np.unique(y)) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # reaching max_iter is no reason to alarm: validation decides
                fitted = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(x, y)
        score = 0.0
        if held:
            figures = scores(task, data.validation.targets, predicted(fitted, validation))
            score = figures[task.metric] * (-1 if task.metric in LOWER_IS_BETTER else 1)
            trials.append({"strength": strength, "validation": figures})
        if best is None or score > best[0] + 1e-12:
            best = (score, strength, fitted)
    assert best is not None
    chosen, parameters = best[2], (x.shape[1] + 1) * len(task.labels)
    predict = lambda inputs: predicted(chosen, word_features(model, inputs, task, batch_size))
    return predict, best[1], trials, parameters, parameters * 4 + mean.nbytes * 2


def word_features(model: Any, inputs: Any, task: Any, batch_size: int) -> list[np.ndarray]:
    """For each row (words, width) float32: the frozen model's hidden state at each word's first token; NaN for none."""
    import torch

    from luthier.host import Adapted
    from luthier.train.batches import encode, in_order
    from luthier.train.fitted import Inputs
    from luthier.train.predict import by_word

    adapted = Adapted(model.base).eval()
    data = encode(model.preprocess, Inputs(inputs), task, targets=False)
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for rows, batch in in_order(data, batch_size, model.device):
            out = adapted(batch, body=True)
            if out.hidden is None or out.hidden.dim() != 3:
                raise ModelError(
                    f"{type(adapted.base).__name__} returns no hidden state for each token, so there is nothing to probe."
                )
            mask = batch["attention_mask"].cpu().numpy()
            for row, one in zip(rows, by_word(out.hidden.float().cpu().numpy(), mask, data, rows, None)):
                found[int(row)] = one
    return [found[row] for row in range(len(data))]
