"""Intervals by paired bootstrap over test rows and seeds (Efron 1979; percentile intervals), without a loop
over resamples.

A headline metric is written as g(mean over rows of s), s: (rows, k) statistics of each row, so that a
resample of rows is one
row of a matrix of counts and all resamples are one product. The same resamples serve every arm: differences
are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.entities import entity_counts
from luthier.data.task import LOWER_IS_BETTER

Array = NDArray[np.float64]
CHUNK = 250  # resamples per product: bounds memory to CHUNK x rows


@dataclass(frozen=True)
class Metric:
    """A metric as g of mean row statistics. rows: (rows, k); g: (..., k) -> (...)."""

    rows: Array
    g: Callable[[Array], Array]
    slow: bool = False
    """Whether g costs so much that fewer resamples are taken."""

    def point(self) -> float:
        return float(self.g(self.rows.mean(0, keepdims=True))[0])


def metric_of(name: str, kind: str, targets: Any, predictions: Any) -> Metric | None:
    """The decomposition of a metric, or None for one that has none here.

    classification: targets int (rows,), predictions probabilities (rows, classes); multilabel: 0/1 and
    probabilities (rows, classes);
    regression: values (rows,); retrieval: ranks (rows,); tagging: the tags of each row's words, by name, which rows are resampled whole.
    """
    if kind == "tagging":
        return _taggings(name, targets, predictions)
    if kind == "retrieval":
        rank = np.asarray(predictions, float)
        by_row = 1 / rank if name == "mrr" else (rank <= int(name.removeprefix("recall@"))).astype(float)
        return Metric(by_row[:, None], lambda m: m[..., 0])
    if kind == "classification":
        y, p = np.asarray(targets, int), np.asarray(predictions, float)
        chosen = p.argmax(1)
        if name == "accuracy":
            return Metric((chosen == y)[:, None].astype(float), lambda m: m[..., 0])
        if name == "macro_f1":
            eye = np.eye(p.shape[1])
            return _f1(eye[y], eye[chosen])
        if name == "log_loss":
            picked = np.clip(p[np.arange(len(y)), y], 1e-12, 1.0)
            return Metric(-np.log(picked)[:, None], lambda m: m[..., 0])
    if kind == "multilabel":
        y, p = np.asarray(targets, float), np.asarray(predictions, float)
        chosen = (p >= 0.5).astype(float)
        if name in ("macro_f1", "micro_f1"):
            return _f1(y, chosen, absent=True, together=name == "micro_f1")
        if name == "accuracy":
            return Metric((y == chosen).all(1)[:, None].astype(float), lambda m: m[..., 0])
    if kind == "regression":
        y, v = np.asarray(targets, float).reshape(-1), np.asarray(predictions, float).reshape(-1)
        if name == "rmse":
            return Metric(((y - v) ** 2)[:, None], lambda m: np.sqrt(m[..., 0]))
        if name == "pearson":
            a, b = y - y.mean(), v - v.mean()  # centred: the same metric, less cancellation
            return Metric(np.stack([a, b, a * b, a * a, b * b], 1), _pearson)
    return None


def _taggings(name: str, targets: Any, predictions: Any) -> Metric | None:
    """Metrics over entities or words, from what each sentence adds to their counts."""
    if name == "entity_f1":
        counts = np.array([entity_counts(a, b) for a, b in zip(targets, predictions)], float)
        return Metric(counts, lambda m: _share(2 * m[..., 0], m[..., 1]))
    if name == "accuracy":
        right = [[sum(x == y for x, y in zip(a, b)), len(a)] for a, b in zip(targets, predictions)]
        return Metric(np.array(right, float), lambda m: _share(m[..., 0], m[..., 1]))
    if name != "macro_f1":
        return None
    at = {tag: i for i, tag in enumerate(sorted({tag for row in (*targets, *predictions) for tag in row}))}
    both, either = np.zeros((len(targets), len(at))), np.zeros((len(targets), len(at)))
    for row, (a, b) in enumerate(zip(targets, predictions)):
        for x, y in zip(a, b):
            either[row, at[x]] += 1
            either[row, at[y]] += 1
            both[row, at[x]] += x == y
    return _f1_of(both, either)


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 1e-12)


def metric_by_rows(score: Callable[[Any], float], rows: int, try_single: bool = False) -> Metric:
    """A metric that is recomputed on every resample, or, if `try_single` finds it so, the mean of its figures
    on single rows.

    score: an array of row indices (with repeats) -> the metric. Texts are scored this way; a corpus-wide
    metric is slow.
    """
    if try_single:
        metric = Metric(np.array([[score(np.array([i]))] for i in range(rows)]), lambda m: m[..., 0])
        if abs(metric.point() - score(np.arange(rows))) < 1e-6:
            return metric

    def again(m: Array) -> Array:
        return np.array([score(np.repeat(np.arange(rows), np.rint(w * rows).astype(int))) for w in m])

    return Metric(np.eye(rows), again, slow=True)


def _f1(y: Array, chosen: Array, absent: bool = False, together: bool = False) -> Metric:
    """F1 of 0/1 (rows, classes): the mean over classes, or one figure for all together.

    absent: whether a class that occurs neither among targets nor predictions counts, as 0 (as scikit-learn
    has it for
    labels), or is left out (as it has it for classes).
    """
    both, either = (
        y * chosen,
        y + chosen,
    )  # true positives; positives among targets plus those among predictions
    if together:
        both, either = both.sum(1, keepdims=True), either.sum(1, keepdims=True)
    return _f1_of(both, either, absent)


def _f1_of(both: Array, either: Array, absent: bool = False) -> Metric:
    """F1 from (rows, classes) counts of hits, and of targets plus predictions."""
    classes = both.shape[1]

    def g(m: Array) -> Array:
        hits, of = m[..., :classes], m[..., classes:]
        seen = of > 1e-12
        f1 = np.divide(2 * hits, of, out=np.zeros_like(hits), where=seen)
        return f1.mean(-1) if absent else f1.sum(-1) / np.maximum(seen.sum(-1), 1)

    return Metric(np.concatenate([both, either], 1), g)


def _pearson(m: Array) -> Array:
    cov = m[..., 2] - m[..., 0] * m[..., 1]
    var = np.clip(m[..., 3] - m[..., 0] ** 2, 0, None) * np.clip(m[..., 4] - m[..., 1] ** 2, 0, None)
    return np.divide(cov, np.sqrt(var), out=np.zeros_like(cov), where=var > 1e-18)


def resample_rows(rows: int, resamples: int, seed: int) -> Array:
    """(resamples, rows): how often each row is drawn; every line sums to `rows`."""
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(resamples)]
    return np.stack(drawn).astype(float)


@dataclass(frozen=True)
class Resampled:
    """One arm: its figure and the same figure on every resample."""

    figure: float
    figures: Array  # (resamples,)


def bootstrap(
    arms: Mapping[str, Sequence[Metric]], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Resampled]:
    """The figure of each arm (mean over its runs) and its bootstrap distribution.

    arms: for each arm one Metric per seed, all over the same test rows. Rows are drawn once for all arms;
    seeds are drawn once
    for all arms with the same number of runs, so that seed i of one arm meets seed i of another. An arm with
    one run varies by
    rows only.
    """
    counts = {m.rows.shape[0] for runs in arms.values() for m in runs}
    if not counts:
        return {}
    if len(counts) > 1:
        raise ValueError(f"arms were tested on different numbers of rows: {sorted(counts)}")
    rows = counts.pop()
    per_run: dict[str, list[list[Array]]] = {name: [[] for _ in runs] for name, runs in arms.items()}
    for first in range(0, resamples, CHUNK):
        times = resample_rows(rows, min(CHUNK, resamples - first), seed * 1_000_003 + first)
        for name, runs in arms.items():
            for i, m in enumerate(runs):
                per_run[name][i].append(m.g(times @ m.rows / rows))
    out = {}
    for name, runs in arms.items():
        figures = np.stack([np.concatenate(x) for x in per_run[name]])  # (runs, resamples)
        picks = np.random.default_rng(seed + 17).integers(0, len(runs), (len(runs), resamples))
        drawn = np.take_along_axis(figures, picks, 0).mean(0)
        out[name] = Resampled(float(np.mean([m.point() for m in runs])), drawn)
    return out


def percentile(figures: Array, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds `level` of the resamples."""
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def widened(low: float, high: float, runs: Sequence[Metric], level: float) -> tuple[float, float]:
    """Clopper-Pearson bounds where all rows are right, or all wrong: resamples of those never vary."""
    rows = np.concatenate([m.rows for m in runs])
    if low != high or rows.shape[1] != 1 or low not in (0.0, 1.0) or not (rows == low).all():
        return low, high
    bound = ((1 - level) / 2) ** (1 / len(runs[0].rows))
    return (bound, 1.0) if low == 1 else (0.0, 1 - bound)


def difference(a: Resampled, b: Resampled, level: float = 0.95) -> dict[str, Any]:
    """a - b on the same resamples: {"mean", "low", "high", "clear"}; clear: the interval leaves out 0."""
    low, high = percentile(a.figures - b.figures, level)
    return {"mean": a.figure - b.figure, "low": low, "high": high, "clear": bool(low > 0 or high < 0)}


def summarise(
    arms: Mapping[str, Sequence[Metric]],
    metric: str,
    *,
    reference: str | None = "probe",
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """For each arm: figure, interval, paired differences to the best arm and to `reference`, and how often it
    is the best.

    `chance_best` is the share of resamples in which the arm has the best figure (ties shared equally).
    """
    if any(m.slow for runs in arms.values() for m in runs):
        resamples = min(resamples, 200)
    drawn = bootstrap({k: v for k, v in arms.items() if v}, resamples=resamples, seed=seed)
    if not drawn:
        return {}
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    best = max(drawn, key=lambda k: sign * drawn[k].figure)
    stack = sign * np.stack([d.figures for d in drawn.values()])
    top = stack >= stack.max(0) - 1e-12
    chance = (top / top.sum(0)).mean(1)
    out = {}
    for i, (name, d) in enumerate(drawn.items()):
        low, high = percentile(d.figures, level)
        if metric in ("accuracy", "exact_match"):
            low, high = widened(low, high, arms[name], level)
        out[name] = {
            "metric": d.figure,
            "low": low,
            "high": high,
            "level": level,
            "over": "rows and seeds" if len(arms[name]) > 1 else "rows",
            "delta_vs_best": None if name == best else {"arm": best, **difference(d, drawn[best], level)},
            "delta_vs_reference": None
            if reference not in drawn or name == reference
            else {"arm": reference, **difference(d, drawn[reference], level)},
            "chance_best": float(chance[i]),
            "best": name == best,
        }
    return out
