"""What a comparison keeps of the test rows: each run's predictions, the rows themselves, and the figures with
their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.compare.folder import read_rows, write_rows
from luthier.compare.intervals import Metric, metric_by_rows, metric_of, summarise
from luthier.data.entities import chosen_tags
from luthier.errors import FileFormatError

LONGEST = 2000  # characters of a text that are kept to be shown
PICTURES = 2000  # test images that are kept to be shown


def asked(task: Any, split: Any) -> Any:
    """What is predicted of rows: their inputs; of retrieval the rows, whose documents are the candidates."""
    return split if task.kind == "retrieval" else split.inputs


def predict(fitted: Any, task: Any, inputs: Any) -> Any:
    """Probabilities (rows, classes), values (rows,), both float32, texts, for each row (words, tags), or ranks (rows,)."""
    if task.kind == "retrieval":
        return np.asarray(fitted.answers(inputs))
    if task.kind == "text2text":
        return [str(x) for x in fitted.predict(inputs)]
    if task.kind == "tagging":
        return list(fitted.predict_proba(inputs))
    outputs = fitted.predict(inputs) if task.kind == "regression" else fitted.predict_proba(inputs)
    return np.asarray(outputs, np.float32)


def save_predictions(path: Path, task: Any, split: Any, outputs: Any) -> None:
    """One line per test row: row, target, prediction, and p (probabilities, nine digits: float32 exactly). Of tagging the
    tags alone, one a word."""

    def one(i: int) -> dict[str, Any]:
        target, out = split.targets[i], outputs[i]
        if task.kind == "text2text":
            return {
                "row": i,
                "target": target if isinstance(target, str) else list(target),
                "prediction": out,
            }
        if task.kind == "retrieval":
            return {"row": i, "target": target, "rank": int(out)}
        if task.kind == "regression":
            return {"row": i, "target": float(target), "prediction": nine(out)}
        if task.kind == "tagging":
            named = lambda tags: [task.labels[int(tag)] for tag in tags]
            return {"row": i, "target": named(target), "prediction": named(chosen_tags(out))}
        p = [nine(x) for x in out]
        if task.kind == "multilabel":
            said = [n for n, x in zip(task.labels, out) if x >= 0.5]
            return {
                "row": i,
                "target": [n for n, x in zip(task.labels, target) if x],
                "prediction": said,
                "p": p,
            }
        return {
            "row": i,
            "target": task.labels[int(target)],
            "prediction": task.labels[int(np.argmax(out))],
            "p": p,
        }

    write_rows(path, (one(i) for i in range(len(split))))


def nine(x: Any) -> float:
    return float(f"{float(x):.9g}")


def load_predictions(path: Path, task: Mapping[str, Any]) -> tuple[Any, Any]:
    """(targets, predictions) as `metric_of` takes them. A damaged file raises FileFormatError."""
    rows, labels, kind = read_rows(path), {n: i for i, n in enumerate(task["labels"])}, task["kind"]
    try:
        if kind == "text2text":
            return [r["target"] for r in rows], [r["prediction"] for r in rows]
        if kind == "retrieval":
            return [r["target"] for r in rows], np.array([r["rank"] for r in rows], dtype=np.int64)
        if kind == "regression":
            return np.array([r["target"] for r in rows]), np.array([r["prediction"] for r in rows])
        if kind == "tagging":
            return [tags_in(r["target"], labels) for r in rows], [
                tags_in(r["prediction"], labels) for r in rows
            ]
        p = np.array([r["p"] for r in rows], float).reshape(len(rows), len(labels))
        if kind == "multilabel":
            return np.array([[float(n in r["target"]) for n in labels] for r in rows]), p
        return np.array([labels[r["target"]] for r in rows]), p
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(
            f"{path} does not hold predictions of this comparison. Remove the folder and compare again."
        ) from None


def tags_in(row: Any, labels: Mapping[str, int]) -> list[str]:
    """A row's tags as they were written; ValueError for anything else."""
    if not isinstance(row, list) or any(tag not in labels for tag in row):
        raise ValueError("no list of tags")
    return row


def save_test(path: Path, data: Any) -> None:
    """The test rows as they can be shown: text (cut), picture, or nothing; and the target."""
    split, task = data.test, data.task

    def one(i: int) -> dict[str, Any]:
        x = split.inputs[i]
        row: dict[str, Any] = {"row": i}
        if task.modality == "text":
            row["input"] = str(x)[:LONGEST]
        elif task.modality == "words":
            row["input"] = " ".join(map(str, x))[:LONGEST]
        elif task.modality == "pair":
            row["input"] = [str(t)[:LONGEST] for t in x]
        elif task.modality == "image" and i < PICTURES:
            row["image"] = picture(x)
        return row

    write_rows(path, (one(i) for i in range(len(split))))


def picture(image: Any) -> str | None:
    """A data URI of an image (height, width, channels or none) of bytes, at most 96 pixels wide; None if it
    is not one.
    """
    import base64
    import io

    try:
        from PIL import Image

        a = np.asarray(image)
        if a.dtype != np.uint8:
            span = float(a.max() - a.min()) or 1.0
            a = ((a - a.min()) / span * 255).astype(np.uint8)
        if a.ndim == 3 and a.shape[2] == 1:
            a = a[:, :, 0]
        made = Image.fromarray(a)
        made.thumbnail((96, 96))
        out = io.BytesIO()
        made.save(out, "PNG")
    except (ImportError, TypeError, ValueError):
        return None
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def metrics_of(
    results: Mapping[str, Any], folder: Path, scores: Any = None, task: Any = None
) -> dict[str, list[Metric]]:
    """For every arm that is done, one Metric per run. scores and task score texts, and metrics that have no
    decomposition.
    """
    said, name = results["task"], results["metric"]
    out: dict[str, list[Metric]] = {}
    for arm in results["arms"]:
        if arm["status"] != "done":
            continue
        for run in arm["runs"]:
            targets, predictions = load_predictions(inside(folder, run["predictions"]), said)
            metric = metric_of(name, said["kind"], targets, predictions)
            exact = metric is not None and abs(metric.point() - run["test"][name]) < 1e-5
            if not exact and scores is not None:

                def score(rows: Any, targets: Any = targets, predictions: Any = predictions) -> float:
                    picked = (
                        ([targets[i] for i in rows], [predictions[i] for i in rows])
                        if said["kind"] == "text2text"
                        else (targets[rows], predictions[rows])
                    )
                    return float(scores(task, *picked)[name])

                metric = metric_by_rows(score, len(targets), try_single=said["kind"] == "text2text")
            if metric is not None:
                out.setdefault(arm["name"], []).append(metric)
    return out


def inside(folder: Path, relative: str) -> Path:
    """A path of the comparison's folder; one that leads out of it raises FileFormatError."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise FileFormatError(
            f"results.json names {relative[:80]!r}, which is outside of its folder. Compare again."
        )
    return path


def add_summaries(results: dict[str, Any], folder: Path, scores: Any = None, task: Any = None) -> None:
    """Fill `summary` of every arm that is done, in place."""
    found = summarise(metrics_of(results, folder, scores, task), results["metric"])
    for arm in results["arms"]:
        arm["summary"] = found.get(arm["name"])
