"""Baselines that every leaderboard shows: majority, TF-IDF (or raw values) with a linear model, and a linear
probe; those of tagging are in `luthier.compare.tagging`, those of retrieval in `luthier.compare.retrieval`.

Each is fitted on the training rows; the strength of regularisation is chosen on the validation rows, the test
rows are only predicted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.compare.retrieval import RETRIEVAL, fit_retrieval
from luthier.compare.tagging import TAGGING, fit_tagging
from luthier.data.task import LOWER_IS_BETTER
from luthier.errors import DataError, ModelError

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""C of the linear models (ridge: alpha = 1 / C), tried on validation; smallest first, so that ties prefer the
simpler model.
"""

Scores = Callable[[Any, Any, Any], dict[str, float]]


@dataclass
class Baseline:
    """A fitted baseline. predict: inputs -> probabilities (rows, classes), values (rows,), texts, or for each row (words, tags); of
    retrieval a split -> ranks (rows,)."""

    predict: Callable[[Any], Any]
    strength: float | None
    trials: list[dict[str, Any]]
    parameters: int
    file_bytes: int
    seconds: float


def names_for(task: Any) -> tuple[str, ...]:
    """The baselines that fit a task: texts get TF-IDF, images and arrays raw values; no probe writes text."""
    if task.kind == "tagging":
        return TAGGING
    if task.kind == "retrieval":
        return RETRIEVAL
    second = "tfidf" if task.modality in ("text", "pair") else "pixels"
    return ("majority", second) if task.kind == "text2text" else ("majority", second, "probe")


def fit_baseline(
    name: str, model: Any, data: Any, *, scores: Scores, batch_size: int = 32, seed: int = 0
) -> Baseline:
    """Fit one baseline. Errors: DataError for a training split that nothing can be learned from."""
    start = time.perf_counter()
    if len(data.train) == 0:
        raise DataError("The training split is empty. Give at least one row of each class.")
    if data.task.kind == "tagging":
        predict, strength, trials, parameters, size = fit_tagging(name, model, data, scores, batch_size, seed)
        fitted = Baseline(predict, strength, trials, parameters, size, 0.0)
    elif data.task.kind == "retrieval":
        ranked, size = fit_retrieval(name, model, data, batch_size)
        fitted = Baseline(ranked, None, [], 0, size, 0.0)
    elif name == "majority":
        fitted = _majority(data)
    elif data.task.kind == "text2text":
        fitted = _nearest(data)
    else:
        featurise, x, extra_bytes = {"tfidf": _tfidf, "pixels": _raw, "probe": _probe}[name](
            model, data, batch_size
        )
        fitted = _linear(data, featurise, x, scores, seed)
        fitted.file_bytes += extra_bytes
    fitted.seconds = time.perf_counter() - start
    return fitted


def _majority(data: Any) -> Baseline:
    """Class frequencies of training; the mean for regression; the most frequent text."""
    kind, y = data.task.kind, data.train.targets
    if kind == "text2text":
        most = Counter(first_reference(t) for t in y).most_common(1)[0][0]
        return Baseline(lambda x: [most] * len(x), None, [], 0, len(most.encode()), 0.0)
    if kind == "classification":
        value = np.bincount(np.asarray(y, int), minlength=len(data.task.labels)) / len(y)
    else:
        value = np.asarray(y, float).reshape(len(y), -1).mean(0)
    if kind == "regression":
        return Baseline(lambda x: np.full(len(x), value[0]), None, [], 1, 8, 0.0)
    return Baseline(lambda x: np.tile(value, (len(x), 1)), None, [], 0, value.nbytes, 0.0)


def first_reference(target: Any) -> str:
    """A text to be written; the first where several are right."""
    return target if isinstance(target, str) else str(target[0])


def _nearest(data: Any) -> Baseline:
    """Text to text: the output of the training row whose input is nearest in TF-IDF."""
    texts, outputs = joined(data.train.inputs), [first_reference(t) for t in data.train.targets]
    vectors = _vectoriser().fit(texts)
    known = vectors.transform(texts)

    def predict(inputs: Any) -> list[str]:
        rows = vectors.transform(joined(inputs))
        return [
            outputs[int(np.asarray((rows[i] @ known.T).todense()).argmax())] for i in range(rows.shape[0])
        ]

    size = sum(len(t.encode()) for t in (*texts, *outputs)) + known.data.nbytes
    return Baseline(predict, None, [], 0, size, 0.0)


def joined(inputs: Any) -> list[str]:
    """Texts; a pair becomes one text."""
    return [x if isinstance(x, str) else " \n ".join(map(str, x)) for x in inputs]


def _vectoriser() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Any run of word characters: one-letter words and digits are words too. Bigrams as in the usual strong
    # baseline.
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]", max_features=200_000
    )


Featuriser = tuple[Callable[[Any], Any], Any, int]
"""inputs -> matrix (rows, features); the matrix of the training rows; bytes that the features add to a file.
"""


def _tfidf(model: Any, data: Any, batch_size: int) -> Featuriser:
    vectors = _vectoriser()
    try:
        x = vectors.fit_transform(joined(data.train.inputs))
    except ValueError:
        raise DataError("TF-IDF found no words in the training texts. Check the input column.") from None
    words = sum(len(w.encode()) + 8 for w in vectors.vocabulary_)
    return lambda inputs: vectors.transform(joined(inputs)), x, words


def _raw(model: Any, data: Any, batch_size: int) -> Featuriser:
    """Values as they are, standardised; rows of several shapes are refused."""

    def flat(inputs: Any) -> np.ndarray:
        shapes = {np.shape(x) for x in inputs}
        if len(shapes) > 1:
            raise DataError(
                f"Raw values need rows of one shape, found {len(shapes)}, such as {sorted(shapes)[:2]}. "
                "Resize the images."
            )
        return np.stack([np.asarray(x, np.float32).reshape(-1) for x in inputs])

    return _standardised(flat, data)


def _probe(model: Any, data: Any, batch_size: int) -> Featuriser:
    """Frozen features of the model, standardised."""

    def pooled(inputs: Any) -> np.ndarray:
        values = features(model, inputs, batch_size)
        if not np.isfinite(values).all():
            raise ModelError("The model's features are not finite on this data. Load it with dtype=float32.")
        return values

    return _standardised(pooled, data)


def _standardised(values: Callable[[Any], np.ndarray], data: Any) -> Featuriser:
    """Mean 0 and deviation 1 over the training rows; a constant column stays as it is."""
    x = values(data.train.inputs)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    return lambda inputs: (values(inputs) - mean) / std, (x - mean) / std, mean.nbytes * 2


CHUNK = 512  # rows encoded at a time: encoded images are large


def features(model: Any, inputs: Any, batch_size: int = 32) -> np.ndarray:
    """One vector per row, (rows, width) float32, from the frozen model: its hidden states pooled as the model
    says.
    """
    import torch

    from luthier.host import Adapted
    from luthier.methods.heads import pool

    adapted = Adapted(model.base).eval()
    out: np.ndarray | None = None
    for first in range(0, len(inputs), CHUNK):
        rows = inputs[first : first + CHUNK]
        if model.preprocess is not None:
            rows = model.preprocess.encode(rows)
        order = list(range(len(rows)))
        if model.preprocess is not None:
            order.sort(key=lambda i: len(rows[i].get("input_ids", ())))  # rows of one length together
        for at in range(0, len(order), batch_size):
            picked = order[at : at + batch_size]
            if model.preprocess is None:
                batch = {"x": torch.as_tensor(np.stack([np.asarray(rows[i], np.float32) for i in picked]))}
            else:
                batch = model.preprocess.collate([rows[i] for i in picked])
            batch = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batch.items()}
            with torch.inference_mode():
                hidden, mask = _hidden(adapted, batch)
                vectors = hidden.flatten(1) if model.pooling == "none" else pool(hidden, mask, model.pooling)
            if out is None:
                out = np.zeros((len(inputs), vectors.shape[1]), np.float32)
            out[first + np.array(picked)] = vectors.float().cpu().numpy()
    if out is None:
        raise DataError("There are no rows to read features of.")
    return out


def _hidden(adapted: Any, batch: Any) -> tuple[Any, Any]:
    """Hidden states and mask: of the model, or of the body below a language model's head."""
    found = adapted(batch, body=True)
    if found.hidden is None:
        raise ModelError(
            f"{type(adapted.base).__name__} returns no hidden states, so there is nothing to probe."
        )
    return found.hidden, found.mask


def _linear(data: Any, featurise: Callable[[Any], Any], x: Any, scores: Scores, seed: int) -> Baseline:
    """A linear model on features x, (rows, width); its strength is chosen on validation by the headline
    metric.
    """
    task, y = data.task, data.train.targets
    held = data.validation is not None and len(data.validation) > 0
    xv = featurise(data.validation.inputs) if held else None
    best: tuple[float, float, Any] | None = None
    trials = []
    for strength in STRENGTHS if held else (1.0,):
        predict = _fit_linear(task, x, y, strength, seed)
        score = 0.0
        if held:
            figures = scores(task, data.validation.targets, predict(xv))
            score = figures[task.metric] * (-1 if task.metric in LOWER_IS_BETTER else 1)
            trials.append({"strength": strength, "validation": figures})
        if best is None or score > best[0] + 1e-12:
            best = (score, strength, predict)
    assert best is not None
    chosen = best[2]
    outputs = 1 if task.kind == "regression" else len(task.labels)
    parameters = (x.shape[1] + 1) * outputs
    return Baseline(
        lambda inputs: chosen(featurise(inputs)), best[1], trials, parameters, parameters * 4, 0.0
    )


def _fit_linear(task: Any, x: Any, y: Any, strength: float, seed: int) -> Callable[[Any], np.ndarray]:
    """Ridge, logistic regression, or one logistic regression per label. Classes without training rows get
    probability 0.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.kind == "regression":
        ridge = Ridge(alpha=1 / strength, random_state=seed).fit(x, np.asarray(y, float))
        return lambda v: ridge.predict(v).reshape(-1)
    columns = np.asarray(y).T if task.kind == "multilabel" else [np.asarray(y, int)]
    width = len(task.labels)
    fitted = [_logistic(LogisticRegression, x, c, strength, seed) for c in columns]

    def predict(v: Any) -> np.ndarray:
        if task.kind == "multilabel":
            return np.stack([_spread(f, v, 2)[:, 1] for f in fitted], 1)
        return _spread(fitted[0], v, width)

    return predict


def _logistic(kind: Any, x: Any, y: np.ndarray, strength: float, seed: int) -> Any:
    import warnings

    classes = np.unique(y)
    if len(classes) < 2:
        return int(classes[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching max_iter is no reason to alarm: validation decides
        return kind(C=strength, max_iter=300, random_state=seed).fit(x, y.astype(int))


def _spread(fitted: Any, v: Any, width: int) -> np.ndarray:
    """Probabilities over all `width` classes."""
    out = np.zeros((v.shape[0], width))
    if isinstance(fitted, int):
        out[:, fitted] = 1
    else:
        out[:, fitted.classes_] = fitted.predict_proba(v)
    return out
