"""After the last step: score once, measure, and write what a run leaves behind."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.host.options import to_card
from luthier.train.curve import learning_curve
from luthier.train.fitted import Fitted, answers
from luthier.train.predict import latency
from luthier.train.preflight import plain
from luthier.train.settings import surroundings

if TYPE_CHECKING:
    from luthier.train.fit import Job


def finish(job: Job) -> Fitted:
    """Evaluate on validation and test, write the folder, and hand over the adaptation."""
    from luthier.data.scores import scores

    watch, run, data, task = job.watch, job.run, job.data, job.task
    validation = watch.final_scores()
    watch.lap("evaluate")
    fitted = Fitted(run.main, job.model, task, {}, job.settings.max_new_tokens)
    test, found = {}, None
    if data.test is not None:
        found = answers(
            job.adapted,
            fitted,
            data.test,
            precision=job.settings.precision,
            processes=job.processes.evaluating(),
        )
        test = {k: float(v) for k, v in scores(task, data.test.targets, found).items()}
    watch.lap("evaluate")
    adaptation = run.main
    counts = adaptation.counts()
    metrics: dict[str, Any] = {
        "validation": validation,
        "test": test,
        "parameters": counts["method"] + counts["head"],
        "parameters_head": counts["head"],
        "seconds": {k: round(v, 4) for k, v in watch.seconds.items()},
        "peak_bytes": watch.peak_bytes or None,
        "predicted_peak_bytes": watch.predicted + watch.cached if watch.predicted is not None else None,
        "resident_bytes": watch.resident,
        "cache": {"bytes": watch.cached} if watch.cached else {"bytes": 0, "because": watch.uncached},
        "latency_ms": round(latency(job.adapted, job.splits["train"], job.processes.device), 4),
        "file_bytes": sum(t.numel() * t.element_size() for t in adaptation.state().values()),
        "steps": run.total,
        "epochs": round(run.total / job.per_epoch, 4),
        "rows": {
            name: len(split)
            for name in ("train", "validation", "test")
            if (split := getattr(data, name)) is not None
        },
        "rate": float(job.settings.rate if job.settings.rate is not None else adaptation.method.rate),
        "seed": job.settings.seed,
        "method": to_card(adaptation.method),
        "versions": surroundings(job.model, job.processes),
    }
    adaptation.about = {
        **adaptation.about,
        "data": plain(str(data.name)),
        "rows": len(data.train),
        "seed": job.settings.seed,
        "steps": run.total,
        "validation": validation,
        "test": test,
    }
    adaptation.eval()
    adaptation.requires_grad_(False)
    fitted.metrics = metrics
    if job.out is not None:  # nobody returns before the folder is whole
        job.processes.main_first(lambda: write(job, fitted, found))
    return fitted


def write(job: Job, fitted: Fitted, found: Any) -> None:
    """Every file is replaced at once; DONE is last."""
    folder = job.folder
    assert folder is not None
    job.watch.log.position()
    fitted.save(folder.path / "adaptation")
    tensors = folder.path / "adaptation" / "tensors.safetensors"
    fitted.metrics["file_bytes"] = (
        os.path.getsize(tensors) if tensors.is_file() else fitted.metrics["file_bytes"]
    )
    if found is not None:
        folder.write_text("predictions.jsonl", prediction_lines(job.task, job.data.test, found))
    title = f"{fitted.adaptation.method.name} on {plain(str(job.data.name))}"
    folder.write_text("curve.svg", learning_curve(job.watch.log.records, job.watch.metric, title))
    folder.write_json("metrics.json", fitted.metrics)
    folder.finish()


def prediction_lines(task: Any, split: Any, found: Any) -> str:
    """One JSON object per row: what was given, what was right, what was said and how sure."""
    out, labels = io.StringIO(), names(task)
    for row in range(len(split)):
        record: dict[str, Any] = {"row": row}
        if task.modality in ("text", "pair", "words"):
            given = split.inputs[row]
            record["input"] = plain(given) if isinstance(given, str) else [plain(part) for part in given]
        target, said = split.targets[row], found[row]
        if task.kind == "classification":
            record |= {"target": labels[int(target)], "predicted": labels[int(np.argmax(said))]}
            record["probabilities"] = by_label(task, said)
        elif task.kind == "multilabel":
            record["target"] = [n for n, t in zip(labels, target) if t]
            record["predicted"] = [n for n, p in zip(labels, said) if p >= 0.5]
            record["probabilities"] = by_label(task, said)
        elif task.kind == "tagging":
            record["target"] = [labels[int(t)] for t in target]
            record["predicted"] = [labels[int(t)] for t in said.argmax(-1)]
        elif task.kind == "retrieval":
            record |= {"target": plain(str(target)), "rank": int(said)}
        elif task.kind == "regression":
            record |= {"target": float(target), "predicted": float(said)}
        else:
            record |= {"target": plain(str(target)), "predicted": plain(said)}
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return out.getvalue()


def by_label(task: Any, probabilities: Any) -> dict[str, float]:
    return {name: float(f"{p:.6g}") for name, p in zip(names(task), probabilities)}


def names(task: Any) -> list[str]:
    """Labels without control characters, as long as that leaves them apart."""
    cleaned = [plain(str(name)) for name in task.labels]
    return cleaned if len(set(cleaned)) == len(cleaned) else list(task.labels)
