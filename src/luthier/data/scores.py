"""Scores of predictions, by the kind of task, from scikit-learn, SciPy, rouge-score and sacrebleu.

Shares are in [0, 1]; bleu is sacrebleu's, in [0, 100]; log_loss is in nats; rmse in the label's unit.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.data.task import Task
from luthier.errors import DataError

_BINS = 15


def scores(task: Task, targets: Any, predictions: Any) -> dict[str, float]:
    """Every metric of the task's kind, the headline among them; all finite.

    classification  predictions (rows, classes) probabilities, or (rows,) class indices (then no log_loss and
                    no ece)
    multilabel      (rows, classes) a probability for each class by itself; a class is predicted from 0.5
    regression      (rows,) values; a correlation with a constant is 0
    text2text       texts; targets texts, or lists of references of which the best counts
    retrieval       (rows,) the rank of each row's own document among all, from 1: `luthier.data.ranks`
    tagging         for each row (words, tags) probabilities, or (words,) tag indices: see `luthier.data.entities`

    Raises DataError where predictions do not fit the targets, are not finite, or are no probabilities.
    """
    if len(targets) != len(predictions):
        raise DataError(f"{len(predictions)} predictions for {len(targets)} rows: give one a row")
    if not len(targets):
        raise DataError("No rows to score: the part is empty")
    if task.kind == "text2text":
        return _texts(list(targets), list(predictions))
    if task.kind == "tagging":
        from luthier.data.entities import tagging_scores

        return tagging_scores(task.labels, list(targets), list(predictions))
    if task.kind == "retrieval":
        from luthier.data.ranks import retrieval_scores

        return retrieval_scores(predictions)
    predicted = np.asarray(predictions)
    if predicted.dtype.kind not in "biuf" or not np.isfinite(predicted).all():
        raise DataError(
            "Predictions hold NaN, infinity or something else than numbers: the model has diverged"
        )
    if task.kind == "regression":
        return _values(np.asarray(targets, np.float64), predicted.astype(np.float64))
    if task.kind == "multilabel":
        return _sets(np.asarray(targets), _probabilities(predicted, task))
    return _classes(np.asarray(targets), predicted, task)


def _probabilities(predicted: np.ndarray, task: Task) -> np.ndarray:
    predicted = predicted.astype(np.float64)
    if predicted.ndim != 2 or predicted.shape[1] != len(task.labels):
        raise DataError(
            f"Predictions have shape {predicted.shape}: (rows, {len(task.labels)}) probabilities are scored"
        )
    if predicted.min() < -1e-6 or predicted.max() > 1 + 1e-2:
        raise DataError("Predictions leave [0, 1]: give probabilities, not logits")
    return np.clip(predicted, 0, 1)


def _classes(targets: np.ndarray, predicted: np.ndarray, task: Task) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    if predicted.ndim == 1 and predicted.dtype.kind in "iu":
        chosen, probabilities = predicted, None
    else:
        probabilities = _probabilities(predicted, task)
        sums = probabilities.sum(axis=1, keepdims=True)
        if np.abs(sums - 1).max() > 2e-2:  # bf16 sums are off by up to 1e-2
            raise DataError("Predictions of a row do not sum to 1: give probabilities of one class each")
        probabilities /= sums
        chosen = probabilities.argmax(axis=1)
    found = {
        "accuracy": accuracy_score(targets, chosen),
        # over the classes that occur in targets or predictions: a class that a test part lacks is no failure
        "macro_f1": f1_score(targets, chosen, average="macro", zero_division=0.0),
    }
    if probabilities is not None:
        found["log_loss"] = -np.log(np.clip(probabilities[np.arange(len(targets)), targets], 1e-15, 1)).mean()
        found["ece"] = _calibration_error(probabilities.max(axis=1), chosen == targets)
    return _plain(found)


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence|, over 15 bins of confidence, averaged by rows."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(right))


def _sets(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    chosen, truth = probabilities >= 0.5, targets >= 0.5
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    return _plain(
        {
            "micro_f1": f1_score(truth, chosen, average="micro", zero_division=0.0),
            "macro_f1": f1_score(truth, chosen, average="macro", zero_division=0.0),
            "accuracy": accuracy_score(truth, chosen),  # of whole rows
            "log_loss": -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean(),
        }
    )


def _values(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from scipy.stats import rankdata
    from sklearn.metrics import root_mean_squared_error

    predicted = predicted.reshape(len(predicted), -1)
    if predicted.shape[1] != 1:
        raise DataError(f"Predictions have shape {predicted.shape}: one value a row is scored")
    predicted = predicted[:, 0]
    return _plain(
        {
            "pearson": _correlation(targets, predicted),
            "spearman": _correlation(rankdata(targets), rankdata(predicted)),
            "rmse": root_mean_squared_error(targets, predicted),
        }
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


class _Words:
    """Words of any script: rouge-score's tokenizer keeps a-z and digits, so that Greek scores 0."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _texts(targets: Sequence[str | Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    references = [[target] if isinstance(target, str) else list(target) for target in targets]
    if not all(isinstance(text, str) for text in predicted) or not all(references):
        raise DataError("Text predictions are texts, and every row has a reference")
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    longest = max(map(len, references))
    columns = [[row[at] if at < len(row) else None for row in references] for at in range(longest)]
    rouge = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in row)
        for row, text in zip(references, predicted)
    ]
    same = [text.strip() in {each.strip() for each in row} for row, text in zip(references, predicted)]
    return _plain(
        {
            "rougeL": np.mean(rouge),
            "bleu": sacrebleu.corpus_bleu(list(predicted), columns).score,  # type: ignore[arg-type]
            "exact_match": np.mean(same),
        }
    )


def _plain(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}
